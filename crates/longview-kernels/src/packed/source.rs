//! Block bytes of a file → codes and scales of one segment, for packing.

use super::layout::{BLOCK, SEGMENT};
use crate::format::{Format, iq4_xs_scales, q3_k_scales, scales_and_mins};

/// One row's part of a segment: up to 256 elements.
pub(super) struct RowSegment {
    /// Codes as 32-bit words of four elements, `[block][group]`, unsigned.
    pub(super) words: [[u32; BLOCK / 4]; SEGMENT],
    /// What goes into the scale plane: the bytes of one block's lane, in plane order, little endian.
    pub(super) scales: [[u8; 4]; SEGMENT],
    /// The f16 factors of the segment.
    pub(super) factors: [[u8; 2]; 2],
}

impl RowSegment {
    /// Zeros: what padding rows hold.
    pub(super) const ZERO: RowSegment = RowSegment {
        words: [[0; BLOCK / 4]; SEGMENT],
        scales: [[0; 4]; SEGMENT],
        factors: [[0; 2]; 2],
    };

    /// Reads the blocks in `bytes`: one K block, or up to eight 32-element blocks.
    pub(super) fn read(&mut self, format: Format, bytes: &[u8]) {
        if format.block_len() == 256 {
            self.read_k_block(format, bytes);
        } else {
            for (b, block) in bytes.chunks_exact(format.block_bytes()).enumerate() {
                self.read_block(format, b, block);
            }
        }
    }

    fn read_block(&mut self, format: Format, b: usize, block: &[u8]) {
        let words = &mut self.words[b];
        self.scales[b] = [block[0], block[1], 0, 0];
        match format {
            Format::Q4_0 | Format::IQ4_NL => nibbles(&block[2..], words),
            Format::Q4_1 => {
                self.scales[b] = [block[0], block[1], block[2], block[3]];
                nibbles(&block[4..], words);
            }
            Format::Q5_0 => {
                nibbles(&block[6..], words);
                fifth_bits(&block[2..], words);
            }
            Format::Q5_1 => {
                self.scales[b] = [block[0], block[1], block[2], block[3]];
                nibbles(&block[8..], words);
                fifth_bits(&block[4..], words);
            }
            _ => {
                for (g, word) in words.iter_mut().enumerate() {
                    *word = word_at(block, 2 + 4 * g) ^ 0x8080_8080;
                }
            }
        }
    }

    fn read_k_block(&mut self, format: Format, block: &[u8]) {
        let factor = |at: usize| [block[at], block[at + 1]];
        match format {
            Format::Q2_K => {
                self.factors = [factor(80), factor(82)];
                for (b, scales) in self.scales.iter_mut().enumerate() {
                    *scales = [block[2 * b], block[2 * b + 1], 0, 0];
                }
                self.each_word(|b, g| two_bits(&block[16..80], b, g));
            }
            Format::Q3_K => {
                self.factors[0] = factor(108);
                let small = q3_k_scales(&block[96..108]);
                for (b, scales) in self.scales.iter_mut().enumerate() {
                    *scales = [small[2 * b] as u8, small[2 * b + 1] as u8, 0, 0];
                }
                self.each_word(|b, g| {
                    two_bits(&block[32..96], b, g) | one_bit(&block[..32], b, g) << 2
                });
            }
            Format::Q4_K | Format::Q5_K => {
                self.factors = [factor(0), factor(2)];
                let pairs = scales_and_mins(&block[4..16]);
                for (scales, (scale, min)) in self.scales.iter_mut().zip(pairs) {
                    *scales = [scale, min, 0, 0];
                }
                let fives = format == Format::Q5_K;
                let nibbles = if fives { &block[48..] } else { &block[16..] };
                self.each_word(|b, g| {
                    let low = word_at(nibbles, 32 * (b / 2) + 4 * g) >> (4 * (b % 2)) & 0x0f0f_0f0f;
                    if fives {
                        low | one_bit(&block[16..48], b, g) << 4
                    } else {
                        low
                    }
                });
            }
            Format::Q6_K => {
                self.factors[0] = factor(208);
                for (b, scales) in self.scales.iter_mut().enumerate() {
                    *scales = [block[192 + 2 * b], block[193 + 2 * b], 0, 0];
                }
                self.each_word(|b, g| {
                    let (h, j) = (b / 4, b % 4);
                    let low = word_at(block, 64 * h + 32 * (j % 2) + 4 * g) >> (4 * (j / 2));
                    low & 0x0f0f_0f0f | two_bits(&block[128..192], b, g) << 4
                });
            }
            _ => {
                self.factors[0] = factor(0);
                let small = iq4_xs_scales(&block[2..8]);
                for (scales, small) in self.scales.iter_mut().zip(small) {
                    *scales = [small as u8, 0, 0, 0];
                }
                for (b, words) in self.words.iter_mut().enumerate() {
                    nibbles(&block[8 + 16 * b..], words);
                }
            }
        }
    }

    fn each_word(&mut self, word: impl Fn(usize, usize) -> u32) {
        for (b, words) in self.words.iter_mut().enumerate() {
            for (g, target) in words.iter_mut().enumerate() {
                *target = word(b, g);
            }
        }
    }
}

fn word_at(bytes: &[u8], at: usize) -> u32 {
    let word = bytes[at..at + 4].first_chunk();
    u32::from_le_bytes(*word.expect("four bytes are a word"))
}

/// 16 bytes: element `j` low, element `j + 16` high.
fn nibbles(bytes: &[u8], words: &mut [u32; 8]) {
    for g in 0..4 {
        let both = word_at(bytes, 4 * g);
        words[g] = both & 0x0f0f_0f0f;
        words[g + 4] = both >> 4 & 0x0f0f_0f0f;
    }
}

/// Adds bit `i` of the 32-bit array as the fifth bit of element `i`.
fn fifth_bits(bytes: &[u8], words: &mut [u32; 8]) {
    let bits = word_at(bytes, 0);
    for (g, word) in words.iter_mut().enumerate() {
        let four = bits >> (4 * g);
        *word |= (four & 1) << 4 | (four & 2) << 11 | (four & 4) << 18 | (four & 8) << 25;
    }
}

/// Group `g` of block `b` of a 64-byte array of two-bit fields.
fn two_bits(array: &[u8], b: usize, g: usize) -> u32 {
    word_at(array, 32 * (b / 4) + 4 * g) >> (2 * (b % 4)) & 0x0303_0303
}

/// Group `g` of block `b` of a 32-byte array of bits.
fn one_bit(array: &[u8], b: usize, g: usize) -> u32 {
    word_at(array, 4 * g) >> b & 0x0101_0101
}
