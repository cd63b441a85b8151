//! Attention over KV pages: against an oracle in double precision, and its row invariance.

#[path = "attention/cache.rs"]
mod cache;
#[path = "attention/counted.rs"]
mod counted;

use std::ops::Range;

use longview_kernels::Isa;
use longview_kernels::attention::{
    AttentionScratch, PageRef, Partials, QueryRows, attend_further, attend_span,
};
use longview_kernels::page::{
    DottedBits, KiviQueries, KvType, PAGE_TOKENS, PageGeometry, QueryBits, read_key, read_value,
    write_key, write_value,
};
use proptest::prelude::*;

use cache::{Cache, Noise};

/// Everything a row's result consists of, as bits.
fn bits(partials: &Partials, row: usize) -> Vec<u32> {
    let rest = [partials.max()[row], partials.sum()[row]];
    partials
        .acc(row)
        .iter()
        .chain(&rest)
        .map(|x| x.to_bits())
        .collect()
}

/// Those whose pages are read as exactly as floats allow.
fn kv_types() -> impl Strategy<Value = KvType> {
    let all = KvType::ALL
        .into_iter()
        .chain(KvType::DOTTED)
        .chain(KvType::WHOLE);
    let rounds = |kv_type: KvType| match kv_type {
        KvType::Kivi(kivi) => kivi.queries == KiviQueries::Int8,
        KvType::Dotted(dotted) => dotted.queries == QueryBits::Eight,
        _ => false,
    };
    let read: Vec<KvType> = all.filter(|&kv_type| !rounds(kv_type)).collect();
    proptest::sample::select(read)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn every_instruction_set_agrees_with_the_oracle(
        head_dim in prop_oneof![
            Just(16usize), Just(64), Just(80), Just(96), Just(128), Just(256), 1usize..40
        ],
        v_dim in prop_oneof![
            Just(16usize), Just(64), Just(80), Just(96), Just(128), Just(256), 1usize..200
        ],
        k_type in kv_types(),
        other_type in kv_types(),
        is_alike in any::<bool>(),
        rows in prop_oneof![1usize..24, 30usize..70],
        tokens in 1usize..1300,
        key_scale in prop_oneof![Just(0.1f32), Just(1.0), Just(30.0)],
        softcap in prop_oneof![Just(0f32), Just(20.0)],
        with_sinks in any::<bool>(),
        is_weighted in any::<bool>(),
        seed in any::<u64>(),
    ) {
        let v_type = if is_alike { k_type } else { other_type };
        let geom = PageGeometry { head_dim, v_dim, k_type, v_type };
        let mut cache = Cache::new(geom, tokens, key_scale, seed, !seed);
        if is_weighted {
            cache = cache.weighted(tokens, seed);
        }
        let mut noise = Noise(seed ^ 1);
        let q = noise.normals(rows * head_dim, 1.0 / (head_dim as f32).sqrt());
        let visible: Vec<Range<u32>> = (0..rows)
            .map(|_| {
                let end = noise.below(tokens + 1) as u32;
                match noise.below(4) {
                    0 => end..end,
                    1 => noise.below(end as usize + 1) as u32..end,
                    _ => 0..end,
                }
            })
            .collect();
        let sinks: Option<Vec<f32>> = with_sinks.then(|| noise.normals(rows, 3.0));
        for isa in Isa::available() {
            let partials = cache.attend(isa, &q, &visible, softcap);
            let mut out = vec![f32::NAN; rows * v_dim];
            partials.finish(isa, sinks.as_deref(), &mut out);
            for row in 0..rows {
                let q = &q[row * head_dim..][..head_dim];
                let out = &out[row * v_dim..][..v_dim];
                if visible[row].is_empty() {
                    prop_assert!(out.iter().all(|&x| x == 0.0));
                    prop_assert_eq!(partials.log_sum_exp(row), f32::NEG_INFINITY);
                    continue;
                }
                let sink = sinks.as_ref().map(|s| s[row]);
                let (exact, log_sum_exp) = cache.oracle(q, &visible[row], softcap, sink);
                // An error in a score is a relative error in its weight, and scores grow with
                // the keys.
                // Kivi and dotted pages are read in 16 bits of a page's largest product.
                let read = match (k_type, v_type) {
                    (KvType::Kivi(_) | KvType::Dotted(_), _) => 4e-4,
                    (_, KvType::Kivi(_) | KvType::Dotted(_)) => 2e-4,
                    _ => 4e-6,
                };
                let tolerance = read * f64::from(key_scale.max(1.0));
                for (&a, &b) in out.iter().zip(&exact) {
                    prop_assert!((f64::from(a) - b).abs() <= tolerance * (1.0 + b.abs()), "{isa} row {row}: {a} for {b}");
                }
                let off = (f64::from(partials.log_sum_exp(row)) - log_sum_exp).abs();
                prop_assert!(off <= tolerance * (1.0 + log_sum_exp.abs()), "{isa} row {row}: off by {off}");
            }
        }
    }
}

#[test]
fn a_row_has_the_same_bits_alone_and_among_others_and_whatever_invisible_slots_hold() {
    let tokens = 700;
    for (head_dim, v_dim, k_type, v_type) in [
        (64, 64, KvType::F16, KvType::F16),
        (80, 72, KvType::F16, KvType::F16),
        (128, 144, KvType::F16, KvType::F16),
        (20, 16, KvType::F16, KvType::F16),
        (80, 72, KvType::F32, KvType::F16),
        (16, 112, KvType::F16, KvType::F32),
        (96, 80, KvType::BF16, KvType::BF16),
        (64, 64, KvType::Q8, KvType::Q8),
        (80, 48, KvType::Q4, KvType::Q4),
        (40, 128, KvType::Q8, KvType::Q4),
        (80, 48, KvType::DOTTED[1], KvType::DOTTED[2]),
        (40, 80, KvType::DOTTED[3], KvType::DOTTED[0]),
        (64, 64, KvType::WHOLE[0], KvType::WHOLE[0]),
        (160, 96, KvType::WHOLE[5], KvType::WHOLE[5]),
        (80, 48, KvType::WHOLE[2], KvType::WHOLE[2]),
        (40, 128, KvType::WHOLE[1], KvType::WHOLE[3]),
        (64, 80, KvType::WHOLE[4], KvType::Q8),
    ] {
        let geom = PageGeometry {
            head_dim,
            v_dim,
            k_type,
            v_type,
        };
        let cache = Cache::new(geom, tokens, 1.0, 5, 6);
        // Same tokens; other bits in the slots behind them, and the pages filled up later.
        let other_garbage = Cache::new(geom, tokens, 1.0, 5, 7);
        // In some of them pairs count as several.
        let caches = [cache, other_garbage];
        let [cache, other_garbage] = match head_dim % 32 {
            16 => caches.map(|cache| cache.weighted(tokens, 9)),
            _ => caches,
        };
        let mut noise = Noise(8);
        let count = 512;
        let q = noise.normals(count * head_dim, 0.3);
        // Causal rows, two heads a token, the last at the end of what is written; every fifth row
        // a window, every eleventh blind.
        let visible: Vec<Range<u32>> = (0..count as u32)
            .map(|row| {
                let end = tokens as u32 - 255 + row / 2;
                match row {
                    _ if row % 11 == 3 => 0..0,
                    _ if row % 5 == 1 => end.saturating_sub(200)..end,
                    _ => 0..end,
                }
            })
            .collect();
        // The versions of NEON share their attention.
        let same = [Isa::NeonDotprod, Isa::NeonI8mm];
        for isa in Isa::available()
            .into_iter()
            .filter(|isa| !same.contains(isa))
        {
            // The plain version is the same loop for every row: a few show it.
            let count = if isa == Isa::Scalar { 64 } else { count };
            let (q, visible) = (&q[..count * head_dim], &visible[..count]);
            for softcap in [0.0, 5.0] {
                let whole = cache.attend(isa, q, visible, softcap);
                for row in 0..count {
                    assert!(
                        bits(&whole, row)
                            .iter()
                            .all(|&b| !f32::from_bits(b).is_nan())
                    );
                }
                for height in [1, 4, 7, 64, 512] {
                    for first in (0..count).step_by(height) {
                        // The small tiles are many: a sample of them is enough.
                        if height < 64 && first % (height * 13) != 0 {
                            continue;
                        }
                        let end = (first + height).min(count);
                        let q = &q[first * head_dim..end * head_dim];
                        let part = other_garbage.attend(isa, q, &visible[first..end], softcap);
                        for row in first..end {
                            assert_eq!(
                                bits(&part, row - first),
                                bits(&whole, row),
                                "{isa} {geom:?} row {row} in tiles of {height}"
                            );
                        }
                    }
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    /// What storing keys and values in fewer bits does to the output, from the stated error of a
    /// number alone: a score is off by at most ε = Σ |q| · its key's error, so the weights are off
    /// by e^(2ε) − 1 in sum, and the values by their own error.
    #[test]
    fn quantised_pages_stay_within_the_error_they_state(
        kv_type in proptest::sample::select(
            [
                &[KvType::F16, KvType::BF16, KvType::Q8, KvType::Q4],
                &KvType::DOTTED,
                &KvType::WHOLE[..3],
                &KvType::WHOLE[5..],
            ]
            .concat()
        ),
        dim in prop_oneof![Just(64usize), Just(80), Just(128), 1usize..70],
        tokens in 1usize..300,
        key_scale in prop_oneof![Just(0.1f32), Just(1.0)],
        seed in any::<u64>(),
    ) {
        let geom = |kv_type| PageGeometry {
            head_dim: dim,
            v_dim: dim,
            k_type: kv_type,
            v_type: kv_type,
        };
        let tokens = match kv_type.is_whole() {
            true => tokens.next_multiple_of(PAGE_TOKENS),
            false => tokens,
        };
        // Relative to the largest number of a block of 32, or of all.
        let step = match kv_type {
            KvType::F16 => 1.0 / 2048.0,
            KvType::BF16 => 1.0 / 512.0,
            KvType::Q8 => 0.502 / 127.0,
            // Factors of 8 bits are off by as much as the codes, those of 16 by next to nothing.
            KvType::Dotted(dotted) => {
                let codes = match dotted.bits {
                    DottedBits::Eight => 0.502 / 127.0,
                    DottedBits::Four => 0.502 / 7.5,
                };
                codes + match dotted.queries {
                    QueryBits::Sixteen => 0.5 / 32_639.0,
                    QueryBits::Eight => 1.0 / 127.0,
                }
            }
            // Half a step of the way from the smallest to the largest, and the middle's rounding.
            KvType::Kivi(_) if kv_type.to_string().starts_with("kivi4") => 1.002 / 15.0 + 1.0 / 2048.0,
            KvType::Kivi(_) => 1.002 / 3.0 + 1.0 / 2048.0,
            _ => 0.502 / 7.5,
        };
        let stored = Cache::new(geom(kv_type), tokens, key_scale, seed, !seed);
        let exact = Cache::new(geom(KvType::F32), tokens, key_scale, seed, !seed);
        let q = Noise(seed ^ 1).normals(dim, 0.3 / (dim as f32).sqrt());
        let (mut key, mut largest_key, mut largest_value) = (vec![0.0; dim], 0f64, 0f64);
        for slot in 0..tokens {
            let (k, v) = &exact.pages[slot / 64];
            read_key(&exact.geom, k, slot % 64, &mut key);
            largest_key = key.iter().fold(largest_key, |m, x| m.max(f64::from(x.abs())));
            read_value(&exact.geom, v, slot % 64, &mut key);
            largest_value = key.iter().fold(largest_value, |m, x| m.max(f64::from(x.abs())));
        }
        let off_in_score: f64 =
            q.iter().map(|q| f64::from(q.abs())).sum::<f64>() * largest_key * step;
        let allowed = ((2.0 * off_in_score).exp() - 1.0 + step) * largest_value + 1e-5;
        let visible = 0..tokens as u32;
        let (expected, _) = exact.oracle(&q, &visible, 0.0, None);
        let visible = std::slice::from_ref(&visible);
        for isa in Isa::available() {
            let mut out = vec![f32::NAN; dim];
            stored.attend(isa, &q, visible, 0.0).finish(isa, None, &mut out);
            for (&a, &b) in out.iter().zip(&expected) {
                let off = (f64::from(a) - b).abs();
                prop_assert!(off <= allowed, "{isa} {kv_type}: {a} for {b}, {allowed} allowed");
            }
        }
    }
}

#[test]
fn several_heads_at_once_give_the_same_bits_as_one_by_one() {
    let tokens = 300;
    let forms = KvType::ALL.into_iter().chain(KvType::WHOLE);
    for kv_type in forms.chain(KvType::DOTTED) {
        let geom = PageGeometry {
            head_dim: 80,
            v_dim: 80,
            k_type: kv_type,
            v_type: kv_type,
        };
        let caches: Vec<Cache> = (0..3)
            .map(|head| Cache::new(geom, tokens, 1.0, head, 9))
            .collect();
        let spans: Vec<Vec<PageRef<'_>>> = caches.iter().map(|cache| cache.span(0)).collect();
        let pages: Vec<PageRef<'_>> = (0..tokens.div_ceil(PAGE_TOKENS))
            .flat_map(|page| spans.iter().map(move |span| span[page]))
            .collect();
        // A group of an odd size, one row of which sees a window.
        let visible = [0..300u32, 120..290, 0..300, 0..0, 0..65];
        let q = Noise(4).normals(3 * visible.len() * geom.head_dim, 0.2);
        for isa in Isa::available() {
            let mut together = Partials::new(3 * visible.len(), geom.v_dim);
            let rows = QueryRows {
                heads: 3,
                q: &q,
                visible: &visible,
                softcap: 0.0,
            };
            let mut scratch = AttentionScratch::new();
            attend_span(isa, &geom, &pages, &rows, &mut scratch, &mut together);
            for (head, q) in q.chunks(visible.len() * geom.head_dim).enumerate() {
                let alone = caches[head].attend(isa, q, &visible, 0.0);
                let mut taken = Partials::new(visible.len(), geom.v_dim);
                let first = head * visible.len();
                taken.merge_rows(isa, &together, first..first + visible.len());
                for row in 0..visible.len() {
                    assert_eq!(
                        bits(&taken, row),
                        bits(&alone, row),
                        "{isa} {kv_type} {row}"
                    );
                }
            }
        }
    }
}

#[test]
fn a_page_that_fills_up_later_changes_nothing() {
    let geom = PageGeometry {
        head_dim: 64,
        v_dim: 64,
        k_type: KvType::F16,
        v_type: KvType::F16,
    };
    let long = Cache::new(geom, 1024, 1.0, 1, 2);
    for isa in Isa::available() {
        for tokens in [1usize, 63, 64, 65, 500, 1000] {
            let mut short = Cache::new(geom, tokens, 1.0, 1, 3);
            // The tokens drawn from the same noise: keys come first, so copy the pages' slots.
            for (page, (k, v)) in short.pages.iter_mut().enumerate() {
                let written = (tokens - page * PAGE_TOKENS).min(PAGE_TOKENS);
                for d in 0..geom.head_dim {
                    let at = d * PAGE_TOKENS * 2;
                    k[at..at + written * 2]
                        .copy_from_slice(&long.pages[page].0[at..at + written * 2]);
                }
                let end = written * geom.v_dim * 2;
                v[..end].copy_from_slice(&long.pages[page].1[..end]);
            }
            let q = Noise(4).normals(3 * geom.head_dim, 0.3);
            let visible = [0..tokens as u32, tokens as u32 / 2..tokens as u32, 0..1];
            let (a, b) = (
                short.attend(isa, &q, &visible, 0.0),
                long.attend(isa, &q, &visible, 0.0),
            );
            for row in 0..3 {
                assert_eq!(
                    bits(&a, row),
                    bits(&b, row),
                    "{isa} {tokens} tokens, row {row}"
                );
            }
        }
    }
}

#[test]
fn a_number_that_is_none_is_not_hidden_from_rows_that_see_it() {
    let forms = || KvType::ALL.into_iter().chain(KvType::DOTTED);
    for (isa, kv_type) in Isa::available()
        .into_iter()
        .flat_map(|isa| forms().map(move |kv_type| (isa, kv_type)))
    {
        let pairs = [
            (kv_type, KvType::F32),
            (KvType::F32, kv_type),
            (kv_type, kv_type),
        ];
        for (k_type, v_type) in pairs {
            let geom = PageGeometry {
                head_dim: 64,
                v_dim: 64,
                k_type,
                v_type,
            };
            let visible: Vec<_> = [0..64, 0..21, 0..20].into_iter().cycle().take(37).collect();
            let q = Noise(3).normals(visible.len() * 64, 0.2);
            let mut cache = Cache::new(geom, 64, 1.0, 1, 2);
            let before = cache.attend(isa, &q, &visible, 0.0);
            let mut numbers = vec![0.5; 64];
            numbers[40] = f32::NAN;
            let (k, v) = &mut cache.pages[0];
            write_key(&geom, k, 20, &numbers);
            write_value(&geom, v, 20, &numbers);
            for rows in [0..3, 1..37, 0..37] {
                let q = &q[rows.start * 64..rows.end * 64];
                let partials = cache.attend(isa, q, &visible[rows.clone()], 0.0);
                for row in rows.clone() {
                    let at = row - rows.start;
                    if visible[row].end > 20 {
                        let is_number = partials.acc(at).iter().all(|x| !x.is_nan());
                        assert!(!is_number, "{isa} {geom:?} row {row}");
                    } else {
                        let same = bits(&partials, at) == bits(&before, row);
                        assert!(same, "{isa} {geom:?} row {row} of {rows:?}");
                    }
                }
            }
        }
    }
}

#[test]
fn a_query_that_is_no_number_spoils_its_own_row_alone() {
    for isa in Isa::available() {
        for kv_type in KvType::ALL.into_iter().chain(KvType::DOTTED) {
            let geom = PageGeometry {
                head_dim: 64,
                v_dim: 64,
                k_type: kv_type,
                v_type: kv_type,
            };
            let cache = Cache::new(geom, 130, 1.0, 1, 2);
            let good = Noise(3).normals(4 * 64, 0.2);
            let visible = [0..130, 0..130, 0..64, 0..70];
            let expected = cache.attend(isa, &good, &visible, 0.0);
            for spoilt in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                let mut q = good.clone();
                q[64 + 7] = spoilt;
                let partials = cache.attend(isa, &q, &visible, 0.0);
                for row in [0, 2, 3] {
                    let same = bits(&partials, row) == bits(&expected, row);
                    assert!(same, "{isa} {kv_type} row {row} beside {spoilt}");
                }
                let mut out = vec![0.0; 4 * 64];
                partials.finish(isa, None, &mut out);
                let is_number = out[64..128].iter().any(|x| !x.is_nan());
                assert!(!(is_number && spoilt.is_nan()), "{isa} {kv_type} {spoilt}");
            }
        }
    }
}

#[test]
fn huge_scores_neither_overflow_nor_become_nan() {
    let geom = PageGeometry {
        head_dim: 32,
        v_dim: 32,
        k_type: KvType::F32,
        v_type: KvType::F32,
    };
    let cache = Cache::new(geom, 200, 1e15, 1, 2);
    let q = Noise(3).normals(2 * 32, 1e15);
    for isa in Isa::available() {
        let partials = cache.attend(isa, &q, &[0..200, 0..64], 0.0);
        let mut out = vec![f32::NAN; 64];
        partials.finish(isa, None, &mut out);
        for (row, visible) in [0..200, 0..64].into_iter().enumerate() {
            let (exact, _) = cache.oracle(&q[row * 32..][..32], &visible, 0.0, None);
            for (&a, b) in out[row * 32..][..32].iter().zip(exact) {
                assert!(
                    (f64::from(a) - b).abs() < 1e-5,
                    "{isa} row {row}: {a} for {b}"
                );
            }
        }
    }
}

#[test]
fn spans_merge_to_the_whole_whatever_part_is_empty() {
    let geom = PageGeometry {
        head_dim: 16,
        v_dim: 16,
        k_type: KvType::F32,
        v_type: KvType::F32,
    };
    let cache = Cache::new(geom, 128, 1.0, 1, 2);
    let q = Noise(3).normals(16, 1.0);
    for isa in Isa::available() {
        let whole = cache.attend(isa, &q, std::slice::from_ref(&(0..128)), 0.0);
        let mut merged = Partials::new(1, 16);
        for part in [0..0, 0..40, 40..40, 40..100, 100..128] {
            let before = bits(&merged, 0);
            let empty = part.is_empty();
            merged.merge(isa, &cache.attend(isa, &q, &[part], 0.0));
            assert!(
                !empty || bits(&merged, 0) == before,
                "{isa}: an empty part changed bits"
            );
        }
        assert!((merged.log_sum_exp(0) - whole.log_sum_exp(0)).abs() < 1e-5);
        let (mut a, mut b) = ([0.0; 16], [0.0; 16]);
        merged.finish(isa, None, &mut a);
        whole.finish(isa, None, &mut b);
        assert!(
            a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-5),
            "{isa} {a:?} {b:?}"
        );
    }
}

#[test]
fn where_a_span_is_cut_and_who_goes_on_changes_no_bit() {
    let all_types = [&KvType::ALL[..], &KvType::WHOLE].concat();
    for (isa, kv_type) in Isa::available()
        .into_iter()
        .flat_map(|isa| all_types.iter().map(move |t| (isa, *t)))
    {
        let geom = PageGeometry {
            head_dim: 40,
            v_dim: 24,
            k_type: kv_type,
            v_type: kv_type,
        };
        let cache = Cache::new(geom, 300, 1.0, 5, 6);
        let pages = cache.span(0);
        let rows = 5;
        let q = Noise(9).normals(rows * geom.head_dim, 0.3);
        let visible: Vec<Range<u32>> = vec![0..300, 10..64, 70..290, 0..0, 200..201];
        let whole = cache.attend(isa, &q, &visible, 0.0);
        let mut scratch = AttentionScratch::new();
        let mut attend = |pages: Range<usize>, of: Range<usize>, out: &mut Partials| {
            let first = (pages.start * PAGE_TOKENS) as u32;
            let end = (pages.end * PAGE_TOKENS) as u32;
            let inside = |x: u32| x.clamp(first, end) - first;
            let visible: Vec<_> = visible[of.clone()]
                .iter()
                .map(|r| inside(r.start)..inside(r.end))
                .collect();
            let rows = QueryRows {
                heads: 1,
                q: &q[of.start * geom.head_dim..of.end * geom.head_dim],
                visible: &visible,
                softcap: 0.0,
            };
            attend_further(isa, &geom, &cache.pages(pages), &rows, &mut scratch, out);
        };
        for cut in 1..pages.len() {
            let mut first = Partials::new(rows, geom.v_dim);
            attend(0..cut, 0..rows, &mut first);
            // Some of the rows go on together, the others alone.
            for of in [0..2, 2..3, 3..5] {
                let mut rest = Partials::new(of.len(), geom.v_dim);
                rest.copy_rows(0, &first, of.clone());
                attend(cut..pages.len(), of.clone(), &mut rest);
                for (at, row) in of.enumerate() {
                    assert_eq!(
                        bits(&rest, at),
                        bits(&whole, row),
                        "{isa} {kv_type} cut {cut} row {row}"
                    );
                }
            }
        }
    }
}
