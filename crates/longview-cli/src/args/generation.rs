//! How an answer is generated: samplers, lengths and stops.

use clap::Args;
use longview::methods::{Decode, Sampling, Stage, fresh_seed};
use serde_json::Value;

use super::methods::refused;
use crate::failure::Failure;
use crate::size::parse_tokens;

/// Flags of everything that generates.
#[derive(Debug, Args)]
#[command(next_help_heading = "Generation")]
pub(crate) struct GenerationArgs {
    /// The most tokens to generate
    #[arg(long, short = 'n', value_name = "N", default_value = "512", value_parser = parse_tokens)]
    pub(crate) max_tokens: usize,

    /// End before this text; may be repeated
    #[arg(long, value_name = "TEXT")]
    pub(crate) stop: Vec<String>,

    /// Go on when the model ends its answer
    #[arg(long)]
    pub(crate) ignore_eos: bool,

    /// Plan the context for this many tokens, prompt and answer together; what is longer is refused
    /// or cut [default: what the prompt and the answer need]
    #[arg(long, value_name = "N", value_parser = parse_tokens)]
    pub(crate) planned_tokens: Option<usize>,

    /// Decode methods as text, such as 'temperature(0.7), top-p(p=0.95), draw(seed=1)'
    #[arg(long, value_name = "METHODS", conflicts_with_all = [
        "temperature", "top_k", "top_p", "min_p", "typical", "repeat_penalty", "repeat_last",
        "presence_penalty", "frequency_penalty", "logit_bias",
    ])]
    pub(crate) decode: Option<String>,

    /// What logits are divided by before a token is drawn; 0 takes the most likely one
    #[arg(long, value_name = "T", allow_negative_numbers = true)]
    pub(crate) temperature: Option<f64>,

    /// Draw from the K most likely tokens; 0 for all
    #[arg(long, value_name = "K")]
    pub(crate) top_k: Option<u64>,

    /// Draw from the most likely tokens whose probabilities sum to P
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    pub(crate) top_p: Option<f64>,

    /// Draw from tokens at least P times as likely as the most likely one
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    pub(crate) min_p: Option<f64>,

    /// Draw from the tokens nearest to the expected surprise whose probabilities sum to P
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    pub(crate) typical: Option<f64>,

    /// Factor against tokens that occurred; 1 for none
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    pub(crate) repeat_penalty: Option<f64>,

    /// How many tokens back the penalties look [default: 64]
    #[arg(long, value_name = "N")]
    pub(crate) repeat_last: Option<u64>,

    /// Taken off the logits of tokens that occurred
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    pub(crate) presence_penalty: Option<f64>,

    /// Taken off the logits of tokens for every time they occurred
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    pub(crate) frequency_penalty: Option<f64>,

    /// Added to the logit of a token, such as 123=-5 or 123=-inf; may be repeated
    #[arg(long, value_name = "ID=±X", value_parser = parse_bias, value_delimiter = ',')]
    pub(crate) logit_bias: Vec<(u32, f64)>,

    /// The same seed gives the same text [default: a new one, which is reported]
    #[arg(long, value_name = "N")]
    pub(crate) seed: Option<u64>,
}

/// What decides where the flags say nothing.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Fallback<'a> {
    /// The most likely token at every step.
    Greedy,
    /// What the model's `generation_config.json` recommends, or the usual settings.
    Model(Option<&'a Value>),
}

impl GenerationArgs {
    /// The most tokens an answer to a prompt of `prompt` tokens may have.
    pub(crate) fn room(&self, prompt: usize) -> usize {
        let planned = self.planned_tokens.unwrap_or(usize::MAX);
        self.max_tokens.min(planned.saturating_sub(prompt))
    }

    /// The decode methods, every seed settled.
    pub(crate) fn decode(&self, fallback: Fallback<'_>) -> Result<Decode, Failure> {
        let decode = match &self.decode {
            Some(text) => text
                .parse()
                .map_err(|error| refused(Stage::Decode, &error))?,
            None => self.sampling(fallback).decode().map_err(Failure::wrong)?,
        };
        Ok(decode.with_open_seed(self.seed.unwrap_or_else(fresh_seed)))
    }

    fn sampling(&self, fallback: Fallback<'_>) -> Sampling {
        let flags = Sampling {
            temperature: self.temperature,
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            typical: self.typical,
            repeat_penalty: self.repeat_penalty,
            presence_penalty: self.presence_penalty,
            frequency_penalty: self.frequency_penalty,
            penalty_last: self.repeat_last,
            logit_bias: self.logit_bias.clone(),
            seed: self.seed,
        };
        match fallback {
            Fallback::Greedy => flags,
            Fallback::Model(config) => {
                let recommended = config.and_then(Sampling::from_generation_config);
                // A greedy model that is told to draw by a cut of the candidates draws.
                let cut = flags.top_k.is_some() || flags.top_p.is_some() || flags.min_p.is_some();
                match recommended {
                    Some(greedy) if greedy.temperature == Some(0.0) && cut => flags,
                    Some(recommended) => flags.or(recommended),
                    None => flags.or(Sampling::usual()),
                }
            }
        }
    }
}

fn parse_bias(text: &str) -> Result<(u32, f64), String> {
    let wrong = || format!("{text:?} is not a token id and a number, such as 123=-5");
    let (id, bias) = text.split_once('=').ok_or_else(wrong)?;
    let id = id.trim().parse().map_err(|_| wrong())?;
    let bias: f64 = bias.trim().parse().map_err(|_| wrong())?;
    if bias.is_nan() || bias == f64::INFINITY {
        Err(wrong())
    } else {
        Ok((id, bias))
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use serde_json::json;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        generation: GenerationArgs,
    }

    fn decode(line: &str, fallback: Fallback<'_>) -> Result<String, String> {
        let words = std::iter::once("x").chain(line.split_whitespace());
        let line = Line::try_parse_from(words).map_err(|error| error.to_string())?;
        let decode = line.generation.decode(fallback);
        decode
            .map(|decode| decode.to_string())
            .map_err(|failure| failure.message().unwrap())
    }

    #[test]
    fn flags_and_text_build_the_same_chain() {
        let flags = decode("--temperature 0.5 --top-k 3 --seed 4", Fallback::Greedy);
        let text = decode(
            "--decode temperature(0.5),top-k(3) --seed 4",
            Fallback::Greedy,
        );
        assert_eq!(flags, text);
        assert_eq!(
            flags.unwrap(),
            "temperature(t=0.5), top-k(k=3), draw(seed=4)"
        );
        assert_eq!(
            decode(
                "--logit-bias 5=-1.5,6=2 --logit-bias 7=-inf",
                Fallback::Greedy
            )
            .unwrap(),
            "logit-bias(5=-1.5, 6=2, 7=-inf), greedy"
        );
    }

    #[test]
    fn what_the_flags_leave_open_the_fallback_decides() {
        let model = json!({"do_sample": true, "temperature": 0.6, "top_p": 0.9});
        let greedy = json!({"do_sample": false});
        assert_eq!(decode("", Fallback::Greedy).unwrap(), "greedy");
        assert_eq!(
            decode("--seed 1", Fallback::Model(None)).unwrap(),
            "temperature(t=0.7), top-p(p=0.95), draw(seed=1)"
        );
        assert_eq!(
            decode("--seed 1 --top-p 0.5", Fallback::Model(Some(&model))).unwrap(),
            "temperature(t=0.6), top-p(p=0.5), draw(seed=1)"
        );
        assert_eq!(
            decode("--seed 1", Fallback::Model(Some(&greedy))).unwrap(),
            "greedy"
        );
        assert_eq!(
            decode("--seed 1 --top-p 0.5", Fallback::Model(Some(&greedy))).unwrap(),
            "top-p(p=0.5), draw(seed=1)"
        );
        let unseeded = decode("--temperature 1", Fallback::Greedy).unwrap();
        assert!(unseeded.starts_with("draw(seed="), "{unseeded}");
    }

    #[test]
    fn contradictions_and_nonsense_are_refused() {
        for (line, said) in [
            ("--decode greedy --top-k 3", "cannot be used with"),
            ("--decode gredy", "did you mean \"greedy\"?"),
            ("--top-p 1.5", "top-p: p = 1.5 is not a share"),
            ("--top-p -1", "top-p: p = -1 is not a share"),
            ("--temperature nan", "NaN"),
            ("--logit-bias 5", "not a token id and a number"),
            ("--logit-bias 5=inf", "not a token id and a number"),
        ] {
            let message = decode(line, Fallback::Greedy).unwrap_err();
            assert!(message.contains(said), "{line}: {message}");
        }
    }
}
