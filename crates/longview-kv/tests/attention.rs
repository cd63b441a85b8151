//! Attention of batches over contexts: against a plain oracle, and the same bits however the work
//! is cut.

mod common;

use std::ops::Range;
use std::sync::Arc;

use common::*;
use longview_kernels::{Exec, Isa, Numerics};
use longview_kv::pattern::{Pattern, Prefill, QueryBlock};
use longview_kv::{
    AttendWorkspace, Attention, Batch, Context, KvError, KvForm, KvType, LayerState, Segment,
    Sparse, Wanted,
};

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

/// The first block and those from one before a query's own on; or all.
enum Ends {
    All,
    Ends,
}

impl Pattern for Ends {
    fn blocks(&self, query: &QueryBlock, seen: &mut Vec<Range<usize>>) {
        match self {
            Ends::Ends if query.block > 2 => seen.extend([0..1, query.block - 1..query.block + 1]),
            _ => seen.push(0..query.block + 1),
        }
    }
}

#[test]
fn a_pattern_is_what_a_prompt_attends_to_and_nothing_else_is() {
    let tokens = 1300;
    let until = 1200;
    let exec = Exec::new(2, Isa::best(), Numerics::Default);
    let one = Exec::new(1, Isa::best(), Numerics::Default);
    let mut workspace = AttendWorkspace::default();
    let layout = layout(LayerState::Full, KvType::F32);
    let sparse = |ends: Ends| {
        let mut context = context(&layout);
        let prefill = Arc::new(Prefill {
            text: "ends".to_owned(),
            pattern: Box::new(ends),
        });
        context.attend_by(&prefill, until).unwrap();
        context
    };
    // All blocks are the dense path, bit for bit.
    let dense = step(vec![(&mut context(&layout), tokens)], &exec, &mut workspace);
    let all = step(
        vec![(&mut sparse(Ends::All), tokens)],
        &exec,
        &mut workspace,
    );
    assert!(dense == all);

    let mut whole = sparse(Ends::Ends);
    assert!(!whole.is_exact());
    let expected = step(vec![(&mut whole, tokens)], &one, &mut workspace);
    let row = |at: usize| &expected[at * HEADS * DIM..(at + 1) * HEADS * DIM];
    for at in [0, 100, 191, 192, 255, 700, 1199, 1200, 1299] {
        let block = at / 64;
        let sees =
            |_: usize, key: usize| at >= until || block < 3 || key < 64 || key / 64 + 1 >= block;
        for (got, exact) in row(at).iter().zip(oracle_of(at, &sees)) {
            assert!(
                (f64::from(*got) - exact).abs() < 2e-6,
                "row {at}: {got} for {exact}"
            );
        }
    }
    // In chunks of 7, and on a fork token by token, over the prompt's end.
    let mut chunks = sparse(Ends::Ends);
    for at in (0..1190).step_by(7) {
        let out = step(vec![(&mut chunks, 7)], &exec, &mut workspace);
        for i in 0..7 {
            assert!(
                out[i * HEADS * DIM..].starts_with(row(at + i)),
                "row {}",
                at + i
            );
        }
    }
    let mut fork = chunks.fork();
    for at in 1190..1210 {
        let out = step(vec![(&mut fork, 1)], &one, &mut workspace);
        assert_eq!(out, row(at), "alone, row {at}");
    }
    let prefill = Arc::clone(fork.prefill_pattern().unwrap());
    let message = fork.attend_by(&prefill, 2000).unwrap_err().to_string();
    assert!(
        message.contains("--prefill ends") && message.contains("read tokens"),
        "{message}"
    );
}

#[test]
fn a_span_of_two_forms_joins_those_before_it_in_one_way() {
    let kivi = KvType::WHOLE[0];
    let layout = layout(LayerState::Full, whole(kivi, kivi));
    let exec = Exec::new(2, Isa::best(), Numerics::Default);
    let (from, tokens) = (1210, 1240);
    let mut workspace = AttendWorkspace::default();
    let mut all = context(&layout);
    let expected = step(vec![(&mut all, tokens)], &exec, &mut workspace);
    let mut parts = context(&layout);
    step(vec![(&mut parts, from)], &exec, &mut workspace);
    for at in from..tokens {
        let out = step(vec![(&mut parts, 1)], &exec, &mut workspace);
        assert_eq!(out, expected[at * HEADS * DIM..][..out.len()], "row {at}");
    }
}

/// Keys in whole pages of `k`, values of `v`, with the last 70 tokens as they were written.
fn whole(k: KvType, v: KvType) -> KvForm {
    KvForm {
        k,
        v,
        recent_tokens: 70,
        ..KvType::F16.into()
    }
}

#[test]
fn first_and_latest_tokens_are_read_as_they_were_written() {
    let tokens = 700;
    let kivi = KvType::WHOLE[2];
    let sinks = |form: KvForm| KvForm {
        sink_tokens: 4,
        ..form
    };
    let recent = |form: KvForm| KvForm {
        recent_tokens: 90,
        ..form
    };
    let exec = Exec::new(2, Isa::best(), Numerics::Default);
    let mut workspace = AttendWorkspace::default();
    let mut read = |form: KvForm, step_tokens: usize| {
        let layout = layout(LayerState::Full, form);
        let mut context = context(&layout);
        let mut out = Vec::new();
        while context.len() < tokens {
            let count = step_tokens.min(tokens - context.len());
            out.extend(step(vec![(&mut context, count)], &exec, &mut workspace));
        }
        (out, context.kv_bytes())
    };
    let (exact, _) = read(KvType::F16.into(), tokens);
    let off = |out: &[f32], rows: std::ops::Range<usize>| -> f32 {
        let rows = rows.start * HEADS * DIM..rows.end * HEADS * DIM;
        let off = |(a, b): (&f32, &f32)| (a - b) * (a - b);
        out[rows.clone()].iter().zip(&exact[rows]).map(off).sum()
    };
    for form in [
        sinks(whole(kivi, kivi)),
        sinks(KvType::Q4.into()),
        recent(KvType::Q4.into()),
        sinks(recent(KvType::Q4.into())),
    ] {
        let (all, _) = read(form, tokens);
        let (few, _) = read(form, 13);
        assert!(all == few, "{form}: other chunks");
        // What is exempt from a form brings a row nearer to the exact one, and a row that sees nothing
        // else has its bits.
        let plain = KvForm {
            sink_tokens: 0,
            recent_tokens: form.recent_tokens.min(70),
            ..form
        };
        let (plain, _) = read(plain, tokens);
        assert!(off(&all, 128..tokens) < off(&plain, 128..tokens), "{form}");
        let same = 64 + form.recent_tokens.max(1) - 1;
        assert_eq!(off(&all, 0..same), 0.0, "{form}");
    }
    // Forgotten is what is neither among the first nor in the window.
    let bounded = |window| KvForm {
        window_tokens: Some(window),
        ..sinks(whole(kivi, kivi))
    };
    let (wide, _) = read(bounded(tokens), 50);
    assert!(wide == read(sinks(whole(kivi, kivi)), 50).0);
    let (narrow, bytes) = read(bounded(200), 50);
    assert!(narrow == read(bounded(200), tokens).0 && narrow != wide);
    let (_, unbounded) = read(sinks(whole(kivi, kivi)), 50);
    assert!(bytes < unbounded);
}

#[test]
fn whole_pages_change_no_bit_with_how_rows_are_batched() {
    let kivi = KvType::WHOLE[0];
    let sparse = KvType::Sparse(Sparse { percent: 50 });
    let tokens = 400;
    for (isa, form, allowed) in [
        (Isa::best(), whole(kivi, kivi), 0.04),
        (Isa::Scalar, whole(kivi, kivi), 0.04),
        (Isa::best(), whole(sparse, KvType::Q8), 0.2),
        (Isa::best(), whole(KvType::F16, sparse), 0.2),
    ] {
        let layout = layout(LayerState::Full, form);
        let one = Exec::new(1, isa, Numerics::Default);
        let two = Exec::new(2, isa, Numerics::Default);
        let mut workspace = AttendWorkspace::default();
        let mut all = context(&layout);
        let expected = step(vec![(&mut all, tokens)], &one, &mut workspace);
        let row = |at: usize| &expected[at * HEADS * DIM..(at + 1) * HEADS * DIM];
        // Two layers, KV heads apart: seven blocks of whole pages, and of the recent ones those that
        // the pass's first row saw, which is all.
        let blocks = tokens.div_ceil(64) as u64;
        let page = |form: KvForm| {
            let geometry = longview_kernels::page::PageGeometry {
                head_dim: DIM,
                v_dim: DIM,
                k_type: form.k,
                v_type: form.v,
            };
            (geometry.k_bytes() + geometry.v_bytes()) as u64 * 2 * KV_HEADS as u64
        };
        assert_eq!(
            all.kv_bytes(),
            blocks * (page(form) + page(KvType::F16.into()))
        );

        let mut first = context(&layout);
        for at in (0..385).step_by(7) {
            let out = step(vec![(&mut first, 7)], &two, &mut workspace);
            for i in 0..7 {
                assert!(
                    out[i * HEADS * DIM..].starts_with(row(at + i)),
                    "{form} row {}",
                    at + i
                );
            }
        }
        // What is recent stays bounded: the block of the pass's first row, and 70 + 64 tokens before it.
        let recent = (first.kv_bytes() - 7 * page(form)) / page(KvType::F16.into());
        assert!(recent <= 5, "{recent} recent blocks");
        // Back into a block that was whole already, and on, on a fork.
        let mut fork = first.fork();
        fork.truncate(330).unwrap();
        for at in 330..tokens {
            let out = step(vec![(&mut fork, 1)], &one, &mut workspace);
            assert_eq!(out, row(at), "{form} alone, row {at}");
        }
        let out = step(vec![(&mut first, 15)], &two, &mut workspace);
        assert!(
            out.starts_with(row(385)) && out.ends_with(row(399)),
            "{form} beside a fork"
        );
        assert!(matches!(
            first.truncate(100),
            Err(KvError::WindowPassed { .. })
        ));

        // Before anything is whole nothing is rounded, and then by no more than expected.
        let exact = common::layout(LayerState::Full, KvType::F16);
        let exact = step(vec![(&mut context(&exact), tokens)], &one, &mut workspace);
        let (start, rest) = (&exact[..126 * HEADS * DIM], &exact[126 * HEADS * DIM..]);
        assert!(expected.starts_with(start), "{form}");
        let off = rest
            .iter()
            .zip(&expected[start.len()..])
            .map(|(a, b)| (a - b).abs());
        let off = off.fold(0f32, f32::max);
        assert!(off > 0.0 && off < allowed, "{form}: off by {off}");
    }
}

/// One pass of `count` tokens of each context whose keys, values and queries follow from its `seed`
/// and the position; layer 1's attention.
fn grow(
    contexts: &mut [(Context, usize)],
    count: &[usize],
    exec: &Exec,
    workspace: &mut AttendWorkspace,
) -> Vec<f32> {
    let starts: Vec<(usize, usize)> = contexts.iter().map(|(c, seed)| (c.len(), *seed)).collect();
    let segments = contexts
        .iter_mut()
        .zip(count)
        .map(|((context, _), count)| Segment {
            context,
            tokens: &[0; 1200][..*count],
            wanted: Wanted::Nothing,
        });
    let mut batch = Batch::new(segments, IDENTITY).unwrap();
    let attention = Attention {
        heads: HEADS,
        scale: 0.4,
        softcap: 0.0,
        sinks: None,
        rotate: &|_, _, _| unreachable!("nothing was removed"),
    };
    let mut out = vec![f32::NAN; batch.rows() * HEADS * DIM];
    for layer in 0..2 {
        let gather = |of: usize, width| -> Vec<f32> {
            let each = starts.iter().zip(count);
            each.flat_map(|((start, seed), count)| {
                rows(100 * seed + of + layer, *start, *count, width)
            })
            .collect()
        };
        let (k, v) = (gather(10, KV_HEADS * DIM), gather(20, KV_HEADS * DIM));
        batch.append(exec, layer, &k, &v);
        let q = gather(30, HEADS * DIM);
        batch
            .attend(exec, layer, &attention, &q, &mut out, workspace)
            .unwrap();
    }
    batch.commit();
    out
}

#[test]
fn common_blocks_are_read_once_for_all_and_change_no_bit() {
    let window = LayerState::Window { tokens: 150 };
    for states in [[LayerState::Full; 2], [LayerState::Full, window]] {
        let layout = mixed(&states, KvType::F16);
        let two = Exec::new(2, Isa::best(), Numerics::Default);
        let one = Exec::new(1, Isa::best(), Numerics::Default);
        let mut workspace = AttendWorkspace::default();
        let read = |from: &Context, seed: usize, count: usize| {
            let mut grown = [(from.fork(), seed)];
            grow(&mut grown, &[count], &one, &mut AttendWorkspace::default());
            let [(context, _)] = grown;
            context
        };
        // 1,148 tokens in common, of which some have 110 more, of which some have 300 more.
        let trunk = read(&context(&layout), 1, 1148);
        let branch = read(&trunk, 2, 110);
        let twig = read(&branch, 3, 300);
        let apart = read(&context(&layout), 4, 700);
        let empty = context(&layout);
        let from = [
            &trunk, &branch, &twig, &apart, &trunk, &twig, &branch, &twig, &empty,
        ];
        let forks = || -> Vec<(Context, usize)> {
            let each = from.iter().enumerate();
            each.map(|(at, context)| (context.fork(), 10 + at))
                .collect()
        };
        let (mut together, mut alone) = (forks(), forks());
        let mut pages = 0;
        // Single rows, some drafts, and a prompt beside them; over the edges of blocks.
        for counts in [[1; 9], [1, 3, 1, 2, 8, 1, 1, 1, 90], [1; 9]]
            .iter()
            .cycle()
            .take(9)
        {
            let before = workspace.pages_read();
            let out = grow(&mut together, counts, &two, &mut workspace);
            pages += workspace.pages_read() - before;
            let mut row = 0;
            for (own, &count) in alone.iter_mut().zip(counts) {
                let expected = grow(std::slice::from_mut(own), &[count], &one, &mut workspace);
                let got = &out[row * HEADS * DIM..(row + count) * HEADS * DIM];
                assert!(got == expected, "{states:?} context {}", own.1);
                row += count;
            }
        }
        let apart = workspace.pages_read() - pages;
        assert!(
            3 * pages < 2 * apart,
            "{pages} pages together, {apart} apart"
        );
    }
}
