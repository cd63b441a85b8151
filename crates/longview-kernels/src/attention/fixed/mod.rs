//! Pages of codes, read in whole numbers.
//!
//! A number of a page is `middle + scale · (code - c)` with the codes' own middle `c`; in dotted forms
//! `middle` is 0. A sum of such numbers times factors of a row is a sum of codes times whole numbers,
//! if the scale goes into the factor or is the same for all that is summed over:
//!
//! - kivi scores: a sum over channels, each of which has one scale for a group of tokens. The query is
//!   multiplied with the scales first, `u = q · scale`, and the score is
//!   `Σ q · middle + Σ u · (code - c)`.
//! - dotted scores: every token has one scale for a block of channels. The query itself is rounded, `u = q`,
//!   once for all pages, and the score is a sum over blocks of `scale · Σ u · (code - c)`.
//! - outputs: a sum over tokens of values times weights, `u = weight · scale`.
//!
//! In all of them the factors `u` are rounded to whole numbers `x = round(u / step)` of 16 bits, or of 8,
//! where `step` is chosen anew for each row and each set of factors such that the largest just fits.
//! So products of bytes do the work, four to a place of a vector, and their sums are exact; a factor of
//! 16 bits is two bytes. What that adds to a sum is at most `step / 2 · Σ |code - c|`. Rows and pages
//! are rounded apart from one another, and slots that a row does not see count as 0, therefore no bit
//! depends on what else is computed.

mod dots;
mod factors;

pub(super) use dots::{DotCodes, Into, ScoreCodes};
pub(super) use factors::{FixQueries, FixRows, FixWeights};

use super::TILE_ROWS;
use crate::page::{CodeBits, KvType, QUAD, QUANT_BLOCK, QueryBits};
use crate::{AlignedBytes, Floats};

/// Fours of bytes that lie together: the factors of so many numbers of a row and one of its bytes.
const SEGMENT: usize = 16;

/// Factors are padded with zeros to a multiple of this: four vectors.
const PADDING: usize = SEGMENT * QUAD;

/// Factors below this count as 0: what they belong to cannot be seen beside any other.
const LEAST: f32 = 1e-30;

/// Factors as whole numbers, for the rows of a tile and the sets of places that have their own; perhaps for
/// several tiles, each with a region of as many sets, which are counted as if a tile had all its rows.
#[derive(Default)]
pub(super) struct Fixed {
    /// `[sets][segments][rows][bytes][SEGMENT]`, each four bytes side by side.
    quads: AlignedBytes,
    /// `[sets][rows]`: what a whole number stands for.
    step: Vec<f32>,
    /// `[sets][rows]`: what every place of a row begins with.
    base: Vec<f32>,
    /// `[rows][summed padded]`: factors before they are rounded.
    numbers: Floats,
}

impl Fixed {
    /// Makes room for `sets` sets of factors of `summed` numbers.
    #[inline]
    pub(super) fn reserve(&mut self, sets: usize, summed: usize) {
        let quads = 4 * sets * segments(summed) * TILE_ROWS * 2 * SEGMENT;
        let numbers = TILE_ROWS * summed.next_multiple_of(PADDING);
        if self.quads.len() < quads
            || self.step.len() < sets * TILE_ROWS
            || self.numbers.len() < numbers
        {
            self.grow(quads, sets * TILE_ROWS, numbers);
        }
    }

    #[cold]
    fn grow(&mut self, quads: usize, steps: usize, numbers: usize) {
        if self.quads.len() < quads {
            self.quads = AlignedBytes::zeroed(quads);
        }
        for room in [&mut self.step, &mut self.base] {
            if room.len() < steps {
                room.resize(steps, 0.0);
            }
        }
        self.numbers.at_least(numbers);
    }

    /// Bytes of memory held.
    pub(super) fn bytes(&self) -> usize {
        let floats = self.step.len() + self.base.len() + self.numbers.capacity();
        self.quads.len() + 4 * floats
    }

    /// The sets from `first` on of those in region `region`, of `rows` rows with factors of `bytes` bytes.
    fn sets(
        &self,
        region: usize,
        first: usize,
        summed: usize,
        rows: usize,
        bytes: usize,
    ) -> Sets<'_> {
        let at = region * TILE_ROWS + first * rows;
        Sets {
            quads: &self.quads[at * segments(summed) * bytes * SEGMENT * QUAD..],
            step: &self.step[at..],
            base: &self.base[at..],
        }
    }
}

/// Sets of factors.
#[derive(Clone, Copy)]
struct Sets<'a> {
    quads: &'a [u8],
    step: &'a [f32],
    base: &'a [f32],
}

/// Segments of `summed` numbers.
fn segments(summed: usize) -> usize {
    summed.div_ceil(PADDING)
}

/// `u / step` as whole numbers, and the step, which is NaN where a factor is: the definition.
pub(super) fn whole(u: &[f32], queries: QueryBits) -> (Vec<i32>, f32) {
    let larger = |most: f32, u: &f32| match u.is_nan() || most.is_nan() {
        true => f32::NAN,
        false => most.max(u.abs()),
    };
    let largest = u.iter().fold(0.0, larger);
    let limit = queries.limit();
    let inverse = if largest < LEAST {
        0.0
    } else {
        limit / largest
    };
    let x = u.iter().map(|u| (u * inverse).round_ties_even() as i32);
    (x.collect(), largest / limit)
}

/// What is read in whole numbers: how its codes lie, what they are multiplied with, and its scales.
#[derive(Clone, Copy)]
pub(super) struct Groups<'a> {
    pub codes: CodeBits,
    pub queries: QueryBits,
    /// Numbers that share a scale: tokens of a kivi key's channel, channels of a token elsewhere.
    pub places: usize,
    /// In half precision.
    pub scales: &'a [u8],
    /// In half precision, as many; empty in dotted forms.
    pub middles: &'a [u8],
}

impl<'a> Groups<'a> {
    /// Sets of factors for `across` numbers.
    fn sets(&self, across: usize) -> usize {
        (across + self.places - 1) >> self.places_log()
    }

    /// The set of number `at`.
    fn set_of(&self, at: usize) -> usize {
        at >> self.places_log()
    }

    /// To shift by rather than divide: this is asked several times a page.
    fn places_log(&self) -> u32 {
        assert!(matches!(self.places, 32 | 64));
        self.places.trailing_zeros()
    }

    /// Those of a page's keys, or of its values, whose `scales` follow the codes. `None` of forms that are
    /// not read in whole numbers.
    pub(super) fn new(kv_type: KvType, scales: &'a [u8]) -> Option<Groups<'a>> {
        match kv_type {
            KvType::Kivi(kivi) => {
                let (scales, middles) = scales.split_at(scales.len() / 2);
                Some(Groups {
                    codes: kivi.codes(),
                    queries: kivi.queries.bits(),
                    places: kivi.group.tokens(),
                    scales,
                    middles,
                })
            }
            KvType::Dotted(dotted) => Some(Groups {
                codes: dotted.codes(),
                queries: dotted.queries,
                places: QUANT_BLOCK,
                scales,
                middles: &[],
            }),
            _ => None,
        }
    }
}
