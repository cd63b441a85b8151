//! Paper: <https://arxiv.org/abs/2505.22913> (Joo et al., Mustafar, 2025).
//!
//! Most of a key or value is in a few of its numbers. Of every token those of largest magnitude stay,
//! a bitmap says which they are, and attention is computed from bitmap and numbers; the latest
//! tokens stay whole.
//!
//! Longview's own: exactly `width - floor(width · sparsity)` numbers stay (the published code keeps
//! one more), pages of 64 tokens are pruned one at a time once they are no longer among the latest
//! (the published code prunes 256), and a bitmap needs no offsets.

use longview_kv::{KvForm, KvType, Sparse};

use crate::arguments::Arguments;
use crate::error::MethodError;
use crate::method::{Build, Domain, Method, Parameter, Stage};

/// `mustafar(sparsity, residual)`.
pub(super) const METHOD: Method = Method {
    stage: Stage::Store,
    name: "mustafar",
    exact: false,
    paper: Some("https://arxiv.org/abs/2505.22913"),
    claim: Some("70 % of the numbers dropped without loss of accuracy, 45 % of the bytes left"),
    doc: "of the numbers of every key and value those of largest magnitude, in half precision, and a \
          bitmap that says which they are; the latest tokens whole",
    parameters: &[
        Parameter {
            name: "sparsity",
            default: "50%",
            unit: "share",
            doc: "the share of numbers that become 0, in whole per cent below 100",
            domain: Domain::Share,
        },
        Parameter {
            name: "residual",
            default: "32",
            unit: "tokens",
            doc: "the latest tokens, at least so many, stay whole",
            domain: Domain::Count,
        },
    ],
    build: Build::Store(build),
};

fn build(arguments: &Arguments) -> Result<KvForm, MethodError> {
    let wrong = |parameter: &str, value: String, wanted: &str| MethodError::Value {
        method: METHOD.name.to_owned(),
        parameter: parameter.to_owned(),
        value,
        wanted: wanted.to_owned(),
    };
    let percent = 100.0 * arguments.number("sparsity");
    if (percent - percent.round()).abs() > 1e-6 || percent.round() > 99.0 {
        let value = arguments.number("sparsity").to_string();
        return Err(wrong("sparsity", value, "a whole per cent from 0% to 99%"));
    }
    let kv_type = KvType::Sparse(Sparse {
        percent: percent.round() as u8,
    });
    Ok(KvForm {
        recent_tokens: super::most_recent(&METHOD, arguments, "residual")?,
        ..kv_type.into()
    })
}
