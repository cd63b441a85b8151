//! Read methods: what a plan says is what is read, whatever else is computed with it.

mod common;

use std::sync::Arc;

use common::*;
use longview_kernels::{Exec, Isa, Numerics};
use longview_kv::read::{Part, Read, ReadPlan, RowQuery, Select};
use longview_kv::{
    AttendWorkspace, Context, KvError, KvForm, KvLayout, KvType, LayerState, Ledger,
};

const FULL: LayerState = LayerState::Full;

/// Blocks by number: the first and every third for head 0, every fifth for head 1, and those that are
/// always read.
struct Strides;

fn strided(head: usize, block: usize) -> bool {
    block.is_multiple_of(if head == 0 { 3 } else { 5 })
}

impl Select for Strides {
    fn reads_all(&self, _layer: usize, blocks: usize) -> bool {
        blocks < 4
    }

    fn select(&self, row: &mut RowQuery<'_>, plan: &mut ReadPlan) {
        (0..row.latest())
            .filter(|&block| strided(row.head(), block))
            .for_each(|block| plan.add(block..block + 1));
        plan.add(row.latest()..row.own() + 1);
    }
}

/// The best blocks by their bounds, or all.
struct Bound(usize);

impl Select for Bound {
    fn bounds(&self) -> Option<Part> {
        Some(Part::Tokens32)
    }

    fn reads_all(&self, layer: usize, _blocks: usize) -> bool {
        layer == 0 && self.0 < 1000
    }

    fn select(&self, row: &mut RowQuery<'_>, plan: &mut ReadPlan) {
        let (latest, end) = (row.latest(), row.own() + 1);
        for &block in row.best(0..latest, self.0) {
            plan.add(block as usize..block as usize + 1);
        }
        plan.add(latest..end);
    }
}

fn read(select: impl Select + 'static) -> Arc<Read> {
    Arc::new(Read {
        text: "test".to_owned(),
        select: Box::new(select),
    })
}

fn reading(layout: &Arc<KvLayout>, select: impl Select + 'static, from: usize) -> Context {
    let mut context = context(layout);
    context.read_by(&read(select)).unwrap();
    context.answer_from(from);
    context
}

fn exec(threads: usize) -> Exec {
    Exec::new(threads, Isa::best(), Numerics::Default)
}

fn row(out: &[f32], at: usize) -> &[f32] {
    &out[at * HEADS * DIM..(at + 1) * HEADS * DIM]
}

#[test]
fn a_plan_is_what_an_answer_reads_and_nothing_else_is() {
    let (from, tokens) = (1100, 1300);
    let layout = layout(FULL, KvType::F32);
    let mut workspace = AttendWorkspace::default();
    let mut whole = reading(&layout, Strides, from);
    let expected = step(vec![(&mut whole, tokens)], &exec(1), &mut workspace);
    for at in [0, 700, 1099, 1100, 1151, 1152, 1215, 1299] {
        let own = at / 64;
        let sees =
            |head: usize, key: usize| at < from || key / 64 == own || strided(head, key / 64);
        for (got, exact) in row(&expected, at).iter().zip(oracle_of(at, &sees)) {
            let off = (f64::from(*got) - exact).abs();
            assert!(off < 2e-6, "row {at}: {got} for {exact}");
        }
    }
    // Pages are counted for every row of the answer, layer and KV head.
    let (mut read, mut present) = (0, 0);
    for at in from..tokens {
        for head in 0..KV_HEADS {
            let own = at / 64;
            let before = (0..own).filter(|&block| strided(head, block)).count();
            read += 2 * (before as u64 + 1);
            present += 2 * (own as u64 + 1);
        }
    }
    let report = whole.read_report().unwrap();
    assert_eq!((report.pages_read, report.pages_present), (read, present));
    assert!(!whole.is_exact());

    // In chunks of 7 on two threads, beside a context that reads everything.
    let mut chunks = reading(&layout, Strides, from);
    let mut other = context(&layout);
    for at in (0..1295).step_by(7) {
        let parts = vec![(&mut other, 2), (&mut chunks, 7)];
        let out = step(parts, &exec(2), &mut workspace);
        for i in 0..7 {
            assert_eq!(row(&out, 2 + i), row(&expected, at + i), "row {}", at + i);
        }
    }
    let own = chunks.read_report().unwrap();
    let rest: u64 = (1295..1300).count() as u64;
    assert_eq!(own.pages_present, present - 2 * 2 * 21 * rest);
    // One by one, in a fork of the prompt.
    let mut prompt = reading(&layout, Strides, from);
    step(vec![(&mut prompt, from)], &exec(2), &mut workspace);
    assert!(prompt.is_exact(), "a prompt reads everything");
    let mut fork = prompt.fork();
    for at in from..from + 80 {
        let out = step(vec![(&mut fork, 1)], &exec(2), &mut workspace);
        assert_eq!(out, row(&expected, at), "alone, row {at}");
    }
    // Going back to the prompt makes it exact again.
    fork.truncate(from).unwrap();
    assert!(fork.is_exact());
    fork.answer_from(from);
    assert_eq!(fork.read_report().unwrap().pages_present, 0);
}

#[test]
fn reading_all_changes_no_bit_in_any_form() {
    let sparse = KvType::WHOLE[3];
    let whole = |kv_type: KvType| KvForm {
        recent_tokens: 70,
        ..kv_type.into()
    };
    let exempt = KvForm {
        sink_tokens: 4,
        ..whole(KvType::WHOLE[2])
    };
    let forms = KvType::ALL.into_iter().map(KvForm::from);
    for form in forms.chain([whole(KvType::WHOLE[0]), whole(sparse), exempt]) {
        let layout = layout(FULL, form);
        let mut workspace = AttendWorkspace::default();
        let mut dense = context(&layout);
        let expected = step(vec![(&mut dense, 1200)], &exec(2), &mut workspace);
        let mut all = reading(&layout, Bound(1000), 600);
        let got = step(vec![(&mut all, 1190)], &exec(2), &mut workspace);
        assert!(expected.starts_with(&got), "{form}");
        for at in 1190..1200 {
            let out = step(vec![(&mut all, 1)], &exec(2), &mut workspace);
            assert_eq!(out, row(&expected, at), "{form}");
        }
        let report = all.read_report().unwrap();
        assert_eq!(report.pages_read, report.pages_present, "{form}");
        assert!(all.is_exact(), "{form}: nothing was left out");
    }
}

#[test]
fn bounds_choose_the_same_however_rows_are_batched() {
    let whole = KvForm {
        v: KvType::Q8,
        recent_tokens: 70,
        ..KvType::WHOLE[0].into()
    };
    for form in [KvType::F16.into(), KvType::Q4.into(), whole] {
        let layout = layout(FULL, form);
        let (from, tokens) = (900, 1250);
        let mut workspace = AttendWorkspace::default();
        let mut at_once = reading(&layout, Bound(4), from);
        let parts = vec![(&mut at_once, tokens)];
        let expected = step(parts, &exec(1), &mut workspace);
        let mut dense = context(&layout);
        let parts = vec![(&mut dense, tokens)];
        let other = step(parts, &exec(2), &mut workspace);
        let prompt = from * HEADS * DIM;
        assert!(other[..prompt] == expected[..prompt] && other != expected);

        let mut chunks = reading(&layout, Bound(4), from);
        for at in (0..1225).step_by(25) {
            let out = step(vec![(&mut chunks, 25)], &exec(2), &mut workspace);
            for i in 0..25 {
                assert_eq!(row(&out, i), row(&expected, at + i), "{form} {at}");
            }
        }
        // A fork that goes elsewhere, and one that goes back and on.
        let mut fork = chunks.fork();
        step(vec![(&mut chunks, 300)], &exec(2), &mut workspace);
        drop(chunks);
        if !form.is_split() {
            fork.truncate(1190).unwrap();
        }
        for at in fork.len()..tokens {
            let out = step(vec![(&mut fork, 1)], &exec(1), &mut workspace);
            assert_eq!(out, row(&expected, at), "{form} alone, row {at}");
        }
        // The method may come when the prompt is there already.
        let mut late = context(&layout);
        step(vec![(&mut late, from)], &exec(2), &mut workspace);
        late.read_by(&read(Bound(4))).unwrap();
        late.answer_from(from);
        let out = step(vec![(&mut late, 100)], &exec(2), &mut workspace);
        assert_eq!(out, expected[prompt..prompt + out.len()], "{form}");
    }
}

#[test]
fn every_byte_is_accounted_for_and_forks_share_what_is_kept() {
    let layout = layout(FULL, KvType::F16);
    let ledger = Ledger::unlimited();
    let mut workspace = AttendWorkspace::default();
    let mut first = Context::new(layout.clone(), ledger.clone(), IDENTITY);
    let method = read(Bound(3));
    first.read_by(&method).unwrap();
    step(vec![(&mut first, 2000)], &exec(2), &mut workspace);
    let stated = layout.context_bytes(2000, 2000) + method.bytes(&layout, 2000);
    assert_eq!(ledger.usage().kv, first.kv_bytes());
    assert_eq!(first.kv_bytes(), stated);
    let index = first.read_report().unwrap().index_bytes;
    assert_eq!(index, method.bytes(&layout, 2000));
    // Two layers and heads, 2 spans of 32 parts and 16 spans: [24][2] numbers of 2 bytes each.
    assert_eq!(index, 2 * 2 * (2 * 32 + 16) * DIM as u64 * 2 * 2);
    let fork = first.fork();
    assert_eq!(ledger.usage().kv, stated);
    drop(first);
    assert_eq!(ledger.usage().kv, stated);
    drop(fork);
    assert_eq!(ledger.usage().total(), 0);

    // Without room for bounds a pass is refused, and changes nothing.
    let tight = Ledger::with_limit(layout.context_bytes(2048, 64) + 100);
    let mut tight = Context::new(layout.clone(), tight, IDENTITY);
    tight.read_by(&method).unwrap();
    let refused = try_step(
        vec![(&mut tight, 2000)],
        &[0; 2000],
        &exec(1),
        &mut workspace,
    );
    assert!(matches!(refused, Err(KvError::OverLimit { .. })));
    assert_eq!((tight.len(), tight.kv_bytes()), (0, 0));
}

#[test]
fn what_cannot_be_is_refused_by_name() {
    let window = layout(LayerState::Window { tokens: 100 }, KvType::F16);
    let refused = context(&window).read_by(&read(Strides)).unwrap_err();
    let message = refused.to_string();
    assert!(
        message.starts_with("--read test: every layer of the model has a sliding window"),
        "{message}"
    );
    let layout = layout(FULL, KvType::F16);
    let mut workspace = AttendWorkspace::default();
    let mut context = reading(&layout, Strides, 300);
    step(vec![(&mut context, 500)], &exec(1), &mut workspace);
    let moved = context.remove_span(10..20).unwrap_err().to_string();
    assert!(moved.contains("text cannot be moved"), "{moved}");
    let other = Arc::new(Read {
        text: "other".to_owned(),
        select: Box::new(Bound(1)),
    });
    let message = context.read_by(&other).unwrap_err().to_string();
    assert!(
        message.contains("that --read test has written"),
        "{message}"
    );
    context.read_by(&read(Strides)).unwrap();
    context.truncate(300).unwrap();
    context.read_by(&other).unwrap();
    assert_eq!(context.read_method().unwrap().text, "other");
}

#[test]
fn layers_with_windows_stay_as_they_are() {
    let layout = mixed(&[FULL, LayerState::Window { tokens: 150 }], KvType::F16);
    let mut workspace = AttendWorkspace::default();
    // Layer 1, whose attention is compared, has the window.
    let mut dense = context(&layout);
    let expected = step(vec![(&mut dense, 900)], &exec(2), &mut workspace);
    let mut context = reading(&layout, Strides, 300);
    let got = step(vec![(&mut context, 900)], &exec(2), &mut workspace);
    assert!(got == expected);
    assert!(!context.is_exact(), "layer 0 has read less");
}

/// How layer `layer`'s attention of position `position` is spread over blocks with one KV head, in f64 from
/// the definition, over the positions that `sees` says.
fn spread(layer: usize, position: usize, head: usize, sees: &dyn Fn(usize) -> bool) -> Vec<f64> {
    let group = HEADS / KV_HEADS;
    let mut blocks = vec![0.0; position / 64 + 1];
    for of_group in 0..group {
        let q = rows(30 + layer, position, 1, HEADS * DIM);
        let q = &q[(head * group + of_group) * DIM..][..DIM];
        let seen: Vec<usize> = (0..=position).filter(|&at| sees(at)).collect();
        let weight = |&at: &usize| {
            let k = rows(10 + layer, at, 1, KV_HEADS * DIM);
            let product = q.iter().zip(&k[head * DIM..]);
            (0.4 * product.map(|(a, b)| f64::from(a * b)).sum::<f64>()).exp()
        };
        let weights: Vec<f64> = seen.iter().map(weight).collect();
        let all: f64 = weights.iter().sum();
        for (at, weight) in seen.iter().zip(weights) {
            blocks[at / 64] += weight / all / group as f64;
        }
    }
    blocks
}

#[test]
fn what_attention_rests_on_is_observed_and_changes_nothing() {
    let (from, tokens) = (400, 420);
    for (form, tolerance) in [
        (KvType::F32.into(), 1e-6),
        (
            KvForm {
                v: KvType::F16,
                recent_tokens: 70,
                sink_tokens: 4,
                ..KvType::WHOLE[0].into()
            },
            3e-3,
        ),
    ] {
        let layout = layout(FULL, form);
        let mut workspace = AttendWorkspace::default();
        for picks in [false, true] {
            let make = || match picks {
                true => reading(&layout, Strides, from),
                false => context(&layout),
            };
            let mut unseen = make();
            let expected = step(vec![(&mut unseen, tokens)], &exec(2), &mut workspace);
            assert!(unseen.attention_map().is_none());
            let mut seen = make();
            seen.watch_attention().unwrap();
            seen.answer_from(from);
            let mut got = step(vec![(&mut seen, 390)], &exec(2), &mut workspace);
            for count in [13, 1, 16] {
                // A fork observes its own rows only.
                step(vec![(&mut seen.fork(), 3)], &exec(1), &mut workspace);
                got.extend(step(vec![(&mut seen, count)], &exec(2), &mut workspace));
            }
            assert!(got == expected, "{form}");

            // The last row of the prompt and those of the answer.
            let map = seen.attention_map().unwrap();
            let rows = tokens - from + 1;
            assert_eq!(map.samples as usize, rows * 2 * KV_HEADS);
            let mut mass = vec![0.0; tokens.div_ceil(64)];
            for position in from - 1..tokens {
                for (layer, head) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
                    let own = position / 64;
                    let all = !picks || position < from;
                    // Of whole pages the latest tokens are always read.
                    let latest = match form.is_split() {
                        true => (position + 1 - 70) / 64,
                        false => own,
                    };
                    let sees = |at: usize| all || at / 64 >= latest || strided(head, at / 64);
                    let of_row = spread(layer, position, head, &sees);
                    mass.iter_mut().zip(of_row).for_each(|(sum, x)| *sum += x);
                }
            }
            for (block, (got, sum)) in map.mass.iter().zip(&mass).enumerate() {
                let exact = sum / map.samples as f64;
                assert!(
                    (got - exact).abs() < tolerance,
                    "{form} {block}: {got} {exact}"
                );
            }
            assert!((map.mass.iter().sum::<f64>() - 1.0).abs() < 1e-5);
            // Block 1 is read by nobody's plan, block 0 by everybody's.
            assert_eq!(map.read[0], 1.0);
            let plain = 1.0 / rows as f64;
            assert_eq!(map.read[1], if picks { plain } else { 1.0 }, "{form}");
            seen.answer_from(tokens);
            assert_eq!(seen.attention_map().unwrap().samples, 0);
        }
    }
}
