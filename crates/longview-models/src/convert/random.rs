//! Random tensors, made directly in the blocks of a format.

use half::{bf16, f16};
use longview_kernels::Format;

/// Random weights of one tensor: mean 0, a given standard deviation. The bits of an element depend
/// on the seed, the tensor and the element's place alone, not on threads or pieces.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Noise {
    /// Chosen by the user.
    pub(crate) seed: u64,
    /// Number of the tensor in its file.
    pub(crate) tensor: u64,
    /// Standard deviation.
    pub(crate) deviation: f32,
}

/// A stream of random bits.
struct Bits(u64);

impl Bits {
    /// The next 64 bits (a Weyl sequence through a mixing function, as in SplitMix64).
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Fills `out` with random bytes.
    fn fill(&mut self, out: &mut [u8]) {
        for chunk in out.chunks_mut(8) {
            chunk.copy_from_slice(&self.next().to_le_bytes()[..chunk.len()]);
        }
    }

    /// Uniform from −1 to 1.
    fn unit(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }
}

impl Noise {
    /// Fills `out` with blocks of `format`, the first of which holds element `first` of the tensor.
    ///
    /// # Panics
    /// For formats that are only read.
    pub(crate) fn fill(&self, format: Format, first: usize, out: &mut [u8]) {
        let block = if format.is_float() {
            1
        } else {
            format.block_len()
        };
        let places = (first / block) as u64..;
        for (place, out) in places.zip(out.chunks_exact_mut(format.block_bytes())) {
            self.block(format, place, out);
        }
    }

    /// Levels are uniform; scales are such that levels times scales have the deviation asked for.
    fn block(&self, format: Format, place: u64, out: &mut [u8]) {
        let mut bits = Bits(
            self.seed
                .wrapping_add(self.tensor.wrapping_mul(0xd134_2543_de82_ef95))
                .rotate_left(17)
                ^ place.wrapping_mul(0xf135_7aea_2e62_a9c5),
        );
        // Every block's scale varies a little, as trained ones do.
        let scale = |bits: &mut Bits, levels: f32| {
            f16::from_f32(self.deviation / deviation_of(levels) * (1.0 + 0.25 * bits.unit()))
        };
        let put = |out: &mut [u8], offset: usize, value: f16| {
            out[offset..offset + 2].copy_from_slice(&value.to_le_bytes());
        };
        match format {
            Format::F32 | Format::F16 | Format::BF16 => {
                // A uniform distribution of half width √3 has deviation 1.
                let value = self.deviation * 3f32.sqrt() * bits.unit();
                match format {
                    Format::F32 => out.copy_from_slice(&value.to_le_bytes()),
                    Format::F16 => put(out, 0, f16::from_f32(value)),
                    _ => out.copy_from_slice(&bf16::from_f32(value).to_le_bytes()),
                }
            }
            Format::Q4_0 => {
                bits.fill(&mut out[2..]);
                put(out, 0, scale(&mut bits, 16.0));
            }
            Format::Q5_0 => {
                bits.fill(&mut out[2..]);
                put(out, 0, scale(&mut bits, 32.0));
            }
            Format::Q5_1 => {
                bits.fill(&mut out[4..]);
                let d = scale(&mut bits, 32.0);
                put(out, 0, d);
                put(out, 2, f16::from_f32(-15.5 * d.to_f32()));
            }
            Format::Q8_0 => {
                bits.fill(&mut out[2..]);
                // −128 is never written by quantisers.
                for byte in out[2..].iter_mut().filter(|byte| **byte == 128) {
                    *byte = 129;
                }
                put(out, 0, scale(&mut bits, 256.0));
            }
            Format::Q4_K | Format::Q5_K => {
                let levels = if format == Format::Q4_K { 16.0 } else { 32.0 };
                bits.fill(&mut out[16..]);
                // All sub-blocks have the scale and the offset 63; the middle level becomes 0.
                out[4..12].fill(255);
                out[12..16].fill(255);
                let d = scale(&mut bits, levels).to_f32() / 63.0;
                put(out, 0, f16::from_f32(d));
                put(out, 2, f16::from_f32(d * (levels - 1.0) / 2.0));
            }
            Format::Q6_K => {
                bits.fill(&mut out[..192]);
                out[192..208].fill(127);
                let d = scale(&mut bits, 64.0).to_f32() / 127.0;
                put(out, 208, f16::from_f32(d));
            }
            other => unreachable!("no recipe writes {other}"),
        }
    }
}

/// Standard deviation of whole numbers spread evenly over `levels` neighbours.
fn deviation_of(levels: f32) -> f32 {
    ((levels * levels - 1.0) / 12.0).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;
    use longview_kernels::format::dequantize;

    #[test]
    fn every_format_has_the_deviation_asked_for_and_mean_zero() {
        let formats = [
            Format::F32,
            Format::F16,
            Format::BF16,
            Format::Q8_0,
            Format::Q6_K,
            Format::Q5_K,
            Format::Q5_1,
            Format::Q5_0,
            Format::Q4_K,
            Format::Q4_0,
        ];
        for format in formats {
            let noise = Noise {
                seed: 1,
                tensor: 2,
                deviation: 0.02,
            };
            let count = 64 * 1024;
            let mut bytes = vec![0; format.bytes_for(count).unwrap()];
            noise.fill(format, 0, &mut bytes);
            let mut values = vec![0.0; count];
            dequantize(format, &bytes, &mut values);
            let mean = values.iter().sum::<f32>() / count as f32;
            let square = values.iter().map(|v| v * v).sum::<f32>() / count as f32;
            // Levels from −8 to 7 have their middle at −½, a thirtieth of the range.
            assert!(mean.abs() < 0.004, "{format}: mean {mean}");
            let deviation = square.sqrt();
            assert!(
                (0.018..0.0225).contains(&deviation),
                "{format}: {deviation}"
            );
        }
    }

    #[test]
    fn bits_depend_on_seed_tensor_and_place_alone() {
        let noise = Noise {
            seed: 9,
            tensor: 0,
            deviation: 1.0,
        };
        let bytes = |noise: Noise, first: usize, count: usize| {
            let mut bytes = vec![0; Format::Q4_0.bytes_for(count).unwrap()];
            noise.fill(Format::Q4_0, first, &mut bytes);
            bytes
        };
        let whole = bytes(noise, 0, 256);
        assert_eq!(bytes(noise, 128, 128), whole[72..]);
        assert_ne!(bytes(Noise { seed: 8, ..noise }, 0, 256), whole);
        assert_ne!(bytes(Noise { tensor: 1, ..noise }, 0, 256), whole);
    }
}
