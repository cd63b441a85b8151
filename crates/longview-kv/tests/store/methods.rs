//! Contexts in a store under methods that read less or keep less.

use std::sync::Arc;

use longview_kv::keep::{
    Allocate, Allocation, AttentionOf, AttentionShape, Budget, Keep, LayerView, Positions,
    Protected, Question, Score, Scores, When,
};
use longview_kv::read::{Part, Read, ReadPlan, RowQuery, Select};
use longview_kv::{KvError, RopeSet};

use super::FULL;
use super::common::*;
use super::world::{World, ids};

/// The two most promising blocks and a row's own.
struct Best;

impl Select for Best {
    fn bounds(&self) -> Option<Part> {
        Some(Part::Tokens64)
    }

    fn reads_all(&self, _layer: usize, blocks: usize) -> bool {
        blocks < 3
    }

    fn select(&self, row: &mut RowQuery<'_>, plan: &mut ReadPlan) {
        for &block in row.best(0..row.own(), 2) {
            plan.add(block as usize..block as usize + 1);
        }
        plan.add(row.own()..row.own() + 1);
    }
}

#[test]
fn a_read_method_takes_prompts_from_the_store_and_leaves_answers_out_of_it() {
    let mut world = World::new(&[FULL, FULL]);
    let (ids, prompt) = (ids(6400), 6016);
    let read = Arc::new(Read {
        text: "best".to_owned(),
        select: Box::new(Best),
    });
    let mut free = world.context(&world.store(u64::MAX));
    free.read_by(&read).unwrap();
    free.answer_from(prompt);
    let expected = world.read(&mut free, &ids, 300).unwrap();
    assert_eq!(free.keys().len(), prompt / 64, "only the prompt is sealed");

    // What was read before is found: from the tier, within a memory limit, with the same bits.
    let store = world.store(1_000_000);
    let mut tight = world.context(&store);
    tight.read_by(&read).unwrap();
    assert_eq!(tight.attach(&ids).unwrap(), prompt, "the answer is not");
    tight.answer_from(prompt);
    let got = world
        .read(&mut tight, &ids[prompt..prompt + 200], 1)
        .unwrap();
    assert_eq!(got, expected[prompt * HEADS * DIM..][..got.len()]);
    assert!(tight.away_bytes() > 0 && !tight.is_exact());
    assert!(store.ledger().usage().peak <= 1_000_000);
    // Back at the prompt it is exact, and goes on into the store.
    tight.truncate(prompt).unwrap();
    let mut dense = world.context(&world.store(u64::MAX));
    world.read(&mut dense, &ids[..prompt + 64], 64).unwrap();
    tight.answer_from(usize::MAX);
    world
        .read(&mut tight, &ids[prompt..prompt + 64], 64)
        .unwrap();
    assert!(tight.is_exact());
    assert_eq!(tight.keys(), dense.keys());
}

/// Scores that are no numbers.
struct Nonsense;

impl Score for Nonsense {
    fn score(&self, _layer: &LayerView<'_>, scores: &mut Scores) -> Result<(), KvError> {
        (0..scores.heads()).for_each(|head| scores.head_mut(head).fill(f32::NAN));
        Ok(())
    }
}

impl Allocate for Nonsense {
    fn wanted(&self, _ask: &Allocation<'_>) -> Vec<Vec<f64>> {
        unreachable!("nothing is chosen")
    }
}

impl AttentionOf for Nonsense {
    fn shape(&self, _layer: usize) -> AttentionShape {
        AttentionShape {
            heads: HEADS,
            scale: 0.4,
            softcap: 0.0,
        }
    }

    fn rotate(&self, _layer: usize, _set: RopeSet, _positions: isize, _vectors: &mut [f32]) {}
}

#[test]
fn a_compression_that_fails_leaves_blocks_as_they_were() {
    let mut world = World::new(&[FULL, FULL]);
    let ids = ids(1281);
    let store = world.store(u64::MAX);
    let mut first = world.context(&store);
    world.read(&mut first, &ids, 400).unwrap();
    drop((first, store));

    let limit = 4_000_000;
    let store = world.store(limit);
    let mut context = world.context(&store);
    context.attach(&ids).unwrap();
    let keep = Arc::new(Keep {
        text: "nonsense".to_owned(),
        score: Box::new(Nonsense),
        allocate: Box::new(Nonsense),
        merge: None,
        budget: Budget::Pairs(100),
        protected: Protected::default(),
        when: When::default(),
        question: Question::Unseen,
        positions: Positions::Text,
        made_for: None,
        scored_as: None,
    });
    context.keep(&keep, ids.len(), &Nonsense).unwrap();
    let keys = context.keys();
    let error = context.compress(&world.exec, &Nonsense).unwrap_err();
    assert!(matches!(error, KvError::KeepRefused { .. }), "{error}");
    assert_eq!((context.keys(), keys.len()), (keys, 20));
    // They may leave memory again.
    assert_eq!(context.away_bytes(), 0);
    store.make_space(limit);
    assert_eq!(context.away_bytes(), context.kv_bytes());
}
