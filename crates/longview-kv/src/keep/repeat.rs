//! What the model looks at when it repeats a context: passes in a fork, whose pairs are dropped.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use longview_kernels::Exec;
use longview_kernels::attention::softmax;

use super::view::{LayerView, ROWS_AT_ONCE};
use crate::context::Context;
use crate::error::KvError;

/// For every layer and KV head the largest attention that each token of a range was given.
pub struct Marks {
    tokens: Range<usize>,
    /// `[layers][heads][tokens]`
    layers: Vec<Vec<Vec<f32>>>,
}

/// How a context is repeated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Repetition {
    /// Tokens repeated at a time.
    pub part: usize,
    /// The first tokens of the context, which a repetition may always look at.
    pub prefix: usize,
}

/// What repeating a context took.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Repeated {
    /// Tokens read for it, those that ask included.
    pub tokens: usize,
    /// Time it took.
    pub time: Duration,
    /// Time that its operations would take at the speed of the prompt's; `None` where that was not
    /// measured.
    pub predicted: Option<Duration>,
}

/// What a fork that repeats watches.
#[derive(Clone, Default)]
pub(crate) struct Watch {
    /// The first tokens, which every row may look at.
    prefix: usize,
    /// The part that is repeated.
    tokens: Range<usize>,
    /// The first token of the repetition.
    base: usize,
    layers: Vec<Vec<Vec<f32>>>,
}

impl Marks {
    /// The largest attention that each of the tokens was given, `[layers][KV heads][tokens]`; zeros in
    /// layers that are not watched.
    pub fn layers(&self) -> &[Vec<Vec<f32>>] {
        &self.layers
    }
}

impl Context {
    /// Makes this context, a fork, watch what the tokens it reads from here on attend to among the
    /// tokens `tokens`. Attention counts among the first `prefix` tokens, these, and what is read from
    /// here on, and no others. What it reads is not kept anywhere.
    pub fn watch_repeat(&mut self, tokens: Range<usize>, prefix: usize) {
        let heads = |&(place, _): &(usize, usize)| self.layout.groups[place].kind.kv_heads;
        let layers = self.layout.layers.iter();
        let marks = layers
            .map(|layer| vec![vec![0.0; tokens.len()]; heads(layer)])
            .collect();
        let base = self.len();
        if let Some(kept) = &mut self.kept {
            kept.watch = Some(Box::new(Watch {
                prefix: prefix.min(tokens.start),
                tokens,
                base,
                layers: marks,
            }));
        }
    }

    /// What was seen since [`Context::watch_repeat`].
    pub fn take_marks(&mut self) -> Option<Marks> {
        let watch = *self.kept.as_mut()?.watch.take()?;
        Some(Marks {
            tokens: watch.tokens,
            layers: watch.layers,
        })
    }

    /// Notes what a fork saw: scores of the tokens it watched.
    pub fn mark(&mut self, marks: &Marks) {
        let Some(kept) = &mut self.kept else { return };
        let all = Arc::make_mut(&mut kept.marks);
        all.resize(marks.layers.len(), Vec::new());
        for (all, of_layer) in all.iter_mut().zip(&marks.layers) {
            all.resize(of_layer.len(), Vec::new());
            for (all, of_head) in all.iter_mut().zip(of_layer) {
                if all.len() < marks.tokens.end {
                    all.resize(marks.tokens.end, f32::INFINITY);
                }
                all[marks.tokens.clone()].copy_from_slice(of_head);
            }
        }
    }

    /// Notes what repeating the context took; its time counts as the keep method's.
    pub fn repeated(&mut self, repeated: Repeated) {
        if let Some(kept) = &mut self.kept {
            kept.done.time += repeated.time;
            kept.done.repeated = Some(repeated);
        }
    }

    /// How the model is to repeat what the context holds, if its keep method needs that and it was not
    /// done.
    pub fn repeats(&self) -> Option<Repetition> {
        let kept = self.kept.as_ref()?;
        let open = kept.marks.is_empty() && kept.pairs(self.len()) > kept.slots;
        kept.plan.repetition().filter(|_| open)
    }
}

impl LayerView<'_> {
    /// The largest attention that each token, by position, was given while the model repeated the
    /// context; infinity where it did not.
    ///
    /// # Errors
    /// [`KvError::NotObserved`] when it has not repeated it.
    pub fn repeated(&self, head: usize) -> Result<&[f32], KvError> {
        let of_layer = self.marks().get(self.layer());
        let marks = of_layer.and_then(|heads| heads.get(head));
        marks
            .map(Vec::as_slice)
            .ok_or_else(|| KvError::NotObserved {
                what: "what the model looks at when it repeats the context".to_owned(),
            })
    }
}

impl Watch {
    /// Notes what the rows `q [rows][heads][head_dim]` of a layer attend to.
    pub(super) fn note(&mut self, exec: &Exec, view: &LayerView<'_>, start: usize, q: &[f32]) {
        let Watch {
            prefix,
            tokens,
            base,
            layers,
        } = self;
        let (prefix, tokens, base) = (*prefix, tokens.clone(), *base);
        let dim = view.head_dim();
        let row = view.shape().heads * dim;
        let group = view.shape().heads / view.heads();
        let fixed = prefix + tokens.len();
        exec.pool
            .for_each(&mut layers[view.layer()], |head, marks, _| {
                let ranges = [0..prefix, tokens.clone(), base..view.tokens()];
                let mut logits = Vec::new();
                for (block, rows) in q.chunks(row * (ROWS_AT_ONCE / group).max(1)).enumerate() {
                    let first = start + block * (ROWS_AT_ONCE / group).max(1);
                    let of_head =
                        |row: &[f32]| row[head * group * dim..(head + 1) * group * dim].to_vec();
                    let queries: Vec<f32> = rows.chunks_exact(row).flat_map(of_head).collect();
                    view.logits_within(head, &queries, &ranges, &mut logits);
                    let width = fixed + view.tokens() - base;
                    for (at, weights) in logits.chunks_exact_mut(width).enumerate() {
                        let visible = fixed + first + at / group + 1 - base;
                        softmax(exec.isa, &mut weights[..visible]);
                        for (mark, &weight) in marks.iter_mut().zip(&weights[prefix..fixed]) {
                            *mark = mark.max(weight);
                        }
                    }
                }
            });
    }
}
