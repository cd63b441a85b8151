//! The store stage: in what form keys and values are held.
//!
//! A text names one form for all, or forms for keys and values apart, and for ranges of layers:
//! `k=kivi(bits=4), v=q8, layers 0-1=f16`. What no item speaks of stays in half precision.

mod kivi;
mod mustafar;
mod plain;

use longview_kv::{KvForm, KvForms, KvType};

use crate::arguments::Arguments;
use crate::error::MethodError;
use crate::method::{Build, Method, Stage};
use crate::registry;
use crate::text::{Item, Key, MethodText};

/// The methods of this stage; the first is the default.
pub(crate) static METHODS: &[Method] = &[
    plain::F16,
    plain::F32,
    plain::BF16,
    plain::Q8,
    plain::Q4,
    kivi::METHOD,
    mustafar::METHOD,
];

/// The most tokens that stay as they are beside whole pages.
const MOST_RECENT: usize = 1 << 30;

/// What a number of such tokens must be.
const RECENT_WANTED: &str = "a number of tokens from 1 to 1073741824";

/// What a text chooses.
#[derive(Clone, Debug)]
pub(crate) struct Chosen {
    pub(crate) forms: KvForms,
    /// The canonical text.
    pub(crate) text: String,
    /// The methods named in it.
    pub(crate) methods: Vec<&'static Method>,
}

/// What `text` chooses.
///
/// # Errors
/// Anything a text can be wrong in; see [`MethodError`].
pub(crate) fn choose(text: &str) -> Result<Chosen, MethodError> {
    let parsed: MethodText = text.parse()?;
    let mut form: KvForm = KvType::F16.into();
    let mut layers = Vec::new();
    let mut methods = Vec::new();
    let mut texts = Vec::new();
    let plain = parsed
        .items
        .iter()
        .filter(|item| item.key.is_none())
        .count();
    if plain > 1 {
        return Err(MethodError::OneMethod {
            stage: Stage::Store,
            count: plain,
            text: text.to_owned(),
        });
    }
    let mut given: Vec<&Key> = Vec::new();
    for item in &parsed.items {
        if let Some(key) = &item.key {
            if given.contains(&key) {
                return Err(MethodError::Twice {
                    method: "--store".to_owned(),
                    parameter: key.to_string(),
                });
            }
            given.push(key);
        }
    }
    // One form for all comes first, whatever the order, then keys and values, then layers.
    let mut items: Vec<&Item> = parsed.items.iter().collect();
    items.sort_by_key(|item| match &item.key {
        None => 0,
        Some(Key::Name(name)) if name == "k" => 1,
        Some(Key::Name(_)) => 2,
        Some(_) => 3,
    });
    for item in items {
        let (method, arguments) = registry::resolve_value(Stage::Store, text, item)?;
        let chosen = form_of(method, &arguments)?;
        match &item.key {
            None => form = chosen,
            Some(Key::Name(name)) if name == "k" => form = merged(chosen, form.v, &form),
            Some(Key::Name(name)) if name == "v" => {
                form = KvForm {
                    k: form.k,
                    ..merged(form, chosen.v, &chosen)
                };
            }
            Some(Key::Range { name, first, last }) if name == "layers" && first <= last => {
                layers.push((*first..=*last, chosen));
            }
            Some(key) => {
                return Err(MethodError::StoreKey {
                    key: key.to_string(),
                });
            }
        }
        texts.push(match &item.key {
            None => arguments.to_string(),
            Some(key) => format!("{key}={arguments}"),
        });
        methods.push(method);
    }
    let mut forms = KvForms::new(form);
    for (range, form) in layers {
        forms = forms
            .with_layers(range, form)
            .ok_or(MethodError::StoreLayers)?;
    }
    Ok(Chosen {
        forms,
        text: texts.join(", "),
        methods,
    })
}

/// The method that stores keys and values as `kv_type`.
pub(crate) fn plain_name(kv_type: KvType) -> &'static str {
    let stores = |method: &&'static Method| {
        let alone = method.parameters.is_empty();
        alone
            && matches!(method.build, Build::Store(build) if build_alone(build, method) == Some(kv_type))
    };
    METHODS
        .iter()
        .find(stores)
        .expect("every number type of the store is in the registry, as a test checks")
        .name
}

/// The number type that a method without parameters stores.
fn build_alone(
    build: fn(&Arguments) -> Result<KvForm, MethodError>,
    method: &'static Method,
) -> Option<KvType> {
    let call = crate::text::Call {
        name: method.name.to_owned(),
        arguments: Vec::new(),
    };
    let arguments = Arguments::bind(method, &call).ok()?;
    build(&arguments).ok().map(|form| form.k)
}

fn form_of(method: &Method, arguments: &Arguments) -> Result<KvForm, MethodError> {
    match method.build {
        Build::Store(build) => build(arguments),
        _ => unreachable!("methods of the store stage build forms"),
    }
}

/// `form` with `v` for the values, and as many recent tokens as either needs.
fn merged(form: KvForm, v: KvType, other: &KvForm) -> KvForm {
    KvForm {
        v,
        recent_tokens: form.recent_tokens.max(other.recent_tokens),
        ..form
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_values_and_layers_have_their_own_forms() {
        let chosen = choose("layers 0-1=f16, v=q8, k=kivi(bits=2, residual=64)").unwrap();
        let text = "k=kivi(bits=2, group=32, residual=64), v=q8, layers 0-1=f16";
        assert_eq!(chosen.text, text);
        let form = chosen.forms.of(5);
        assert_eq!(
            (form.k.to_string(), form.v, form.recent_tokens),
            ("kivi2/32".to_owned(), KvType::Q8, 64)
        );
        assert_eq!(chosen.forms.of(1), KvType::F16.into());
        assert_eq!(choose(&chosen.text).unwrap().forms, chosen.forms);
        let only_values = choose("v=mustafar").unwrap().forms.of(0);
        assert_eq!(
            (only_values.k, only_values.v.to_string()),
            (KvType::F16, "sparse50".to_owned())
        );
        let apart = choose("kivi, v=f16").unwrap().forms.of(0);
        assert_eq!(
            (apart.k.to_string(), apart.v),
            ("kivi4/32".to_owned(), KvType::F16)
        );
    }

    #[test]
    fn mistakes_are_named() {
        for (text, words) in [
            ("kivi(bits=3)", "bits = 3 is not 2 or 4"),
            ("kivi(group=16)", "group = 16 is not 32 or 64"),
            (
                "kivi(residual=0)",
                "residual = 0 is not a whole number of at least 1",
            ),
            ("mustafar(sparsity=100%)", "sparsity = 1 is not"),
            ("q=q8", "\"q=\" is neither k=, v= nor"),
            ("layers 3-1=q8", "neither k=, v= nor"),
            ("k=q8, k=q4", "k is given twice"),
            ("q8, q4", "takes one method, not 2"),
            ("kiwi", "did you mean \"kivi\"?"),
            ("kivi(bit=4)", "did you mean \"bits\"?"),
        ] {
            let message = choose(text).unwrap_err().to_string();
            assert!(message.contains(words), "{text}: {message}");
        }
        let many: Vec<String> = (0..9).map(|at| format!("layers {at}-{at}=q8")).collect();
        assert!(
            choose(&many.join(", "))
                .unwrap_err()
                .to_string()
                .contains("8 ranges")
        );
    }
}
