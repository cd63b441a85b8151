//! Codes that lie as products of bytes read them.
//!
//! Four numbers that are summed over (channels of a key, tokens of a value) are side by side, and
//! sixteen times four of them, of as many tokens of a key or channels of a value, in 64 bytes, which
//! hold one, two or four such runs in the bits of a byte, the first in the lowest.

/// Numbers of a run: the places of one vector of 64 bytes.
const RUN: usize = 16;

/// Bytes that hold some runs of codes, four codes to each place.
pub(crate) const RUN_BYTES: usize = 64;

/// Numbers, side by side in what is summed over, that lie in the same place.
pub(crate) const QUAD: usize = 4;

/// Bits of a code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum CodeBits {
    Eight,
    Four,
    Two,
}

impl CodeBits {
    /// Bytes of the codes of `summed` times `across` numbers.
    pub(crate) fn codes_bytes(self, summed: usize, across: usize) -> usize {
        summed.div_ceil(QUAD) * self.quad_bytes(across)
    }

    /// Bytes of four numbers that are summed over, each `across` times.
    pub(crate) fn quad_bytes(self, across: usize) -> usize {
        across.div_ceil(RUN * self.runs()) * RUN_BYTES
    }

    /// Numbers that there is room for where there are `across`.
    pub(crate) fn padded(self, across: usize) -> usize {
        across.next_multiple_of(RUN * self.runs())
    }

    /// Where the code of number `at` of those summed over, at place `lane` of `across`, is: its byte
    /// and how far up in it.
    #[inline]
    pub(crate) fn place(self, at: usize, lane: usize, across: usize) -> (usize, u32) {
        let runs = self.runs();
        let (block, within) = (lane / (RUN * runs), lane % (RUN * runs));
        let byte = at / QUAD * self.quad_bytes(across)
            + block * RUN_BYTES
            + within % RUN * QUAD
            + at % QUAD;
        (byte, (within / RUN) as u32 * self.count())
    }

    /// The code there.
    #[inline]
    pub(crate) fn code(self, codes: &[u8], at: usize, lane: usize, across: usize) -> u8 {
        let (byte, shift) = self.place(at, lane, across);
        codes[byte] >> shift & self.mask()
    }

    /// The codes of number `at` of those summed over, less their middle, at the first places of `across`.
    #[inline(always)]
    pub(crate) fn row(self, codes: &[u8], (at, across): (usize, usize), out: &mut [f32]) {
        let quad_bytes = self.quad_bytes(across);
        let quad = &codes[at / QUAD * quad_bytes..][..quad_bytes];
        let lines = quad.chunks_exact(RUN_BYTES);
        for (line, out) in lines.zip(out.chunks_mut(RUN * self.runs())) {
            for (run, out) in out.chunks_mut(RUN).enumerate() {
                // Four numbers lie side by side, as the bytes of a word.
                let shift = (at % QUAD) as u32 * 8 + run as u32 * self.count();
                for (x, place) in out.iter_mut().zip(line.as_chunks::<QUAD>().0) {
                    let code = u32::from_le_bytes(*place) >> shift & u32::from(self.mask());
                    *x = code as i32 as f32 - self.middle();
                }
            }
        }
    }

    /// Writes a code there.
    #[inline]
    pub(crate) fn put(self, codes: &mut [u8], (at, lane): (usize, usize), across: usize, code: u8) {
        let (byte, shift) = self.place(at, lane, across);
        codes[byte] = codes[byte] & !(self.mask() << shift) | code << shift;
    }

    /// Bits of a code.
    pub(crate) fn count(self) -> u32 {
        match self {
            CodeBits::Eight => 8,
            CodeBits::Four => 4,
            CodeBits::Two => 2,
        }
    }

    /// Codes that share a byte.
    pub(crate) fn runs(self) -> usize {
        8 / self.count() as usize
    }

    /// The bits of the first code of a byte.
    pub(crate) fn mask(self) -> u8 {
        u8::MAX >> (8 - self.count())
    }

    /// What a code is counted from: the middle of the codes, of bytes the one that stands for 0.
    pub(crate) fn middle(self) -> f32 {
        match self {
            CodeBits::Eight => 128.0,
            CodeBits::Four => 7.5,
            CodeBits::Two => 1.5,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_have_places_of_their_own() {
        for (bits, across) in [
            (CodeBits::Eight, 64),
            (CodeBits::Eight, 33),
            (CodeBits::Four, 64),
            (CodeBits::Two, 64),
            (CodeBits::Four, 33),
        ] {
            let mut seen = std::collections::HashSet::new();
            for (at, lane) in (0..10).flat_map(|at| (0..across).map(move |lane| (at, lane))) {
                let (byte, shift) = bits.place(at, lane, across);
                assert!(byte < bits.codes_bytes(10, across) && shift + bits.count() <= 8);
                assert!(seen.insert((byte, shift)), "{at} {lane}");
            }
        }
        // Channels 4 and 5 of token 17, of token 32: the second quad, its second run and second line.
        let place = |at, lane| CodeBits::Four.place(at, lane, 64);
        assert_eq!((place(4, 17), place(5, 32)), ((132, 4), (193, 0)));
        // A byte a code: the second line of the second quad.
        assert_eq!(CodeBits::Eight.place(5, 17, 64), (256 + 64 + 4 + 1, 0));
    }

    #[test]
    fn what_is_put_is_read_back_and_its_neighbours_stay() {
        for bits in [CodeBits::Eight, CodeBits::Four, CodeBits::Two] {
            let mut codes = vec![0; bits.codes_bytes(6, 40)];
            let code = |at: usize, lane: usize| (at * 7 + lane * 3) as u8 & bits.mask();
            for (at, lane) in (0..6).flat_map(|at| (0..40).map(move |lane| (at, lane))) {
                bits.put(&mut codes, (at, lane), 40, code(at, lane));
            }
            bits.put(&mut codes, (3, 17), 40, bits.mask());
            bits.put(&mut codes, (3, 17), 40, code(3, 17));
            for (at, lane) in (0..6).flat_map(|at| (0..40).map(move |lane| (at, lane))) {
                assert_eq!(bits.code(&codes, at, lane, 40), code(at, lane));
            }
        }
    }
}
