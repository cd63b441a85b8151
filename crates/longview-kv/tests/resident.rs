//! The ledger speaks of memory that the process really has: what is reserved is resident, nothing much
//! beside it is, and what a keep method frees goes back to the system. Alone in its process, so that
//! nothing else is measured.

#![cfg(target_os = "linux")]

use std::fs;
use std::sync::Arc;

use longview_kernels::{Exec, Isa, Numerics};
use longview_kv::keep::{
    Allocate, Allocation, AttentionOf, AttentionShape, Budget, Keep, LayerView, Positions,
    Protected, Question, Score, Scores, When,
};
use longview_kv::{
    Batch, Context, Identity, KvError, KvForm, KvLayout, KvType, LayerLayout, LayerState, Ledger,
    RopeSet, Segment, Wanted,
};

const IDENTITY: Identity = Identity {
    model: 1,
    rope: RopeSet::Short,
    numerics: Numerics::Default,
};
const LAYERS: usize = 8;
const KV_HEADS: usize = 4;
const DIM: usize = 64;
const TOKENS: usize = 6144;
const CHUNK: usize = 512;

/// Everything else in the process: buffers of a pass, the program's own tables, the allocator's rests.
const BESIDE: u64 = 12 << 20;

struct Model;

impl AttentionOf for Model {
    fn shape(&self, _layer: usize) -> AttentionShape {
        AttentionShape {
            heads: KV_HEADS,
            scale: 0.125,
            softcap: 0.0,
        }
    }

    fn rotate(&self, _layer: usize, _set: RopeSet, _positions: isize, _vectors: &mut [f32]) {}
}

/// Keeps the first pairs.
struct First;

impl Score for First {
    fn score(&self, layer: &LayerView<'_>, scores: &mut Scores) -> Result<(), KvError> {
        for head in 0..layer.heads() {
            for (pair, score) in scores.head_mut(head).iter_mut().enumerate() {
                *score = -(pair as f32);
            }
        }
        Ok(())
    }
}

impl Allocate for First {
    fn wanted(&self, ask: &Allocation<'_>) -> Vec<Vec<f64>> {
        let of_layer = |scores: &Scores| vec![ask.slots as f64; scores.heads()];
        ask.scores.iter().map(of_layer).collect()
    }
}

/// A number of kilobytes in what the system knows of this process, in bytes.
fn status(key: &str) -> u64 {
    let text = fs::read_to_string("/proc/self/status").unwrap();
    let line = text.lines().find(|line| line.starts_with(key)).unwrap();
    let number = line.split_whitespace().nth(1).unwrap();
    number.parse::<u64>().unwrap() << 10
}

/// Bytes resident now, and the most since the last call of [`forget_peak`].
fn resident() -> (u64, u64) {
    (status("VmRSS:"), status("VmHWM:"))
}

fn forget_peak() {
    fs::write("/proc/self/clear_refs", "5").unwrap();
}

fn read(context: &mut Context, exec: &Exec) {
    let rows: Vec<f32> = (0..CHUNK * KV_HEADS * DIM)
        .map(|i| ((i * 7919) % 1009) as f32 / 504.5 - 1.0)
        .collect();
    let tokens = vec![0; CHUNK];
    while context.len() < TOKENS {
        let segment = Segment {
            context: &mut *context,
            tokens: &tokens,
            wanted: Wanted::Nothing,
        };
        let mut batch = Batch::new([segment], IDENTITY).unwrap();
        for layer in 0..LAYERS {
            batch.append(exec, layer, &rows, &rows);
        }
        batch.commit();
    }
}

#[test]
fn what_the_ledger_says_is_what_the_process_has() {
    let exec = Exec::new(2, Isa::best(), Numerics::Default);
    let layer = LayerLayout {
        state: LayerState::Full,
        kv_heads: KV_HEADS,
        head_dim: DIM,
        v_dim: DIM,
    };
    let keep = Arc::new(Keep {
        text: "first".to_owned(),
        score: Box::new(First),
        allocate: Box::new(First),
        merge: None,
        budget: Budget::Share(0.1),
        protected: Protected::default(),
        when: When::default(),
        question: Question::Unseen,
        positions: Positions::default(),
        made_for: None,
        scored_as: None,
    });
    let kivi = KvForm {
        recent_tokens: 64,
        sink_tokens: 64,
        ..KvType::WHOLE[0].into()
    };
    for (form, keeps) in [
        (KvType::F16.into(), true),
        (KvType::Q8.into(), true),
        (kivi, false),
    ] {
        let layout = Arc::new(KvLayout::new(&[layer; LAYERS], form));
        let ledger = Ledger::unlimited();
        let mut context = Context::new(Arc::clone(&layout), ledger.clone(), IDENTITY);
        if keeps {
            context.keep(&keep, TOKENS, &Model).unwrap();
        }
        forget_peak();
        let (before, _) = resident();
        read(&mut context, &exec);
        let (now, _) = resident();
        let held = ledger.usage().kv;
        assert_eq!(held, context.kv_bytes(), "{form}");
        assert!(
            now - before <= held + BESIDE,
            "{form}: {} for {held}",
            now - before
        );
        assert!(
            now - before + BESIDE >= held,
            "{form}: {} for {held}",
            now - before
        );
        if keeps {
            let stated = keep
                .bytes(&layout, &Model, TOKENS, 0, CHUNK, exec.pool.threads())
                .unwrap();
            context.compress(&exec, &Model).unwrap();
            let ((now, peak), usage) = (resident(), ledger.usage());
            assert!(usage.peak <= stated.peak + stated.scratch, "{form}");
            assert!(usage.kv <= stated.steady, "{form}");
            let grown = peak - before;
            assert!(
                grown <= stated.peak + stated.scratch + BESIDE,
                "{form}: peak {grown}"
            );
            let left = now.saturating_sub(before);
            assert!(
                left <= stated.steady + BESIDE,
                "{form}: {left} of {}",
                stated.steady
            );
        }
        drop(context);
        assert_eq!(ledger.usage().total(), 0, "{form}");
        let (after, _) = resident();
        assert!(after <= before + BESIDE, "{form}: {} stay", after - before);
    }
}
