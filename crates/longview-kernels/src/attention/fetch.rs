//! Memory that is asked for while something else is computed.

use crate::lanes::Lanes;

/// Bytes that will be read soon. A core has only so many lines on their way at once, and what is asked for
/// beyond them makes it wait: so every step of the work on a page asks for its share of the next page,
/// evenly.
#[derive(Clone, Copy)]
pub(super) struct Fetch<'a> {
    bytes: &'a [u8],
}

/// A line of cache.
const LINE: usize = 64;

impl<'a> Fetch<'a> {
    pub(super) const NOTHING: Fetch<'static> = Fetch { bytes: &[] };

    pub(super) fn of(bytes: &'a [u8]) -> Fetch<'a> {
        Fetch { bytes }
    }

    /// The part of it from `from` to `to`, counted in `whole` parts.
    pub(super) fn part(self, from: usize, to: usize, whole: usize) -> Fetch<'a> {
        let edge = |part: usize| {
            let at = self.bytes.len() * part / whole;
            at.next_multiple_of(LINE).min(self.bytes.len())
        };
        Fetch::of(&self.bytes[edge(from)..edge(to)])
    }

    /// Asks for all of it now.
    #[inline(always)]
    pub(super) fn ask<L: Lanes>(self, l: L) {
        for line in self.bytes.chunks(LINE) {
            l.prefetch(line.as_ptr());
        }
    }

    /// Lines of cache.
    pub(super) fn lines(self) -> usize {
        self.bytes.len().div_ceil(LINE)
    }

    /// Asks for all of it in `calls` calls of [`Pace::next`], of which there are to be as many as lines at
    /// least: others would be left out.
    #[inline(always)]
    pub(super) fn pace(self, calls: usize) -> Pace {
        // Where there is nothing to fetch, a line that is there anyway is asked for again.
        static NEAR: [u8; LINE] = [0; LINE];
        let (at, lines) = match self.bytes {
            [] => (NEAR.as_ptr(), 0),
            bytes => (bytes.as_ptr(), self.lines()),
        };
        // Sizes of pages: 32 bits hold them, and divide faster. Rounded down, the last line would be left out.
        let step = ((lines * LINE) as u32).div_ceil(calls.max(1) as u32);
        Pace {
            at,
            middle: at.wrapping_add(lines / 2 * LINE),
            step: step as usize,
        }
    }
}

/// A [`Fetch`] in equal steps.
#[derive(Clone, Copy)]
pub(super) struct Pace {
    at: *const u8,
    /// What [`Pace::next_of_halves`] asks for after that.
    middle: *const u8,
    /// Bytes.
    step: usize,
}

impl Pace {
    /// Whether there is anything to fetch.
    #[inline(always)]
    pub(super) fn has_lines(&self) -> bool {
        self.step > 0
    }

    /// Asks for what is next: the same line again where there are more calls than lines.
    #[inline(always)]
    pub(super) fn next<L: Lanes>(&mut self, l: L) {
        l.prefetch(self.at);
        self.at = self.at.wrapping_add(self.step);
    }

    /// The same in turns from the first half and the second, where both are of a kilobyte and more: some
    /// processors bring more from two places at once. For paces of which nothing was asked otherwise.
    #[inline(always)]
    pub(super) fn next_of_halves<L: Lanes>(&mut self, l: L) {
        l.prefetch(self.at);
        let after = self.at.wrapping_add(self.step);
        (self.at, self.middle) = (self.middle, after);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_cover_what_they_are_parts_of() {
        let bytes = [0u8; 64 * 9 + 5];
        let all = Fetch::of(&bytes);
        let lens = [(0, 1), (1, 3), (3, 4)].map(|(from, to)| all.part(from, to, 4).bytes.len());
        assert_eq!(lens.iter().sum::<usize>(), bytes.len());
        assert!(lens.iter().take(2).all(|len| len % LINE == 0));
        assert_eq!((all.lines(), Fetch::NOTHING.lines()), (10, 0));
        assert_eq!((all.pace(20).step, Fetch::NOTHING.pace(0).step), (32, 0));
    }

    #[test]
    fn a_pace_leaves_no_line_out() {
        let bytes = [0u8; 40 * LINE];
        for lines in 1..=40 {
            let all = Fetch::of(&bytes[..lines * LINE]);
            for calls in lines..=100 {
                let step = all.pace(calls).step;
                let mut asked: Vec<_> = (0..calls).map(|call| call * step / LINE).collect();
                asked.dedup();
                assert!(
                    asked.iter().take(lines).copied().eq(0..lines),
                    "{lines} lines in {calls} calls"
                );
            }
        }
    }
}
