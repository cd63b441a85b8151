//! What keeping or reading less is worth: the time of a decode step's attention over all pairs and
//! over what a method kept or chose to read, and the time that deciding took.
//!
//! `cargo run --release -p longview-methods --example keep_speed -- [tokens] [share %] [layers] [kv type]`
//!
//! The shape is that of a 1B-parameter llama, 32 query and 8 KV heads of 64; keys, values and queries
//! are noise. Both contexts are read alternately, and the shortest time counts.

use std::sync::Arc;
use std::time::Instant;

use longview_kernels::{Exec, Isa, Numerics};
use longview_kv::keep::{AttentionOf, AttentionShape, LayerRows};
use longview_kv::{
    AttendWorkspace, Attention, Batch, Context, Identity, KvError, KvLayout, KvType, LayerLayout,
    LayerState, Ledger, RopeSet, Segment, Wanted, human_bytes,
};
use longview_methods::{Methods, Stage};

const HEADS: usize = 32;
const KV_HEADS: usize = 8;
const DIM: usize = 64;

/// Tokens written at a time.
const CHUNK: usize = 1024;

/// Decode steps of each kind that are measured.
const STEPS: usize = 40;

/// Compactions that are measured while a text is read.
const ROUNDS: usize = 41;

const IDENTITY: Identity = Identity {
    model: 0,
    rope: RopeSet::Short,
    numerics: Numerics::Default,
};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let mut number = |default: usize| arguments.next().map_or(Ok(default), |a| a.parse());
    let (tokens, percent, layers) = (number(32_768)?, number(10)?, number(4)?);
    let name = arguments.next().unwrap_or_else(|| "f16".to_owned());
    let kv_type = KvType::ALL
        .into_iter()
        .find(|kv_type| kv_type.to_string() == name);
    let kv_type = kv_type.ok_or("the last argument is f32, f16, bf16, q8 or q4")?;
    let layer = LayerLayout {
        state: LayerState::Full,
        kv_heads: KV_HEADS,
        head_dim: DIM,
        v_dim: DIM,
    };
    let layout = Arc::new(KvLayout::new(&vec![layer; layers], kv_type));
    let exec = Exec::new(2, Isa::from_environment()?, Numerics::Default);
    let mut world = World {
        exec,
        layers,
        workspace: AttendWorkspace::default(),
        noise: noise(CHUNK * HEADS * DIM),
    };
    println!(
        "{}, 2 threads, {tokens} tokens, {layers} layers of {HEADS}/{KV_HEADS} heads of {DIM}, {kv_type}",
        world.exec.isa
    );
    for method in [
        "random(budget={}%)",
        "knorm(budget={}%)",
        "keydiff(budget={}%, block=never)",
        "snapkv(budget={}%, alloc=adakv)",
    ] {
        let mut methods = Methods::new();
        methods.set(Stage::Keep, &method.replace("{}", &percent.to_string()))?;
        let keep = methods.keep().ok_or("a method that drops pairs")?;
        let mut whole = Context::new(Arc::clone(&layout), Ledger::unlimited(), IDENTITY);
        whole.keep(keep, tokens, &Plain)?;
        world.fill(&mut whole, tokens)?;
        let mut less = whole.fork();
        let done = less.compress(&world.exec, &Plain)?;
        let (dense, kept) = world.alternately(&mut whole, &mut less)?;
        println!(
            "{}: attention of a step {:.3} ms whole ({}), {:.3} ms kept ({}): {:.1} times as fast; \
             deciding took {:.1} ms, {:.3} ms a layer and 1,000 tokens",
            keep.text,
            dense * 1e3,
            human_bytes(whole.kv_bytes()),
            kept * 1e3,
            human_bytes(less.kv_bytes()),
            dense / kept,
            done.time.as_secs_f64() * 1e3,
            done.time.as_secs_f64() * 1e6 / layers as f64 / tokens as f64,
        );
    }
    let budget = tokens * percent / 100;
    for method in [
        "keydiff(budget={}, block=128)",
        "streaming-llm(budget={}, block=128)",
    ] {
        let mut methods = Methods::new();
        methods.set(Stage::Keep, &method.replace("{}", &budget.to_string()))?;
        let keep = methods.keep().ok_or("a method that drops pairs")?;
        let mut context = Context::new(Arc::clone(&layout), Ledger::unlimited(), IDENTITY);
        context.keep(keep, 2 * tokens, &Plain)?;
        let mut times = Vec::new();
        while times.len() < ROUNDS {
            world.write(&mut context, 128)?;
            let pairs = context.kept_positions(0, 0).len();
            let done = context.compress(&world.exec, &Plain)?;
            // As many as before stay of every head.
            if pairs == budget + 128 && done.after < done.before {
                times.push(done.time.as_secs_f64() * 1e3);
            }
        }
        times.sort_by(f64::total_cmp);
        println!(
            "{}: a compaction of {} {:.1} ms, {:.1} to {:.1}",
            keep.text,
            human_bytes(context.kv_bytes()),
            times[ROUNDS / 2],
            times[0],
            times[ROUNDS - 1]
        );
    }
    let mut whole = Context::new(Arc::clone(&layout), Ledger::unlimited(), IDENTITY);
    world.fill(&mut whole, tokens)?;
    for method in [
        "quest(budget={}%, page=16, dense=0)",
        "quest(budget={}%, page=64, dense=0)",
    ] {
        let mut methods = Methods::new();
        methods.set(Stage::Read, &method.replace("{}", &percent.to_string()))?;
        let read = methods.read().ok_or("a method that leaves pages out")?;
        let mut less = whole.fork();
        less.read_by(read)?;
        less.answer_from(tokens);
        let (dense, chosen) = world.alternately(&mut whole, &mut less)?;
        let report = less.read_report().ok_or("a method in charge")?;
        println!(
            "{}: attention of a step {:.3} ms over everything, {:.3} ms over what is chosen, choosing \
             included: {:.1} times as fast; {} to choose by",
            read.text,
            dense * 1e3,
            chosen * 1e3,
            dense / chosen,
            human_bytes(report.index_bytes),
        );
    }
    Ok(())
}

/// Nothing is rotated.
struct Plain;

impl AttentionOf for Plain {
    fn shape(&self, _layer: usize) -> AttentionShape {
        AttentionShape {
            heads: HEADS,
            scale: 0.125,
            softcap: 0.0,
        }
    }

    fn rotate(&self, _layer: usize, _set: RopeSet, _positions: isize, _vectors: &mut [f32]) {}
}

struct World {
    exec: Exec,
    layers: usize,
    workspace: AttendWorkspace,
    noise: Vec<f32>,
}

impl World {
    /// Appends noise up to `tokens` tokens.
    fn fill(&mut self, context: &mut Context, tokens: usize) -> Result<(), KvError> {
        while context.len() < tokens {
            self.write(context, CHUNK.min(tokens - context.len()))?;
        }
        Ok(())
    }

    /// The shortest times of a step of either.
    fn alternately(&mut self, a: &mut Context, b: &mut Context) -> Result<(f64, f64), KvError> {
        let (mut of_a, mut of_b) = (f64::INFINITY, f64::INFINITY);
        for _ in 0..STEPS {
            of_a = of_a.min(self.step(a)?);
            of_b = of_b.min(self.step(b)?);
        }
        Ok((of_a, of_b))
    }

    /// Appends `count` tokens of noise.
    fn write(&mut self, context: &mut Context, count: usize) -> Result<(), KvError> {
        let tokens = vec![0; count];
        // No two chunks alike.
        let from = context.len() % (CHUNK * (HEADS - KV_HEADS) * DIM);
        let segment = Segment {
            context,
            tokens: &tokens,
            wanted: Wanted::Nothing,
        };
        let mut batch = Batch::new([segment], IDENTITY)?;
        for layer in 0..self.layers {
            let rows = &self.noise[from..from + count * KV_HEADS * DIM];
            batch.append(&self.exec, layer, rows, rows);
            let q = &self.noise[..count * HEADS * DIM];
            let seen = LayerRows {
                layer,
                q,
                k: rows,
                v: rows,
            };
            batch.observe(&self.exec, seen, &Plain);
        }
        batch.commit();
        Ok(())
    }

    /// Seconds that the attention of one more token takes, which is then forgotten.
    fn step(&mut self, context: &mut Context) -> Result<f64, KvError> {
        let segment = Segment {
            context,
            tokens: &[0],
            wanted: Wanted::Last,
        };
        let mut batch = Batch::new([segment], IDENTITY)?;
        let attention = Attention {
            heads: HEADS,
            scale: 0.125,
            softcap: 0.0,
            sinks: None,
            rotate: &|_, _, _| {},
        };
        let mut out = vec![0.0; HEADS * DIM];
        for layer in 0..self.layers {
            let row = &self.noise[..KV_HEADS * DIM];
            batch.append(&self.exec, layer, row, row);
        }
        let begun = Instant::now();
        for layer in 0..self.layers {
            let q = &self.noise[layer..layer + HEADS * DIM];
            batch.attend(
                &self.exec,
                layer,
                &attention,
                q,
                &mut out,
                &mut self.workspace,
            )?;
        }
        Ok(begun.elapsed().as_secs_f64())
    }
}

fn noise(count: usize) -> Vec<f32> {
    let mut state = 1u64;
    let mut next = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    (0..count).map(|_| next()).collect()
}
