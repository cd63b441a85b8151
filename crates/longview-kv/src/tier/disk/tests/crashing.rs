//! Processes that are killed while they write. The child is this test program, started again.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::tier::folder::StoreFolder;
use crate::tier::testing::{Chain, assert_held, block};
use crate::tier::{BlockInfo, BlockShape, DiskOptions, DiskTier, Repair, Syncing, Tier};

/// Names the folder that a child writes to.
const FOLDER: &str = "LONGVIEW_TEST_CRASH_FOLDER";
/// Seeds what it writes.
const SEED: &str = "LONGVIEW_TEST_CRASH_SEED";
/// Says how many rounds to run.
const ROUNDS: &str = "LONGVIEW_CRASH_ROUNDS";
const FEW: u64 = 12;

/// The contexts of a round: some begin alike and part.
fn contexts(seed: u64) -> Vec<Vec<BlockInfo>> {
    let mut random = fastrand::Rng::with_seed(seed / 2);
    let mut contexts = Vec::new();
    let shape = BlockShape {
        layers: 4,
        layer_bytes: 5000,
    };
    for _ in 0..4 {
        let mut trunk = Chain::new("m").group(random.u16(0..2), shape);
        let shared = trunk.blocks(random.usize(0..40), 1);
        for branch in 0..2 {
            let own = trunk.clone().blocks(random.usize(1..40), 2 + branch);
            contexts.push([&shared[..], &own].concat());
        }
    }
    contexts
}

fn open(folder: &Path) -> DiskTier {
    let folder = StoreFolder::open(folder).unwrap();
    let options = DiskOptions {
        sync: Syncing::Every(Duration::from_millis(5)),
        ..DiskOptions::default()
    };
    DiskTier::open(&folder, options).unwrap()
}

/// What a child does: writes its contexts and says after each block that it did.
#[test]
fn child() {
    let (Ok(folder), Ok(seed)) = (std::env::var(FOLDER), std::env::var(SEED)) else {
        return;
    };
    let seed: u64 = seed.parse().unwrap();
    let tier = open(Path::new(&folder));
    let mut random = fastrand::Rng::with_seed(seed);
    let contexts = contexts(seed);
    let mut done = vec![0; contexts.len()];
    loop {
        let context = random.usize(0..contexts.len());
        let Some(info) = contexts[context].get(done[context]) else {
            if done
                .iter()
                .zip(&contexts)
                .all(|(done, all)| *done == all.len())
            {
                break;
            }
            continue;
        };
        tier.put(info, &block(info)).unwrap();
        done[context] += 1;
        let mut out = std::io::stdout().lock();
        writeln!(out, "put {context} {}", done[context]).unwrap();
        out.flush().unwrap();
    }
}

fn start(folder: &Path, seed: u64) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args([
            "tier::disk::tests::crashing::child",
            "--exact",
            "--nocapture",
        ])
        .env(FOLDER, folder)
        .env(SEED, seed.to_string())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

/// Lets a child write for a while, kills it, and returns how many blocks of each context it said
/// it had put.
fn kill_at_random(mut child: Child, random: &mut fastrand::Rng, contexts: usize) -> Vec<usize> {
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut done = vec![0; contexts];
    let mut note = |line: &str| {
        // The test harness prints lines of its own, and may begin one that ours ends.
        let said = line
            .split_once("put ")
            .and_then(|(_, rest)| rest.split_once(' '));
        if let Some((context, count)) = said {
            done[context.parse::<usize>().unwrap()] = count.parse().unwrap();
        }
    };
    for line in lines.by_ref().take(random.usize(0..150)) {
        note(&line.unwrap());
    }
    std::thread::sleep(Duration::from_micros(random.u64(0..3000)));
    child.kill().unwrap();
    child.wait().unwrap();
    // What it said before it was killed counts; the last line may be cut off.
    let rest: Vec<_> = lines.map_while(Result::ok).collect();
    for line in rest.iter().filter(|line| line.split(' ').count() >= 3) {
        note(line);
    }
    done
}

#[test]
fn killed_processes_lose_nothing_they_put() {
    let rounds = std::env::var(ROUNDS).map_or(FEW, |rounds| rounds.parse().unwrap());
    let mut put = 0;
    let mut killed_early = 0;
    for round in 0..rounds {
        let home = tempfile::tempdir().unwrap();
        let mut random = fastrand::Rng::with_seed(round);
        // Each store is written, killed and found again three times, the first time by two
        // processes at once.
        for pass in 0..3 {
            let seed = round * 2;
            let contexts = contexts(seed);
            let children: Vec<_> = (0..if pass == 0 { 2 } else { 1 })
                .map(|child| start(home.path(), seed + child))
                .collect();
            let done: Vec<_> = children
                .into_iter()
                .map(|child| kill_at_random(child, &mut random, contexts.len()))
                .collect();
            let tier = open(home.path());
            for done in done {
                for (context, done) in contexts.iter().zip(done) {
                    assert_held(&tier, &context[..done]);
                    put += done;
                    killed_early += usize::from(done < context.len());
                }
            }
            let check = tier.fsck(Repair::Report).unwrap();
            // A block that was being written is torn at worst; it was never said to be put.
            let torn = |what: &str| what.contains("not written to its end");
            assert!(
                check.problems.iter().all(|problem| torn(&problem.what)),
                "{check:?}"
            );
        }
    }
    assert!(
        put > 0 && killed_early > 0,
        "{put} blocks put, {killed_early} contexts cut off"
    );
}
