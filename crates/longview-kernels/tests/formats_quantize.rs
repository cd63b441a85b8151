//! Writing formats: equal to other writers where the rule is shared, and close to the values.

use std::path::Path;

use longview_kernels::Format;
use longview_kernels::format::{QuantizeError, dequantize, quantize};
use proptest::prelude::*;

fn fixture(name: &str) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/data/formats")
        .join(name);
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn packed(format: Format, values: &[f32]) -> Vec<u8> {
    let mut bytes = Vec::new();
    quantize(format, values, &mut bytes).unwrap();
    assert_eq!(Some(bytes.len()), format.bytes_for(values.len()));
    bytes
}

/// What the values become when written and read.
fn round_trip(format: Format, values: &[f32]) -> Vec<f32> {
    let mut read = vec![f32::NAN; values.len()];
    dequantize(format, &packed(format, values), &mut read);
    read
}

/// Root mean square of the difference, relative to that of the values.
fn error(values: &[f32], read: &[f32]) -> f64 {
    let squares = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>();
    let difference = squares(&mut values.iter().zip(read).map(|(a, b)| f64::from(a - b)));
    (difference / squares(&mut values.iter().map(|&x| f64::from(x)))).sqrt()
}

/// Normally distributed values: sums of twelve uniform ones from a small generator.
fn normal(count: usize) -> Vec<f32> {
    let mut state = 88_172_645_463_325_252_u64;
    let mut uniform = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1 << 24) as f32
    };
    (0..count)
        .map(|_| 0.02 * ((0..12).map(|_| uniform()).sum::<f32>() - 6.0))
        .collect()
}

#[test]
fn formats_with_a_shared_rule_equal_the_reference_writer() {
    let values: Vec<f32> = fixture("normal.f32")
        .as_chunks::<4>()
        .0
        .iter()
        .map(|b| f32::from_le_bytes(*b))
        .collect();
    use Format::*;
    for format in [F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0] {
        let reference = fixture(&format!("{format}.packed"));
        let ours = packed(format, &values);
        let differing = ours
            .chunks(format.block_bytes())
            .zip(reference.chunks(format.block_bytes()));
        let differing: Vec<usize> = differing
            .enumerate()
            .filter(|(_, (a, b))| a != b)
            .map(|(i, _)| i)
            .collect();
        assert!(
            ours.len() == reference.len() && differing.is_empty(),
            "{format}: blocks {differing:?}"
        );
    }
}

/// The relative error on these values is at most that of llama.cpp's own writer (without an
/// importance matrix), which was given the same values once; for the floats, half a unit in the
/// last place.
#[test]
fn errors_on_normal_values_are_at_most_llama_cpps() {
    let values = normal(1 << 16);
    let bounds = [
        (Format::F32, 0.0),
        (Format::F16, 0.000_245),
        (Format::BF16, 0.001_96),
        (Format::Q4_0, 0.084_106),
        (Format::Q4_1, 0.077_314),
        (Format::Q5_0, 0.041_894),
        (Format::Q5_1, 0.037_216),
        (Format::Q8_0, 0.005_234),
        (Format::Q2_K, 0.293_891),
        (Format::Q3_K, 0.148_407),
        (Format::Q4_K, 0.070_187),
        (Format::Q5_K, 0.035_358),
        (Format::Q6_K, 0.017_416),
        (Format::IQ4_NL, 0.074_886),
        (Format::IQ4_XS, 0.075_428),
    ];
    for (format, bound) in bounds {
        let error = error(&values, &round_trip(format, &values));
        eprintln!("{format:7} {error:.6}");
        assert!(error <= bound + 5e-7, "{format}: {error} above {bound}");
    }
}

#[test]
fn zeros_stay_zeros() {
    for format in Format::ALL {
        for zero in [0.0, -0.0] {
            assert!(
                round_trip(format, &[zero; 512]).iter().all(|&x| x == 0.0),
                "{format}"
            );
        }
    }
}

#[test]
fn what_cannot_be_held_is_refused_and_named() {
    for format in Format::ALL {
        for (value, fits) in [
            (f32::NAN, format == Format::F32),
            (f32::INFINITY, format == Format::F32),
            (f32::MAX, format == Format::F32),
            (-1e20, matches!(format, Format::F32 | Format::BF16)),
            (65505.0, matches!(format, Format::F32 | Format::BF16)),
            (-65504.0, true),
        ] {
            let mut values = [1.0; 512];
            values[300] = value;
            let mut out = vec![7];
            match quantize(format, &values, &mut out) {
                Ok(()) => assert!(fits, "{format} took {value}"),
                Err(QuantizeError::OutOfRange {
                    format: f,
                    index: 300,
                    ..
                }) => {
                    assert!(
                        !fits && f == format && out == [7],
                        "{format} refused {value}"
                    );
                }
                Err(other) => panic!("{format}: {other}"),
            }
        }
    }
    let error = quantize(Format::Q4_K, &[0.0; 32], &mut Vec::new()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "32 values do not fill the blocks of 256 elements that Q4_K has"
    );
}

/// What was written once is written again without loss by the formats with a fixed rule, and almost
/// without by those that search.
#[test]
fn writing_twice_adds_almost_nothing() {
    let values = normal(1 << 14);
    for format in Format::ALL {
        let once = round_trip(format, &values);
        let twice = round_trip(format, &once);
        let (first, second) = (error(&values, &once), error(&once, &twice));
        let searched = first > 0.0 && format.block_len() == 256 || format == Format::IQ4_NL;
        let allowed = if searched { 0.2 * first } else { 0.0 };
        assert!(
            second <= allowed,
            "{format}: {first} the first time, {second} the second"
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    /// No value is further off than a step of the coarsest grid its block can need, whatever the
    /// spread of magnitudes within it.
    #[test]
    fn every_value_is_within_a_step(
        exponents in (-8i32..4, 0i32..4),
        seeds in prop::collection::vec(-1f32..1.0, 512),
        shift in prop_oneof![Just(0f32), -2f32..2.0],
    ) {
        let (base, spread) = exponents;
        let values: Vec<f32> = seeds
            .iter()
            .enumerate()
            .map(|(i, x)| (x + shift) * 2f32.powi(base + i as i32 % (spread + 1)))
            .collect();
        let largest = values.iter().fold(0f32, |m, x| m.max(x.abs()));
        for format in Format::ALL {
            let step = match format {
                Format::F32 => 0.0,
                Format::F16 => 2f32.powi(-11),
                Format::BF16 => 2f32.powi(-8),
                Format::Q8_0 => 1.0 / 127.0,
                Format::Q6_K => 1.0 / 32.0,
                Format::Q5_0 | Format::Q5_1 | Format::Q5_K => 1.0 / 15.0,
                Format::Q4_0 | Format::Q4_1 | Format::Q4_K => 1.0 / 7.0,
                Format::IQ4_NL | Format::IQ4_XS => 24.0 / 127.0,
                Format::Q3_K => 1.0 / 3.0,
                Format::Q2_K => 2.0 / 3.0,
            };
            // The factor of a large block is an f16, whose smallest numbers are 2^-24 apart; half of
            // that, times the largest scale and code, is what tiny values lose on top.
            let coarsest = if format.block_len() == 256 { 2f32.powi(-25) * 4096.0 } else { 0.0 };
            for (i, (x, read)) in values.iter().zip(round_trip(format, &values)).enumerate() {
                prop_assert!(
                    (x - read).abs() <= step * largest + coarsest,
                    "{format}: value {i} is {x}, read {read}, largest {largest}"
                );
            }
        }
    }
}
