//! What is compared: the methods of all stages, written as one text.

use std::fmt;

use longview_kv::{KvForms, KvType};
use longview_methods::{Method, MethodError, Methods, Stage, registry};

use crate::error::EvalError;

/// Methods that are evaluated together.
///
/// A text names methods of one or several stages, joined by `+`: `q8`, `store=q8`,
/// `keep=snapkv(budget=10%)+store=q8`. The stage may be left out where only one has a method of
/// that name. `dense` is the path without any method.
#[derive(Clone, Debug)]
pub struct Setup {
    methods: Methods,
    name: String,
}

/// The stages that act before a token is chosen.
const STAGES: [Stage; 5] = [
    Stage::Prompt,
    Stage::Prefill,
    Stage::Keep,
    Stage::Store,
    Stage::Read,
];

/// The name of the path without any method.
pub(crate) const DENSE: &str = "dense";

impl Setup {
    /// The path without any method.
    pub fn dense() -> Setup {
        Setup {
            methods: Methods::new(),
            name: DENSE.to_owned(),
        }
    }

    /// Reads one setup.
    ///
    /// # Errors
    /// [`EvalError::Method`] and [`EvalError::Setup`].
    pub fn parse(text: &str) -> Result<Setup, EvalError> {
        let text = text.trim();
        let mut methods = Methods::new();
        let wrong = |what: String| EvalError::Setup {
            text: text.to_owned(),
            what,
        };
        let mut seen = Vec::new();
        for part in split(text, '+') {
            let part = part.trim();
            if part.is_empty() {
                return Err(wrong("a method is missing".to_owned()));
            }
            if part == DENSE {
                continue;
            }
            let (stage, method) = stage_of(part).map_err(wrong)?;
            if seen.contains(&stage) {
                return Err(wrong(format!("the {stage} stage is given twice")));
            }
            seen.push(stage);
            methods
                .set(stage, method)
                .map_err(|source| method_error(text, source))?;
        }
        let mut setup = Setup {
            methods,
            name: String::new(),
        };
        setup.name = setup.short();
        Ok(setup)
    }

    /// Reads setups separated by commas. What begins with `v=`, `layers …=`, `sinks=` or `recent=` goes
    /// on with the store method before it.
    ///
    /// # Errors
    /// As [`Setup::parse`].
    pub fn parse_list(text: &str) -> Result<Vec<Setup>, EvalError> {
        let mut texts: Vec<String> = Vec::new();
        for part in split(text, ',') {
            let goes_on = [
                "v=", "v =", "layers ", "sinks=", "sinks =", "recent=", "recent =",
            ];
            match texts.last_mut() {
                Some(last)
                    if goes_on
                        .iter()
                        .any(|start| part.trim_start().starts_with(start)) =>
                {
                    last.push(',');
                    last.push_str(part);
                }
                _ => texts.push(part.to_owned()),
            }
        }
        texts.iter().map(|text| Setup::parse(text)).collect()
    }

    /// What was chosen for every stage.
    pub fn methods(&self) -> &Methods {
        &self.methods
    }

    /// Whether no method acts.
    pub fn is_dense(&self) -> bool {
        self.name == DENSE
    }

    /// The method of the first stage in which one was chosen by its name.
    ///
    /// # Errors
    /// What there is instead.
    pub(crate) fn first_method(&self) -> Result<&'static Method, String> {
        let chosen = |stage: Stage| Some((stage, self.chosen(stage)?));
        let first = STAGES.into_iter().find_map(chosen);
        let (stage, text) = first.ok_or("it is the dense path")?;
        let name = text.split('(').next().unwrap_or_default();
        registry::find(stage, name).map_err(|error| error.to_string())
    }

    /// The canonical texts of the stages before reuse, with `kv_type` as the store's default.
    pub fn texts(&self, kv_type: KvType) -> Vec<(Stage, String)> {
        STAGES
            .map(|stage| (stage, self.methods.text(stage, kv_type)))
            .into()
    }

    /// What holds as many bytes with less thought: the same with streaming-llm and with random instead of its
    /// keep method, at its budget; and those two over the usual form where all it has is a form, of which
    /// `share_of` says what share of a prompt they can keep in its bytes. None where neither is bounded.
    pub(crate) fn floors(&self, share_of: &dyn Fn(KvForms) -> f64) -> Vec<Setup> {
        let (budget, replaced) = match (self.methods.keep(), self.methods.kv_forms()) {
            (Some(keep), _) => {
                let Some((_, rest)) = keep.text.split_once("budget=") else {
                    return Vec::new();
                };
                let budget = &rest[..rest.find([',', ')']).unwrap_or(rest.len())];
                (budget.to_owned(), Stage::Keep)
            }
            (None, Some(forms)) => {
                // Hundredths of a per cent, which few prompts have more pairs than.
                let hundredths = (share_of(forms) * 10_000.0).floor();
                if !(1.0..10_000.0).contains(&hundredths) {
                    return Vec::new();
                }
                (format!("{}%", hundredths / 100.0), Stage::Store)
            }
            (None, None) => return Vec::new(),
        };
        let others: Vec<String> = STAGES
            .into_iter()
            .filter(|&stage| stage != replaced)
            .filter_map(|stage| Some(format!("+{stage}={}", self.chosen(stage)?)))
            .collect();
        let floor = |name: &str| {
            let text = format!("keep={name}(budget={budget}){}", others.concat());
            Setup::parse(&text).ok()
        };
        ["streaming-llm", "random"]
            .into_iter()
            .filter_map(floor)
            .collect()
    }

    /// The canonical text of a stage, unless it is the default.
    fn chosen(&self, stage: Stage) -> Option<String> {
        let text = self.methods.text(stage, KvType::F16);
        let differs = text != Methods::new().text(stage, KvType::F16);
        let stored = stage == Stage::Store && self.methods.kv_forms().is_some();
        (differs || stored).then_some(text)
    }

    /// The methods that differ from the default, joined by `+`.
    fn short(&self) -> String {
        let texts: Vec<String> = STAGES
            .into_iter()
            .filter_map(|stage| self.chosen(stage))
            .collect();
        if texts.is_empty() {
            DENSE.to_owned()
        } else {
            texts.join("+")
        }
    }
}

/// The canonical text.
impl fmt::Display for Setup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.name)
    }
}

impl PartialEq for Setup {
    fn eq(&self, other: &Setup) -> bool {
        self.name == other.name
    }
}

/// A setup's canonical text without the parameters that have their defaults, for tables.
pub(crate) fn brief(setup: &str) -> String {
    let of_part = |part: &str| {
        let items: Vec<String> = split(part, ',').into_iter().map(brief_item).collect();
        items.join(",")
    };
    let parts: Vec<String> = split(setup, '+').into_iter().map(of_part).collect();
    parts.join("+")
}

/// The same of one method, which may stand after `k=` or the like.
fn brief_item(item: &str) -> String {
    let Some((head, rest)) = item.split_once('(') else {
        return item.to_owned();
    };
    let name = head.rsplit('=').next().unwrap_or(head).trim();
    let Some(given) = rest.strip_suffix(')') else {
        return item.to_owned();
    };
    let default = STAGES.into_iter().find_map(|stage| {
        let resolved = registry::resolve(stage, name).ok()?;
        Some(resolved.first()?.1.to_string())
    });
    let default = default.unwrap_or_default();
    let default = default
        .split_once('(')
        .and_then(|(_, rest)| rest.strip_suffix(')'));
    let usual: Vec<&str> = split(default.unwrap_or_default(), ',');
    let differs = |argument: &&str| !usual.iter().any(|usual| usual.trim() == argument.trim());
    let kept: Vec<&str> = split(given, ',')
        .into_iter()
        .filter(differs)
        .map(str::trim)
        .collect();
    if kept.is_empty() {
        head.to_owned()
    } else {
        format!("{head}({})", kept.join(", "))
    }
}

/// The stage a part is for, and the method's text.
fn stage_of(part: &str) -> Result<(Stage, &str), String> {
    let (head, rest) = part.split_once('=').unwrap_or((part, ""));
    if let Some(stage) = STAGES.into_iter().find(|stage| stage.name() == head.trim()) {
        return Ok((stage, rest.trim()));
    }
    let end = part.find(|c: char| !(c.is_ascii_alphanumeric() || "-_.".contains(c)));
    let name = &part[..end.unwrap_or(part.len())];
    let selects = ["k", "v", "layers"].contains(&name);
    if selects {
        return Ok((Stage::Store, part));
    }
    let has = |stage: &Stage| registry::of(*stage).any(|method| method.name == name);
    let stages: Vec<Stage> = STAGES.into_iter().filter(has).collect();
    match stages.as_slice() {
        [stage] => Ok((*stage, part)),
        [] => {
            let known: Vec<&str> = STAGES
                .into_iter()
                .flat_map(registry::of)
                .map(|method| method.name)
                .collect();
            let near = longview_methods::nearest(name, known.iter().copied());
            let hint = near.map_or_else(String::new, |near| format!(" (did you mean {near:?}?)"));
            Err(format!(
                "no stage before decode has a method {name:?}{hint}; `longview methods` lists them"
            ))
        }
        several => {
            let stages: Vec<String> = several
                .iter()
                .map(|stage| format!("{stage}={name}"))
                .collect();
            let choice = stages.join(" or ");
            Err(format!(
                "{name:?} is a method of several stages; write {choice}"
            ))
        }
    }
}

/// The parts of `text` between those `separator`s that stand outside brackets and quotes.
pub(crate) fn split(text: &str, separator: char) -> Vec<&str> {
    let (mut depth, mut quoted, mut start) = (0usize, false, 0);
    let mut parts = Vec::new();
    for (at, c) in text.char_indices() {
        match c {
            '"' => quoted = !quoted,
            '(' if !quoted => depth += 1,
            ')' if !quoted => depth = depth.saturating_sub(1),
            c if c == separator && depth == 0 && !quoted => {
                parts.push(&text[start..at]);
                start = at + c.len_utf8();
            }
            _ => {}
        }
    }
    parts.push(&text[start..]);
    parts
}

fn method_error(text: &str, source: MethodError) -> EvalError {
    EvalError::Method {
        text: text.to_owned(),
        source: Box::new(source),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn setups_are_read_from_text() {
        let names = |text| -> Vec<String> {
            let setups = Setup::parse_list(text).unwrap();
            setups.iter().map(Setup::to_string).collect()
        };
        assert_eq!(names("q8, store=q4,dense"), ["q8", "q4", "dense"]);
        assert_eq!(names("keep=all + store=bf16"), ["bf16"]);
        let apart =
            "k=kivi(bits=4, group=32, residual=128, queries=float), v=q8, layers 0-1=f16, sinks=64";
        assert_eq!(names(&format!("{apart},q4")), [apart, "q4"]);
        let setup = Setup::parse("q8").unwrap();
        assert_eq!(setup.methods().kv_forms(), Some(KvType::Q8.into()));
        assert_eq!(setup.texts(KvType::F16)[3], (Stage::Store, "q8".to_owned()));
        assert!(Setup::parse("dense").unwrap().is_dense() && Setup::dense().is_dense());
    }

    #[test]
    fn tables_leave_out_what_is_usual() {
        for (text, shown) in [
            ("kivi", "kivi"),
            ("kivi(bits=2)", "kivi(bits=2)"),
            (
                "k=kivi(bits=4), v=kivi(residual=64)",
                "k=kivi, v=kivi(residual=64)",
            ),
            ("random(budget=10%)+q8", "random(budget=10%)+q8"),
            ("dense", "dense"),
        ] {
            assert_eq!(
                brief(&Setup::parse(text).unwrap().to_string()),
                shown,
                "{text}"
            );
        }
    }

    #[test]
    fn what_stands_in_brackets_is_not_split() {
        assert_eq!(split("a(b, c), d", ','), ["a(b, c)", " d"]);
        assert_eq!(split("a(\",)\", c)+d", '+'), ["a(\",)\", c)", "d"]);
    }

    #[test]
    fn floors_have_the_budget_of_what_they_stand_beside() {
        let setup = Setup::parse("snapkv(budget=12%)+store=q8").unwrap();
        let floors: Vec<String> = setup
            .floors(&|_| 0.5)
            .iter()
            .map(Setup::to_string)
            .collect();
        assert_eq!(floors.len(), 2, "{floors:?}");
        assert!(floors[0].starts_with("streaming-llm(") && floors[1].starts_with("random("));
        for floor in &floors {
            assert!(
                floor.contains("budget=12%") && floor.ends_with("+q8"),
                "{floor}"
            );
        }
        let of_form = |share: f64| -> Vec<String> {
            let floors = Setup::parse("q8").unwrap().floors(&|_| share);
            floors.iter().map(Setup::to_string).collect()
        };
        let floors = of_form(0.53159);
        assert_eq!(floors.len(), 2, "{floors:?}");
        for floor in &floors {
            assert!(
                floor.contains("budget=53.15%") && !floor.contains("q8"),
                "{floor}"
            );
        }
        assert!(of_form(2.0).is_empty() && Setup::dense().floors(&|_| 0.5).is_empty());
    }

    #[test]
    fn mistakes_are_named() {
        for (text, words) in [
            ("q88", "did you mean \"q8\"?"),
            ("store=q9", "there is no store method"),
            ("q8+store=q4", "the store stage is given twice"),
            ("q8+", "a method is missing"),
            ("f16(3)", "too many values"),
            ("", "a method is missing"),
        ] {
            let message = Setup::parse(text).unwrap_err().to_string();
            assert!(
                message.contains(words) && message.contains("--methods"),
                "{message}"
            );
        }
    }
}
