//! What is left of a context under a keep method, as bytes: to go on with it in another process.
//!
//! ```text
//! length of the head
//! head   JSON: the method, and how much of everything follows
//! body   for each layer that is compressed: positions of every head, of how many tokens its pairs are
//!        where that is counted, pages; then the blocks of every group; then what the method was told of the
//!        tokens while they were read, and what it saw when it repeated them, as far as it may still need that
//! ```
//!
//! Whoever keeps the bytes keeps the tokens beside them and says which model they are of, and guards both
//! with a checksum; see [`records`](crate::records). They are found by name alone: nothing that is looked
//! for by its tokens ever finds them.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::observe::Sizes;
use super::pace::{Done, Kept};
use super::stream::Stream;
use super::{Keep, Planned, Repeated, When};
use crate::BLOCK_TOKENS;
use crate::block::Block;
use crate::context::Context;
use crate::error::KvError;
use crate::ledger::Purpose;
use crate::places::Places;
use crate::read::chosen_from;
use crate::run::{BlockRun, Gap, Slot};
use crate::shared::SharedList;

/// More than a head of any model has.
const MOST_HEAD: usize = 1 << 26;

#[derive(Serialize, Deserialize)]
struct Head {
    /// The method's canonical text, its budget included.
    method: String,
    tokens: usize,
    edge: usize,
    decided_at: usize,
    settled: bool,
    /// Pairs a head, tokens of the prompt, heads, and pairs that always stay: see [`Planned`].
    planned: [usize; 4],
    compactions: usize,
    seconds: f64,
    images: Vec<[usize; 2]>,
    layers: Vec<Layer>,
    groups: Vec<Blocks>,
    /// What it was told; nothing where it decides by that no more, as in what earlier versions wrote.
    #[serde(default)]
    observed: Option<Sizes>,
    /// Of how many of the first tokens it knows what was seen when they were repeated.
    #[serde(default)]
    marked: usize,
    #[serde(default)]
    repeated: Option<Again>,
}

#[derive(Serialize, Deserialize)]
struct Layer {
    /// Pairs of each head.
    pairs: Vec<usize>,
    /// Whether it is known of how many tokens each is.
    counted: bool,
    /// Bits of what the merge remembers of each head.
    memory: Vec<Option<u32>>,
    /// Pairs of each head before these, which lie in blocks of their own.
    #[serde(default)]
    apart: usize,
}

/// What repeating it took: [`Repeated`].
#[derive(Serialize, Deserialize)]
struct Again {
    tokens: usize,
    seconds: f64,
    predicted: Option<f64>,
}

#[derive(Serialize, Deserialize)]
struct Blocks {
    first: usize,
    count: usize,
    /// Bytes of one.
    bytes: usize,
}

impl Context {
    /// What is left of the context, whose keep method has dropped pairs, for [`Context::restore_kept`], and
    /// what the method was told that it may still decide by.
    ///
    /// # Errors
    /// [`KvError::KeepRefused`] where nothing was dropped, or text was moved; [`KvError::OverLimit`] when
    /// memory lacks room for it.
    pub fn save_kept(&mut self) -> Result<Vec<u8>, KvError> {
        if let Some(home) = &self.home {
            let store = Arc::clone(&home.store);
            for (run, group) in self.groups.iter_mut().zip(&self.layout.groups) {
                run.pin_all(group.block_bytes(), &store)?;
            }
        }
        let saved = self.write_kept();
        self.groups.iter_mut().for_each(BlockRun::unpin);
        saved
    }

    fn write_kept(&self) -> Result<Vec<u8>, KvError> {
        let Some(kept) = self.kept.as_deref().filter(|kept| kept.edge() > 0) else {
            return Err(KvError::KeepRefused {
                method: self
                    .keep_method()
                    .map_or_else(|| "all".to_owned(), |keep| keep.text.clone()),
                why: "it has dropped nothing: the context is whole, and kept as such".to_owned(),
            });
        };
        if !self.places.is_plain() {
            return Err(kept
                .plan
                .refused("text in the context was moved".to_owned()));
        }
        let told = kept.observed.bytes() + kept.marks_bytes();
        let _room = self
            .ledger
            .reserve(Purpose::Scratch, self.kv_bytes() + told)?;
        let layers: Vec<usize> = self.layout.full_layers().map(|(layer, _)| layer).collect();
        let mut body = Vec::new();
        let mut of_layers = Vec::new();
        for &layer in &layers {
            let Some(stream) = kept.stream(layer) else {
                return Err(kept
                    .plan
                    .refused(format!("layer {layer} was not compacted")));
            };
            let heads = 0..stream.heads();
            let mut counted = false;
            for head in heads.clone() {
                let positions = stream.positions(head);
                positions
                    .iter()
                    .for_each(|at| body.extend(at.to_le_bytes()));
            }
            for head in heads.clone() {
                let counts = stream.counts(head);
                counted |= !counts.is_empty();
                counts
                    .iter()
                    .for_each(|count| body.extend(count.to_le_bytes()));
            }
            body.extend(stream.page_bytes());
            let memory = kept.merge_memory.get(&layer);
            let bits = |memory: &Option<f32>| memory.map(f32::to_bits);
            of_layers.push(Layer {
                pairs: heads.map(|head| stream.positions(head).len()).collect(),
                counted,
                memory: memory.map_or_else(Vec::new, |heads| heads.iter().map(bits).collect()),
                apart: stream.apart(),
            });
        }
        let mut groups = Vec::new();
        for (run, group) in self.groups.iter().zip(&self.layout.groups) {
            for index in run.first..run.end() {
                let Some(block) = run.block(index) else {
                    return Err(kept
                        .plan
                        .refused("text in the context was removed".to_owned()));
                };
                body.extend(block.bytes());
            }
            groups.push(Blocks {
                first: run.first,
                count: run.end() - run.first,
                bytes: group.block_bytes(),
            });
        }
        let needs = kept.plan.score.needs();
        let observed = kept.observed.write(needs, self.len(), &mut body);
        let marked = match kept.is_final() {
            true => 0,
            false => kept.marked,
        };
        if marked > 0 {
            kept.write_marks(&layers, &mut body);
        }
        let Planned {
            slots,
            prompt,
            heads,
            least,
        } = kept.planned;
        let head = Head {
            method: kept.plan.text.clone(),
            tokens: self.len(),
            edge: kept.edge(),
            decided_at: kept.decided_at,
            settled: kept.settled,
            planned: [slots, prompt, heads, least],
            compactions: kept.done.compactions,
            seconds: kept.done.time.as_secs_f64(),
            images: kept
                .images
                .iter()
                .map(|span| [span.start, span.end])
                .collect(),
            layers: of_layers,
            groups,
            observed,
            marked,
            repeated: kept.done.repeated.map(Again::of),
        };
        let head = serde_json::to_vec(&head).expect("a head has only text and numbers");
        let length = (head.len() as u64).to_le_bytes();
        Ok([&length[..], &head, &body].concat())
    }

    /// Makes this context, an empty one of the same model and form with the same keep method in charge,
    /// what [`Context::save_kept`] has given the bytes of, which had read `tokens`.
    ///
    /// # Errors
    /// [`KvError::KeepRefused`] where they are of another method, form or text, or damaged, and
    /// [`KvError::OverLimit`]; the context is empty then.
    pub fn restore_kept(&mut self, tokens: &[u32], bytes: &[u8]) -> Result<(), KvError> {
        let Some(kept) = self.kept.as_deref() else {
            return Err(KvError::KeepRefused {
                method: "all".to_owned(),
                why: "what is left of a context goes on under its own keep method only".to_owned(),
            });
        };
        let plan = Arc::clone(&kept.plan);
        let damaged =
            || plan.refused("what was kept of the context is damaged; read it anew".to_owned());
        let (length, rest) = bytes.split_first_chunk().ok_or_else(damaged)?;
        let length = usize::try_from(u64::from_le_bytes(*length)).unwrap_or(usize::MAX);
        let split = rest
            .split_at_checked(length)
            .filter(|_| length <= MOST_HEAD);
        let (head, body) = split.ok_or_else(damaged)?;
        let head: Head = serde_json::from_slice(head).map_err(|_| damaged())?;
        if head.method != plan.text {
            let why = format!("what is left of the context was left by {}", head.method);
            return Err(plan.refused(why));
        }
        if !self.is_empty() || head.tokens != tokens.len() {
            let why =
                "what is left of a context is of another text, or goes into an empty one only";
            return Err(plan.refused(why.to_owned()));
        }
        let mut body = Body { rest: body };
        let streams = self.read_streams(&head, &mut body, &plan)?;
        let runs = self.read_blocks(&head, &mut body, &plan)?;
        let layers: Vec<(usize, usize)> = self
            .layout
            .full_layers()
            .map(|(layer, place)| (layer, self.layout.groups[place].kind.kv_heads))
            .collect();
        let pairs = self.pairs_of(&head);
        let ledger = self.ledger.clone();
        let known = self.kept.as_deref().expect("it was looked at before");
        // Beside what is there, which stays as it is where this fails.
        let mut kept = known.clone();
        let mut numbers = |count| body.floats(count);
        let observed = match &head.observed {
            Some(sizes) => kept
                .observed
                .read(sizes, &pairs, head.tokens, &ledger, &mut numbers)?,
            None => {
                kept.observed.end(&ledger);
                Some(())
            }
        };
        observed.ok_or_else(damaged)?;
        if head.marked > 0 {
            let marks = kept.read_marks(head.marked, &layers, &ledger, &mut numbers)?;
            marks
                .filter(|()| head.marked <= head.tokens)
                .ok_or_else(damaged)?;
        }
        if !body.rest.is_empty() {
            return Err(damaged());
        }
        kept.restore(&head, &layers, streams);
        self.kept = Some(Box::new(kept));
        for (run, (first, blocks)) in self.groups.iter_mut().zip(runs) {
            run.begin_at(first, None);
            run.append(first, Gap::Dropped, blocks.into_iter().map(Slot::Open));
        }
        self.tokens.extend(tokens.iter().copied());
        self.places = Places::default();
        if let Some(home) = &mut self.home {
            home.chain = SharedList::default();
        }
        self.forget_bounds(head.edge);
        Ok(())
    }

    /// Pairs of every head of every layer, none of those that are not compressed.
    fn pairs_of(&self, head: &Head) -> Vec<Vec<usize>> {
        let mut pairs = vec![Vec::new(); self.layout.layers.len()];
        for ((layer, _), of_layer) in self.layout.full_layers().zip(&head.layers) {
            let since = of_layer.apart + head.tokens - head.edge;
            pairs[layer] = of_layer.pairs.iter().map(|pairs| pairs + since).collect();
        }
        pairs
    }

    fn read_streams(
        &self,
        head: &Head,
        body: &mut Body<'_>,
        plan: &Keep,
    ) -> Result<Vec<Stream>, KvError> {
        let damaged =
            || plan.refused("what was kept of the context is damaged; read it anew".to_owned());
        let layers: Vec<(usize, usize)> = self.layout.full_layers().collect();
        if layers.len() != head.layers.len() || head.edge > head.tokens {
            return Err(damaged());
        }
        let mut streams = Vec::new();
        for (&(_, place), layer) in layers.iter().zip(&head.layers) {
            let group = &self.layout.groups[place];
            let ends = |&pairs: &usize| pairs <= head.edge;
            let apart = self.layout.apart_of(place).min(head.edge);
            if layer.pairs.len() != group.kind.kv_heads
                || !layer.pairs.iter().all(ends)
                || layer.apart != apart
            {
                return Err(damaged());
            }
            let mut positions = Vec::new();
            for &pairs in &layer.pairs {
                let of_head = body.numbers(pairs).ok_or_else(damaged)?;
                let ascend = of_head.windows(2).all(|pair| pair[0] < pair[1])
                    && of_head.first().is_none_or(|&first| first as usize >= apart);
                let inside = of_head
                    .last()
                    .is_none_or(|&last| (last as usize) < head.edge);
                if !ascend || !inside {
                    return Err(damaged());
                }
                positions.push(of_head);
            }
            let mut counts = Vec::new();
            for &pairs in layer.pairs.iter().filter(|_| layer.counted) {
                counts.push(body.numbers(pairs).ok_or_else(damaged)?);
            }
            let bytes = Stream::bytes_of(group, &layer.pairs, plan.place_bytes());
            if let Some(home) = &self.home {
                home.store.make_space(bytes);
            }
            let room = self.ledger.reserve(Purpose::Kv, bytes)?;
            let mut stream = Stream::with_room(group, positions, plan.place_bytes(), room, None);
            stream.set_apart(apart);
            let pages = stream.page_bytes().len();
            let pages = body.take(pages).ok_or_else(damaged)?;
            stream.fill_pages(pages);
            for (at, counts) in counts.into_iter().enumerate() {
                stream.set_tokens(at, counts, plan.counting());
            }
            streams.push(stream);
        }
        Ok(streams)
    }

    /// The first block of every group, and the blocks from there on.
    #[expect(
        clippy::type_complexity,
        reason = "a run of blocks a group, before it is one"
    )]
    fn read_blocks(
        &self,
        head: &Head,
        body: &mut Body<'_>,
        plan: &Keep,
    ) -> Result<Vec<(usize, Vec<Arc<Block>>)>, KvError> {
        let damaged =
            || plan.refused("what was kept of the context is damaged; read it anew".to_owned());
        if head.groups.len() != self.layout.groups.len() {
            return Err(damaged());
        }
        let store = self.home.as_ref().map(|home| &*home.store);
        let mut runs = Vec::new();
        for (said, group) in head.groups.iter().zip(&self.layout.groups) {
            if said.bytes != group.block_bytes() {
                let why = "what is left of the context is held in another form; give the --store it was read with";
                return Err(plan.refused(why.to_owned()));
            }
            let end = said.first.checked_add(said.count).ok_or_else(damaged)?;
            let last = head.tokens.div_ceil(BLOCK_TOKENS);
            // What is not there yet begins with the block of the token that comes next.
            let begins =
                said.count > 0 || said.first == head.tokens / BLOCK_TOKENS || said.first == last;
            // Layers that see everything hold all that is not in streams.
            let is_whole = !chosen_from(group)
                || said.first <= head.edge / BLOCK_TOKENS && end >= head.tokens / BLOCK_TOKENS;
            if end > last.max(said.first) || said.first > last || !begins || !is_whole {
                return Err(damaged());
            }
            let mut blocks = Vec::new();
            for _ in 0..said.count {
                let from = body.take(said.bytes).ok_or_else(damaged)?;
                let mut block = Block::with_space(said.bytes, &self.ledger, store)?;
                block.bytes_mut().copy_from_slice(from);
                blocks.push(Arc::new(block));
            }
            runs.push((said.first, blocks));
        }
        Ok(runs)
    }
}

impl Again {
    fn of(repeated: Repeated) -> Again {
        Again {
            tokens: repeated.tokens,
            seconds: repeated.time.as_secs_f64(),
            predicted: repeated.predicted.map(|time| time.as_secs_f64()),
        }
    }

    fn repeated(&self) -> Repeated {
        Repeated {
            tokens: self.tokens,
            time: seconds(self.seconds),
            predicted: self.predicted.map(seconds),
        }
    }
}

fn seconds(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds).unwrap_or_default()
}

impl Kept {
    /// Whether what it keeps is final: it decides no more.
    fn is_final(&self) -> bool {
        self.settled && self.plan.when == When::default()
    }

    fn restore(&mut self, head: &Head, layers: &[(usize, usize)], streams: Vec<Stream>) {
        let [slots, prompt, heads, least] = head.planned;
        self.planned = Planned {
            slots,
            prompt,
            heads,
            least,
        };
        (self.edge, self.decided_at) = (head.edge, head.decided_at);
        self.settled = head.settled;
        self.images = head.images.iter().map(|&[start, end]| start..end).collect();
        self.done = Done {
            compactions: head.compactions,
            time: seconds(head.seconds),
            repeated: head.repeated.as_ref().map(Again::repeated),
        };
        let last = layers.last().map_or(0, |&(layer, _)| layer + 1);
        self.streams.clear();
        self.streams.resize_with(last, || None);
        for ((&(layer, _), stream), said) in layers.iter().zip(streams).zip(&head.layers) {
            self.streams[layer] = Some(Arc::new(stream));
            if !said.memory.is_empty() {
                let of_head = |bits: &Option<u32>| bits.map(f32::from_bits);
                let mut memory: Vec<Option<f32>> = said.memory.iter().map(of_head).collect();
                memory.resize(said.pairs.len(), None);
                self.merge_memory.insert(layer, memory);
            }
        }
    }
}

/// What is left of a body to be read.
struct Body<'a> {
    rest: &'a [u8],
}

impl<'a> Body<'a> {
    fn take(&mut self, bytes: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.rest.split_at_checked(bytes)?;
        self.rest = rest;
        Some(taken)
    }

    fn floats(&mut self, count: usize) -> Option<Vec<f32>> {
        let bits = self.numbers(count)?;
        Some(bits.into_iter().map(f32::from_bits).collect())
    }

    fn numbers(&mut self, count: usize) -> Option<Vec<u32>> {
        let (numbers, []) = self.take(count.checked_mul(4)?)?.as_chunks::<4>() else {
            return None;
        };
        Some(
            numbers
                .iter()
                .map(|bytes| u32::from_le_bytes(*bytes))
                .collect(),
        )
    }
}
