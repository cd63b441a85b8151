//! Tokens of images, which some merges let go of before any text.

use std::cmp::Ordering;
use std::ops::Range;

use super::pace::Kept;
use super::view::LayerView;
use super::{Keep, Scores};
use crate::context::Context;
use crate::error::KvError;

/// Which tokens a merge lets go of first, where it is told what they are of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LeavesFirst {
    /// Those that score least, whatever they are of.
    #[default]
    Least,
    /// Those of images, by their scores, before any of text.
    Images,
}

impl Context {
    /// Says which tokens are of images, spans that ascend and lie apart; they may be read later. From here
    /// on the keep method drops none of text while it holds one of an image that need not stay, in any
    /// head; budgets are spread as without. Forks have the same.
    ///
    /// # Errors
    /// [`KvError::KeepRefused`] where no keep method with a merge that knows images is in charge, and for
    /// spans in another order.
    pub fn mark_images(&mut self, spans: Vec<Range<usize>>) -> Result<(), KvError> {
        let Some(kept) = &mut self.kept else {
            return Err(KvError::KeepRefused {
                method: "all".to_owned(),
                why: "it keeps everything and has no use for a mask of images; put a method with \
                      merge=look-m in charge first"
                    .to_owned(),
            });
        };
        if !kept.plan.knows_images() {
            let why = "it does not tell images from text; give it merge=look-m";
            return Err(kept.plan.refused(why.to_owned()));
        }
        let ascend = spans.windows(2).all(|pair| pair[0].end <= pair[1].start);
        if let Some(wrong) = spans.iter().find(|span| span.is_empty() || !ascend) {
            return Err(kept.plan.refused(format!(
                "spans of images must not be empty and must ascend: {wrong:?} does not fit in"
            )));
        }
        kept.images = spans;
        Ok(())
    }
}

impl Keep {
    pub(super) fn knows_images(&self) -> bool {
        let first = self.merge.as_ref().map(|merge| merge.leaves_first());
        first == Some(LeavesFirst::Images)
    }
}

impl Kept {
    /// Puts the pairs of images behind those of text in `scores`, in the order of their own scores. What
    /// stays or goes in any case does so still.
    pub(super) fn put_images_last(&self, view: &LayerView<'_>, scores: &mut Scores) {
        if self.images.is_empty() {
            return;
        }
        for head in 0..view.heads() {
            let is_image = |pair: usize| {
                let position = view.position(head, pair);
                let after = self.images.partition_point(|span| span.end <= position);
                let span = self.images.get(after);
                span.is_some_and(|span| span.contains(&position))
            };
            put_last(scores.head_mut(head), &is_image);
        }
    }
}

fn put_last(scores: &mut [f32], is_last: &dyn Fn(usize) -> bool) {
    let (mut last, mut least) = (Vec::new(), 0f32);
    for (pair, &score) in scores.iter().enumerate().filter(|(_, s)| s.is_finite()) {
        match is_last(pair) {
            true => last.push(pair),
            false => least = least.min(score),
        }
    }
    let by_score = |a: &usize, b: &usize| -> Ordering { scores[*b].total_cmp(&scores[*a]) };
    // Of equal ones the first stays first.
    last.sort_by(by_score);
    // Multiples, which stay apart however large they are.
    let step = (-least).max(1.0);
    for (rank, &pair) in last.iter().enumerate() {
        scores[pair] = -step * (rank + 2) as f32;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_goes_last_keeps_its_order() {
        let mut scores = [0.5, 9.0, -3.0, 9.0, f32::INFINITY, 1e-9, f32::NEG_INFINITY];
        put_last(&mut scores, &|pair| [1, 3, 4, 5, 6].contains(&pair));
        assert_eq!(
            scores,
            [
                0.5,
                -6.0,
                -3.0,
                -9.0,
                f32::INFINITY,
                -12.0,
                f32::NEG_INFINITY
            ]
        );
    }
}
