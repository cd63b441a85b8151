//! The arguments of one method, bound to the parameters it declares.

use std::fmt;

use longview_kv::keep::Budget;

use crate::error::MethodError;
use crate::method::{Domain, Method, Parameter};
use crate::registry;
use crate::suggest::hint;
use crate::text::{Call, Item, Key, Number, Value};

/// A value for every parameter of a method: given, or its default. Prints as the method's canonical
/// text, all parameters named.
#[derive(Clone, Debug, PartialEq)]
pub struct Arguments {
    method: &'static str,
    values: Vec<(&'static Parameter, Bound)>,
}

#[derive(Clone, Debug, PartialEq)]
enum Bound {
    Number(f64),
    Whole(u64),
    /// How much stays, and as it was written.
    Budget(Budget, Number),
    /// One of a list of words.
    Word(&'static str),
    /// A method that this one is put together with.
    Part(&'static Method, Box<Arguments>),
    /// The name of a file, or another text.
    Text(String),
    /// Sorted by token id.
    PerToken(Vec<(u32, f32)>),
    /// A seed that nobody gave.
    Open,
}

impl Arguments {
    /// Binds what `call` gives to what `method` declares.
    ///
    /// # Errors
    /// Unknown, repeated or missing parameters, and values outside their domain.
    pub fn bind(method: &'static Method, call: &Call) -> Result<Arguments, MethodError> {
        let mut given: Vec<Option<&Value>> = vec![None; method.parameters.len()];
        let mut tokens = Vec::new();
        for (index, item) in call.arguments.iter().enumerate() {
            if let Some(Key::Id(id)) = item.key
                && let Some(parameter) = per_token(method)
            {
                tokens.push((id, token_value(method, parameter, id, &item.value)?));
                continue;
            }
            let place = place_of(method, index, item)?;
            if given[place].replace(&item.value).is_some() {
                return Err(MethodError::Twice {
                    method: method.name.to_owned(),
                    parameter: method.parameters[place].name.to_owned(),
                });
            }
        }
        let tokens = sorted(method, tokens)?;
        let values = method
            .parameters
            .iter()
            .zip(given)
            .map(|(parameter, value)| {
                let bound = match (parameter.domain, value) {
                    (Domain::PerToken, _) => Bound::PerToken(tokens.clone()),
                    (_, Some(value)) => bind_value(method, parameter, value)?,
                    (Domain::Seed, None) => Bound::Open,
                    (_, None) => default_of(method, parameter)?,
                };
                Ok((parameter, bound))
            });
        Ok(Arguments {
            method: method.name,
            values: values.collect::<Result<_, MethodError>>()?,
        })
    }

    /// The largest token id that was given a value.
    pub(crate) fn largest_token(&self) -> Option<u32> {
        let of_value = |(_, bound): &(_, Bound)| match bound {
            Bound::PerToken(values) => values.last().map(|&(id, _)| id),
            _ => None,
        };
        self.values.iter().filter_map(of_value).max()
    }

    /// Whether it names a file, itself or in a method that it is put together with.
    pub fn names_a_file(&self) -> bool {
        self.values.iter().any(|(parameter, bound)| match bound {
            Bound::Text(_) => parameter.domain == Domain::Path,
            Bound::Part(_, inner) => inner.names_a_file(),
            _ => false,
        })
    }

    /// The number `parameter` has; shares as 0 to 1.
    ///
    /// # Panics
    /// When the method declares no number of that name: a method asks only for its own.
    pub fn number(&self, parameter: &str) -> f64 {
        match self.bound(parameter) {
            Bound::Number(number) => *number,
            Bound::Whole(whole) => *whole as f64,
            other => panic!("{}: {parameter} is no number but {other:?}", self.method),
        }
    }

    /// The whole number `parameter` has, as a length in memory.
    ///
    /// # Panics
    /// As [`Arguments::number`].
    pub fn count(&self, parameter: &str) -> usize {
        match self.bound(parameter) {
            Bound::Whole(whole) => usize::try_from(*whole).unwrap_or(usize::MAX),
            other => panic!("{}: {parameter} is no count but {other:?}", self.method),
        }
    }

    /// The budget `parameter` has.
    ///
    /// # Panics
    /// When the method declares no budget of that name.
    pub fn budget(&self, parameter: &str) -> Budget {
        match self.bound(parameter) {
            Bound::Budget(budget, _) => *budget,
            other => panic!("{}: {parameter} is no budget but {other:?}", self.method),
        }
    }

    /// The number of tokens after which something is done again, or `None` for never.
    ///
    /// # Panics
    /// When the method declares no such parameter.
    pub fn every(&self, parameter: &str) -> Option<usize> {
        match self.bound(parameter) {
            Bound::Whole(_) => Some(self.count(parameter)),
            Bound::Word(_) => None,
            other => panic!("{}: {parameter} is no interval but {other:?}", self.method),
        }
    }

    /// The word that `parameter` has, one of those that its domain lists.
    ///
    /// # Panics
    /// When the method declares no word of that name.
    pub fn word(&self, parameter: &str) -> &'static str {
        match self.bound(parameter) {
            Bound::Word(word) => word,
            other => panic!("{}: {parameter} is no word but {other:?}", self.method),
        }
    }

    /// The file that `parameter` names.
    ///
    /// # Panics
    /// When the method declares no file of that name.
    pub fn path(&self, parameter: &str) -> &str {
        match self.bound(parameter) {
            Bound::Text(path) => path,
            other => panic!("{}: {parameter} is no file but {other:?}", self.method),
        }
    }

    /// The text that `parameter` has.
    ///
    /// # Panics
    /// When the method declares no text of that name.
    pub fn text(&self, parameter: &str) -> &str {
        match self.bound(parameter) {
            Bound::Text(text) => text,
            other => panic!("{}: {parameter} is no text but {other:?}", self.method),
        }
    }

    /// The method that `parameter` names, with its arguments; `None` for the word `none`.
    ///
    /// # Panics
    /// When the method declares no part of that name.
    pub fn part(&self, parameter: &str) -> Option<(&'static Method, &Arguments)> {
        match self.bound(parameter) {
            Bound::Part(method, arguments) => Some((method, arguments)),
            Bound::Word(_) => None,
            other => panic!("{}: {parameter} is no method but {other:?}", self.method),
        }
    }

    /// Whether the method declares `parameter`.
    pub fn declares(&self, parameter: &str) -> bool {
        self.values.iter().any(|(known, _)| known.name == parameter)
    }

    /// The seed given as `parameter`, if one was.
    pub fn seed(&self, parameter: &str) -> Option<u64> {
        match self.bound(parameter) {
            Bound::Whole(seed) => Some(*seed),
            _ => None,
        }
    }

    /// Gives the seeds that nobody gave the value `seed`.
    pub fn set_open_seeds(&mut self, seed: u64) {
        for (_, bound) in &mut self.values {
            if *bound == Bound::Open {
                *bound = Bound::Whole(seed);
            }
        }
    }

    /// The numbers given for token ids, ascending by id.
    pub fn per_token(&self) -> &[(u32, f32)] {
        self.values
            .iter()
            .find_map(|(_, bound)| match bound {
                Bound::PerToken(tokens) => Some(tokens.as_slice()),
                _ => None,
            })
            .unwrap_or(&[])
    }

    fn bound(&self, parameter: &str) -> &Bound {
        self.values
            .iter()
            .find_map(|(known, bound)| (known.name == parameter).then_some(bound))
            .unwrap_or_else(|| panic!("{} declares no parameter {parameter}", self.method))
    }
}

impl Arguments {
    /// The canonical text without the parameters `left_out`.
    pub(crate) fn without(&self, left_out: &[&str]) -> String {
        let mut text = String::new();
        let written = self.write(&mut text, left_out);
        written.expect("a string takes any text");
        text
    }

    fn write(&self, f: &mut dyn fmt::Write, left_out: &[&str]) -> fmt::Result {
        f.write_str(self.method)?;
        let mut separator = "(";
        let values = self.values.iter();
        for (parameter, bound) in values.filter(|(known, _)| !left_out.contains(&known.name)) {
            if let Bound::PerToken(tokens) = bound {
                for (id, number) in tokens {
                    write!(f, "{separator}{id}={number}")?;
                    separator = ", ";
                }
                continue;
            }
            let value = bound.to_string();
            let was_added = matches!(parameter.domain, Domain::Added(_));
            if *bound == Bound::Open || was_added && value == parameter.default {
                continue;
            }
            write!(f, "{separator}{}={value}", parameter.name)?;
            separator = ", ";
        }
        if separator == ", " {
            f.write_str(")")
        } else {
            Ok(())
        }
    }
}

impl fmt::Display for Arguments {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.write(f, &[])
    }
}

/// One value, as it is written.
impl fmt::Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Bound::Number(number) => write!(f, "{number}"),
            Bound::Whole(whole) => write!(f, "{whole}"),
            Bound::Budget(_, number) => write!(f, "{number}"),
            Bound::Word(word) => f.write_str(word),
            Bound::Part(_, part) => write!(f, "{part}"),
            Bound::Text(text) => write!(f, "{}", Value::Text(text.clone())),
            // Many values, or none.
            Bound::PerToken(_) | Bound::Open => Ok(()),
        }
    }
}

/// Which parameter an argument is for.
fn place_of(method: &Method, index: usize, item: &Item) -> Result<usize, MethodError> {
    let named = |parameter: &Parameter| parameter.domain != Domain::PerToken;
    match &item.key {
        None if method.parameters.get(index).is_some_and(named) => Ok(index),
        None => Err(MethodError::TooManyValues {
            method: method.name.to_owned(),
            known: known(method),
        }),
        Some(key) => {
            let name = key.to_string();
            let place = method
                .parameters
                .iter()
                .position(|p| named(p) && p.name == name);
            place.ok_or_else(|| MethodError::UnknownParameter {
                method: method.name.to_owned(),
                hint: hint(
                    &name,
                    method.parameters.iter().map(|parameter| parameter.name),
                ),
                name,
                known: known(method),
            })
        }
    }
}

fn known(method: &Method) -> String {
    if method.parameters.is_empty() {
        return "it has none".to_owned();
    }
    let names: Vec<&str> = method
        .parameters
        .iter()
        .map(|parameter| parameter.name)
        .collect();
    names.join(", ")
}

fn per_token(method: &'static Method) -> Option<&'static Parameter> {
    method
        .parameters
        .iter()
        .find(|parameter| parameter.domain == Domain::PerToken)
}

fn token_value(
    method: &Method,
    parameter: &Parameter,
    id: u32,
    value: &Value,
) -> Result<f32, MethodError> {
    match value {
        Value::Number(number) if number.unit.is_empty() => {
            let number = number.as_f64() as f32;
            if number < f32::INFINITY {
                Some(number)
            } else {
                None
            }
        }
        _ => None,
    }
    .ok_or_else(|| refused(method, &id.to_string(), parameter.domain, value))
}

fn sorted(method: &Method, mut tokens: Vec<(u32, f32)>) -> Result<Vec<(u32, f32)>, MethodError> {
    tokens.sort_by_key(|&(id, _)| id);
    match tokens.windows(2).find(|pair| pair[0].0 == pair[1].0) {
        Some(pair) => Err(MethodError::Twice {
            method: method.name.to_owned(),
            parameter: pair[0].0.to_string(),
        }),
        None => Ok(tokens),
    }
}

fn default_of(method: &Method, parameter: &Parameter) -> Result<Bound, MethodError> {
    if parameter.default.is_empty() {
        return Err(MethodError::Missing {
            method: method.name.to_owned(),
            parameter: parameter.name.to_owned(),
            wanted: parameter.domain.wanted(),
        });
    }
    let text: crate::text::MethodText = parameter.default.parse()?;
    bind_value(method, parameter, &text.items[0].value)
}

fn bind_value(method: &Method, parameter: &Parameter, value: &Value) -> Result<Bound, MethodError> {
    let bound = match value {
        Value::Number(number) => match parameter.domain.values() {
            Domain::Count | Domain::Every => {
                whole(number).filter(|&whole| whole >= 1).map(Bound::Whole)
            }
            Domain::Whole => whole(number).map(Bound::Whole),
            Domain::Budget => budget(number),
            Domain::Reading => {
                budget(number).filter(|bound| !matches!(bound, Bound::Budget(Budget::Bytes(_), _)))
            }
            Domain::Word(_) | Domain::Part(_) | Domain::Path | Domain::Text => None,
            Domain::Seed => whole(number).map(Bound::Whole),
            domain => real(number, domain).map(Bound::Number),
        },
        Value::Call(call) => match parameter.domain.values() {
            Domain::Part(role) => match call.name.as_str() {
                "none" if role.may_be_none() => Some(Bound::Word("none")),
                _ => {
                    let part = registry::find_part(role, method, parameter, &call.name)?;
                    Some(Bound::Part(part, Box::new(Arguments::bind(part, call)?)))
                }
            },
            Domain::Every if *call == Call::word("never") => Some(Bound::Word("never")),
            Domain::Word(words) => {
                let known = words.iter().find(|word| *call == Call::word(word));
                known.map(|word| Bound::Word(word))
            }
            _ => None,
        },
        Value::Text(path) => match parameter.domain.values() {
            Domain::Path | Domain::Text => Some(Bound::Text(path.clone())),
            _ => None,
        },
    };
    bound.ok_or_else(|| refused(method, parameter.name, parameter.domain, value))
}

/// Pairs as a whole number, a share as `10%`, or bytes as `64MiB`; nothing for a budget of nothing.
fn budget(number: &Number) -> Option<Bound> {
    const BYTES: [(&str, u64); 4] = [("B", 0), ("KiB", 10), ("MiB", 20), ("GiB", 30)];
    let bytes = BYTES.iter().find(|(unit, _)| *unit == number.unit);
    let budget = match (number.unit.as_str(), bytes) {
        ("%", _) => {
            let share = number.as_f64() / 100.0;
            (share > 0.0 && share <= 1.0).then_some(Budget::Share(share))?
        }
        (_, Some((_, shift))) => {
            let bytes = number.as_f64() * (1u64 << shift) as f64;
            (1.0..1e18)
                .contains(&bytes)
                .then_some(Budget::Bytes(bytes as u64))?
        }
        _ => {
            let pairs = whole(number).filter(|&pairs| pairs >= 1)?;
            Budget::Pairs(usize::try_from(pairs).ok()?)
        }
    };
    Some(Bound::Budget(budget, number.clone()))
}

fn refused(method: &Method, parameter: &str, domain: Domain, value: &Value) -> MethodError {
    MethodError::Value {
        method: method.name.to_owned(),
        parameter: parameter.to_owned(),
        value: value.to_string(),
        wanted: domain.wanted(),
    }
}

/// A whole number; `k` and `M` count in powers of 1,024, as context lengths do.
fn whole(number: &Number) -> Option<u64> {
    let factor = match number.unit.as_str() {
        "" => 1,
        "k" | "K" => 1 << 10,
        "M" => 1 << 20,
        _ => return None,
    };
    match number.as_u64() {
        Some(whole) => whole.checked_mul(factor),
        None => {
            // 1e3 and 1.5k are whole numbers too.
            let value = number.as_f64() * factor as f64;
            let exact = value.fract() == 0.0 && (0.0..9e15).contains(&value);
            exact.then_some(value as u64)
        }
    }
}

fn real(number: &Number, domain: Domain) -> Option<f64> {
    let value = match number.unit.as_str() {
        "" => number.as_f64(),
        "%" if domain == Domain::Share => number.as_f64() / 100.0,
        _ => return None,
    };
    let fits = match domain {
        Domain::NotNegative => value >= 0.0,
        Domain::Positive => value > 0.0,
        Domain::Share => (0.0..=1.0).contains(&value),
        _ => true,
    };
    // The samplers compute in f32.
    (fits && value.abs() <= f64::from(f32::MAX)).then_some(value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::method::{Build, Stage};
    use crate::text::MethodText;

    const PARAMETERS: &[Parameter] = &[
        Parameter {
            name: "p",
            default: "0.9",
            unit: "",
            doc: "",
            domain: Domain::Share,
        },
        Parameter {
            name: "last",
            default: "64",
            unit: "",
            doc: "",
            domain: Domain::Count,
        },
        Parameter {
            name: "seed",
            default: "",
            unit: "",
            doc: "",
            domain: Domain::Seed,
        },
    ];

    static METHOD: Method = method("mix", PARAMETERS);

    static BIAS: Method = method(
        "bias",
        &[Parameter {
            name: "token",
            default: "",
            unit: "",
            doc: "",
            domain: Domain::PerToken,
        }],
    );

    const fn method(name: &'static str, parameters: &'static [Parameter]) -> Method {
        Method {
            stage: Stage::Decode,
            name,
            exact: true,
            paper: None,
            claim: None,
            doc: "",
            parameters,
            build: Build::Nothing,
        }
    }

    fn bind(method: &'static Method, text: &str) -> Result<Arguments, MethodError> {
        let text: MethodText = text.parse().unwrap();
        let Value::Call(call) = &text.items[0].value else {
            panic!("{text}")
        };
        Arguments::bind(method, call)
    }

    #[test]
    fn defaults_positions_and_names() {
        assert_eq!(
            bind(&METHOD, "mix").unwrap().to_string(),
            "mix(p=0.9, last=64)"
        );
        let bound = bind(&METHOD, "mix(25%, last=4k, seed=3)").unwrap();
        assert_eq!(bound.to_string(), "mix(p=0.25, last=4096, seed=3)");
        assert_eq!(
            (bound.number("p"), bound.count("last"), bound.seed("seed")),
            (0.25, 4096, Some(3))
        );
        let mut open = bind(&METHOD, "mix(last=1e3)").unwrap();
        assert_eq!(open.seed("seed"), None);
        open.set_open_seeds(9);
        assert_eq!(open.to_string(), "mix(p=0.9, last=1000, seed=9)");
    }

    #[test]
    fn per_token_values_are_sorted_and_single() {
        let bound = bind(&BIAS, "bias(7=+5, 3=-inf)").unwrap();
        assert_eq!(bound.per_token(), [(3, f32::NEG_INFINITY), (7, 5.0)]);
        assert_eq!(bound.to_string(), "bias(3=-inf, 7=5)");
        assert_eq!(bind(&BIAS, "bias").unwrap().to_string(), "bias");
        for (text, said) in [
            ("bias(7=1, 7=2)", "7 is given twice"),
            ("bias(7=+inf)", "7 = +inf is not a number"),
            ("bias(7=x)", "7 = x is not"),
            ("bias(5)", "too many values"),
            ("bias(token=5)", "no parameter \"token\""),
        ] {
            let message = bind(&BIAS, text).unwrap_err().to_string();
            assert!(message.contains(said), "{text}: {message}");
        }
    }

    #[test]
    fn refusals_name_method_parameter_and_domain() {
        for (text, said) in [
            ("mix(1.5)", "mix: p = 1.5 is not a share from 0 to 1"),
            ("mix(150%)", "p = 150% is not a share"),
            (
                "mix(last=0)",
                "last = 0 is not a whole number of at least 1",
            ),
            ("mix(last=2.5)", "last = 2.5 is not"),
            ("mix(last=99999999999999999999)", "is not a whole number"),
            ("mix(last=10MiB)", "last = 10MiB is not"),
            ("mix(p=high)", "p = high is not"),
            (
                "mix(lats=3)",
                "no parameter \"lats\" (did you mean \"last\"?); known: p, last, seed",
            ),
            ("mix(1, p=1)", "p is given twice"),
            (
                "mix(1, 2, 3, 4)",
                "too many values; its parameters are: p, last, seed",
            ),
            ("mix(seed=-1)", "seed = -1 is not a whole number from 0"),
        ] {
            let message = bind(&METHOD, text).unwrap_err().to_string();
            assert!(message.contains(said), "{text}: {message}");
        }
    }
}
