//! The store stage: in what form keys and values are held.
//!
//! A text names one form for all, or forms for keys and values apart, and for ranges of layers:
//! `k=kivi(bits=4), v=q8, layers 0-1=f16`. What no item speaks of stays in half precision. `sinks=64`
//! and `recent=128` leave first and latest tokens in half precision, whatever quantised form the others
//! have.

mod accllm;
mod kivi;
mod mustafar;
mod plain;

use longview_kv::{KvForm, KvForms, KvType};

use crate::arguments::Arguments;
use crate::error::MethodError;
use crate::method::{Build, Domain, Method, Parameter, Stage};
use crate::registry;
use crate::suggest::hint;
use crate::text::{Call, Item, Key, MethodText};

/// The methods of this stage; the first is the default.
pub(crate) static METHODS: &[Method] = &[
    plain::F16,
    plain::F32,
    plain::BF16,
    plain::Q8,
    plain::Q4,
    kivi::METHOD,
    mustafar::METHOD,
    accllm::METHOD,
];

/// The most tokens that stay as they are beside whole pages.
const MOST_RECENT: usize = 1 << 30;

/// The tokens that a parameter counts, within what can be meant.
fn most_recent(
    method: &Method,
    arguments: &Arguments,
    parameter: &str,
) -> Result<usize, MethodError> {
    let tokens = arguments.count(parameter);
    if tokens <= MOST_RECENT {
        return Ok(tokens);
    }
    Err(MethodError::Value {
        method: method.name.to_owned(),
        parameter: parameter.to_owned(),
        value: tokens.to_string(),
        wanted: format!("a number of tokens up to {MOST_RECENT}"),
    })
}

/// The parameters of the stage itself: tokens that no quantised form touches.
static EXEMPT: Method = Method {
    stage: Stage::Store,
    name: "--store",
    exact: true,
    paper: None,
    claim: None,
    doc: "tokens that stay in half precision",
    parameters: &[
        Parameter {
            name: "sinks",
            default: "0",
            unit: "tokens",
            doc: "first tokens, at least so many, in whole blocks of 64",
            domain: Domain::Whole,
        },
        Parameter {
            name: "recent",
            default: "0",
            unit: "tokens",
            doc: "latest tokens, at least so many",
            domain: Domain::Whole,
        },
    ],
    build: Build::Nothing,
};

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
    for key in &given {
        check_key(key)?;
    }
    let is_given = |name: &str| {
        given
            .iter()
            .any(|key| matches!(key, Key::Name(of) if of == name))
    };
    if plain == 1 && is_given("k") && is_given("v") {
        return Err(MethodError::StoreSense {
            why: "keys and values have forms of their own (k=, v=), so the form for both has no effect; leave \
                  it out"
                .to_owned(),
        });
    }
    let is_exempt = |item: &&Item| matches!(&item.key, Some(Key::Name(name)) if EXEMPT.parameters.iter().any(|parameter| parameter.name == name));
    let (exempt, mut items): (Vec<&Item>, Vec<&Item>) = parsed.items.iter().partition(is_exempt);
    // One form for all comes first, whatever the order, then keys and values, then layers.
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
            Some(Key::Name(name)) if name == "k" => form = merged(chosen, form.v, &form)?,
            Some(Key::Name(_)) => {
                form = KvForm {
                    k: form.k,
                    ..merged(form, chosen.v, &chosen)?
                };
            }
            Some(Key::Range { first, last, .. }) => layers.push((*first..=*last, chosen)),
            Some(Key::Id(_)) => unreachable!("keys are checked above"),
        }
        texts.push(match &item.key {
            None => arguments.to_string(),
            Some(key) => format!("{key}={arguments}"),
        });
        methods.push(method);
    }
    let all: Vec<KvForm> = std::iter::once(form)
        .chain(layers.iter().map(|&(_, form)| form))
        .collect();
    let mut forms = KvForms::new(form);
    for (range, form) in layers {
        forms = forms
            .with_layers(range, form)
            .ok_or(MethodError::StoreLayers)?;
    }
    let exempt = Arguments::bind(
        &EXEMPT,
        &Call {
            name: EXEMPT.name.to_owned(),
            arguments: exempt.into_iter().cloned().collect(),
        },
    )?;
    for parameter in EXEMPT.parameters {
        let tokens = most_recent(&EXEMPT, &exempt, parameter.name)?;
        if tokens > 0 {
            texts.push(format!("{}={tokens}", parameter.name));
        }
    }
    let (sinks, recent) = (exempt.count("sinks"), exempt.count("recent"));
    let exempting = |form: KvForm| KvForm {
        sink_tokens: form.sink_tokens.max(sinks),
        recent_tokens: form.recent_tokens.max(recent),
        ..form
    };
    let mut exempted = all.into_iter().map(exempting);
    if methods.is_empty() || sinks + recent > 0 && !exempted.clone().any(|form| form.is_split()) {
        // Nothing but exemptions from a form that needs none.
        return Err(MethodError::StoreExempt);
    }
    let window = |form: KvForm| form.window_tokens.filter(|&window| window < recent);
    if let Some(window) = exempted.find_map(window) {
        return Err(MethodError::StoreSense {
            why: format!(
                "recent = {recent} tokens are more than the window of {window} that stay at all; make the \
                 window larger"
            ),
        });
    }
    let forms = forms.map(exempting);
    Ok(Chosen {
        forms,
        text: texts.join(", "),
        methods,
    })
}

/// The method that stores keys and values as `kv_type`.
pub(crate) fn plain_name(kv_type: KvType) -> &'static str {
    let stores = |method: &&'static Method| matches!(method.build, Build::Store(build) if build_alone(build, method) == Some(kv_type));
    METHODS
        .iter()
        .find(stores)
        .expect("every number type of the store is in the registry, as a test checks")
        .name
}

/// The number type that a method stores where nothing is said.
fn build_alone(
    build: fn(&Arguments) -> Result<KvForm, MethodError>,
    method: &'static Method,
) -> Option<KvType> {
    let call = Call {
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

/// `form` with `v` for the values, and as many recent and first tokens as either needs.
///
/// # Errors
/// [`MethodError::StoreSense`] where the two forget different tokens: keys and values of a token leave together.
fn merged(form: KvForm, v: KvType, other: &KvForm) -> Result<KvForm, MethodError> {
    if let (Some(one), Some(two)) = (form.window_tokens, other.window_tokens)
        && one != two
    {
        return Err(MethodError::StoreSense {
            why: format!(
                "keys and values of a token are forgotten together, but one form has a window of {one} and the \
                 other of {two} tokens; give both the same"
            ),
        });
    }
    Ok(KvForm {
        v,
        recent_tokens: form.recent_tokens.max(other.recent_tokens),
        sink_tokens: form.sink_tokens.max(other.sink_tokens),
        window_tokens: form.window_tokens.or(other.window_tokens),
        ..form
    })
}

/// Refuses what stands before an equals sign and says nothing to this stage.
fn check_key(key: &Key) -> Result<(), MethodError> {
    let names = ["k", "v"]
        .into_iter()
        .chain(EXEMPT.parameters.iter().map(|parameter| parameter.name));
    let known = match key {
        Key::Name(name) => names.clone().any(|known| known == name),
        Key::Range { name, first, last } => name == "layers" && first <= last,
        Key::Id(_) => false,
    };
    if known {
        return Ok(());
    }
    Err(MethodError::StoreKey {
        key: key.to_string(),
        hint: match key {
            Key::Name(name) => hint(name, names.filter(|known| known.len() > 1)),
            Key::Range { .. } | Key::Id(_) => String::new(),
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_values_and_layers_have_their_own_forms() {
        let chosen = choose("layers 0-1=f16, v=q8, k=kivi(bits=2, residual=64)").unwrap();
        let text = "k=kivi(bits=2, group=32, residual=64, queries=float), v=q8, layers 0-1=f16";
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
    fn first_and_latest_tokens_can_be_exempt() {
        let chosen =
            choose("recent=200, kivi(bits=2, queries=int8), sinks=1k, layers 0-0=f16").unwrap();
        let text = "kivi(bits=2, group=32, residual=128, queries=int8), layers 0-0=f16, sinks=1024, recent=200";
        assert_eq!(chosen.text, text);
        let form = chosen.forms.of(1);
        assert_eq!((form.sink_tokens, form.recent_tokens), (1024, 200));
        assert_eq!(form.k.to_string(), "kivi2/32 with int8 queries");
        assert!(!chosen.forms.of(0).is_split());
        assert_eq!(choose(text).unwrap().forms, chosen.forms);
        let q4 = choose("q4, sinks=4").unwrap();
        assert!(q4.forms.of(0).is_split() && q4.text == "q4, sinks=4");
        assert!(!choose("q4").unwrap().forms.of(0).is_split());
    }

    #[test]
    fn forms_that_are_read_in_whole_numbers_have_a_text_of_their_own() {
        for (text, canonical, name) in [
            (
                "q8(queries=int8)",
                "q8(queries=int8)",
                "q8 with int8 queries",
            ),
            ("q4(int16)", "q4(queries=int16)", "q4 with int16 queries"),
            ("q8(queries=float)", "q8", "q8"),
        ] {
            let chosen = choose(text).unwrap();
            assert_eq!(chosen.text, canonical);
            assert_eq!(chosen.forms.form().k.to_string(), name);
            assert_eq!(choose(canonical).unwrap().forms, chosen.forms);
        }
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
            ("q=q8", "\"q=\" is neither k=, v=, layers A-B="),
            ("layers 3-1=q8", "neither k=, v=, layers A-B="),
            ("layer 0-1=q8", "neither k=, v=, layers A-B="),
            ("q4, sink=4", "did you mean \"sinks\"?"),
            ("f16, sinks=64", "name a form"),
            ("f32, recent=256", "name a form"),
            ("k=q4, v=q8, q8", "has no effect"),
            (
                "k=accllm(window=512), v=accllm(window=1024)",
                "window of 512 and the other of 1024",
            ),
            (
                "accllm(window=512), recent=1024",
                "recent = 1024 tokens are more than the window of 512",
            ),
            ("k=q8, k=q4", "k is given twice"),
            ("q8, q4", "takes one method, not 2"),
            ("kiwi", "did you mean \"kivi\"?"),
            ("kivi(bit=4)", "did you mean \"bits\"?"),
            ("kivi(queries=int4)", "one of float, int8"),
            ("q8(queries=int4)", "one of float, int16, int8"),
            ("q8, sinks=-3", "sinks = -3 is not a whole number"),
            ("q8, sinks=3, sinks=4", "sinks is given twice"),
            (
                "q8, recent=9999999999",
                "recent = 9999999999 is not a number of tokens",
            ),
            ("sinks=3", "name a form"),
            (
                "accllm(window=32, residual=64)",
                "window = 32 is not at least residual = 64",
            ),
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
