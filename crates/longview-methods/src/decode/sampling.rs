//! The usual settings, as flags and as model files have them.

use serde_json::Value;

use super::Decode;
use crate::error::MethodError;

/// The sampling settings people know, each of them optional.
///
/// They become a chain in the order of Hugging Face transformers, whose `generation_config.json`
/// most settings come from: logit bias, repetition, presence and frequency penalties, temperature,
/// top-k, top-p, min-p, typical, then the draw.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sampling {
    /// What logits are divided by; 0 chooses the most likely token.
    pub temperature: Option<f64>,
    /// How many tokens stay; 0 for all.
    pub top_k: Option<u64>,
    /// The probability that the tokens that stay sum to; 1 for all.
    pub top_p: Option<f64>,
    /// The least share of the highest probability that stays; 0 for all.
    pub min_p: Option<f64>,
    /// The probability that the most typical tokens sum to; 1 for all.
    pub typical: Option<f64>,
    /// Factor on the logits of tokens that occurred; 1 for none.
    pub repeat_penalty: Option<f64>,
    /// Logits off tokens that occurred; 0 for none.
    pub presence_penalty: Option<f64>,
    /// Logits off tokens for every time they occurred; 0 for none.
    pub frequency_penalty: Option<f64>,
    /// How many tokens the penalties look back; 64 when not given.
    pub penalty_last: Option<u64>,
    /// What is added to the logits of tokens.
    pub logit_bias: Vec<(u32, f64)>,
    /// Where the random numbers begin; chosen anew when not given.
    pub seed: Option<u64>,
}

impl Sampling {
    /// What `run` and `chat` use with a model that recommends nothing.
    pub fn usual() -> Sampling {
        Sampling {
            temperature: Some(0.7),
            top_p: Some(0.95),
            ..Sampling::default()
        }
    }

    /// What a model recommends in its `generation_config.json`, if it does: the settings when it
    /// samples (`do_sample`, or a temperature, top-k, top-p or min-p without it), greedy when it
    /// says that it does not.
    pub fn from_generation_config(config: &Value) -> Option<Sampling> {
        let number = |key: &str| config.get(key).and_then(Value::as_f64);
        if config.get("do_sample").and_then(Value::as_bool) == Some(false) {
            return Some(Sampling {
                temperature: Some(0.0),
                ..Sampling::default()
            });
        }
        let samples = config.get("do_sample").and_then(Value::as_bool) == Some(true)
            || ["temperature", "top_k", "top_p", "min_p"]
                .iter()
                .any(|key| number(key).is_some());
        samples.then(|| Sampling {
            temperature: Some(number("temperature").unwrap_or(1.0)),
            top_k: config.get("top_k").and_then(Value::as_u64),
            top_p: number("top_p"),
            min_p: number("min_p"),
            typical: number("typical_p"),
            repeat_penalty: number("repetition_penalty"),
            ..Sampling::default()
        })
    }

    /// These settings, and those of `base` where these say nothing.
    #[must_use]
    pub fn or(self, base: Sampling) -> Sampling {
        Sampling {
            temperature: self.temperature.or(base.temperature),
            top_k: self.top_k.or(base.top_k),
            top_p: self.top_p.or(base.top_p),
            min_p: self.min_p.or(base.min_p),
            typical: self.typical.or(base.typical),
            repeat_penalty: self.repeat_penalty.or(base.repeat_penalty),
            presence_penalty: self.presence_penalty.or(base.presence_penalty),
            frequency_penalty: self.frequency_penalty.or(base.frequency_penalty),
            penalty_last: self.penalty_last.or(base.penalty_last),
            logit_bias: if self.logit_bias.is_empty() {
                base.logit_bias
            } else {
                self.logit_bias
            },
            seed: self.seed.or(base.seed),
        }
    }

    /// The chain of these settings. Without a temperature it is greedy, unless another setting only
    /// makes sense when sampling: then the temperature is 1.
    ///
    /// # Errors
    /// [`MethodError::Value`] when a setting is outside its domain.
    pub fn decode(&self) -> Result<Decode, MethodError> {
        let cuts = [
            off("top-k", self.top_k.map(|k| k as f64), 0.0),
            off("top-p", self.top_p, 1.0),
            off("min-p", self.min_p, 0.0),
            off("typical", self.typical, 1.0),
        ];
        let cuts: Vec<String> = cuts.into_iter().flatten().collect();
        let temperature = self
            .temperature
            .unwrap_or(if cuts.is_empty() { 0.0 } else { 1.0 });
        let mut steps: Vec<String> = Vec::new();
        if !self.logit_bias.is_empty() {
            let biases: Vec<String> = self
                .logit_bias
                .iter()
                .map(|(id, bias)| format!("{id}={bias:+}"))
                .collect();
            steps.push(format!("logit-bias({})", biases.join(", ")));
        }
        let last = self.penalty_last.unwrap_or(64);
        for (name, penalty, neutral) in [
            ("repetition", self.repeat_penalty, 1.0),
            ("presence", self.presence_penalty, 0.0),
            ("frequency", self.frequency_penalty, 0.0),
        ] {
            let step = penalty.filter(|&penalty| penalty != neutral);
            steps.extend(step.map(|penalty| format!("{name}(penalty={penalty}, last={last})")));
        }
        // Every setting is parsed, also those that a greedy choice makes idle: a wrong one is refused.
        let sampled: Vec<String> = off("temperature", Some(temperature), 1.0)
            .into_iter()
            .chain(cuts)
            .collect();
        let draw = self
            .seed
            .map_or("draw".to_owned(), |seed| format!("draw(seed={seed})"));
        let all = [steps.clone(), sampled, vec![draw]].concat().join(", ");
        let decode: Decode = all.parse()?;
        if temperature == 0.0 {
            steps.push("greedy".to_owned());
            return steps.join(", ").parse();
        }
        Ok(decode)
    }
}

/// The method text of a setting, unless it has the value that does nothing.
fn off(name: &str, value: Option<f64>, neutral: f64) -> Option<String> {
    value
        .filter(|&value| value != neutral)
        .map(|value| format!("{name}({value})"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn text(sampling: Sampling) -> String {
        sampling.decode().unwrap().to_string()
    }

    #[test]
    fn settings_become_a_chain_in_a_stated_order() {
        assert_eq!(text(Sampling::default()), "greedy");
        assert_eq!(
            text(Sampling::usual()),
            "temperature(t=0.7), top-p(p=0.95), draw"
        );
        let all = Sampling {
            temperature: Some(0.8),
            top_k: Some(40),
            top_p: Some(0.9),
            min_p: Some(0.02),
            typical: Some(0.5),
            repeat_penalty: Some(1.2),
            presence_penalty: Some(0.1),
            frequency_penalty: Some(-0.1),
            penalty_last: Some(128),
            logit_bias: vec![(7, -5.0), (3, f64::NEG_INFINITY)],
            seed: Some(9),
        };
        assert_eq!(
            text(all.clone()),
            "logit-bias(3=-inf, 7=-5), repetition(penalty=1.2, last=128), \
             presence(penalty=0.1, last=128), frequency(penalty=-0.1, last=128), \
             temperature(t=0.8), top-k(k=40), top-p(p=0.9), min-p(p=0.02), typical(p=0.5), \
             draw(seed=9)"
        );
        assert_eq!(
            text(Sampling {
                temperature: Some(0.0),
                repeat_penalty: None,
                ..all
            }),
            "logit-bias(3=-inf, 7=-5), presence(penalty=0.1, last=128), \
             frequency(penalty=-0.1, last=128), greedy"
        );
    }

    #[test]
    fn neutral_values_leave_no_step_and_cuts_imply_sampling() {
        let neutral = Sampling {
            temperature: Some(1.0),
            top_k: Some(0),
            top_p: Some(1.0),
            min_p: Some(0.0),
            typical: Some(1.0),
            repeat_penalty: Some(1.0),
            seed: Some(1),
            ..Sampling::default()
        };
        assert_eq!(text(neutral), "draw(seed=1)");
        let top_p = Sampling {
            top_p: Some(0.5),
            ..Sampling::default()
        };
        assert_eq!(text(top_p), "top-p(p=0.5), draw");
        assert_eq!(
            text(Sampling {
                seed: Some(1),
                ..Sampling::default()
            }),
            "greedy"
        );
    }

    #[test]
    fn wrong_settings_are_refused_even_when_idle() {
        for (sampling, said) in [
            (
                Sampling {
                    top_p: Some(1.5),
                    ..Sampling::default()
                },
                "top-p: p = 1.5 is not",
            ),
            (
                Sampling {
                    temperature: Some(0.0),
                    top_p: Some(-1.0),
                    ..Sampling::default()
                },
                "top-p: p = -1 is not",
            ),
            (
                Sampling {
                    temperature: Some(-0.5),
                    ..Sampling::default()
                },
                "t = -0.5 is not",
            ),
            (
                Sampling {
                    repeat_penalty: Some(0.0),
                    ..Sampling::default()
                },
                "penalty = 0 is not",
            ),
        ] {
            let message = sampling.decode().unwrap_err().to_string();
            assert!(message.contains(said), "{message}");
        }
    }

    #[test]
    fn model_files_recommend_settings() {
        let from = |config: Value| Sampling::from_generation_config(&config);
        assert_eq!(from(json!({"eos_token_id": 1})), None);
        let greedy = from(json!({"do_sample": false, "temperature": 0.6})).unwrap();
        assert_eq!(text(greedy), "greedy");
        let qwen = from(json!({
            "do_sample": true, "temperature": 0.6, "top_k": 20, "top_p": 0.95,
            "repetition_penalty": 1.0
        }));
        assert_eq!(
            text(qwen.unwrap()),
            "temperature(t=0.6), top-k(k=20), top-p(p=0.95), draw"
        );
        let bare = from(json!({"temperature": 0.6})).unwrap();
        let mine = Sampling {
            temperature: Some(0.2),
            seed: Some(5),
            ..Sampling::default()
        };
        assert_eq!(text(mine.or(bare)), "temperature(t=0.2), draw(seed=5)");
    }
}
