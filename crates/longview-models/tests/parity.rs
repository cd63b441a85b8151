//! Logits against Hugging Face transformers on tiny random checkpoints of every architecture
//! (`tests/fixtures/README.md` says how they were made), and the row invariance of whole passes.

use std::path::{Path, PathBuf};

use longview_kernels::{Exec, Isa, Numerics};
use longview_kv::{Context, KvType, Ledger, Segment, Wanted};
use longview_models::{Model, ModelFile, Workspace};
use longview_weights::WeightFile;

/// The largest error allowed under `--numerics f32`: max|a−b| ÷ max|b| over a position's logits.
const TOLERANCE: f32 = 1e-4;

/// The same for the default numerics, which round keys and values to f16; activations stay floats beside
/// weights that are floats, as those of the fixtures are. The worst fixture has 8.7e-3.
const DEFAULT_TOLERANCE: f32 = 1.5e-2;

/// What transformers computed.
struct Expected {
    ids: Vec<u32>,
    /// `[ids][vocab]`
    logits: Vec<f32>,
    greedy: Vec<u32>,
}

fn fixtures() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let mut folders: Vec<PathBuf> = std::fs::read_dir(root)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.is_dir())
        .collect();
    folders.sort();
    assert!(folders.len() >= 20, "every architecture has its fixture");
    folders
}

fn expected(file: &Path) -> Expected {
    let bytes = std::fs::read(file).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let ids = |name: &str| -> Vec<u32> {
        let data = tensors.tensor(name).unwrap().data().to_vec();
        data.chunks_exact(8)
            .map(|b| i64::from_le_bytes(b.try_into().unwrap()) as u32)
            .collect()
    };
    let logits = tensors.tensor("logits").unwrap().data().to_vec();
    Expected {
        ids: ids("input_ids"),
        logits: logits
            .chunks_exact(4)
            .map(|b| f32::from_le_bytes(b.try_into().unwrap()))
            .collect(),
        greedy: ids("greedy_ids"),
    }
}

fn load(folder: &Path, exec: &Exec, kv_type: KvType) -> Model {
    let file = ModelFile::new(WeightFile::open(folder).unwrap()).unwrap();
    file.load(exec, kv_type, &Ledger::unlimited(), &mut |_, _| {})
        .unwrap()
}

/// Reads `ids` in chunks and returns all logits.
fn read(model: &Model, exec: &Exec, context: &mut Context, ids: &[u32], chunk: usize) -> Vec<f32> {
    let mut workspace = Workspace::new();
    let mut logits = Vec::new();
    for tokens in ids.chunks(chunk) {
        let segment = Segment {
            context: &mut *context,
            tokens,
            wanted: Wanted::All,
        };
        model.forward(exec, vec![segment], &mut workspace).unwrap();
        logits.extend_from_slice(workspace.logits());
    }
    logits
}

/// The largest max|a−b| ÷ max|b| of any position.
fn error(got: &[f32], expected: &[f32], vocab: usize) -> f32 {
    assert_eq!(got.len(), expected.len());
    let of_row = |(got, expected): (&[f32], &[f32])| {
        let difference = got
            .iter()
            .zip(expected)
            .map(|(a, b)| (a - b).abs())
            .fold(0.0, f32::max);
        let largest = expected.iter().map(|b| b.abs()).fold(0.0, f32::max);
        // A NaN must not hide in a maximum.
        assert!(got.iter().all(|a| a.is_finite()));
        difference / largest
    };
    got.chunks(vocab)
        .zip(expected.chunks(vocab))
        .map(of_row)
        .fold(0.0, f32::max)
}

/// The expectations of a fixture with the context lengths they hold for.
fn cases(folder: &Path) -> Vec<(Expected, usize)> {
    let long = (expected(&folder.join("expected.safetensors")), 316);
    let short = folder.join("expected_short.safetensors");
    if short.exists() {
        vec![long, (expected(&short), 116)]
    } else {
        vec![long]
    }
}

#[test]
fn logits_agree_with_transformers_at_every_position() {
    let exact = Exec::new(2, Isa::best(), Numerics::F32);
    let usual = Exec::new(2, Isa::best(), Numerics::Default);
    for folder in fixtures() {
        let name = folder.file_name().unwrap().to_string_lossy().into_owned();
        let model = load(&folder, &exact, KvType::F32);
        let vocab = model.blueprint().vocab;
        let ledger = Ledger::unlimited();
        for (expected, planned) in cases(&folder) {
            let fresh = || model.new_context(planned, &ledger).unwrap();
            let mut whole_context = fresh();
            let whole = read(&model, &exact, &mut whole_context, &expected.ids, 512);
            let worst = error(&whole, &expected.logits, vocab);
            let sevens = read(&model, &exact, &mut fresh(), &expected.ids, 7);
            let ones = read(&model, &exact, &mut fresh(), &expected.ids, 1);
            assert!(
                sevens == whole,
                "{name}: chunks of 7 give other bits than one chunk"
            );
            assert!(
                ones == whole,
                "{name}: single tokens give other bits than one chunk"
            );

            let rounded = load(&folder, &usual, KvType::F16);
            let mut context = rounded.new_context(planned, &ledger).unwrap();
            let default = read(&rounded, &usual, &mut context, &expected.ids, 512);
            let default_error = error(&default, &expected.logits, vocab);
            println!(
                "{name:22} {:3} tokens: {worst:.1e} in f32, {default_error:.1e} by default",
                expected.ids.len()
            );
            assert!(worst <= TOLERANCE, "{name}: error {worst:e}");
            assert!(
                default_error <= DEFAULT_TOLERANCE,
                "{name}: default numerics' error {default_error:e}"
            );

            let greedy = greedy(
                &model,
                &exact,
                &mut whole_context,
                &whole,
                expected.greedy.len(),
            );
            assert_eq!(greedy, expected.greedy, "{name}: greedy continuation");
        }
    }
}

fn greedy(
    model: &Model,
    exec: &Exec,
    context: &mut Context,
    logits: &[f32],
    count: usize,
) -> Vec<u32> {
    let vocab = model.blueprint().vocab;
    let mut last = logits[logits.len() - vocab..].to_vec();
    let mut ids = Vec::new();
    for _ in 0..count {
        let best = (0..vocab)
            .max_by(|&a, &b| last[a].total_cmp(&last[b]))
            .unwrap() as u32;
        ids.push(best);
        last = read(model, exec, context, &[best], 1);
    }
    ids
}

#[test]
fn rows_do_not_depend_on_threads_or_on_other_contexts() {
    for folder in fixtures() {
        let name = folder.file_name().unwrap().to_string_lossy().into_owned();
        let ids = expected(&folder.join("expected.safetensors")).ids;
        let [one, two] = [1, 2].map(|threads| Exec::new(threads, Isa::best(), Numerics::Default));
        let model = load(&folder, &two, KvType::F16);
        let ledger = Ledger::unlimited();
        let fresh = || model.new_context(ids.len(), &ledger).unwrap();
        let mut alone = fresh();
        let expected = read(&model, &one, &mut alone, &ids, 64);

        let (mut first, mut second) = (fresh(), fresh());
        let mut workspace = Workspace::new();
        let mut together = Vec::new();
        // The second context runs ahead of the first by other steps.
        read(&model, &two, &mut second, &ids[..33], 33);
        for tokens in ids[..120].chunks(5) {
            let from = second.len();
            let segments = vec![
                Segment {
                    context: &mut first,
                    tokens,
                    wanted: Wanted::All,
                },
                Segment {
                    context: &mut second,
                    tokens: &ids[from..from + 3],
                    wanted: Wanted::Last,
                },
            ];
            model.forward(&two, segments, &mut workspace).unwrap();
            let vocab = model.blueprint().vocab;
            let rows = workspace.logits().len() / vocab;
            assert_eq!(rows, tokens.len() + 1, "only wanted rows have logits");
            together.extend_from_slice(&workspace.logits()[..tokens.len() * vocab]);
            let beside = &workspace.logits()[tokens.len() * vocab..];
            let at = (second.len() - 1) * vocab;
            assert!(
                beside == &expected[at..at + vocab],
                "{name}: second context"
            );
        }
        assert!(
            together == expected[..together.len()],
            "{name}: first context"
        );
    }
}

#[test]
fn what_is_wanted_of_a_row_changes_nothing_but_what_is_computed() {
    for folder in fixtures() {
        let name = folder.file_name().unwrap().to_string_lossy().into_owned();
        let ids = expected(&folder.join("expected.safetensors")).ids;
        let exec = Exec::new(2, Isa::best(), Numerics::Default);
        let model = load(&folder, &exec, KvType::F16);
        let vocab = model.blueprint().vocab;
        let ledger = Ledger::unlimited();
        let fresh = || model.new_context(ids.len(), &ledger).unwrap();
        let all = read(&model, &exec, &mut fresh(), &ids[..120], 50);
        let mut workspace = Workspace::new();
        let mut pass = |contexts: &mut [Context], wanted: &[Wanted], end: usize| {
            let segments = contexts.iter_mut().zip(wanted).map(|(context, &wanted)| {
                let tokens = &ids[context.len()..end];
                Segment {
                    context,
                    tokens,
                    wanted,
                }
            });
            model
                .forward(&exec, segments.collect::<Vec<_>>(), &mut workspace)
                .unwrap();
            let to_bits = |numbers: &[f32]| numbers.iter().map(|x| x.to_bits()).collect();
            let (logits, states): (Vec<u32>, Vec<u32>) =
                (to_bits(workspace.logits()), to_bits(workspace.states()));
            (logits, states)
        };
        let (_, states) = pass(&mut [fresh()], &[Wanted::Hidden], 50);
        let bits = |rows: std::ops::Range<usize>| -> Vec<u32> {
            let of_rows = &all[rows.start * vocab..rows.end * vocab];
            of_rows.iter().map(|x| x.to_bits()).collect()
        };
        // Read without a word, beside each other and alone, what follows is the same.
        let mut contexts = [fresh(), fresh(), fresh(), fresh()];
        let nothing = [Wanted::Nothing; 4];
        let (logits, none) = pass(&mut contexts[..3], &nothing[..3], 50);
        assert!(logits.is_empty() && none.is_empty(), "{name}");
        pass(&mut contexts[3..], &nothing[..1], 50);
        let each = [Wanted::Nothing, Wanted::Last, Wanted::All, Wanted::Hidden];
        let (logits, later) = pass(&mut contexts, &each, 100);
        assert!(logits == [bits(99..100), bits(50..100)].concat(), "{name}");
        assert_eq!(later.len(), states.len(), "{name}");
        let (logits, none) = pass(&mut contexts, &[Wanted::All; 4], 120);
        assert!(logits == bits(100..120).repeat(4), "{name}");
        assert!(none.is_empty(), "{name}");
        // States beside others that want logits or nothing.
        let mut beside = [fresh(), fresh(), fresh()];
        let others = [Wanted::Last, Wanted::Hidden, Wanted::Nothing];
        let (logits, found) = pass(&mut beside, &others, 50);
        assert!(logits == bits(49..50) && found == states, "{name}");
    }
}

#[test]
fn both_spellings_of_the_settings_make_the_same_blueprint() {
    for folder in fixtures() {
        let [old, new] = ["config.json", "config-transformers5.json"].map(|settings| {
            let model = tempfile::tempdir().unwrap();
            for file in std::fs::read_dir(&folder).unwrap() {
                let path = file.unwrap().path();
                std::fs::copy(&path, model.path().join(path.file_name().unwrap())).unwrap();
            }
            std::fs::copy(folder.join(settings), model.path().join("config.json")).unwrap();
            let model = ModelFile::new(WeightFile::open(model.path()).unwrap()).unwrap();
            model.blueprint().clone()
        });
        assert_eq!(old, new, "{}", folder.display());
    }
}

#[test]
fn of_a_model_that_also_sees_the_language_part_is_read() {
    for (name, parts) in [
        (
            "gemma3_vision",
            ["23 tensors", "multi_modal_projector, vision_tower"],
        ),
        (
            "mistral3_vision",
            ["15 tensors", "multi_modal_projector, vision_tower"],
        ),
    ] {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("tests/fixtures")
            .join(name);
        let model = ModelFile::new(WeightFile::open(folder).unwrap()).unwrap();
        let [notice] = model.notices() else {
            panic!("{:?}", model.notices())
        };
        assert!(parts.iter().all(|part| notice.contains(part)), "{notice}");
        assert!(
            model
                .weight_file()
                .names()
                .all(|tensor| !tensor.contains("vision"))
        );
    }
}
