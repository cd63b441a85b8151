//! What every tier does, whatever it is made of. A tier joins by one test that gives [`run`] a way
//! to make an empty one.

use std::sync::Barrier;

use super::testing::{Chain, assert_gone, assert_held, block, contents, keys, payload, put};
use super::{BlockShape, Tier, TierError, TierUsage};

/// A tier and what it lives in, which goes after it.
pub(crate) struct Fixture {
    pub(crate) tier: Box<dyn Tier>,
    pub(crate) _home: Box<dyn std::any::Any>,
}

/// Runs every check on a new tier.
pub(crate) fn run(make: impl Fn() -> Fixture) {
    let checks: [fn(&dyn Tier); 11] = [
        an_empty_tier_knows_nothing,
        what_is_put_is_found_and_read,
        runs_of_any_kind_are_read,
        putting_twice_holds_once,
        groups_and_shapes_live_together,
        contexts_part_anywhere,
        followers_are_told,
        removed_blocks_are_gone_and_may_return,
        holds_end,
        what_does_not_fit_is_refused,
        threads_put_and_read_at_once,
    ];
    for check in checks {
        check(&*make().tier);
    }
}

fn an_empty_tier_knows_nothing(tier: &dyn Tier) {
    let infos = Chain::new("m").blocks(2, 7);
    assert_gone(tier, &infos);
    assert!(tier.after(&infos[0].parent).is_empty());
    assert_eq!(tier.usage(), TierUsage::default());
    assert!(contents(tier).is_empty());
    assert!(tier.resident(&infos[0].key).is_none());
    tier.touch(&keys(&infos));
    tier.remove(&infos[0].key).unwrap();
    tier.sync().unwrap();
    assert!(matches!(
        tier.hold(&keys(&infos)),
        Err(TierError::Missing(_))
    ));
    tier.read(&[], 0, &mut []).unwrap();
}

fn what_is_put_is_found_and_read(tier: &dyn Tier) {
    // More than two spans, not ending at an edge.
    let infos = Chain::new("m").blocks(37, 7);
    for (at, info) in infos.iter().enumerate() {
        tier.put(info, &block(info)).unwrap();
        assert_held(tier, &infos[at..=at]);
    }
    assert_held(tier, &infos);
    tier.touch(&keys(&infos));
    tier.sync().unwrap();
    assert_held(tier, &infos);
    let usage = tier.usage();
    assert_eq!(usage.blocks, 37);
    assert!(usage.bytes >= 37 * 3000, "{usage:?}");
    let mut all = infos.clone();
    all.sort_by_key(|info| info.key);
    assert_eq!(contents(tier), all);
    if let Some(resident) = tier.resident(&infos[0].key) {
        assert!(resident.bytes() == payload(&infos[0]));
    }
}

fn runs_of_any_kind_are_read(tier: &dyn Tier) {
    let infos = Chain::new("m").blocks(40, 7);
    put(tier, &infos);
    tier.sync().unwrap();
    assert_held(tier, &infos[5..6]);
    assert_held(tier, &infos[10..35]);
    let mut mixed = infos;
    mixed.reverse();
    assert_held(tier, &mixed);
    fastrand::Rng::with_seed(4).shuffle(&mut mixed);
    assert_held(tier, &mixed);
    let twice = [mixed[3].clone(), mixed[3].clone()];
    assert_held(tier, &twice);
}

fn putting_twice_holds_once(tier: &dyn Tier) {
    let infos = Chain::new("m").blocks(3, 7);
    put(tier, &infos);
    tier.sync().unwrap();
    let usage = tier.usage();
    put(tier, &infos);
    tier.sync().unwrap();
    assert_eq!(tier.usage(), usage);
    assert_held(tier, &infos);
}

fn groups_and_shapes_live_together(tier: &dyn Tier) {
    let shape = |layers, layer_bytes| BlockShape {
        layers,
        layer_bytes,
    };
    let chains = [
        Chain::new("a"),
        Chain::new("a").group(1, shape(1, 70_000)),
        Chain::new("b"),
        Chain::new("b").group(65_535, shape(40, 16)),
    ];
    let mut all = chains.map(|mut chain| chain.blocks(18, 9));
    // A checkpoint now and then: not every block of a group is there.
    let mut sparse = Vec::new();
    for (at, info) in all[1].drain(..).enumerate() {
        if at % 5 == 4 {
            sparse.push(info);
        }
    }
    all[1] = sparse;
    for infos in &all {
        put(tier, infos);
    }
    for infos in &all {
        assert_held(tier, infos);
    }
    tier.sync().unwrap();
    for infos in &all {
        assert_held(tier, infos);
    }
    assert_eq!(tier.usage().blocks, 18 * 3 + 3);
}

fn contexts_part_anywhere(tier: &dyn Tier) {
    let mut trunk = Chain::new("m");
    let shared = trunk.blocks(6, 1);
    let (mut left, mut right) = (trunk.clone(), trunk);
    let (left, right) = (left.blocks(14, 2), right.blocks(20, 3));
    put(tier, &shared);
    // In turns, as two contexts grow side by side.
    for at in 0..20 {
        put(tier, &left[at.min(14)..(at + 1).min(14)]);
        put(tier, &right[at..=at]);
    }
    assert_eq!(tier.usage().blocks, 40);
    assert_held(tier, &[&shared[..], &left].concat());
    assert_held(tier, &[&shared[..], &right].concat());
}

fn followers_are_told(tier: &dyn Tier) {
    let mut trunk = Chain::new("m");
    let first = trunk.block(1);
    let (mut left, mut right) = (trunk.clone(), trunk.clone());
    let (left, right) = (left.block(2), right.block(3));
    let other_group = trunk.group(1, first.shape).block(2);
    put(
        tier,
        &[first.clone(), left.clone(), right.clone(), other_group],
    );
    assert_eq!(tier.after(&first.parent), std::slice::from_ref(&first));
    let mut after = tier.after(&first.key.hash);
    after.sort_by_key(|info| info.tokens[0]);
    assert_eq!(after, [left, right]);
}

fn removed_blocks_are_gone_and_may_return(tier: &dyn Tier) {
    let infos = Chain::new("m").blocks(5, 1);
    put(tier, &infos);
    for gone in [4, 0, 2] {
        tier.remove(&infos[gone].key).unwrap();
        assert_gone(tier, &infos[gone..=gone]);
    }
    assert_held(tier, &[infos[1].clone(), infos[3].clone()]);
    assert_eq!(tier.usage().blocks, 2);
    put(tier, &infos);
    assert_held(tier, &infos);
    for info in &infos {
        tier.remove(&info.key).unwrap();
    }
    assert_gone(tier, &infos);
    assert_eq!(tier.usage(), TierUsage::default());
    put(tier, &infos);
    assert_held(tier, &infos);
}

fn holds_end(tier: &dyn Tier) {
    let infos = Chain::new("m").blocks(20, 1);
    put(tier, &infos);
    let first = tier.hold(&keys(&infos)).unwrap();
    let second = tier.hold(&keys(&infos[..3])).unwrap();
    drop(first);
    assert_held(tier, &infos[..3]);
    drop(second);
    assert_held(tier, &infos);
}

fn what_does_not_fit_is_refused(tier: &dyn Tier) {
    let info = Chain::new("m").block(1);
    let good = block(&info);
    let mut wrong = info.clone();
    wrong.shape.layers += 1;
    assert!(matches!(
        tier.put(&wrong, &good),
        Err(TierError::Unfit { .. })
    ));
    wrong.shape.layers = 0;
    assert!(matches!(
        tier.put(&wrong, &good),
        Err(TierError::Unfit { .. })
    ));
    let mut long = info.clone();
    long.tokens = vec![0; 65].into();
    assert!(matches!(
        tier.put(&long, &good),
        Err(TierError::Unfit { .. })
    ));
    assert_eq!(tier.usage(), TierUsage::default());
    tier.put(&info, &good).unwrap();
    let mut out = vec![0; 1000];
    assert!(matches!(
        tier.read(&[info.key], 3, &mut out),
        Err(TierError::Unfit { .. })
    ));
    let short = tier.read(&[info.key], 0, &mut out[..999]);
    assert!(matches!(short, Err(TierError::Unfit { .. })));
}

fn threads_put_and_read_at_once(tier: &dyn Tier) {
    let mut trunk = Chain::new("m");
    let shared = trunk.blocks(5, 1);
    let barrier = Barrier::new(4);
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let mut branch = trunk.clone();
            // Two threads write the same branch.
            let own = branch.blocks(20, thread / 2);
            let (shared, barrier) = (&shared, &barrier);
            scope.spawn(move || {
                barrier.wait();
                for info in shared.iter().chain(&own) {
                    tier.put(info, &block(info)).unwrap();
                    assert_held(tier, std::slice::from_ref(info));
                    tier.touch(&[info.key]);
                }
                tier.sync().unwrap();
                assert_held(tier, &[&shared[..], &own].concat());
            });
        }
    });
    assert_eq!(tier.usage().blocks, 45);
}
