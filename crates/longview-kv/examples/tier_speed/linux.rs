//! The measurement.

use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use longview_kv::tier::{
    BlockInfo, BlockKey, BlockShape, DiskOptions, DiskTier, Origin, StoreFolder, Tier,
};
use longview_kv::{BLOCK_TOKENS, Block, BlockHash, Ledger};
use rustix::fs::{Advice, OFlags, fadvise};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

const SHAPE: BlockShape = BlockShape {
    layers: 16,
    layer_bytes: 128 << 10,
};
/// Times that each way of reading is taken, in turns.
const ROUNDS: usize = 9;
/// Bytes of one read of the plain files.
const REQUEST: usize = 2 << 20;
/// What `O_DIRECT` wants buffers to begin at.
const ALIGN: usize = 4096;

pub(crate) fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let parent = arguments
        .next()
        .ok_or("give a folder on the disk to measure")?;
    let blocks: usize = arguments.next().map_or(Ok(512), |text| text.parse())?;
    let home = tempfile::tempdir_in(parent)?;
    let folder = StoreFolder::open(home.path())?;
    let tier = DiskTier::open(&folder, DiskOptions::default())?;
    let bytes = blocks * SHAPE.layers * SHAPE.layer_bytes;

    let infos = infos(blocks);
    let block = filled_block()?;
    let rate = timed(bytes, || {
        for info in &infos {
            tier.put(info, &block)?;
        }
        Ok(tier.sync()?)
    })?;
    println!("put and sync                {rate:6.2} GB/s");

    let files = files_below(home.path())?;
    let keys: Vec<BlockKey> = infos.iter().map(|info| info.key).collect();
    let mut layer_of_all = vec![0; blocks * SHAPE.layer_bytes];
    let mut read_tier = || {
        for layer in 0..SHAPE.layers {
            tier.read(&keys, layer, &mut layer_of_all)?;
        }
        Ok(())
    };
    let mut rates: [Vec<f64>; 4] = Default::default();
    for _ in 0..ROUNDS {
        drop_cache(&files)?;
        rates[0].push(timed(bytes, || read_files(&files, OFlags::DIRECT))?);
        drop_cache(&files)?;
        rates[1].push(timed(bytes, || read_files(&files, OFlags::empty()))?);
        drop_cache(&files)?;
        rates[2].push(timed(bytes, &mut read_tier)?);
        rates[3].push(timed(bytes, &mut read_tier)?);
    }
    let what = [
        "files, past the cache",
        "files, through the cache",
        "tier, cold",
        "tier, in the cache",
    ];
    for (what, rates) in what.iter().zip(&mut rates) {
        rates.sort_by(f64::total_cmp);
        println!(
            "{what:27} {:6.2} GB/s, median of {ROUNDS} ({:.2}–{:.2})",
            rates[ROUNDS / 2],
            rates[0],
            rates[ROUNDS - 1]
        );
    }
    let median = |which: usize| rates[which][ROUNDS / 2];
    println!(
        "tier, cold, beside the faster of the two: {:.0} %",
        100.0 * median(2) / median(0).max(median(1))
    );
    Ok(())
}

/// Gigabytes a second.
fn timed(bytes: usize, run: impl FnOnce() -> Result<()>) -> Result<f64> {
    let started = Instant::now();
    run()?;
    Ok(bytes as f64 / 1e9 / started.elapsed().as_secs_f64())
}

fn infos(blocks: usize) -> Vec<BlockInfo> {
    let seed = BlockHash::seed(&[("model", b"tier_speed")]);
    let origin = Arc::new(Origin {
        seed,
        model: "tier_speed".to_owned(),
        identity: "random bytes".to_owned(),
    });
    let mut parent = seed;
    let info = |index| {
        let tokens = [index; BLOCK_TOKENS];
        let hash = parent.then(&tokens);
        BlockInfo {
            key: BlockKey { hash, group: 0 },
            parent: std::mem::replace(&mut parent, hash),
            index,
            tokens: tokens.into(),
            shape: SHAPE,
            seconds: 1.0,
            origin: Arc::clone(&origin),
        }
    };
    (0..blocks as u32).map(info).collect()
}

/// Random bytes: a disk must not find them easy to store.
fn filled_block() -> Result<Arc<Block>> {
    let mut block = Block::zeroed(SHAPE.layers * SHAPE.layer_bytes, &Ledger::unlimited())?;
    fastrand::Rng::with_seed(1).fill(block.bytes_mut());
    Ok(Arc::new(block))
}

fn files_below(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            files.extend(files_below(&path)?);
        } else if path.extension().is_some_and(|end| end == "kv") {
            files.push(path);
        }
    }
    Ok(files)
}

/// Has the system forget the files' pages.
fn drop_cache(files: &[PathBuf]) -> Result<()> {
    for path in files {
        let file = File::open(path)?;
        file.sync_all()?;
        fadvise(&file, 0, None, Advice::DontNeed)?;
    }
    // Only the superuser may, and the advice above is enough on local file systems.
    let _ = std::fs::write("/proc/sys/vm/drop_caches", "1");
    Ok(())
}

fn read_files(files: &[PathBuf], flags: OFlags) -> Result<()> {
    let mut buffer = vec![0; REQUEST + ALIGN];
    let start = buffer.as_ptr().align_offset(ALIGN);
    for path in files {
        let mut options = OpenOptions::new();
        options.read(true).custom_flags(flags.bits().cast_signed());
        let mut file = options.open(path)?;
        while file.read(&mut buffer[start..start + REQUEST])? > 0 {}
    }
    Ok(())
}
