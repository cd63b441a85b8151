//! Matrix products: every format, instruction set and numerics class against plain arithmetic in
//! f64, and against themselves for other numbers of rows and threads.

#[path = "matmul/case.rs"]
mod case;
#[path = "matmul/split.rs"]
mod split;

use case::{Case, Random, codes, execs, halves};
use half::f16;
use longview_kernels::activation::Activation;
use longview_kernels::format::dequantize;
use longview_kernels::{
    Activations, Exec, Format, Isa, Need, Numerics, Packed, announce, matmul, matmul_gated,
    matmul_many, needed,
};
use proptest::prelude::*;

#[test]
fn packed_rows_read_back_as_the_format_defines_them() {
    let exec = Exec::new(2, Isa::Scalar, Numerics::Default);
    for format in Format::ALL {
        for (n, blocks) in [(1, 1), (17, 1), (5, 3), (33, 9)] {
            let k = blocks * format.block_len();
            let case = Case::new(format, n, k, 7 + n as u64, &exec);
            assert_eq!(case.packed.bytes(), Packed::packed_bytes(format, n, k));
            let mut row = vec![f32::NAN; k];
            for i in 0..n {
                case.packed.row_f32(i, &mut row);
                assert_eq!(row, case.weights[i * k..][..k], "{format} {n}x{k} row {i}");
            }
        }
    }
}

#[test]
fn row_order_places_rows() {
    let exec = Exec::new(1, Isa::best(), Numerics::Default);
    let (n, k) = (40, 64);
    let bytes = Random(3).weights(Format::Q4_0, n * k);
    let swapped = |row: usize| (row * 7 + 3) % n;
    let packed = Packed::pack(Format::Q4_0, n, k, &bytes, &swapped, &exec.pool).unwrap();
    let mut weights = vec![0.0; n * k];
    dequantize(Format::Q4_0, &bytes, &mut weights);
    let mut row = vec![0.0; k];
    for i in 0..n {
        packed.row_f32(i, &mut row);
        assert_eq!(row, weights[swapped(i) * k..][..k]);
    }
}

#[test]
fn products_are_right_at_every_tile_size() {
    for exec in execs(2) {
        for format in Format::ALL {
            let k = if format.block_len() == 256 { 512 } else { 288 };
            let case = Case::new(format, 35, k, 11, &exec);
            for rows in [1, 2, 3, 4, 5, 8, 11, 12, 13, 27, 75] {
                let x = Random(5).floats(rows * k);
                case.check(&exec, &x, &case.product(&exec, &x));
            }
        }
    }
}

#[test]
fn the_largest_codes_do_not_saturate() {
    for exec in execs(1) {
        for format in Format::ALL.into_iter().filter(|format| !format.is_float()) {
            let (n, k) = (16, 256);
            // The second of them for what stands first in a block, so that codes are the least with large scales, too.
            for (fill, head) in [
                (0x00, 0x00),
                (0x00, 0xff),
                (0x7f, 0x7f),
                (0x80, 0x80),
                (0xff, 0xff),
            ] {
                let mut bytes = vec![fill; format.bytes_for(n * k).unwrap()];
                for block in bytes.chunks_exact_mut(format.block_bytes()) {
                    let ahead = block.len().min(16);
                    block[..ahead].fill(head);
                    for &at in halves(format) {
                        block[at..at + 2].copy_from_slice(&f16::ONE.to_le_bytes());
                    }
                }
                let case = Case::of(format, n, k, &bytes, &exec);
                // Few rows, and as many as panels are unpacked for.
                for rows in [5, 48] {
                    let mut x = vec![1.0; rows * k];
                    x[k..2 * k].fill(-1.0);
                    case.check(&exec, &x, &case.product(&exec, &x));
                }
            }
        }
    }
}

#[test]
fn long_rows_pass_through_every_slab() {
    for exec in execs(2) {
        for format in [Format::F32, Format::F16, Format::Q4_0, Format::Q6_K] {
            let case = Case::new(format, 20, 2304, 12, &exec);
            for rows in [14, 75] {
                let x = Random(6).floats(rows * case.k);
                case.check(&exec, &x, &case.product(&exec, &x));
            }
        }
    }
}

#[test]
fn many_rows_and_panels_are_cut_into_every_kind_of_block() {
    for isa in Isa::available()
        .into_iter()
        .filter(|&isa| isa != Isa::Scalar)
    {
        for numerics in [Numerics::Default, Numerics::F32] {
            let exec = Exec::new(2, isa, numerics);
            for format in [Format::Q8_0, Format::Q2_K, Format::Q4_K, Format::F16] {
                // Up to four panels together and a part of one; blocks of 96, 192 and 256 rows.
                for (n, rows) in [
                    (16, 197),
                    (32, 98),
                    (48, 50),
                    (91, 205),
                    (75, 261),
                    (64, 277),
                ] {
                    let case = Case::new(format, n, 256, 41, &exec);
                    let x = Random(43).floats(rows * case.k);
                    case.check(&exec, &x, &case.product(&exec, &x));
                }
            }
        }
    }
}

#[test]
fn products_that_gate_on_the_way_give_the_bits_of_one_after_the_other() {
    let exec = Exec::new(2, Isa::best(), Numerics::Default);
    let activations = [Activation::Silu, Activation::Gelu, Activation::GeluTanh];
    for (i, format) in codes().into_iter().enumerate() {
        let k = if format.block_len() == 256 { 768 } else { 544 };
        let activation = activations[i % 3];
        for (ffn, rows) in [
            (96, 49),
            (160, 64),
            (32, 261),
            (288, 530),
            (40, 64),
            (64, 5),
            (256, 49),
            (768, 277),
            (256, 30),
            (256, 23),
        ] {
            if format.block_len() == 256 && rows > 277 {
                continue;
            }
            let gate = Case::new(format, ffn, k, 51, &exec);
            let up = Case::new(format, ffn, k, 52, &exec);
            let mut x = Random(53).floats(rows * k);
            x[3 * k] = f32::NAN;
            let mut inputs = Activations::new();
            inputs.set(&exec, &x, rows, k, needed(exec.numerics, format));
            for down in [Format::Q4_1, Format::Q4_K] {
                let whole = ffn % down.block_len() == 0;
                let need = needed(exec.numerics, down);
                let mut made = Activations::new();
                let (gates, ups) = (&gate.packed, &up.packed);
                let is_made = matmul_gated(&exec, &inputs, gates, ups, activation, need, &mut made);
                // Both its input and what it makes are in tiles.
                let in_tiles = |need: Need| rows >= if need.blocks { 48 } else { 24 };
                let tiles = exec.isa == Isa::Amx && in_tiles(need) && in_tiles(inputs.has());
                assert_eq!(is_made, tiles && whole, "{format} {ffn} {rows} {down}");
                if !is_made {
                    continue;
                }
                let (mut gates, ups) = (gate.product(&exec, &x), up.product(&exec, &x));
                activation.gate(exec.isa, &mut gates, &ups);
                let mut given = Activations::new();
                given.set(&exec, &gates, rows, ffn, need);
                let down = Case::new(down, 35, ffn, 54, &exec);
                let outputs = [made, given].map(|x| {
                    let mut out = vec![0.0; rows * 35];
                    matmul(&exec, &x, &down.packed, &mut out);
                    out.iter().map(|x| x.to_bits()).collect::<Vec<_>>()
                });
                assert_eq!(outputs[0], outputs[1], "{format} {ffn} {rows}");
                assert!(f32::from_bits(outputs[0][3 * 35]).is_nan());
            }
        }
    }
}

#[test]
fn threads_are_any_number_and_bytes_lie_anywhere() {
    let (n, k, rows) = (1, 288, 3);
    for format in [Format::Q4_0, Format::F16] {
        let one = Exec::new(1, Isa::best(), Numerics::Default);
        let case = Case::new(format, n, k, 31, &one);
        let x = Random(7).floats(rows * k);
        let expected = case.product(&one, &x);
        case.check(&one, &x, &expected);
        // Tensors of a mapped file begin where the file has them.
        let mut shifted = vec![0];
        shifted.extend(Random(31).weights(format, n * k));
        for threads in [0, 1, 2, 11] {
            let exec = Exec::new(threads, Isa::best(), Numerics::Default);
            let case = Case::of(format, n, k, &shifted[1..], &exec);
            assert_eq!(
                case.product(&exec, &x),
                expected,
                "{format}, {threads} threads"
            );
        }
    }
}

#[test]
fn scales_of_any_size_are_rounded_and_bad_ones_spoil_their_output_alone() {
    let (n, k, rows) = (16, 288, 70);
    let x: Vec<f32> = (0..rows * k)
        .map(|i| ((i * 37 % 101) as f32 - 50.0) * 0.01)
        .collect();
    let mut bytes = Random(5).weights(Format::Q4_0, n * k);
    let mut set = |row: usize, block: usize, scale: f16| {
        let at = (row * k / 32 + block) * 18;
        bytes[at..at + 2].copy_from_slice(&scale.to_le_bytes());
    };
    (0..9).for_each(|block| set(0, block, f16::ZERO));
    (0..9).for_each(|block| set(1, block, f16::from_bits(block as u16)));
    set(2, 3, f16::MAX);
    set(3, 3, f16::MIN);
    set(4, 7, f16::NAN);
    set(5, 0, f16::INFINITY);
    set(6, 8, f16::NEG_INFINITY);
    for exec in execs(2).filter(|exec| exec.numerics == Numerics::Default) {
        let case = Case::of(Format::Q4_0, n, k, &bytes, &exec);
        let out = case.product(&exec, &x);
        for out in out.chunks_exact(n) {
            assert_eq!(out[0], 0.0, "{}", exec.isa);
            for (output, value) in out.iter().enumerate() {
                let bad = (4..7).contains(&output);
                assert_eq!(value.is_finite(), !bad, "{}: {output} is {value}", exec.isa);
            }
        }
        // The others are as exact as ever.
        let mut known = out.clone();
        let sums = Case::of(Format::Q4_0, n, k, &without_bad(k, &bytes), &exec);
        for (at, value) in sums.product(&exec, &x).into_iter().enumerate() {
            if (4..7).contains(&(at % n)) {
                known[at] = value;
            }
        }
        sums.check(&exec, &x, &known);
    }
}

/// The same with zeros for scales that are no numbers.
fn without_bad(k: usize, bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    for block in bytes
        .chunks_exact_mut(k / 32 * 18)
        .flat_map(|row| row.chunks_exact_mut(18))
    {
        if !f16::from_le_bytes([block[0], block[1]]).is_finite() {
            block[..2].fill(0);
        }
    }
    bytes
}

#[test]
fn float_rows_need_not_be_whole_blocks() {
    for exec in execs(1) {
        for format in [Format::F32, Format::F16, Format::BF16] {
            for k in [1, 7, 33, 257] {
                let case = Case::new(format, 18, k, 13, &exec);
                for rows in [1, 6] {
                    let x = Random(9).floats(rows * k);
                    case.check(&exec, &x, &case.product(&exec, &x));
                }
            }
        }
    }
}

#[test]
fn a_row_does_not_depend_on_its_company() {
    for isa in Isa::available() {
        for numerics in [Numerics::Default, Numerics::F32] {
            let (one, two) = (Exec::new(1, isa, numerics), Exec::new(2, isa, numerics));
            for format in Format::ALL {
                // The plain version is the same loop for every shape: a few rows show it.
                let most = if isa == Isa::Scalar { 9 } else { 512 };
                let case = Case::new(format, 49, 512, 17, &one);
                let x = Random(21).floats(most * case.k);
                let all = case.product(&two, &x);
                // Tiles of every height, alone and with a rest, and many rows at once.
                let counts = [1, 2, 7, 13, 17, 21, 32, 40, 64, 512];
                for rows in counts.into_iter().filter(|&rows| rows <= 7 || most > 9) {
                    let start = (most - rows) / 2;
                    let part = &x[start * case.k..(start + rows) * case.k];
                    let expected = &all[start * case.n..(start + rows) * case.n];
                    for exec in [&one, &two] {
                        let got = case.product(exec, part);
                        let same = got
                            .iter()
                            .zip(expected)
                            .all(|(a, b)| a.to_bits() == b.to_bits());
                        assert!(same, "{isa} {numerics} {format} {rows} rows");
                    }
                }
            }
        }
    }
}

/// Where there are none of either, there is nothing to compare.
#[test]
fn tiles_give_the_bits_that_registers_give() {
    let offered = |isa: &Isa| isa.is_available();
    let isas: Vec<Isa> = [Isa::Avx512, Isa::Amx]
        .into_iter()
        .filter(offered)
        .collect();
    for format in codes() {
        let of = |isa: Isa, blocks: usize, rows: usize| {
            let exec = Exec::new(2, isa, Numerics::Default);
            let case = Case::new(format, 83, blocks * format.block_len(), 29, &exec);
            let mut x = Random(31).floats(rows * case.k);
            // Scales far apart, a block of zeros, and a row that is spoilt.
            for (i, x) in x.iter_mut().enumerate() {
                *x *= f32::powi(2.0, (i / 32 % 40) as i32 - 20);
            }
            x[case.k..][..32].fill(0.0);
            x[7 * case.k] = f32::NAN;
            let out = case.product(&exec, &x);
            out.into_iter().map(f32::to_bits).collect::<Vec<u32>>()
        };
        // Fewer blocks than are begun ahead, odd numbers of them, and more than one slab.
        for blocks in [1, 2, 3, 5, 17, 2816 / format.block_len()] {
            for rows in [29, 101] {
                let outs: Vec<Vec<u32>> = isas.iter().map(|&isa| of(isa, blocks, rows)).collect();
                let same = outs.windows(2).all(|pair| pair[0] == pair[1]);
                assert!(same, "{format}, {blocks} blocks, {rows} rows");
            }
        }
    }
}

#[test]
fn products_that_were_announced_give_the_same_bits() {
    for exec in execs(3) {
        let wide = Case::new(Format::Q4_0, 100, 512, 1, &exec);
        let other = Case::new(Format::F16, 33, 512, 2, &exec);
        for rows in [1, 4, 70] {
            let x: Vec<f32> = (0..rows * 512).map(|i| (i % 97) as f32 - 48.0).collect();
            let quiet = wide.product(&exec, &x);
            let mut act = Activations::new();
            let need = needed(exec.numerics, Format::Q4_0).and(Need::F32);
            act.set(&exec, &x, rows, 512, need);
            for ws in [&[&wide.packed][..], &[&other.packed, &wide.packed], &[]] {
                announce(&exec, &act, ws);
                let mut out = vec![f32::NAN; quiet.len()];
                matmul(&exec, &act, &wide.packed, &mut out);
                assert_eq!(out, quiet);
            }
        }
    }
}

#[test]
fn several_products_share_one_input() {
    for exec in execs(2) {
        let k = 256;
        let cases = [
            Case::new(Format::Q4_0, 48, k, 1, &exec),
            Case::new(Format::F16, 5, k, 2, &exec),
            Case::new(Format::Q6_K, 100, k, 3, &exec),
        ];
        for rows in [1, 30, 66] {
            let x = Random(4).floats(rows * k);
            let mut act = Activations::new();
            act.set(
                &exec,
                &x,
                rows,
                k,
                needed(exec.numerics, Format::F16)
                    .and(needed(exec.numerics, Format::Q4_0))
                    .and(needed(exec.numerics, Format::Q6_K)),
            );
            let mut outs: Vec<Vec<f32>> = cases.iter().map(|c| vec![0.0; rows * c.n]).collect();
            let weights: Vec<&Packed> = cases.iter().map(|case| &case.packed).collect();
            let mut slices: Vec<&mut [f32]> = outs.iter_mut().map(Vec::as_mut_slice).collect();
            matmul_many(&exec, &act, &weights, &mut slices);
            for (case, out) in cases.iter().zip(&outs) {
                assert_eq!(*out, case.product(&exec, &x));
            }
        }
    }
}

#[test]
fn a_bad_row_spoils_only_itself() {
    for exec in execs(2) {
        for format in [Format::Q4_0, Format::Q4_K, Format::F16] {
            let case = Case::new(format, 19, 512, 23, &exec);
            for bad in [f32::NAN, f32::INFINITY] {
                let rows = if bad.is_nan() { 6 } else { 78 };
                let clean = Random(8).floats(rows * case.k);
                let mut x = clean.clone();
                x[2 * case.k + 77] = bad;
                let (got, expected) = (case.product(&exec, &x), case.product(&exec, &clean));
                for (i, (got, expected)) in got.iter().zip(&expected).enumerate() {
                    if i / case.n == 2 {
                        assert!(!got.is_finite(), "{} {format}", exec.isa);
                    } else {
                        assert_eq!(got, expected);
                    }
                }
            }
        }
    }
}

#[test]
fn no_rows_and_no_outputs_are_no_work() {
    for exec in execs(2) {
        let none = Case::new(Format::Q8_0, 0, 64, 1, &exec);
        assert!(none.product(&exec, &[0.5; 128]).is_empty());
        let some = Case::new(Format::Q8_0, 3, 64, 1, &exec);
        assert!(some.product(&exec, &[]).is_empty());
        let pool = &exec.pool;
        let empty = Packed::pack(Format::F16, 3, 0, &[], &|row| row, pool).unwrap();
        let mut act = Activations::new();
        act.set(&exec, &[], 2, 0, Need::F32);
        let mut out = [f32::NAN; 6];
        matmul(&exec, &act, &empty, &mut out);
        assert_eq!(out, [0.0; 6]);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_shape_agrees_with_the_definition(
        format in prop::sample::select(Format::ALL.to_vec()),
        n in 1usize..70,
        blocks in 1usize..12,
        rows in 1usize..100,
        threads in 1usize..4,
        seed in any::<u64>(),
    ) {
        let blocks = if format.block_len() == 256 { blocks.div_ceil(4) } else { blocks };
        let k = blocks * format.block_len().max(32);
        for exec in execs(threads) {
            let case = Case::new(format, n, k, seed, &exec);
            let x = Random(!seed).floats(rows * k);
            case.check(&exec, &x, &case.product(&exec, &x));
        }
    }

    /// With scales of one, products of codes are whole numbers that f32 holds exactly: every instruction
    /// set gives the very sums that plain arithmetic gives, and with that those of the scalar twin.
    #[test]
    fn sums_of_codes_are_exact_on_every_instruction_set(
        format in prop::sample::select(codes()),
        n in 1usize..50,
        blocks in 1usize..3,
        rows in 1usize..80,
        seed in any::<u64>(),
    ) {
        let k = blocks * format.block_len();
        let mut random = Random(seed);
        let mut bytes = random.weights(format, n * k);
        for block in bytes.chunks_exact_mut(format.block_bytes()) {
            for &at in halves(format) {
                block[at..at + 2].copy_from_slice(&f16::ONE.to_le_bytes());
            }
        }
        // A block's largest is 127, so its scale is one and its codes are the numbers themselves.
        let mut x: Vec<f32> = (0..rows * k).map(|_| (random.next() % 7) as f32 - 3.0).collect();
        for block in x.chunks_exact_mut(32) {
            let sign = if random.next().is_multiple_of(2) { 1.0 } else { -1.0 };
            block[random.next() as usize % 32] = 127.0 * sign;
        }
        for isa in Isa::available() {
            let exec = Exec::new(2, isa, Numerics::Default);
            let case = Case::of(format, n, k, &bytes, &exec);
            let out = case.product(&exec, &x);
            for (i, &out) in out.iter().enumerate() {
                let w = &case.weights[i % n * k..][..k];
                let x = &x[i / n * k..][..k];
                let sum: i64 = w.iter().zip(x).map(|(&w, &x)| w as i64 * x as i64).sum();
                prop_assert!(sum.abs() < 1 << 24);
                prop_assert_eq!(out, sum as f32, "{} {} {}x{} output {}", isa, format, n, k, i);
            }
        }
    }
}
