//! The list of all methods: the program, the documents and the evaluation read it from here.

use crate::arguments::Arguments;
use crate::decode;
use crate::error::MethodError;
use crate::keep;
use crate::method::{Domain, Method, Parameter, Role, Stage};
use crate::prefill;
use crate::prompt;
use crate::read;
use crate::reuse;
use crate::store;
use crate::suggest::hint;
use crate::text::{Item, MethodText, Value};

/// Every method, by stage in the order in which a token meets them.
pub fn all() -> impl Iterator<Item = &'static Method> {
    prompt::METHODS
        .iter()
        .chain(prefill::METHODS)
        .chain(keep::METHODS)
        .chain(store::METHODS)
        .chain(read::METHODS)
        .chain(reuse::METHODS)
        .chain(decode::METHODS)
}

/// The methods of one stage that can be chosen alone; the first is its default.
pub fn of(stage: Stage) -> impl Iterator<Item = &'static Method> {
    all().filter(move |method| method.stage == stage && method.role() == Role::Method)
}

/// The methods with this role, which other methods are put together with.
pub fn parts(role: Role) -> impl Iterator<Item = &'static Method> {
    all().filter(move |method| method.role() == role)
}

/// The method called `name`.
///
/// # Errors
/// [`MethodError::UnknownMethod`], with the nearest name and the list of those that exist.
pub fn find(stage: Stage, name: &str) -> Result<&'static Method, MethodError> {
    of(stage).find(|method| method.name == name).ok_or_else(|| {
        let known: Vec<&str> = of(stage).map(|method| method.name).collect();
        MethodError::UnknownMethod {
            stage,
            name: name.to_owned(),
            hint: part_of(stage, name).unwrap_or_else(|| hint(name, known.iter().copied())),
            known: known.join(", "),
        }
    })
}

/// Where `name` belongs, if methods of the stage are put together with it.
fn part_of(stage: Stage, name: &str) -> Option<String> {
    let part = all().find(|part| part.stage == stage && part.name == name)?;
    let takes = |parameter: &&Parameter| matches!(parameter.domain, Domain::Part(role) if role == part.role());
    let (method, parameter) =
        of(stage).find_map(|method| Some((method, method.parameters.iter().find(takes)?)))?;
    Some(format!(
        " (it goes with one, as in \"{}({}={name})\")",
        method.name, parameter.name
    ))
}

/// The method called `name` that `method` can take as its `parameter`.
pub(crate) fn find_part(
    role: Role,
    method: &Method,
    parameter: &Parameter,
    name: &str,
) -> Result<&'static Method, MethodError> {
    parts(role).find(|part| part.name == name).ok_or_else(|| {
        let none = role.may_be_none().then_some("none");
        let known: Vec<&str> = none
            .into_iter()
            .chain(parts(role).map(|part| part.name))
            .collect();
        MethodError::UnknownPart {
            method: method.name.to_owned(),
            parameter: parameter.name.to_owned(),
            name: name.to_owned(),
            hint: hint(name, known.iter().copied()),
            known: known.join(", "),
        }
    })
}

/// The methods that `text` names, in order, each with its arguments.
///
/// # Errors
/// Anything a text can be wrong in; see [`MethodError`].
pub fn resolve(stage: Stage, text: &str) -> Result<Vec<(&'static Method, Arguments)>, MethodError> {
    let parsed: MethodText = text.parse()?;
    parsed
        .items
        .iter()
        .map(|item| resolve_item(stage, text, item))
        .collect()
}

fn resolve_item(
    stage: Stage,
    text: &str,
    item: &Item,
) -> Result<(&'static Method, Arguments), MethodError> {
    if let Some(key) = &item.key {
        return Err(MethodError::Selector {
            stage,
            selector: key.to_string(),
        });
    }
    resolve_value(stage, text, item)
}

/// The method that an item names, whatever stands before its `=`.
pub(crate) fn resolve_value(
    stage: Stage,
    text: &str,
    item: &Item,
) -> Result<(&'static Method, Arguments), MethodError> {
    match &item.value {
        Value::Call(call) => {
            let method = find(stage, &call.name)?;
            Ok((method, Arguments::bind(method, call)?))
        }
        other => Err(MethodError::Syntax {
            text: text.to_owned(),
            place: item.place + 1,
            what: format!("expected the name of a method, not {other}"),
        }),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::method::Domain;

    #[test]
    fn every_stage_has_a_default_and_names_are_single() {
        let mut seen = HashSet::new();
        for method in all() {
            assert!(
                seen.insert((method.stage, method.role(), method.name)),
                "{} twice",
                method.name
            );
            assert!(
                !method.doc.is_empty() && !method.doc.ends_with('.'),
                "{}",
                method.name
            );
        }
        for stage in Stage::ALL {
            assert!(
                of(stage).next().is_some_and(|method| method.exact),
                "{stage}"
            );
        }
        let stages: Vec<Stage> = all().map(|method| method.stage).collect();
        assert!(stages.is_sorted());
    }

    #[test]
    fn every_default_binds_and_its_canonical_text_binds_to_the_same() {
        for method in all() {
            if method.role() != Role::Method {
                continue;
            }
            let open = method.parameters.iter().any(|parameter| {
                parameter.default.is_empty()
                    && !matches!(parameter.domain, Domain::Seed | Domain::PerToken)
            });
            let must_be_told = |parameter: &Parameter| {
                parameter.default.is_empty()
                    && matches!(parameter.domain, Domain::Path | Domain::Text)
            };
            if method.parameters.iter().any(must_be_told) {
                continue;
            }
            assert!(!open, "{} cannot be written alone", method.name);
            let resolved = resolve(method.stage, method.name).unwrap();
            let canonical = resolved[0].1.to_string();
            let again = resolve(method.stage, &canonical).unwrap();
            assert_eq!(again[0].1, resolved[0].1, "{canonical}");
        }
    }

    #[test]
    fn unknown_methods_are_refused_by_name_with_the_list() {
        let message = find(Stage::Decode, "top_k").unwrap_err().to_string();
        assert!(
            message.contains("--decode: there is no decode method \"top_k\""),
            "{message}"
        );
        assert!(message.contains("did you mean \"top-k\"?"), "{message}");
        assert!(message.contains("min-p"), "{message}");
        let message = resolve(Stage::Keep, "snapvk(window=32)")
            .unwrap_err()
            .to_string();
        assert!(message.contains("did you mean \"snapkv\"?"), "{message}");
        for (part, example) in [
            ("adakv", "(alloc=adakv)"),
            ("d2o", "=d2o)"),
            ("look-m", "(merge=look-m)"),
        ] {
            let message = find(Stage::Keep, part).unwrap_err().to_string();
            assert!(message.contains("it goes with one, as in"), "{message}");
            assert!(message.contains(example), "{message}");
        }
        assert!(message.contains("known: all, streaming-llm"), "{message}");
        let message = resolve(Stage::Read, "4").unwrap_err().to_string();
        assert!(
            message.contains("expected the name of a method, not 4"),
            "{message}"
        );
        let message = resolve(Stage::Keep, "k=all").unwrap_err().to_string();
        assert!(message.contains("\"k=\" cannot be used here"), "{message}");
    }
}
