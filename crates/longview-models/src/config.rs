//! A model's settings, in the words of `config.json`.

use serde_json::Value;

use crate::error::ModelError;

/// The settings of a model.
///
/// A Hugging Face folder has them as they are; a GGUF's metadata are translated into the same
/// words first (see [`crate::gguf_config`]), so an architecture reads one vocabulary only.
#[derive(Clone, Debug)]
pub struct Config {
    file: String,
    values: Value,
}

/// The sizes that every decoder has.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sizes {
    pub(crate) vocab: usize,
    pub(crate) hidden: usize,
    pub(crate) layers: usize,
    pub(crate) heads: usize,
    pub(crate) kv_heads: usize,
    pub(crate) head_dim: usize,
    pub(crate) ffn: usize,
    pub(crate) max_positions: usize,
    pub(crate) norm_eps: f32,
}

/// No published model comes near these; a file beyond them is damaged, and believing it would
/// mean allocating without bound.
const MOST_LAYERS: usize = 4096;
const MOST_WIDTH: usize = 1 << 22;

/// The most positions a model may have.
pub(crate) const MOST_POSITIONS: usize = 1 << 31;

impl Config {
    /// Settings `values` (a JSON object) of the model in `file`, which errors name.
    pub fn new(file: impl Into<String>, values: Value) -> Config {
        Config {
            file: file.into(),
            values,
        }
    }

    /// The model's file or folder, for messages.
    pub fn file(&self) -> &str {
        &self.file
    }

    /// The value of `key`, `None` when it is absent or null.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.values.get(key).filter(|value| !value.is_null())
    }

    /// A whole number.
    ///
    /// # Errors
    /// When it is absent, or something else.
    pub fn usize(&self, key: &str) -> Result<usize, ModelError> {
        self.opt_usize(key)?
            .ok_or_else(|| self.error(key, "is missing"))
    }

    /// A whole number that may be absent.
    ///
    /// # Errors
    /// When it is something else, negative, or larger than this machine counts.
    pub fn opt_usize(&self, key: &str) -> Result<Option<usize>, ModelError> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        let number = value
            .as_u64()
            .and_then(|number| usize::try_from(number).ok());
        number
            .map(Some)
            .ok_or_else(|| self.error(key, format!("{value} is not a whole number")))
    }

    /// A number that may be absent.
    ///
    /// # Errors
    /// When it is something else, or not finite.
    pub fn opt_f64(&self, key: &str) -> Result<Option<f64>, ModelError> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        let number = value.as_f64().filter(|number| number.is_finite());
        number
            .map(Some)
            .ok_or_else(|| self.error(key, format!("{value} is not a number")))
    }

    /// A truth value that may be absent.
    ///
    /// # Errors
    /// When it is something else.
    pub fn opt_bool(&self, key: &str) -> Result<Option<bool>, ModelError> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        value
            .as_bool()
            .map(Some)
            .ok_or_else(|| self.error(key, format!("{value} is not true or false")))
    }

    /// A word that may be absent.
    ///
    /// # Errors
    /// When it is something else.
    pub fn opt_str(&self, key: &str) -> Result<Option<&str>, ModelError> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        value
            .as_str()
            .map(Some)
            .ok_or_else(|| self.error(key, format!("{value} is not a text")))
    }

    /// The settings under `key` as settings of their own, if they are there.
    pub fn section(&self, key: &str) -> Option<Config> {
        let values = self.get(key).filter(|value| value.is_object())?;
        Some(Config {
            file: self.file.clone(),
            values: values.clone(),
        })
    }

    /// The same settings, with those of `defaults` (a JSON object) where they have none.
    pub(crate) fn with_defaults(&self, defaults: Value) -> Config {
        let mut config = self.clone();
        if let (Value::Object(values), Value::Object(defaults)) = (&mut config.values, defaults) {
            for (key, value) in defaults {
                let place = values.entry(key).or_insert(Value::Null);
                if place.is_null() {
                    *place = value;
                }
            }
        }
        config
    }

    /// A list of layers; empty when absent.
    pub(crate) fn layer_list(&self, key: &str) -> Result<Vec<usize>, ModelError> {
        let Some(list) = self.get(key) else {
            return Ok(Vec::new());
        };
        let number = |value: &Value| usize::try_from(value.as_u64()?).ok();
        let numbers = |list: &Vec<Value>| list.iter().map(number).collect();
        list.as_array()
            .and_then(numbers)
            .ok_or_else(|| self.error(key, "is not a list of layers"))
    }

    /// An error about `key`.
    pub fn error(&self, key: &str, problem: impl Into<String>) -> ModelError {
        ModelError::Setting {
            file: self.file.clone(),
            key: key.to_owned(),
            problem: problem.into(),
        }
    }

    /// The sizes every decoder has, checked to make sense together.
    pub(crate) fn sizes(&self) -> Result<Sizes, ModelError> {
        let heads = self.within("num_attention_heads", 1, 4096)?;
        let kv_heads = match self.opt_usize("num_key_value_heads")? {
            Some(kv_heads) => kv_heads,
            None => heads,
        };
        if kv_heads == 0 || heads % kv_heads != 0 {
            let problem = format!("{kv_heads} does not divide the {heads} attention heads");
            return Err(self.error("num_key_value_heads", problem));
        }
        let hidden = self.within("hidden_size", 1, MOST_WIDTH)?;
        let head_dim = match self.opt_usize("head_dim")? {
            Some(head_dim) => head_dim,
            None => hidden / heads,
        };
        if head_dim == 0 || head_dim % 2 != 0 || head_dim > 1024 {
            let problem = format!("{head_dim} is not an even number from 2 to 1,024");
            return Err(self.error("head_dim", problem));
        }
        // Where every layer has experts, only their width is given.
        let ffn = match self.get("intermediate_size") {
            None if self.get("moe_intermediate_size").is_some() => "moe_intermediate_size",
            _ => "intermediate_size",
        };
        let norm_eps = self.opt_f64("rms_norm_eps")?.unwrap_or(1e-6) as f32;
        if norm_eps < 0.0 {
            return Err(self.error("rms_norm_eps", format!("{norm_eps} is below 0")));
        }
        Ok(Sizes {
            vocab: self.within("vocab_size", 1, MOST_WIDTH)?,
            hidden,
            layers: self.within("num_hidden_layers", 1, MOST_LAYERS)?,
            heads,
            kv_heads,
            head_dim,
            ffn: self.within(ffn, 1, MOST_WIDTH)?,
            max_positions: self.within("max_position_embeddings", 1, MOST_POSITIONS)?,
            norm_eps,
        })
    }

    /// A whole number from `least` to `most`.
    pub(crate) fn within(&self, key: &str, least: usize, most: usize) -> Result<usize, ModelError> {
        let value = self.usize(key)?;
        if (least..=most).contains(&value) {
            return Ok(value);
        }
        Err(self.error(key, format!("{value} is outside {least} to {most}")))
    }

    /// For each layer its window in tokens, or `None` for full attention: `layer_types` where the
    /// file has it, else `windowed(layer)`.
    pub(crate) fn windows(
        &self,
        layers: usize,
        windowed: impl Fn(usize) -> bool,
    ) -> Result<Vec<Option<usize>>, ModelError> {
        let window = self.opt_usize("sliding_window")?;
        if window == Some(0) {
            return Err(self.error("sliding_window", "0 tokens would attend to nothing"));
        }
        let Some(types) = self.layer_types(layers)? else {
            return Ok((0..layers)
                .map(|layer| window.filter(|_| windowed(layer)))
                .collect());
        };
        let of_type = |kind: &Value| match kind.as_str() {
            Some("full_attention") => Ok(None),
            Some("sliding_attention") => window.map(Some).ok_or_else(|| {
                self.error("sliding_window", "is missing, but layer_types asks for it")
            }),
            _ => {
                let known = "full_attention and sliding_attention are known";
                Err(self.error("layer_types", format!("{kind} is unknown; {known}")))
            }
        };
        types.iter().map(of_type).collect()
    }

    /// For each layer whether it keeps a state instead of keys and values: `layer_types` where the
    /// file has it, else all but every `full_attention_interval`-th.
    pub(crate) fn recurrent_layers(&self, layers: usize) -> Result<Vec<bool>, ModelError> {
        let Some(types) = self.layer_types(layers)? else {
            let interval = match self.get("full_attention_interval") {
                None => 4,
                Some(_) => self.within("full_attention_interval", 1, MOST_LAYERS)?,
            };
            return Ok((1..=layers).map(|layer| layer % interval != 0).collect());
        };
        let of_type = |kind: &Value| match kind.as_str() {
            Some("full_attention") => Ok(false),
            Some("linear_attention") => Ok(true),
            _ => {
                let known = "full_attention and linear_attention are known";
                Err(self.error("layer_types", format!("{kind} is unknown; {known}")))
            }
        };
        types.iter().map(of_type).collect()
    }

    fn layer_types(&self, layers: usize) -> Result<Option<&Vec<Value>>, ModelError> {
        let Some(types) = self.get("layer_types") else {
            return Ok(None);
        };
        let types = types.as_array().filter(|types| types.len() == layers);
        let problem = || format!("is not a list of {layers} layer types");
        types
            .map(Some)
            .ok_or_else(|| self.error("layer_types", problem()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn config(values: Value) -> Config {
        Config::new("tiny", values)
    }

    #[test]
    fn errors_name_the_file_the_key_and_the_value() {
        let config = config(json!({"hidden_size": "wide", "num_attention_heads": 3,
            "num_key_value_heads": 2}));
        let error = config.usize("hidden_size").unwrap_err().to_string();
        assert!(error.contains("tiny") && error.contains("hidden_size") && error.contains("wide"));
        assert!(
            config
                .sizes()
                .unwrap_err()
                .to_string()
                .contains("does not divide")
        );
        assert!(
            config
                .usize("absent")
                .unwrap_err()
                .to_string()
                .contains("missing")
        );
    }

    #[test]
    fn layer_types_win_over_the_rule() {
        let plain = config(json!({"sliding_window": 8}));
        assert_eq!(
            plain.windows(2, |layer| layer == 1).unwrap(),
            [None, Some(8)]
        );
        let typed = config(json!({"sliding_window": 8,
            "layer_types": ["sliding_attention", "full_attention"]}));
        assert_eq!(typed.windows(2, |_| true).unwrap(), [Some(8), None]);
        let wrong = config(json!({"layer_types": ["sideways", "full_attention"]}));
        assert!(
            wrong
                .windows(2, |_| true)
                .unwrap_err()
                .to_string()
                .contains("sideways")
        );
    }
}
