//! Attention of batches over contexts: against a plain oracle, and the same bits however the work
//! is cut.

mod common;

use common::*;
use longview_kernels::{Exec, Isa, Numerics};
use longview_kv::{AttendWorkspace, KvType, LayerState};

/// Layer 1's attention of position `position`, computed in f64 from the definition.
fn oracle(position: usize, window: usize) -> Vec<f64> {
    let row = |seed, at, width, head: usize| -> Vec<f64> {
        let all = rows(seed, at, 1, width);
        all[head * DIM..(head + 1) * DIM]
            .iter()
            .map(|&x| f64::from(x))
            .collect()
    };
    let first = (position + 1).saturating_sub(window);
    (0..HEADS)
        .flat_map(|head| {
            let q = row(31, position, HEADS * DIM, head);
            let kv_head = head / (HEADS / KV_HEADS);
            let weights: Vec<f64> = (first..=position)
                .map(|at| {
                    let k = row(11, at, KV_HEADS * DIM, kv_head);
                    (0.4 * q.iter().zip(&k).map(|(a, b)| a * b).sum::<f64>()).exp()
                })
                .collect();
            let total: f64 = weights.iter().sum();
            let mut out = vec![0.0; DIM];
            for (at, weight) in (first..=position).zip(&weights) {
                let v = row(21, at, KV_HEADS * DIM, kv_head);
                out.iter_mut()
                    .zip(&v)
                    .for_each(|(o, v)| *o += weight / total * v);
            }
            out
        })
        .collect()
}

#[test]
fn attention_follows_the_definition_across_spans_and_windows() {
    let exec = Exec::new(2, Isa::best(), Numerics::Default);
    for (state, window) in [
        (LayerState::Full, usize::MAX),
        (LayerState::Window { tokens: 150 }, 150),
    ] {
        for (kv_type, tolerance) in [(KvType::F32, 2e-6), (KvType::F16, 2e-3)] {
            let mut context = context(&layout(state, kv_type));
            let mut workspace = AttendWorkspace::default();
            for chunk in [1000, 60, 1, 239, 3] {
                let start = context.len();
                let out = step(vec![(&mut context, chunk)], &exec, &mut workspace);
                for row in [0, chunk / 2, chunk - 1] {
                    let expected = oracle(start + row, window);
                    let got = &out[row * HEADS * DIM..(row + 1) * HEADS * DIM];
                    for (got, expected) in got.iter().zip(&expected) {
                        let error = (f64::from(*got) - expected).abs();
                        assert!(
                            error < tolerance,
                            "{state:?} {kv_type:?} row {row}: {error}"
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn rows_are_the_same_bits_however_they_are_batched() {
    let tokens = 1100;
    for state in [LayerState::Full, LayerState::Window { tokens: 90 }] {
        for isa in Isa::available() {
            let layout = layout(state, KvType::F16);
            let mut workspace = AttendWorkspace::default();
            let mut whole = context(&layout);
            let expected = step(
                vec![(&mut whole, tokens)],
                &Exec::new(1, isa, Numerics::Default),
                &mut workspace,
            );
            let row = |at: usize| &expected[at * HEADS * DIM..(at + 1) * HEADS * DIM];

            // In chunks of 7 on two threads, beside a second context that is elsewhere.
            let exec = Exec::new(2, isa, Numerics::Default);
            let (mut first, mut second) = (context(&layout), context(&layout));
            step(vec![(&mut second, 40)], &exec, &mut workspace);
            let mut at = 0;
            while at < tokens - 100 {
                let out = step(
                    vec![(&mut first, 7), (&mut second, 2)],
                    &exec,
                    &mut workspace,
                );
                for i in 0..7 {
                    assert!(
                        out[i * HEADS * DIM..].starts_with(row(at + i)),
                        "{isa} row {}",
                        at + i
                    );
                }
                for i in 0..2 {
                    let other = second.len() - 2 + i;
                    assert!(
                        out[(7 + i) * HEADS * DIM..].starts_with(row(other)),
                        "{isa} beside"
                    );
                }
                at += 7;
            }
            // Token by token to the end, on a fork.
            let mut fork = first.fork();
            drop(first);
            for at in at..tokens {
                let out = step(vec![(&mut fork, 1)], &exec, &mut workspace);
                assert_eq!(out, row(at), "{isa} alone, row {at}");
            }
        }
    }
}
