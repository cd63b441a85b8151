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
//! the whole prompt in full precision.

use longview_kv::{KiviBits, KiviGroup, KvForm, KvType};

use crate::arguments::Arguments;
use crate::error::MethodError;
use crate::method::{Build, Domain, Method, Parameter, Stage};

/// `kivi(bits, group, residual)`.
pub(super) const METHOD: Method = Method {
    stage: Stage::Store,
    name: "kivi",
    exact: false,
    paper: Some("https://arxiv.org/abs/2402.02750"),
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
        Parameter {
            name: "group",
            default: "32",
            unit: "tokens",
            doc: "tokens of a channel of keys that share a scale, 32 or 64",
            domain: Domain::Count,
        },
        Parameter {
            name: "residual",
            default: "128",
            unit: "tokens",
            doc: "the latest tokens, at least so many, stay in half precision",
            domain: Domain::Count,
        },
    ],
    build: Build::Store(build),
};

fn build(arguments: &Arguments) -> Result<KvForm, MethodError> {
    let wrong = |parameter: &str, wanted: &str| MethodError::Value {
        method: METHOD.name.to_owned(),
        parameter: parameter.to_owned(),
        value: arguments.count(parameter).to_string(),
        wanted: wanted.to_owned(),
    };
    let bits = match arguments.count("bits") {
        4 => KiviBits::Four,
        2 => KiviBits::Two,
        _ => return Err(wrong("bits", "2 or 4")),
    };
    let group = match arguments.count("group") {
        32 => KiviGroup::Tokens32,
        64 => KiviGroup::Tokens64,
        _ => return Err(wrong("group", "32 or 64")),
    };
    let recent_tokens = arguments.count("residual");
    if recent_tokens > super::MOST_RECENT {
        return Err(wrong("residual", super::RECENT_WANTED));
    }
    let kv_type = KvType::kivi(bits, group);
    Ok(KvForm {
        k: kv_type,
        v: kv_type,
        recent_tokens,
    })
}
