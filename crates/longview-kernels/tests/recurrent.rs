//! Gated delta layers against their definition in double precision, and their row invariance.

use longview_kernels::Isa;
use longview_kernels::recurrent::{DeltaRows, DeltaScratch, DeltaShape, GatedDelta, HeadOrder};
use proptest::prelude::*;

/// Inputs of a layer for some rows.
struct Case {
    shape: DeltaShape,
    order: HeadOrder,
    conv: Vec<f32>,
    mixed: Vec<f32>,
    decay: Vec<f32>,
    beta: Vec<f32>,
    rows: usize,
}

impl Case {
    fn new(shape: DeltaShape, order: HeadOrder, rows: usize, seed: u64) -> Case {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut unit = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 40) as f32 / (1u64 << 24) as f32
        };
        let mut centred = |count: usize, scale: f32| -> Vec<f32> {
            (0..count).map(|_| (unit() - 0.5) * scale).collect()
        };
        let (conv, mixed) = (
            centred(shape.taps * shape.channels(), 2.0),
            centred(rows * shape.channels(), 4.0),
        );
        let mut between = |low: f32, high: f32| -> Vec<f32> {
            (0..rows * shape.value_heads)
                .map(|_| low + (high - low) * unit())
                .collect()
        };
        Case {
            decay: between(0.7, 1.0),
            beta: between(0.0, 1.0),
            shape,
            order,
            conv,
            mixed,
            rows,
        }
    }

    /// `[rows][key_heads][group · value_dim]`, read in chunks of the lengths that `chunks` repeats.
    fn run(&self, isa: Isa, chunks: &[usize]) -> (Vec<f32>, Vec<f32>) {
        let layer = GatedDelta {
            shape: self.shape,
            order: self.order,
            conv: &self.conv,
        };
        let head_out = self.shape.group() * self.shape.value_dim;
        let mut state = vec![0.0; self.shape.state()];
        let mut out = vec![f32::NAN; self.rows * self.shape.key_heads * head_out];
        let mut scratch = DeltaScratch::default();
        let (mut first, mut lengths) = (0, chunks.iter().cycle());
        while first < self.rows {
            let last = (first + lengths.next().unwrap()).min(self.rows);
            let part = |x: &'_ [f32], width: usize| x[first * width..last * width].to_vec();
            let (mixed, decay, beta) = (
                part(&self.mixed, self.shape.channels()),
                part(&self.decay, self.shape.value_heads),
                part(&self.beta, self.shape.value_heads),
            );
            let rows = DeltaRows {
                mixed: &mixed,
                decay: &decay,
                beta: &beta,
            };
            let states = state.chunks_exact_mut(self.shape.head_state());
            for (head, state) in states.enumerate() {
                let mut of_head = vec![f32::NAN; (last - first) * head_out];
                layer.read(isa, head, &rows, state, &mut of_head, &mut scratch);
                for (row, values) in of_head.chunks_exact(head_out).enumerate() {
                    let at = ((first + row) * self.shape.key_heads + head) * head_out;
                    out[at..at + head_out].copy_from_slice(values);
                }
            }
            first = last;
        }
        (out, state)
    }

    /// The definition, row by row and number by number.
    fn oracle(&self) -> Vec<f64> {
        let DeltaShape {
            key_heads,
            value_heads,
            key_dim,
            value_dim,
            taps,
        } = self.shape;
        let (channels, group) = (self.shape.channels(), value_heads / key_heads);
        let convolved = |row: usize, channel: usize| -> f64 {
            let sum: f64 = (0..taps)
                .filter(|tap| row + tap + 1 >= taps)
                .map(|tap| {
                    let x = self.mixed[(row + tap + 1 - taps) * channels + channel];
                    f64::from(self.conv[tap * channels + channel]) * f64::from(x)
                })
                .sum();
            sum / (1.0 + (-sum).exp())
        };
        let unit = |row: usize, first: usize| -> Vec<f64> {
            let x: Vec<f64> = (first..first + key_dim)
                .map(|c| convolved(row, c))
                .collect();
            let length = (x.iter().map(|x| x * x).sum::<f64>() + 1e-6).sqrt();
            x.iter().map(|x| x / length).collect()
        };
        let mut out = vec![0.0; self.rows * value_heads * value_dim];
        for head in 0..key_heads {
            for member in 0..group {
                let value_head = match self.order {
                    HeadOrder::Grouped => head * group + member,
                    HeadOrder::Tiled => member * key_heads + head,
                };
                // A column of the state belongs to a channel of the value.
                let mut state = vec![vec![0.0f64; key_dim]; value_dim];
                for row in 0..self.rows {
                    let (q, k) = (
                        unit(row, head * key_dim),
                        unit(row, (key_heads + head) * key_dim),
                    );
                    let dot =
                        |a: &[f64], b: &[f64]| -> f64 { a.iter().zip(b).map(|(a, b)| a * b).sum() };
                    let gate = row * value_heads + value_head;
                    let (decay, beta) = (f64::from(self.decay[gate]), f64::from(self.beta[gate]));
                    let first = 2 * key_heads * key_dim + value_head * value_dim;
                    for (channel, column) in state.iter_mut().enumerate() {
                        column.iter_mut().for_each(|s| *s *= decay);
                        let u = beta * (convolved(row, first + channel) - dot(&k, column));
                        column.iter_mut().zip(&k).for_each(|(s, k)| *s += k * u);
                        let at = (row * value_heads + head * group + member) * value_dim + channel;
                        out[at] = dot(&q, column) / (key_dim as f64).sqrt();
                    }
                }
            }
        }
        out
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn every_instruction_set_follows_the_definition(
        key_heads in 1usize..4, group in 1usize..4, key_dim in 1usize..40,
        value_dim in 1usize..150, taps in 1usize..6, tiled in any::<bool>(), seed in any::<u64>(),
    ) {
        let shape = DeltaShape { key_heads, value_heads: key_heads * group, key_dim, value_dim, taps };
        let order = if tiled { HeadOrder::Tiled } else { HeadOrder::Grouped };
        let case = Case::new(shape, order, 37, seed);
        let expected = case.oracle();
        let largest = expected.iter().fold(1e-3f64, |a, b| a.max(b.abs()));
        for isa in Isa::available() {
            let (got, state) = case.run(isa, &[37]);
            for (at, (got, expected)) in got.iter().zip(&expected).enumerate() {
                let off = (f64::from(*got) - expected).abs();
                prop_assert!(off <= 2e-5 * largest, "{isa} {shape:?} at {at}: {got}, not {expected}");
            }
            // Sixes and ones cross the edges of tiles in every way.
            for chunks in [&[1usize][..], &[6, 1], &[16, 5]] {
                let (other, other_state) = case.run(isa, chunks);
                prop_assert!(other == got && other_state == state, "{isa} in chunks of {chunks:?}");
            }
        }
    }
}
