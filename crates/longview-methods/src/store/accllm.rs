//! Paper: <https://arxiv.org/abs/2505.03745> (Liang et al., AccLLM, 2025): the part for keys and values.
//!
//! Attention in the shape of a Λ, over the first tokens and a window of the last ones, whose keys and
//! values are held in 4 bits; so memory does not grow with the text. What lies between is forgotten:
//! nothing is found there again.
//!
//! Reconstructed from the abstract, for no code was published: codes lie as in kivi, the first tokens
//! and the latest stay in half precision, in whole blocks of 64, and keys keep the rotation of their
//! place in the text. The paper's weights of 2 bits are another matter. A text no longer than `window` is
//! held whole, and this is then `kivi`.

use longview_kv::{KvForm, KvType};

use super::{kivi, most_recent};
use crate::arguments::Arguments;
use crate::error::MethodError;
use crate::method::{Build, Domain, Method, Parameter, Stage};

/// `accllm(window, sinks, group, residual, queries)`.
pub(super) const METHOD: Method = Method {
    stage: Stage::Store,
    name: "accllm",
    exact: false,
    paper: Some("https://arxiv.org/abs/2505.03745"),
    claim: Some(
        "on an FPGA 2.98 times the throughput and 4.07 times the energy \
             efficiency of FlightLLM",
    ),
    doc: "the first tokens in half precision and a window of the last ones in 4 bits; what is between \
          is forgotten (reconstructed)",
    parameters: &[
        Parameter {
            name: "window",
            default: "4096",
            unit: "tokens",
            doc: "the last tokens that stay; the others are forgotten, but for the first",
            domain: Domain::Count,
        },
        Parameter {
            name: "sinks",
            default: "4",
            unit: "tokens",
            doc: "first tokens that stay, at least so many, in whole blocks of 64",
            domain: Domain::Count,
        },
        kivi::GROUP,
        Parameter {
            name: "residual",
            default: "64",
            unit: "tokens",
            doc: "the latest tokens, at least so many, stay in half precision",
            domain: Domain::Count,
        },
        kivi::QUERIES,
    ],
    build: Build::Store(build),
};

fn build(arguments: &Arguments) -> Result<KvForm, MethodError> {
    let kv_type = KvType::kivi(
        longview_kv::KiviBits::Four,
        kivi::group(&METHOD, arguments)?,
    );
    let window = most_recent(&METHOD, arguments, "window")?;
    let recent_tokens = most_recent(&METHOD, arguments, "residual")?;
    if window < recent_tokens {
        return Err(MethodError::Value {
            method: METHOD.name.to_owned(),
            parameter: "window".to_owned(),
            value: window.to_string(),
            wanted: format!("at least residual = {recent_tokens}"),
        });
    }
    Ok(KvForm {
        recent_tokens,
        sink_tokens: most_recent(&METHOD, arguments, "sinks")?,
        window_tokens: Some(window),
        ..kv_type.with_queries(kivi::queries(arguments)).into()
    })
}
