//! Forks: what they cost does not depend on the length of the context, and none disturbs another.

mod rotated;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::Arc;

use longview_kernels::{Exec, Isa};
use longview_kv::tier::Origin;
use longview_kv::{
    Batch, BlockHash, Context, KvLayout, KvType, LayerLayout, LayerState, Ledger, Segment, Store,
    Wanted,
};
use rotated::{DIM, IDENTITY, Reader};

/// The system's allocator, with a count of what this thread asks of it.
struct Counting;

thread_local! {
    static CALLS: Cell<usize> = const { Cell::new(0) };
    static BYTES: Cell<usize> = const { Cell::new(0) };
}

// SAFETY: everything is handed on to the system's allocator as it is.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        CALLS.set(CALLS.get() + 1);
        BYTES.set(BYTES.get() + layout.size());
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

/// Allocations of `work` and their bytes.
fn asked<T>(work: impl FnOnce() -> T) -> (T, (usize, usize)) {
    let before = (CALLS.get(), BYTES.get());
    let result = work();
    (result, (CALLS.get() - before.0, BYTES.get() - before.1))
}

fn layout() -> Arc<KvLayout> {
    let layer = |state| LayerLayout {
        state,
        kv_heads: 1,
        head_dim: DIM,
        v_dim: DIM,
    };
    let layers = [
        layer(LayerState::Full),
        layer(LayerState::Window { tokens: 200 }),
    ];
    Arc::new(KvLayout::new(&layers, KvType::F32))
}

fn alone() -> Context {
    Context::new(layout(), Ledger::unlimited(), IDENTITY)
}

fn stored() -> Context {
    let store = Arc::new(Store::new(Ledger::unlimited(), Vec::new()));
    let origin = Arc::new(Origin {
        seed: BlockHash::seed(&[]),
        model: String::new(),
        identity: String::new(),
    });
    Context::in_store(layout(), store, origin, IDENTITY)
}

/// Reads `count` tokens, whose attention nobody asks for.
fn read(exec: &Exec, context: &mut Context, count: usize) {
    for from in (0..count).step_by(512) {
        let tokens: Vec<u32> = (from..count.min(from + 512)).map(|at| at as u32).collect();
        let segment = Segment {
            context: &mut *context,
            tokens: &tokens,
            wanted: Wanted::Nothing,
        };
        let mut batch = Batch::new([segment], IDENTITY).unwrap();
        let numbers = vec![0.5; tokens.len() * DIM];
        for layer in 0..2 {
            batch.append(exec, layer, &numbers, &numbers);
        }
        batch.commit();
    }
}

#[test]
fn a_fork_costs_the_same_for_any_length() {
    let exec = Exec::new(1, Isa::best(), IDENTITY.numerics);
    for make in [alone, stored] {
        let costs = [1, 4, 64].map(|times| {
            let mut context = make();
            read(&exec, &mut context, times * 4096 + 40);
            let (mut fork, forked) = asked(|| context.fork());
            let (_, grown) = asked(|| read(&exec, &mut fork, 1));
            assert_eq!(fork.len(), context.len() + 1);
            // The first pass in a store notes what it holds in memory: eight bytes a block.
            (forked, fork.store().is_none().then_some(grown))
        });
        assert_eq!(costs[1], costs[0], "four times as long");
        assert_eq!(costs[2], costs[0], "64 times as long");
    }
}

#[test]
fn long_forks_grow_apart_from_any_token() {
    let ids = |seed: u32, count: u32| -> Vec<u32> { (0..count).map(|at| at * 7 + seed).collect() };
    let trunk = ids(0, 3000);
    for make in [alone, stored] {
        let mut reader = Reader::new(1);
        let mut context = make();
        reader.read(&mut context, &trunk, 2).unwrap();
        let mut ends = Vec::new();
        for (seed, len) in [(1, 3000), (2, 2900), (3, 2999)] {
            let mut fork = context.fork();
            fork.truncate(len).unwrap();
            reader.read(&mut fork, &ids(seed, 700), 2).unwrap();
            ends.push((fork, [&trunk[..len], &ids(seed, 700)].concat()));
        }
        ends.push((context, trunk.clone()));
        for (mut fork, ids) in ends {
            assert_eq!(fork.tokens(), ids);
            let got = reader.read(&mut fork, &[5], 2).unwrap();
            let mut fresh = make();
            reader.read(&mut fresh, &ids, 2).unwrap();
            assert!(got == reader.read(&mut fresh, &[5], 2).unwrap());
        }
    }
}
