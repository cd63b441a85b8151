//! How likely the model held the tokens of a prompt: taken from the logits of each pass, which never stay.

use super::RequestId;
use super::job::Job;
use super::request::Scored;
use super::sequence::Sequence;
use crate::error::EngineError;
use crate::sampling::{SamplingError, logprobs};

/// A token of a prompt whose probability is to be told from the logits before it. Tokens are scored side by
/// side: each looks at all of the vocabulary.
pub(super) struct Scoring<'a> {
    pub(super) job: RequestId,
    /// Its place in the prompt.
    place: usize,
    token: u32,
    /// `[vocabulary]`
    logits: &'a [f32],
    top: usize,
    scored: Option<Result<Scored, SamplingError>>,
}

impl Scoring<'_> {
    pub(super) fn make(&mut self) {
        let told = logprobs(self.logits, self.token, self.top);
        self.scored = Some(told.map(|(logprob, top)| Scored {
            id: self.token,
            logprob: Some(logprob),
            top,
        }));
    }
}

impl Job {
    /// Whether probabilities of its prompt are wanted and not all known.
    pub(super) fn is_scoring(&self) -> bool {
        self.prompt_logprobs.is_some() && self.scored.len() < self.summary.prompt_tokens
    }

    /// Tokens of the prompt that may be taken over from work done before: those whose logits are not wanted
    /// any more.
    pub(super) fn known_tokens(&self) -> usize {
        match self.is_scoring() {
            true => self.scored.len() - 1,
            false => usize::MAX,
        }
    }

    /// Notes what came of `scoring`.
    pub(super) fn take_score(&mut self, scoring: Scoring<'_>) -> Result<(), EngineError> {
        if let Some(scored) = scoring.scored
            && scoring.place == self.scored.len()
        {
            self.scored.push(scored?);
        }
        Ok(())
    }
}

impl Sequence {
    /// What is to be told from `rows`, the logits of the tokens read last, where the request wants that.
    pub(super) fn scorings<'a>(&self, job: &Job, rows: &[&'a [f32]]) -> Vec<Scoring<'a>> {
        let Some(top) = job.prompt_logprobs.filter(|_| job.is_scoring()) else {
            return Vec::new();
        };
        // A row tells of the token after it.
        let first = self.held() - rows.len() + 1;
        let tokens = self.tokens[..job.summary.prompt_tokens].iter().enumerate();
        let scoring = |((place, &token), &logits): ((usize, &u32), &&'a [f32])| Scoring {
            job: self.job,
            place,
            token,
            logits,
            top,
            scored: None,
        };
        tokens.skip(first).zip(rows).map(scoring).collect()
    }
}
