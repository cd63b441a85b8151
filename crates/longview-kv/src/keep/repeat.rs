//! What the model looks at when it repeats a context: passes in a fork, whose pairs are dropped.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use longview_kernels::attention::{AttentionScratch, LogSums, raise};
use longview_kernels::page::PAGE_TOKENS;
use longview_kernels::{Exec, Isa};

use super::AttentionShape;
use super::pace::Kept;
use super::view::LayerView;
use crate::context::Context;
use crate::error::KvError;
use crate::ledger::{Ledger, Purpose, Reservation};

/// Query rows whose logits for a part are in memory at once, and that a page is scored by.
pub(super) const WATCHED_ROWS: usize = 48;

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

/// What forks that repeated a context saw, with the bytes that holds.
#[derive(Default)]
pub(super) struct Marked {
    /// `[layers][heads][tokens]`
    pub(super) layers: Vec<Vec<Vec<f32>>>,
    room: Option<Reservation>,
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
    /// Logarithms of what [`Marks::layers`] will be.
    layers: Vec<Vec<Vec<f32>>>,
    /// Holds the bytes of `layers`.
    _room: Option<Arc<Reservation>>,
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
    /// here on, and no others. What it reads is not kept anywhere. Both must be held whole.
    ///
    /// # Errors
    /// [`KvError::OverLimit`] when memory lacks room for what it notes.
    pub fn watch_repeat(&mut self, tokens: Range<usize>, prefix: usize) -> Result<(), KvError> {
        let heads = |&(place, _): &(usize, usize)| self.layout.groups[place].kind.kv_heads;
        let layers = self.layout.layers.iter();
        let marks: Vec<Vec<Vec<f32>>> = layers
            .map(|layer| vec![vec![f32::NEG_INFINITY; tokens.len()]; heads(layer)])
            .collect();
        let bytes = bytes_of(&marks, tokens.len());
        let room = self.ledger.reserve(Purpose::Scratch, bytes)?;
        let base = self.len();
        // A repetition is no answer: it looks at everything.
        self.reads = None;
        if let Some(kept) = &mut self.kept {
            kept.watch = Some(Box::new(Watch {
                prefix: prefix.min(tokens.start),
                tokens,
                base,
                layers: marks,
                _room: Some(Arc::new(room)),
            }));
        }
        Ok(())
    }

    /// What was seen since [`Context::watch_repeat`].
    pub fn take_marks(&mut self) -> Option<Marks> {
        let mut watch = *self.kept.as_mut()?.watch.take()?;
        let numbers = watch.layers.iter_mut().flatten().flatten();
        numbers.for_each(|mark| *mark = mark.exp());
        Some(Marks {
            tokens: watch.tokens,
            layers: watch.layers,
        })
    }

    /// Notes what a fork saw: scores of the tokens it watched.
    ///
    /// # Errors
    /// [`KvError::OverLimit`] when memory lacks room for them; nothing is noted then.
    pub fn mark(&mut self, marks: &Marks) -> Result<(), KvError> {
        let Some(kept) = &mut self.kept else {
            return Ok(());
        };
        let end = marks.tokens.end.max(kept.marked);
        let wanted = bytes_of(&marks.layers, end);
        // What forks hold as well is copied.
        let held = match Arc::get_mut(&mut kept.marks) {
            Some(own) => own.room.as_ref().map_or(0, Reservation::bytes),
            None => 0,
        };
        let more = wanted.saturating_sub(held);
        let mut room = self.ledger.reserve(Purpose::Scratch, more)?;
        let mut all = match Arc::get_mut(&mut kept.marks) {
            Some(own) => {
                if let Some(known) = own.room.take() {
                    room.join(known);
                }
                std::mem::take(&mut own.layers)
            }
            None => kept.marks.layers.clone(),
        };
        all.resize(marks.layers.len(), Vec::new());
        for (all, of_layer) in all.iter_mut().zip(&marks.layers) {
            all.resize(of_layer.len(), Vec::new());
            for (all, of_head) in all.iter_mut().zip(of_layer) {
                all.resize(end, f32::INFINITY);
                all[marks.tokens.clone()].copy_from_slice(of_head);
            }
        }
        kept.marked = end;
        kept.marks = Arc::new(Marked {
            layers: all,
            room: Some(room),
        });
        Ok(())
    }

    /// Notes what repeating the context took, beside what that has taken before; its time counts as the
    /// keep method's.
    pub fn repeated(&mut self, repeated: Repeated) {
        if let Some(kept) = &mut self.kept {
            kept.done.time += repeated.time;
            let before = kept.done.repeated;
            kept.done.repeated = Some(before.map_or(repeated, |before| before.and(repeated)));
        }
    }

    /// How the model is to repeat what the context holds, and which tokens, if its keep method needs that
    /// and it was not done: those that were repeated before a compaction are not repeated again.
    pub fn repeats(&self) -> Option<(Repetition, Range<usize>)> {
        let kept = self.kept.as_ref()?;
        let repetition = kept.plan.repetition()?;
        let end = self.len();
        let tokens = kept.marked.max(repetition.prefix)..end;
        let open = !tokens.is_empty() && kept.pairs(end) > kept.room(end);
        open.then_some((repetition, tokens))
    }
}

impl Kept {
    /// Appends to `body` what forks saw of the first [`Kept::marked`] tokens in the layers `layers`.
    pub(super) fn write_marks(&self, layers: &[usize], body: &mut Vec<u8>) {
        for &layer in layers.iter().filter(|_| self.marked > 0) {
            for of_head in &self.marks.layers[layer] {
                let marks = &of_head[..self.marked];
                body.extend(marks.iter().flat_map(|mark| mark.to_le_bytes()));
            }
        }
    }

    /// Bytes of what forks saw.
    pub(super) fn marks_bytes(&self) -> u64 {
        self.marks.room.as_ref().map_or(0, Reservation::bytes)
    }

    /// Takes over what [`Kept::write_marks`] gave of `marked` tokens; `layers` says how many heads each has,
    /// and `numbers` are those that follow in the body. `Ok(None)` where they end before.
    pub(super) fn read_marks(
        &mut self,
        marked: usize,
        layers: &[(usize, usize)],
        ledger: &Ledger,
        numbers: &mut dyn FnMut(usize) -> Option<Vec<f32>>,
    ) -> Result<Option<()>, KvError> {
        let last = layers.last().map_or(0, |&(layer, _)| layer + 1);
        let mut marks = vec![Vec::new(); last];
        for &(layer, heads) in layers {
            for _ in 0..heads {
                let Some(of_head) = numbers(marked) else {
                    return Ok(None);
                };
                marks[layer].push(of_head);
            }
        }
        let room = ledger.reserve(Purpose::Scratch, bytes_of(&marks, marked))?;
        self.marked = marked;
        self.marks = Arc::new(Marked {
            layers: marks,
            room: Some(room),
        });
        Ok(Some(()))
    }
}

impl Repeated {
    /// Both together.
    fn and(self, other: Repeated) -> Repeated {
        Repeated {
            tokens: self.tokens + other.tokens,
            time: self.time + other.time,
            predicted: self
                .predicted
                .zip(other.predicted)
                .map(|(before, then)| before + then),
        }
    }
}

/// Bytes of numbers for so many tokens of every head of `marks`.
fn bytes_of(marks: &[Vec<Vec<f32>>], tokens: usize) -> u64 {
    let heads: usize = marks.iter().map(Vec::len).sum();
    (size_of::<f32>() * heads * tokens) as u64
}

impl LayerView<'_> {
    /// The largest attention that each token, by position, was given while the model repeated the
    /// context; infinity for the first ones, which it does not repeat.
    ///
    /// # Errors
    /// [`KvError::NotObserved`] when it has not repeated all of it.
    pub fn repeated(&self, head: usize) -> Result<&[f32], KvError> {
        let (marks, marked) = self.marks();
        let of_layer = marks.layers.get(self.layer());
        let marks = of_layer.and_then(|heads| heads.get(head));
        marks
            .filter(|_| marked >= self.tokens())
            .map(|marks| &marks[..self.tokens()])
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
            ..
        } = self;
        if start < *base || Range::is_empty(tokens) {
            // What was lost meanwhile and is computed again.
            return;
        }
        let rows = WATCHED_ROWS.max(view.shape().heads / view.heads());
        exec.pool
            .for_each(&mut layers[view.layer()], |head, marks, _| {
                // As pairs: of what lies between them some may have left.
                let pair = |token: usize| view.first_from(head, token);
                let part = pair(tokens.start)..pair(tokens.end);
                let looking = Looking {
                    isa: exec.isa,
                    view,
                    head,
                    before: 0..pair(*prefix),
                    of_part: vec![0.0; rows * part.len()],
                    part,
                    base: pair(*base),
                    sums: LogSums::default(),
                    scratch: AttentionScratch::new(),
                };
                looking.note(start, q, marks);
            });
    }
}

/// What rows see through one KV head, in pairs.
struct Looking<'a> {
    isa: Isa,
    view: &'a LayerView<'a>,
    head: usize,
    /// The first ones.
    before: Range<usize>,
    /// The part that is repeated.
    part: Range<usize>,
    /// The first pair of the repetition.
    base: usize,
    /// Logits of some rows for the part, `[rows][pairs]`.
    of_part: Vec<f32>,
    sums: LogSums,
    scratch: AttentionScratch,
}

impl Looking<'_> {
    /// Raises `marks`, of the part, to what the rows `q [rows][heads][head_dim]` attend to: those of the tokens
    /// from `start` on.
    fn note(mut self, start: usize, q: &[f32], marks: &mut [f32]) {
        let AttentionShape { heads, scale, .. } = self.view.shape();
        let (dim, group) = (self.view.head_dim(), heads / self.view.heads());
        let at_once = (WATCHED_ROWS / group).max(1);
        let of_head = self.head * group * dim..(self.head + 1) * group * dim;
        let (mut first, mut queries) = (start, Vec::new());
        for rows in q.chunks(heads * dim * at_once) {
            queries.clear();
            for row in rows.chunks_exact(heads * dim) {
                queries.extend(row[of_head.clone()].iter().map(|x| x * scale));
            }
            let count = queries.len() / dim;
            self.sums.reset(count);
            self.look(self.before.clone(), &queries, |_, slots| slots);
            self.look(self.part.clone(), &queries, |_, slots| slots);
            let (view, head) = (self.view, self.head);
            // What is later than a row it does not see.
            let end = |row: usize| view.first_from(head, first + row / group + 1);
            let own = self.base..end(count - 1);
            let seen = |row: usize, pairs: Range<usize>| pairs.start..pairs.end.min(end(row));
            self.look(own, &queries, seen);
            let logits = self.of_part.chunks_exact(self.part.len());
            for (row, logits) in logits.take(count).enumerate() {
                raise(self.isa, marks, logits, self.sums.of(row));
            }
            first += count / group;
        }
    }

    /// Adds to the sums what the rows `queries` see of `pairs`: `seen(row, some of them)`. Logits for the part
    /// are kept.
    fn look(
        &mut self,
        pairs: Range<usize>,
        queries: &[f32],
        seen: impl Fn(usize, Range<usize>) -> Range<usize>,
    ) {
        let Looking {
            isa,
            view,
            head,
            ref part,
            ref mut of_part,
            ref mut sums,
            ref mut scratch,
            ..
        } = *self;
        let softcap = view.shape().softcap;
        let is_part = pairs == *part;
        view.products_of_pages(head, pairs, queries, scratch, |page| {
            let here = page.first..page.first + page.slots.len();
            let rows = page.products.len() / PAGE_TOKENS;
            let slots = |row: usize| {
                let seen = seen(row, here.clone());
                let slot = |pair: usize| page.slots.start + pair.saturating_sub(here.start);
                slot(seen.start)..slot(seen.end)
            };
            let slots: Vec<Range<usize>> = (0..rows).map(slots).collect();
            sums.add(isa, softcap, page.log_weights, &slots, page.products);
            if is_part {
                let at = here.start - part.start;
                let to = of_part.chunks_exact_mut(part.len());
                for (to, from) in to.zip(page.products.chunks_exact(PAGE_TOKENS)) {
                    to[at..at + here.len()].copy_from_slice(&from[page.slots.clone()]);
                }
            }
        });
    }
}
