//! A decode step allocates nothing once its buffers have grown, but for the blocks of a new stretch
//! of 64 tokens.

use std::alloc::{GlobalAlloc, Layout, System};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use longview_kernels::{Exec, Isa, Numerics, Pool};
use longview_kv::{BLOCK_TOKENS, KvType, Ledger, Segment, Wanted};
use longview_models::shapes::make_from;
use longview_models::{Config, Model, ModelFile, Recipe, Workspace};
use longview_weights::WeightFile;
use serde_json::json;

/// The system's allocator, with a count of what is asked of it by all threads.
struct Counting;

static ASKED: AtomicUsize = AtomicUsize::new(0);

// SAFETY: everything is handed on to the system's allocator as it is.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ASKED.fetch_add(1, Ordering::SeqCst);
        // SAFETY: the caller's promise is the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, start: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise is the same.
        unsafe { System.dealloc(start, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Tokens read before the steps are counted: the list of token ids has just grown to hold twice as
/// many.
const READ: usize = 129;

/// Weights of blocks of 32, of 256, and of both.
const RECIPES: [(&str, Recipe); 3] = [
    ("Q8_0", Recipe::Q8_0),
    ("Q4_K_M", Recipe::Q4_K_M),
    ("Q4_0", Recipe::Q4_0),
];

/// A small model in `folder` of weights as `recipe` has them.
fn quantised(folder: &Path, name: &str, recipe: Recipe) -> PathBuf {
    let config = json!({"model_type": "llama", "hidden_size": 256, "intermediate_size": 512,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64,
        "vocab_size": 320, "max_position_embeddings": 512, "rms_norm_eps": 1e-5,
        "tie_word_embeddings": false});
    let file = folder.join(format!("{name}.gguf"));
    make_from(
        &Config::new(name, config),
        recipe,
        1,
        &file,
        &Pool::new(1),
        &mut |_| ControlFlow::Continue(()),
    )
    .unwrap();
    file
}

fn load(path: &Path, exec: &Exec) -> Model {
    let file = ModelFile::new(WeightFile::open(path).unwrap()).unwrap();
    file.load(exec, KvType::F16, &Ledger::unlimited(), &mut |_, _| {})
        .unwrap()
}

#[test]
fn decode_steps_allocate_only_blocks() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let folder = tempfile::tempdir().unwrap();
    // Full attention, windows with soft caps, head norms, and experts.
    let floats = ["llama31", "gemma2", "qwen3", "mixtral", "mistral_window"];
    let quantised = RECIPES.map(|(name, recipe)| quantised(folder.path(), name, recipe));
    let floats = floats.map(|name| fixtures.join(name));
    let models: Vec<PathBuf> = floats.into_iter().chain(quantised).collect();
    let mut seen = 0;
    for threads in [1, 2] {
        let exec = Exec::new(threads, Isa::best(), Numerics::Default);
        for path in &models {
            let (model, name) = (load(path, &exec), path.display());
            let mut context = model.new_context(300, &Ledger::unlimited()).unwrap();
            let mut workspace = Workspace::new();
            let mut step = |tokens: &[u32]| {
                let before = ASKED.load(Ordering::SeqCst);
                let segment = Segment {
                    context: &mut context,
                    tokens,
                    wanted: Wanted::Last,
                };
                model.forward(&exec, [segment], &mut workspace).unwrap();
                (context.len(), ASKED.load(Ordering::SeqCst) - before)
            };
            step(&[3; READ - 1]);
            step(&[5]);
            let mut late = 0;
            for token in 0..100u32 {
                let (len, asked) = step(&[token % 7]);
                if (len - 1).is_multiple_of(BLOCK_TOKENS) {
                    // A slab and what refers to it, for every kind of layer.
                    assert!((1..=16).contains(&asked), "{name}: {asked} at a new block");
                    seen += 1;
                } else {
                    late += asked;
                }
            }
            // A thread has buffers of its own for its parts of products, and may come to its first
            // part late; a step that allocates would do so a hundred times.
            assert!(
                late <= 4 * (threads - 1),
                "{name} with {threads} threads: {late} allocations in 100 steps"
            );
        }
    }
    assert_eq!(seen, 2 * models.len(), "every run enters one new block");
}
