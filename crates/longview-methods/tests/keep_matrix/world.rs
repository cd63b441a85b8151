//! A model of four layers, one of them with a sliding window, whose keys, values and queries follow
//! from position alone.

use std::borrow::Cow;
use std::sync::{Arc, LazyLock};

use longview_kernels::{Exec, Isa, Numerics};
use longview_kv::keep::{
    AttentionOf, AttentionShape, Keep, KeepBytes, LayerRows, Needs, Repetition, Scored,
};
use longview_kv::read::Read;
use longview_kv::{
    AttendWorkspace, Attention, BLOCK_TOKENS, Batch, Context, Identity, KiviBits, KvError, KvForms,
    KvLayout, KvType, LayerLayout, LayerState, Ledger, RopeSet, Segment, Wanted,
};

pub(crate) const HEADS: usize = 4;
pub(crate) const KV_HEADS: usize = 2;
pub(crate) const DIM: usize = 24;
pub(crate) const LAYERS: usize = 4;
const WINDOW_LAYER: usize = 1;
pub(crate) const FULL_LAYERS: [usize; 3] = [0, 2, 3];
const SCALE: f32 = 0.6;

const IDENTITY: Identity = Identity {
    model: 1,
    rope: RopeSet::Short,
    numerics: Numerics::Default,
};

/// Forms that are written token by token, and those that are made of whole pages, whose latest tokens are
/// held apart.
pub(crate) fn forms() -> impl Iterator<Item = KvType> {
    KvType::ALL.into_iter().chain(KvType::WHOLE)
}

/// Queries are not rotated here.
struct Plain;

impl AttentionOf for Plain {
    fn shape(&self, _layer: usize) -> AttentionShape {
        AttentionShape {
            heads: HEADS,
            scale: SCALE,
            softcap: 0.0,
        }
    }

    fn rotate(&self, _layer: usize, _set: RopeSet, _positions: isize, _vectors: &mut [f32]) {}

    fn fingerprint(&self) -> Option<&str> {
        Some("the world")
    }
}

pub(crate) struct World {
    pub(crate) context: Context,
    exec: Exec,
    workspace: AttendWorkspace,
    /// Of most layers.
    kv_type: KvType,
    forms: KvForms,
}

fn layout(state: LayerState, forms: impl Into<KvForms>) -> Arc<KvLayout> {
    let layer = |index| LayerLayout {
        state: if index == WINDOW_LAYER {
            state
        } else {
            LayerState::Full
        },
        kv_heads: KV_HEADS,
        head_dim: DIM,
        v_dim: DIM,
    };
    let layers: Vec<LayerLayout> = (0..LAYERS).map(layer).collect();
    Arc::new(KvLayout::new(&layers, forms))
}

/// A world with a layer that keeps a state.
pub(crate) fn recurrent_world() -> World {
    let mut world = World::new(KvType::F16, Ledger::unlimited());
    let full = LayerLayout {
        state: LayerState::Full,
        kv_heads: KV_HEADS,
        head_dim: DIM,
        v_dim: DIM,
    };
    let layout = KvLayout::new(&[full, LayerLayout::recurrent(64)], KvType::F16);
    world.context = Context::new(Arc::new(layout), Ledger::unlimited(), IDENTITY);
    world
}

/// Numbers in −1..1 that depend on all arguments.
fn noise(seed: usize, position: usize, at: usize) -> f32 {
    let mut x = (seed * 0x9e37 + position * 0x85eb_ca6b + at * 0xc2b2_ae35) as u64 ^ 0x2545_f491;
    for _ in 0..3 {
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    }
    ((x >> 40) as f32) / ((1u64 << 23) as f32) - 1.0
}

/// Seeds of keys, values and queries, the widest of their rows, and positions that most tests stay below.
const SEEDS: usize = 40;
const WIDEST: usize = HEADS * DIM;
const KNOWN: usize = 640;

/// The first `width` numbers of a seed at a position: computed once where many ask for them.
fn row(seed: usize, position: usize, width: usize) -> Cow<'static, [f32]> {
    static ROWS: LazyLock<Vec<f32>> = LazyLock::new(|| {
        let places = (0..SEEDS * KNOWN).flat_map(|place| (0..WIDEST).map(move |at| (place, at)));
        places
            .map(|(place, at)| noise(place / KNOWN, place % KNOWN, at))
            .collect()
    });
    if position < KNOWN {
        let from = (seed * KNOWN + position) * WIDEST;
        Cow::Borrowed(&ROWS[from..from + width])
    } else {
        Cow::Owned((0..width).map(|at| noise(seed, position, at)).collect())
    }
}

fn rows(seed: usize, start: usize, count: usize, width: usize) -> Vec<f32> {
    let mut all = Vec::with_capacity(count * width);
    for position in start..start + count {
        all.extend_from_slice(&row(seed, position, width));
    }
    all
}

impl World {
    pub(crate) fn new(kv_type: KvType, ledger: Ledger) -> World {
        World::with_forms(kv_type.into(), ledger)
    }

    pub(crate) fn with_forms(forms: KvForms, ledger: Ledger) -> World {
        let layout = layout(LayerState::Window { tokens: 70 }, forms);
        let kv_type = layout.kv_type();
        // Threads that wait for one another take the processor from other tests, so one form is read by two.
        let threads = if kv_type == KvType::F16 { 2 } else { 1 };
        World {
            context: Context::new(layout, ledger, IDENTITY),
            exec: Exec::new(threads, Isa::best(), Numerics::Default),
            workspace: AttendWorkspace::default(),
            kv_type,
            forms,
        }
    }

    pub(crate) fn fork(&self) -> World {
        World {
            context: self.context.fork(),
            exec: Exec::new(1, Isa::best(), Numerics::Default),
            workspace: AttendWorkspace::default(),
            kv_type: self.kv_type,
            forms: self.forms,
        }
    }

    /// Begins anew with keys and values in `forms`.
    pub(crate) fn store_as(&mut self, forms: KvForms) {
        self.forms = forms;
        let layout = layout(LayerState::Window { tokens: 70 }, forms);
        self.context = Context::new(layout, Ledger::unlimited(), IDENTITY);
    }

    pub(crate) fn keep(&mut self, keep: &Arc<Keep>, prompt: usize) -> Result<(), KvError> {
        self.context.keep(keep, prompt, &Plain)
    }

    /// The same, gathering what others need as well.
    pub(crate) fn keep_with(
        &mut self,
        keep: &Arc<Keep>,
        needs: Needs,
        prompt: usize,
    ) -> Result<(), KvError> {
        self.context.keep_with(keep, needs, prompt, &Plain)
    }

    pub(crate) fn stated(&self, keep: &Keep, prompt: usize, generated: usize) -> KeepBytes {
        let layout = layout(LayerState::Window { tokens: 70 }, self.forms);
        keep.bytes(&layout, &Plain, prompt, generated, 64, 2)
            .unwrap()
    }

    pub(crate) fn slots(&self, keep: &Keep, prompt: usize) -> usize {
        let layout = layout(LayerState::Window { tokens: 70 }, self.forms);
        keep.slots(&layout, prompt).unwrap()
    }

    pub(crate) fn dense_bytes(&self, tokens: usize) -> u64 {
        layout(LayerState::Window { tokens: 70 }, self.forms).context_bytes(tokens, 64)
    }

    /// What the layer with a window holds between passes: what the token after the last full block sees, and the
    /// block that is being filled.
    pub(crate) fn window_layer_bytes(&self) -> u64 {
        let layout = layout(LayerState::Window { tokens: 70 }, self.forms);
        (layout.token_bytes(WINDOW_LAYER) * (3 * BLOCK_TOKENS) as f64) as u64
    }

    pub(crate) fn index_bytes(&self, read: &Read, tokens: usize) -> u64 {
        read.bytes(
            &layout(LayerState::Window { tokens: 70 }, self.forms),
            tokens,
        )
    }

    /// The most that `read` keeps to choose by under a keep method that holds at most `kv_bytes`.
    pub(crate) fn index_bytes_beside(&self, read: &Read, kv_bytes: u64) -> u64 {
        read.bytes_beside(
            &layout(LayerState::Window { tokens: 70 }, self.forms),
            kv_bytes,
        )
    }

    /// Reads `count` tokens in passes of at most `chunk`, compressing where that is due on the way.
    /// Returns the attention of all full layers of every row.
    pub(crate) fn read(&mut self, count: usize, chunk: usize) -> Vec<f32> {
        let end = self.context.len() + count;
        let mut out = Vec::new();
        while self.context.len() < end {
            let left = end - self.context.len();
            let now = self.context.next_pass(left, chunk);
            out.extend(self.pass(now));
            if self.context.keep_is_due() {
                self.compress().unwrap();
            }
        }
        out
    }

    pub(crate) fn end_of_prompt(&mut self) -> Result<(), KvError> {
        if self.context.end_prompt() {
            self.compress()?;
        }
        Ok(())
    }

    pub(crate) fn end_of_step(&mut self) -> Result<(), KvError> {
        if self.context.keep_is_due_in_decode() {
            self.compress()?;
        }
        Ok(())
    }

    /// Compresses after what the engine does before.
    pub(crate) fn compress(&mut self) -> Result<(), KvError> {
        self.repeat()?;
        self.decide()
    }

    /// Scores for other worlds to choose from.
    pub(crate) fn score(&mut self) -> Result<Option<Arc<Scored>>, KvError> {
        self.repeat()?;
        self.context.score(&self.exec, &Plain)
    }

    /// Repeats the context in forks, where a method needs that.
    fn repeat(&mut self) -> Result<(), KvError> {
        if let Some((Repetition { part, prefix }, open)) = self.context.repeats() {
            let end = open.end;
            for first in open.step_by(part.min(200)) {
                let tokens = first..(first + part.min(200)).min(end);
                let mut fork = self.fork();
                let count = tokens.len();
                fork.context.watch_repeat(tokens, prefix)?;
                fork.read(count, 64);
                let marks = fork.context.take_marks().unwrap();
                drop(fork);
                self.context.mark(&marks)?;
            }
        }
        Ok(())
    }

    /// Compresses with what was gathered.
    pub(crate) fn decide(&mut self) -> Result<(), KvError> {
        self.context.compress(&self.exec, &Plain).map(drop)
    }

    /// Pages that were read so far.
    pub(crate) fn pages_read(&self) -> u64 {
        self.workspace.pages_read()
    }

    /// `[rows][full layers][heads][dim]`
    fn pass(&mut self, count: usize) -> Vec<f32> {
        let start = self.context.len();
        let tokens = vec![0; count];
        let segment = Segment {
            context: &mut self.context,
            tokens: &tokens,
            wanted: Wanted::Last,
        };
        let mut batch = Batch::new([segment], IDENTITY).unwrap();
        let attention = Attention {
            heads: HEADS,
            scale: SCALE,
            softcap: 0.0,
            sinks: None,
            rotate: &|_, _, _| unreachable!("nothing was moved"),
        };
        let width = HEADS * DIM;
        let mut all = vec![0.0; count * FULL_LAYERS.len() * width];
        for layer in 0..LAYERS {
            let k = rows(10 + layer, start, count, KV_HEADS * DIM);
            let v = rows(20 + layer, start, count, KV_HEADS * DIM);
            let q = rows(30 + layer, start, count, width);
            batch.append(&self.exec, layer, &k, &v);
            let rows = LayerRows {
                layer,
                q: &q,
                k: &k,
                v: &v,
            };
            batch.observe(&self.exec, rows, &Plain);
            let mut out = vec![f32::NAN; count * width];
            batch
                .attend(
                    &self.exec,
                    layer,
                    &attention,
                    &q,
                    &mut out,
                    &mut self.workspace,
                )
                .unwrap();
            if let Some(place) = FULL_LAYERS.iter().position(|&full| full == layer) {
                for (row, out) in out.chunks_exact(width).enumerate() {
                    let at = (row * FULL_LAYERS.len() + place) * width;
                    all[at..at + width].copy_from_slice(out);
                }
            }
        }
        batch.commit();
        all
    }

    /// Positions of every head ascend, are of tokens that were read, and none is missing or twice.
    pub(crate) fn check_positions(&self, text: &str) {
        for layer in FULL_LAYERS {
            for head in 0..KV_HEADS {
                let kept = self.context.kept_positions(layer, head);
                let ascending = kept.windows(2).all(|pair| pair[0] < pair[1]);
                let last = kept.last().map_or(0, |&last| last as usize);
                assert!(ascending && last < self.context.len(), "{text}: {kept:?}");
            }
        }
    }

    /// Compares attention of the last `count` rows, read in one pass, with its definition over the
    /// pairs that are held, in f64; and with that over all pairs: what was dropped with a share ε of the
    /// softmax moves a row by 2 ε max |v| at most.
    pub(crate) fn check_attention(&self, out: &[f32], count: usize, text: &str) {
        let held = |layer, head, _| self.context.kept_positions(layer, head);
        self.check_attention_over(out, count, text, &held);
    }

    /// The same with `seen(layer, KV head, position)`, the pairs that a row attends to.
    pub(crate) fn check_attention_over(
        &self,
        out: &[f32],
        count: usize,
        text: &str,
        seen: &dyn Fn(usize, usize, usize) -> Vec<u32>,
    ) {
        // Of a number below 1, and of what errors of keys do to weights.
        let tolerance = match self.kv_type {
            KvType::F32 => 1e-5,
            KvType::F16 => 2e-3,
            KvType::BF16 => 1.5e-2,
            KvType::Q8 => 1.5e-2,
            KvType::Q4 => 0.2,
            // What stays is rounded again, beside others than before.
            KvType::Kivi(kivi) => match kivi.bits {
                KiviBits::Four => 0.25,
                KiviBits::Two => 0.8,
            },
            _ => 0.5,
        };
        let width = HEADS * DIM;
        for row in 0..count {
            let position = self.context.len() - count + row;
            for (place, &layer) in FULL_LAYERS.iter().enumerate() {
                let got = &out[(row * FULL_LAYERS.len() + place) * width..][..width];
                for head in 0..HEADS {
                    let kv_head = head / (HEADS / KV_HEADS);
                    let kept = seen(layer, kv_head, position);
                    let all: Vec<u32> = (0..=position as u32).collect();
                    let expected = Defined::over(layer, head, position, &kept);
                    let dense = Defined::over(layer, head, position, &all);
                    let dropped = 1.0 - expected.mass / dense.mass;
                    assert!((-1e-9..1.0).contains(&dropped), "{text}: {dropped}");
                    let bound = 2.0 * dropped * dense.largest;
                    for (d, got) in got[head * DIM..][..DIM].iter().enumerate() {
                        let off = (f64::from(*got) - expected.out[d]).abs();
                        assert!(
                            off < tolerance,
                            "{text} {} layer {layer}: {off}",
                            self.kv_type
                        );
                        let moved = (f64::from(*got) - dense.out[d]).abs();
                        assert!(
                            moved < bound + tolerance,
                            "{text} {} layer {layer}: {moved} of {bound}, {dropped} dropped",
                            self.kv_type
                        );
                    }
                }
            }
        }
    }
}

/// Attention by its definition.
struct Defined {
    out: Vec<f64>,
    /// Sum of the weights before they are made to add up to one.
    mass: f64,
    /// The largest magnitude in the values.
    largest: f64,
}

impl Defined {
    /// That of a row of a head over the pairs at `kept` that it sees.
    fn over(layer: usize, head: usize, position: usize, kept: &[u32]) -> Defined {
        let row = |seed, position| row(seed, position, WIDEST);
        let q = &row(30 + layer, position)[head * DIM..][..DIM];
        let from = head / (HEADS / KV_HEADS) * DIM;
        let (mut mass, mut largest) = (0.0, 0.0f64);
        let mut out = vec![0.0; DIM];
        for &at in kept.iter().filter(|&&at| at as usize <= position) {
            let k = &row(10 + layer, at as usize)[from..][..DIM];
            let products = q.iter().zip(k).map(|(&a, &b)| f64::from(a) * f64::from(b));
            let product: f64 = products.sum();
            let weight = (f64::from(SCALE) * product).exp();
            mass += weight;
            let v = &row(20 + layer, at as usize)[from..][..DIM];
            for (out, &v) in out.iter_mut().zip(v) {
                *out += weight * f64::from(v);
                largest = largest.max(f64::from(v).abs());
            }
        }
        out.iter_mut().for_each(|out| *out /= mass);
        Defined { out, mass, largest }
    }
}
