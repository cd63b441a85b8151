//! Paper: <https://arxiv.org/abs/2402.02750> (Liu et al., KIVI, 2024).
//!
//! Outliers of keys lie in a few channels, the same for all tokens; those of values do not. So keys
//! share a scale and a zero point with the same channel of neighbouring tokens, values with
//! neighbouring channels of the same token; the latest tokens stay as they are.
//!
//! Longview's own: codes are counted from the middle of a group instead of from its smallest number,
//! which gives the same levels; values always share a scale among 32 channels; and tokens are read
//! quantised once they are no longer among the latest, while a prompt is read too, so that memory
//! stays bounded and the result does not depend on how the prompt was cut into passes. The paper reads
//! the whole prompt in full precision. Attention multiplies codes with whole numbers: queries times the
//! scales of a page, and weights times those of values, are rounded to 16 bits of the page's largest,
//! or with `queries=int8` to 8.

use longview_kv::{KiviBits, KiviGroup, KiviQueries, KvForm, KvType};

use super::most_recent;
use crate::arguments::Arguments;
use crate::error::MethodError;
use crate::method::{Build, Domain, Method, Parameter, Stage};

/// `kivi(bits, group, residual, queries)`.
pub(super) const METHOD: Method = Method {
    stage: Stage::Store,
    name: "kivi",
    exact: false,
    paper: Some("https://arxiv.org/abs/2402.02750"),
    claim: Some(
        "2 bits with almost the same quality, 2.6 times less peak memory, 2.35 \
             to 3.47 times the throughput",
    ),
    doc: "keys in a few bits with a scale for every channel of a group of tokens, values with one for \
          every 32 channels of a token; the latest tokens in half precision",
    parameters: &[
        Parameter {
            name: "bits",
            default: "4",
            unit: "bits a number",
            doc: "2 or 4; the authors recommend 4 where query heads share KV heads",
            domain: Domain::Count,
        },
        GROUP,
        Parameter {
            name: "residual",
            default: "128",
            unit: "tokens",
            doc: "the latest tokens, at least so many, stay in half precision",
            domain: Domain::Count,
        },
        QUERIES,
    ],
    build: Build::Store(build),
};

/// Tokens that share a scale.
pub(super) const GROUP: Parameter = Parameter {
    name: "group",
    default: "32",
    unit: "tokens",
    doc: "tokens of a channel of keys that share a scale, 32 or 64",
    domain: Domain::Count,
};

/// What attention rounds to before it multiplies.
pub(super) const QUERIES: Parameter = Parameter {
    name: "queries",
    default: "float",
    unit: "",
    doc: "float: products as exact as floats; int8: half the arithmetic, with an error below that \
          of the codes",
    domain: Domain::Word(&["float", "int8"]),
};

fn build(arguments: &Arguments) -> Result<KvForm, MethodError> {
    let bits = match arguments.count("bits") {
        4 => KiviBits::Four,
        2 => KiviBits::Two,
        other => {
            return Err(MethodError::Value {
                method: METHOD.name.to_owned(),
                parameter: "bits".to_owned(),
                value: other.to_string(),
                wanted: "2 or 4".to_owned(),
            });
        }
    };
    let kv_type = KvType::kivi(bits, group(&METHOD, arguments)?);
    Ok(KvForm {
        recent_tokens: most_recent(&METHOD, arguments, "residual")?,
        ..kv_type.with_queries(queries(arguments)).into()
    })
}

/// What `group` says.
pub(super) fn group(method: &Method, arguments: &Arguments) -> Result<KiviGroup, MethodError> {
    match arguments.count("group") {
        32 => Ok(KiviGroup::Tokens32),
        64 => Ok(KiviGroup::Tokens64),
        other => Err(MethodError::Value {
            method: method.name.to_owned(),
            parameter: "group".to_owned(),
            value: other.to_string(),
            wanted: "32 or 64".to_owned(),
        }),
    }
}

/// What `queries` says.
pub(super) fn queries(arguments: &Arguments) -> KiviQueries {
    match arguments.word("queries") {
        "int8" => KiviQueries::Int8,
        _ => KiviQueries::Float,
    }
}
