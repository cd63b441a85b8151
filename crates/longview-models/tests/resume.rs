//! What was read lasts: a process reads a text into a store and is killed; another goes on from what
//! it finds, and its logits have the same bits as if it had read everything itself. For every
//! architecture, and so for every kind of layer.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use longview_kernels::{Exec, Isa, Numerics};
use longview_kv::tier::{DiskOptions, DiskTier, Origin, StoreFolder, Tier};
use longview_kv::{
    BLOCK_TOKENS, BlockHash, Context, KvForm, KvType, Ledger, Segment, Store, Wanted,
};
use longview_models::{Model, ModelFile, Workspace};
use longview_weights::WeightFile;

/// Names the store's folder to the process that is to be killed.
const FOLDER: &str = "LONGVIEW_TEST_RESUME_FOLDER";

/// Tokens read before the kill, and after it.
const BEFORE: usize = 290;
const AFTER: usize = 10;

fn fixtures() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let entries = std::fs::read_dir(root).unwrap();
    let mut folders: Vec<PathBuf> = entries
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.is_dir())
        .collect();
    folders.sort();
    folders
}

/// In which forms every architecture is read: half precision, and one that holds first, older and
/// latest tokens apart.
fn forms() -> [KvForm; 2] {
    let kivi = KvForm {
        recent_tokens: 40,
        sink_tokens: 4,
        ..KvType::WHOLE[0].into()
    };
    [KvType::F16.into(), kivi]
}

fn worlds() -> impl Iterator<Item = World> {
    let pair = |folder: PathBuf| forms().map(|form| World::load(&folder, form));
    fixtures().into_iter().flat_map(pair)
}

struct World {
    name: String,
    model: Model,
    exec: Exec,
    workspace: Workspace,
    tokens: Vec<u32>,
    origins: [Arc<Origin>; 2],
}

impl World {
    fn load(folder: &Path, form: KvForm) -> World {
        let exec = Exec::new(2, Isa::best(), Numerics::Default);
        let file = ModelFile::new(WeightFile::open(folder).unwrap()).unwrap();
        let ledger = Ledger::unlimited();
        let model = file.load(&exec, form, &ledger, &mut |_, _| {}).unwrap();
        let vocab = model.blueprint().vocab as u32;
        let name = folder.file_name().unwrap().to_string_lossy();
        let name = format!("{name} {form}");
        let origin = |rope: &str| {
            Arc::new(Origin {
                seed: BlockHash::seed(&[("model", name.as_bytes()), ("rope", rope.as_bytes())]),
                model: name.clone(),
                identity: rope.to_owned(),
            })
        };
        World {
            tokens: (0..(BEFORE + AFTER) as u32)
                .map(|i| (i * 37 + i / 11) % vocab)
                .collect(),
            origins: [origin("short"), origin("long")],
            exec,
            workspace: Workspace::new(),
            model,
            name,
        }
    }

    fn context(&self, store: &Arc<Store>) -> Context {
        self.model
            .new_context_in(310, store, &self.origins)
            .unwrap()
    }

    /// Reads tokens in passes of at most `chunk`; the logits of the last, bit for bit.
    fn read(&mut self, context: &mut Context, end: usize, chunk: usize) -> Vec<u32> {
        while context.len() < end {
            let count = context.next_pass(end - context.len(), chunk);
            let tokens = &self.tokens[context.len()..context.len() + count];
            let segment = Segment {
                context: &mut *context,
                tokens,
                wanted: Wanted::Last,
            };
            self.model
                .forward(&self.exec, vec![segment], &mut self.workspace)
                .unwrap();
            // As a prefill does, for layers that keep a state instead of keys and values.
            if end - context.len() < BLOCK_TOKENS {
                context.checkpoint();
            }
        }
        self.workspace
            .logits()
            .iter()
            .map(|logit| logit.to_bits())
            .collect()
    }
}

fn open(folder: &Path) -> Arc<Store> {
    let folder = StoreFolder::open(folder).unwrap();
    let tier: Arc<dyn Tier> = Arc::new(DiskTier::open(&folder, DiskOptions::default()).unwrap());
    Arc::new(Store::new(Ledger::unlimited(), vec![tier]))
}

/// What the killed process does; nothing when the test is run by itself.
#[test]
fn read_until_killed() {
    let Some(folder) = std::env::var_os(FOLDER) else {
        return;
    };
    let store = open(Path::new(&folder));
    let contexts: Vec<Context> = worlds()
        .map(|mut world| {
            let mut context = world.context(&store);
            world.read(&mut context, BEFORE, 64);
            context
        })
        .collect();
    println!("\neverything is read");
    std::thread::sleep(std::time::Duration::from_secs(600));
    drop(contexts);
}

#[test]
fn a_killed_process_has_lost_the_unfinished_block_and_no_bit() {
    let folder = tempfile::tempdir().unwrap();
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "read_until_killed", "--nocapture"])
        .env(FOLDER, folder.path())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let ready = lines
        .map_while(Result::ok)
        .any(|line| line == "everything is read");
    // SIGKILL: nothing of the process runs after this.
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(ready, "the reading process failed");

    let store = open(folder.path());
    for mut world in worlds() {
        let end = world.tokens.len();
        // One pass over everything, outside any store.
        let ledger = Ledger::unlimited();
        let mut whole = world.model.new_context(310, &ledger).unwrap();
        let expected = world.read(&mut whole, end, 512);

        let mut context = world.context(&store);
        let held = context.attach(&world.tokens).unwrap();
        assert_eq!(held, BEFORE / BLOCK_TOKENS * BLOCK_TOKENS, "{}", world.name);
        let got = world.read(&mut context, end, 512);
        assert_eq!(got, expected, "{}", world.name);
    }
    assert!(store.counts().read_bytes > 0);
}
