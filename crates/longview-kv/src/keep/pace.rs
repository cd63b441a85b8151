//! A context's keep method: what it holds, and when it is due.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use super::observe::Observed;
use super::repeat::{Marked, Watch};
use super::scored::Scored;
use super::stream::Stream;
use super::{AttentionOf, Keep, LayerShape, Needs, Planned, Positions, Repeated, When};
use crate::context::Context;
use crate::error::KvError;
use crate::layout::KvLayout;

/// What a keep method has made of a context. Clones share the streams.
#[derive(Clone)]
pub(crate) struct Kept {
    pub(super) plan: Arc<Keep>,
    pub(crate) observed: Observed,
    /// What the budget has room for.
    pub(super) planned: Planned,
    /// The first token that is in blocks: what is before it is in streams.
    pub(super) edge: usize,
    /// Tokens there were when it decided last; the latest of them may still be in blocks.
    pub(super) decided_at: usize,
    /// For every layer of the model what is left of it; empty before the first compaction.
    pub(super) streams: Vec<Option<Arc<Stream>>>,
    /// Whether the prompt is read and what it keeps is final.
    pub(super) settled: bool,
    pub(super) done: Done,
    /// What a repetition watches, in a fork made for it.
    pub(super) watch: Option<Box<Watch>>,
    /// What forks that repeated the context saw.
    pub(super) marks: Arc<Marked>,
    /// Of how many of the first tokens that still holds.
    pub(super) marked: usize,
    /// For each layer that was compacted what the merge remembers, `[heads]`.
    pub(super) merge_memory: BTreeMap<usize, Vec<Option<f32>>>,
    /// Scores that it may choose from when it decides next.
    pub(super) scored: Option<Arc<Scored>>,
    /// The tokens of images, as far as somebody said which they are.
    pub(super) images: Vec<Range<usize>>,
}

/// What compactions have done so far.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Done {
    pub(super) compactions: usize,
    pub(super) time: Duration,
    pub(super) repeated: Option<Repeated>,
}

/// What a keep method has done to a context.
#[derive(Clone, Debug, PartialEq)]
pub struct KeepReport {
    /// The method's canonical text.
    pub method: String,
    /// Pairs of all KV heads of the layers it acts on that were made so far.
    pub pairs_seen: u64,
    /// Those of them that are still held.
    pub pairs_kept: u64,
    /// Bytes of the streams that hold what stays of earlier tokens.
    pub stream_bytes: u64,
    /// Compactions so far.
    pub compactions: usize,
    /// Time they took.
    pub time: Duration,
    /// What repeating the context took, where a method wanted that.
    pub repeated: Option<Repeated>,
}

impl Context {
    /// Puts `plan` in charge of which pairs stay, for a prompt of `prompt_tokens` tokens in all. What
    /// the plan needs to be told is gathered from here on.
    ///
    /// # Errors
    /// [`KvError::KeepRefused`] where it cannot be used: recurrent layers, no layer with full
    /// attention, text that was moved, a budget below what must stay, pairs that are gone already.
    pub fn keep(
        &mut self,
        plan: &Arc<Keep>,
        prompt_tokens: usize,
        model: &dyn AttentionOf,
    ) -> Result<(), KvError> {
        self.keep_with(plan, plan.score.needs(), prompt_tokens, model)
    }

    /// The same, gathering `needs` as well: for another plan that a fork will be given.
    ///
    /// # Errors
    /// As [`Context::keep`].
    pub fn keep_with(
        &mut self,
        plan: &Arc<Keep>,
        needs: Needs,
        prompt_tokens: usize,
        model: &dyn AttentionOf,
    ) -> Result<(), KvError> {
        let layout = Arc::clone(self.layout());
        if layout.is_recurrent() {
            let why = "the model has recurrent layers, whose state holds all that was read and has \
                       no pairs to drop; use it with --keep all";
            return Err(plan.refused(why.to_owned()));
        }
        if let Some(pattern) = self.prefill_pattern().filter(|_| plan.when.block.is_some()) {
            let why = format!(
                "--prefill {} needs the prompt's blocks while it is read; let it decide at the end \
                 (block=never)",
                pattern.text
            );
            return Err(plan.refused(why));
        }
        if let Some(why) = layout.refuses_keep() {
            return Err(plan.refused(why.to_owned()));
        }
        if plan.positions == Positions::Slots && layout.apart() > 0 {
            let why = "the first tokens are exempt from the form of the others (sinks= of --store), and stay where \
                       they are; give positions=text";
            return Err(plan.refused(why.to_owned()));
        }
        if let (Some(wanted), Some(found)) = (&plan.made_for, model.fingerprint())
            && wanted != found
        {
            let why = format!(
                "its file was made for a model with the fingerprint {wanted}, but this model's is \
                 {found}; make one for this model"
            );
            return Err(plan.refused(why));
        }
        let shape = |(index, &(place, _)): (usize, &(usize, usize))| {
            let kind = &layout.groups[place].kind;
            LayerShape {
                heads: model.shape(index).heads,
                kv_heads: kind.kv_heads,
                head_dim: kind.head_dim,
                v_dim: kind.v_dim,
            }
        };
        let shapes: Vec<LayerShape> = layout.layers.iter().enumerate().map(shape).collect();
        if let Some(why) = plan.score.refuses(&shapes) {
            return Err(plan.refused(why));
        }
        if layout.full_layers().next().is_none() {
            let why = "every layer of the model has a sliding window, which bounds it already";
            return Err(plan.refused(why.to_owned()));
        }
        if self.places.of(self.len()).shift != 0 || !self.places.is_plain() && self.kept.is_none() {
            let why = "text in the context was moved or removed; read it anew first";
            return Err(plan.refused(why.to_owned()));
        }
        let planned = plan.planned(&layout, prompt_tokens.max(self.len()))?;
        let needs = needs.and(plan.score.needs());
        let known = self.kept.take();
        if let Some(kept) = known.as_ref().filter(|kept| kept.edge > 0) {
            let goes_on = kept.plan == *plan;
            self.kept = known;
            let why = "another keep method has dropped pairs of this context; fork it before";
            return match goes_on {
                true => Ok(()),
                false => Err(plan.refused(why.to_owned())),
            };
        }
        let images = match &known {
            Some(kept) if plan.knows_images() => kept.images.clone(),
            _ => Vec::new(),
        };
        let repeated = known
            .as_ref()
            .filter(|kept| kept.plan.repetition() == plan.repetition())
            .map(|kept| (Arc::clone(&kept.marks), kept.marked, kept.done.repeated));
        let (marks, marked, repeated) = repeated.unwrap_or_default();
        let observed = match known {
            Some(kept) if kept.observed.needs().and(needs) == kept.observed.needs() => kept
                .observed
                .narrowed(needs, self.tokens.len(), &self.ledger)?,
            _ => {
                let mut observed = Observed::new(&layout, needs, model, &self.ledger)?;
                if !self.is_empty() {
                    observed.forget_sums();
                }
                observed
            }
        };
        self.kept = Some(Box::new(Kept {
            plan: Arc::clone(plan),
            observed,
            planned,
            edge: 0,
            decided_at: 0,
            streams: Vec::new(),
            settled: false,
            done: Done {
                compactions: 0,
                time: repeated.map_or(Duration::ZERO, |repeated| repeated.time),
                repeated,
            },
            watch: None,
            marks,
            marked,
            merge_memory: BTreeMap::new(),
            scored: None,
            images,
        }));
        Ok(())
    }

    /// The keep method in charge, if there is one.
    pub fn keep_method(&self) -> Option<&Arc<Keep>> {
        self.kept.as_ref().map(|kept| &kept.plan)
    }

    /// Whether pairs of it were dropped.
    pub fn is_compressed(&self) -> bool {
        self.kept.as_ref().is_some_and(|kept| kept.edge > 0)
    }

    /// What the keep method has done so far.
    pub fn keep_report(&self) -> Option<KeepReport> {
        let kept = self.kept.as_ref()?;
        let heads = kept.heads(self.layout());
        let streams = || kept.streams.iter().flatten().map(|stream| &**stream);
        let in_streams: usize = streams().map(Stream::held).sum();
        let in_blocks = (self.len() - kept.edge) * heads;
        Some(KeepReport {
            method: kept.plan.text.clone(),
            pairs_seen: (self.len() * heads) as u64,
            pairs_kept: (in_streams + in_blocks) as u64,
            stream_bytes: kept.bytes(),
            compactions: kept.done.compactions,
            time: kept.done.time,
            repeated: kept.done.repeated,
        })
    }

    /// The tokens whose pairs a KV head of a layer holds, ascending.
    ///
    /// # Panics
    /// When there is no such layer or head.
    pub fn kept_positions(&self, layer: usize, head: usize) -> Vec<u32> {
        let kept = self.kept.as_deref();
        let stream = kept.and_then(|kept| kept.stream(layer));
        let apart = stream.map_or(0, Stream::apart) as u32;
        let before = stream.map_or(&[][..], |stream| stream.positions(head));
        let group = &self.layout().groups[self.layout().layers[layer].0];
        assert!(head < group.kind.kv_heads, "a KV head of the layer");
        let first = self.first_token(group, self.len().saturating_sub(1));
        // After a compaction nothing may have been read yet.
        let own = first as u32..self.len() as u32;
        (0..apart)
            .chain(before.iter().copied())
            .chain(own)
            .collect()
    }

    /// Whether it was made to watch what a repetition looks at.
    pub(crate) fn is_watching(&self) -> bool {
        self.kept.as_ref().is_some_and(|kept| kept.watch.is_some())
    }

    /// Whether the keep method is to decide now, while a prompt is read.
    pub fn keep_is_due(&self) -> bool {
        let (Some(kept), len) = (&self.kept, self.len()) else {
            return false;
        };
        kept.plan
            .when
            .block
            .is_some_and(|block| match kept.is_eager() {
                true => kept.since(len) >= kept.wait(len, block),
                false => kept.pairs(len) >= kept.room(len) + block,
            })
    }

    /// Whether it is to decide now, while text is generated.
    pub fn keep_is_due_in_decode(&self) -> bool {
        let (Some(kept), len) = (&self.kept, self.len()) else {
            return false;
        };
        let wanted = kept.plan.when.decode;
        wanted.is_some_and(|every| {
            let since = if kept.edge == 0 {
                kept.pairs(len) - kept.room(len).min(len)
            } else {
                kept.since(len)
            };
            since >= every && kept.pairs(len) > kept.room(len)
        })
    }

    /// Says that the prompt was read. Whether it is to decide now: not where a document was compressed
    /// for questions that nobody knew then. Where it is not, what only the last chunk needed goes, if it would
    /// be beyond a budget in bytes.
    pub fn end_prompt(&mut self) -> bool {
        let len = self.len();
        let Some(kept) = &self.kept else {
            return false;
        };
        let is_due = !kept.settled && kept.pairs(len) > kept.room(len);
        if !is_due && kept.plan.is_in_bytes() {
            self.pass_windows();
        }
        is_due
    }

    /// Says that what the context holds is a document that was compressed for any question: what
    /// follows stays. A method that has nothing left to decide then is told nothing more.
    pub fn settle(&mut self) {
        if let Some(kept) = &mut self.kept {
            kept.settled = true;
            if kept.plan.when == When::default() {
                kept.observed.end(&self.ledger);
            }
        }
    }

    /// Refuses to go back to before tokens whose pairs are gone.
    pub(crate) fn check_kept(&self, len: usize) -> Result<(), KvError> {
        match &self.kept {
            Some(kept) if len < kept.edge => Err(KvError::PairsGone {
                wanted: len,
                edge: kept.edge,
                method: kept.plan.text.clone(),
            }),
            _ => Ok(()),
        }
    }

    /// Refuses to move text while a keep method is in charge: pairs are found by position.
    pub(crate) fn check_unkept(&self, wanted: usize) -> Result<(), KvError> {
        match &self.kept {
            Some(kept) => Err(KvError::PairsGone {
                wanted,
                edge: kept.edge.max(wanted),
                method: kept.plan.text.clone(),
            }),
            None => Ok(()),
        }
    }

    /// What an earlier compaction left of a layer.
    pub(crate) fn stream(&self, layer: usize) -> Option<&Stream> {
        self.kept.as_ref()?.stream(layer)
    }

    /// How many tokens the next pass of a prefill may have before the keep method is due.
    pub(crate) fn most_before_due(&self) -> usize {
        let (Some(kept), len) = (&self.kept, self.len()) else {
            return usize::MAX;
        };
        let Some(block) = kept.plan.when.block else {
            return usize::MAX;
        };
        let left = match kept.is_eager() {
            true => kept.wait(len, block).saturating_sub(kept.since(len)),
            false => (kept.room(len) + block).saturating_sub(kept.pairs(len)),
        };
        left.max(1)
    }
}

impl Kept {
    /// Forgets everything: the context is read again from its first token.
    pub(crate) fn begin_anew(&mut self) {
        self.streams.clear();
        (self.edge, self.decided_at, self.settled) = (0, 0, false);
        self.marks = Arc::default();
        self.marked = 0;
        self.merge_memory.clear();
        self.observed.forget_sums();
    }

    /// The context is shorter now, `len` tokens.
    pub(crate) fn go_back(&mut self, len: usize) {
        self.decided_at = self.decided_at.min(len);
        // What is read there next is another text.
        self.marked = self.marked.min(len);
        self.images.retain_mut(|span| {
            span.end = span.end.min(len);
            span.start < span.end
        });
    }

    /// What the merge remembers of the `heads` heads of a layer.
    pub(super) fn take_memory(&mut self, layer: usize, heads: usize) -> Vec<Option<f32>> {
        let known = self.merge_memory.remove(&layer);
        known.unwrap_or_else(|| vec![None; heads])
    }

    /// The first token that is in blocks.
    pub(crate) fn edge(&self) -> usize {
        self.edge
    }

    pub(crate) fn stream(&self, layer: usize) -> Option<&Stream> {
        self.streams.get(layer)?.as_deref()
    }

    /// Bytes of all streams; those shared with forks count in each.
    pub(crate) fn bytes(&self) -> u64 {
        self.streams
            .iter()
            .flatten()
            .map(|stream| stream.bytes())
            .sum()
    }

    /// Whether something is gathered of layer `layer`.
    pub(crate) fn observes(&self, layer: usize) -> bool {
        let seen = self.observed.layer(layer);
        seen.is_watched() && (self.watch.is_some() || seen.gathers())
    }

    /// Pairs of a head, averaged over all and rounded up, when `len` tokens have been read.
    pub(crate) fn pairs(&self, len: usize) -> usize {
        let streams = || self.streams.iter().flatten();
        let heads: usize = streams().map(|stream| stream.heads()).sum();
        let pairs: usize = streams().map(|stream| stream.held()).sum();
        pairs.div_ceil(heads.max(1)) + len - self.edge
    }

    /// Pairs a head that the budget has room for on average, when `len` tokens have been read.
    pub(super) fn room(&self, len: usize) -> usize {
        self.plan.allocate.grown(&self.planned, len)
    }

    /// Tokens read since it decided last, when there are `len`.
    fn since(&self, len: usize) -> usize {
        len.saturating_sub(self.decided_at)
    }

    /// Whether what is read moves to streams although nothing has to leave yet, because something
    /// will: so no more blocks are in memory than it takes.
    pub(super) fn is_eager(&self) -> bool {
        self.planned.prompt > self.planned.slots
    }

    /// Tokens that are read after it decided before it decides again, or moves what was read: a
    /// block where the budget is used up. Before, as many blocks as have room in what is left of the
    /// budget when they are in streams as well, since a move writes all streams anew.
    fn wait(&self, len: usize, block: usize) -> usize {
        let held = self.pairs(len) - self.since(len);
        let left = (self.room(len) + block).saturating_sub(held);
        (left / 2 / block * block).max(block)
    }

    /// KV heads of all layers that are compressed.
    pub(super) fn heads(&self, layout: &KvLayout) -> usize {
        let of_layer = |(_, place): (usize, usize)| layout.groups[place].kind.kv_heads;
        layout.full_layers().map(of_layer).sum()
    }
}
