//! Rotary position embeddings: from settings to frequencies.

use longview_kernels::rope::{
    Llama3Scaling, RotaryTable, YarnRamp, YarnScaling, longrope_attention_factor,
    yarn_attention_factor,
};
use longview_kv::RopeSet;
use serde_json::Value;

use crate::config::{Config, MOST_POSITIONS};
use crate::error::ModelError;

/// A rotary embedding as the settings describe it.
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    /// Base of the frequencies.
    pub theta: f64,
    /// Channels of a head that turn; the others stay as they are.
    pub rotary_dim: usize,
    /// How the frequencies are changed for long contexts.
    pub scaling: Scaling,
}

/// How rotary frequencies are changed for contexts beyond those of training.
#[derive(Clone, Debug, PartialEq)]
pub enum Scaling {
    /// Not at all.
    None,
    /// All divided by a factor (position interpolation).
    Linear {
        /// The factor.
        factor: f64,
    },
    /// Llama 3.1: low frequencies divided, high ones kept, a ramp between.
    Llama3(Llama3Scaling),
    /// YaRN (<https://arxiv.org/abs/2309.00071>).
    Yarn(YarnScaling),
    /// LongRoPE (<https://arxiv.org/abs/2402.13753>): a divisor a frequency, one set for contexts
    /// up to the original length and one beyond.
    LongRope {
        /// Divisors for contexts planned up to `original_positions`.
        short: Vec<f32>,
        /// Divisors for longer ones.
        long: Vec<f32>,
        /// Positions of training.
        original_positions: usize,
        /// Factor on sine and cosine.
        attention_factor: f64,
    },
    /// A divisor a frequency, as GGUF files store llama 3.1's.
    Factors(Vec<f32>),
}

impl Rope {
    /// The rotary embedding of heads with `head_dim` channels.
    ///
    /// Reads both spellings of `config.json`: `rope_theta` with `rope_scaling`, and the newer
    /// `rope_parameters`, which may hold one set a layer type (`layer_type`).
    pub(crate) fn from_config(
        config: &Config,
        head_dim: usize,
        max_positions: usize,
        layer_type: &str,
    ) -> Result<Rope, ModelError> {
        let parameters = config.section("rope_parameters");
        let parameters = match parameters {
            Some(all) => Some(all.section(layer_type).unwrap_or(all)),
            None => config.section("rope_scaling"),
        };
        let from_parameters = |key: &str| match &parameters {
            Some(section) => section.opt_f64(key),
            None => Ok(None),
        };
        let theta = match from_parameters("rope_theta")? {
            Some(theta) => theta,
            None => config.opt_f64("rope_theta")?.unwrap_or(10_000.0),
        };
        let part = match from_parameters("partial_rotary_factor")? {
            Some(part) => part,
            None => config.opt_f64("partial_rotary_factor")?.unwrap_or(1.0),
        };
        let rotary_dim = (head_dim as f64 * part) as usize;
        if theta <= 0.0 || rotary_dim == 0 || !rotary_dim.is_multiple_of(2) || rotary_dim > head_dim
        {
            let problem = format!("base {theta} with {rotary_dim} of {head_dim} channels");
            return Err(config.error("rope_theta", problem));
        }
        let scaling = match &parameters {
            Some(section) => scaling(config, section, rotary_dim, max_positions)?,
            None => Scaling::None,
        };
        Ok(Rope {
            theta,
            rotary_dim,
            scaling,
        })
    }

    /// A rotary embedding without scaling.
    pub(crate) fn plain(theta: f64, rotary_dim: usize) -> Rope {
        Rope {
            theta,
            rotary_dim,
            scaling: Scaling::None,
        }
    }

    /// The set of frequencies for a context planned to hold `tokens` tokens.
    pub(crate) fn set_for(&self, tokens: usize) -> RopeSet {
        match &self.scaling {
            Scaling::LongRope {
                original_positions, ..
            } if tokens > *original_positions => RopeSet::Long,
            _ => RopeSet::Short,
        }
    }

    /// Positions that the frequencies of `set` are meant for, where that is fewer than the model's.
    pub(crate) fn positions(&self, set: RopeSet) -> Option<usize> {
        match (&self.scaling, set) {
            (
                Scaling::LongRope {
                    original_positions, ..
                },
                RopeSet::Short,
            ) => Some(*original_positions),
            _ => None,
        }
    }

    /// Positions that the scaling was made to reach, where it says so; at most [`MOST_POSITIONS`].
    pub(crate) fn reach(&self) -> usize {
        match &self.scaling {
            Scaling::Yarn(yarn) => {
                ((yarn.original_max_positions * yarn.factor) as usize).min(MOST_POSITIONS)
            }
            _ => 0,
        }
    }

    /// The frequencies of `set`.
    pub(crate) fn table(&self, set: RopeSet) -> RotaryTable {
        let table = RotaryTable::new(self.theta, self.rotary_dim);
        match &self.scaling {
            Scaling::None => table,
            Scaling::Linear { factor } => table.linear(*factor),
            Scaling::Llama3(scaling) => table.llama3(scaling),
            Scaling::Yarn(scaling) => table.yarn(scaling),
            Scaling::LongRope {
                short,
                long,
                attention_factor,
                ..
            } => {
                let factors = match set {
                    RopeSet::Short => short,
                    RopeSet::Long => long,
                };
                table
                    .divided_by(factors)
                    .with_attention_factor(*attention_factor)
            }
            Scaling::Factors(factors) => table.divided_by(factors),
        }
    }
}

fn scaling(
    config: &Config,
    section: &Config,
    rotary_dim: usize,
    max_positions: usize,
) -> Result<Scaling, ModelError> {
    let kind = match section.opt_str("rope_type")? {
        Some(kind) => Some(kind),
        None => section.opt_str("type")?,
    };
    let number = |key: &str, default: Option<f64>| match section.opt_f64(key)?.or(default) {
        Some(number) => Ok(number),
        None => Err(section.error(key, "is missing from the rope scaling")),
    };
    let original = || -> Result<usize, ModelError> {
        let key = "original_max_position_embeddings";
        let found = section.opt_usize(key)?.or(config.opt_usize(key)?);
        Ok(found
            .filter(|&positions| positions > 0)
            .unwrap_or(max_positions))
    };
    let factors = |key: &str| -> Result<Vec<f32>, ModelError> {
        let list = section.get(key).and_then(Value::as_array);
        let number = |value: &Value| value.as_f64().map(|number| number as f32);
        let numbers: Option<Vec<f32>> = list.and_then(|list| list.iter().map(number).collect());
        numbers
            .filter(|n| n.len() == rotary_dim / 2 && n.iter().all(|&x| x > 0.0))
            .ok_or_else(|| {
                section.error(key, format!("is not a list of {} factors", rotary_dim / 2))
            })
    };
    if let Some(factor) = section.opt_f64("factor")?.filter(|&factor| factor <= 0.0) {
        return Err(section.error("factor", format!("{factor} is not above 0")));
    }
    Ok(match kind {
        None | Some("default") => Scaling::None,
        Some("linear") => Scaling::Linear {
            factor: number("factor", None)?,
        },
        Some("llama3") if number("low_freq_factor", None)? >= number("high_freq_factor", None)? => {
            let problem = "is not above low_freq_factor";
            return Err(section.error("high_freq_factor", problem));
        }
        Some("llama3") => Scaling::Llama3(Llama3Scaling {
            factor: number("factor", None)?,
            low_freq_factor: number("low_freq_factor", None)?,
            high_freq_factor: number("high_freq_factor", None)?,
            original_max_positions: original()? as f64,
        }),
        Some("yarn") => {
            let factor = number("factor", None)?;
            let mscale = number("mscale", Some(1.0))?;
            let mscale_all_dim = number("mscale_all_dim", Some(0.0))?;
            let usual = yarn_attention_factor(factor, mscale, mscale_all_dim);
            Scaling::Yarn(YarnScaling {
                factor,
                beta_fast: number("beta_fast", Some(32.0))?,
                beta_slow: number("beta_slow", Some(1.0))?,
                original_max_positions: original()? as f64,
                ramp: if section.opt_bool("truncate")?.unwrap_or(true) {
                    YarnRamp::Truncated
                } else {
                    YarnRamp::Exact
                },
                attention_factor: section.opt_f64("attention_factor")?.unwrap_or(usual),
            })
        }
        Some("longrope" | "su") => {
            let original_positions = original()?;
            let ratio = max_positions as f64 / original_positions as f64;
            let factor = section.opt_f64("factor")?.unwrap_or(ratio);
            let usual = longrope_attention_factor(factor, original_positions as f64);
            let attention_factor = section.opt_f64("attention_factor")?.unwrap_or(usual);
            Scaling::LongRope {
                short: factors("short_factor")?,
                long: factors("long_factor")?,
                original_positions,
                attention_factor,
            }
        }
        Some("factors") => Scaling::Factors(factors("factors")?),
        Some(other) => {
            let known = "default, linear, llama3, yarn and longrope are known";
            return Err(section.error("rope_type", format!("{other:?} is unknown; {known}")));
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn rope(values: Value) -> Result<Rope, ModelError> {
        Rope::from_config(&Config::new("tiny", values), 8, 1024, "full_attention")
    }

    #[test]
    fn both_spellings_agree() {
        let old = rope(json!({"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 4}}));
        let new = rope(json!({"rope_parameters":
            {"rope_theta": 5e5, "rope_type": "linear", "factor": 4.0}}));
        let by_layer = rope(json!({"rope_parameters": {"full_attention":
            {"rope_theta": 5e5, "rope_type": "linear", "factor": 4.0}}}));
        let expected = Rope {
            theta: 5e5,
            rotary_dim: 8,
            scaling: Scaling::Linear { factor: 4.0 },
        };
        assert_eq!(old.unwrap(), expected);
        assert_eq!(new.unwrap(), expected);
        assert_eq!(by_layer.unwrap(), expected);
    }

    #[test]
    fn longrope_chooses_its_set_by_the_planned_length() {
        let long = rope(json!({"rope_scaling": {"type": "longrope",
            "short_factor": [1, 1, 1, 1], "long_factor": [2, 2, 2, 2]},
            "original_max_position_embeddings": 128}))
        .unwrap();
        assert_eq!(long.set_for(128), RopeSet::Short);
        assert_eq!(long.set_for(129), RopeSet::Long);
        let Scaling::LongRope {
            attention_factor, ..
        } = long.scaling
        else {
            panic!()
        };
        assert!((attention_factor - (1.0 + 8f64.ln() / 128f64.ln()).sqrt()).abs() < 1e-12);
    }

    #[test]
    fn what_is_unknown_or_incomplete_is_named() {
        let unknown = rope(json!({"rope_scaling": {"rope_type": "spiral"}}));
        assert!(unknown.unwrap_err().to_string().contains("spiral"));
        let short = rope(json!({"rope_scaling": {"type": "longrope", "short_factor": [1]}}));
        assert!(short.unwrap_err().to_string().contains("4 factors"));
        let missing = rope(json!({"rope_scaling": {"type": "llama3", "factor": 8}}));
        assert!(missing.unwrap_err().to_string().contains("low_freq_factor"));
    }
}
