//! The weighted values of one register tile.

use std::ops::Range;

use super::element::Element;
use super::fetch::Fetch;
use crate::Floats;
use crate::lanes::{Kernel, Lanes};
use crate::page::{KvType, PAGE_TOKENS, QUANT_BLOCK, scale_number};

/// Whether values are codes, whose scales have been multiplied into the weights.
pub(super) trait Scaling: Copy {
    fn is_scaled(self) -> bool;
}

/// Values are the numbers themselves: one set of weights.
#[derive(Clone, Copy)]
pub(super) struct Unscaled;

/// Values are codes: a set of weights for every block of 32 channels.
#[derive(Clone, Copy)]
pub(super) struct Scaled;

impl Scaling for Unscaled {
    #[inline(always)]
    fn is_scaled(self) -> bool {
        false
    }
}

impl Scaling for Scaled {
    #[inline(always)]
    fn is_scaled(self) -> bool {
        true
    }
}

/// `acc [R][stride] = acc * scale + Σ weight * value` over the `slots` of a page, while some of
/// the next page is being fetched.
pub(super) struct ValueTile<'a, E, S, const R: usize> {
    pub element: E,
    pub scaling: S,
    pub slots: Range<usize>,
    /// `[sets][at least R][64]`, the sets `set_len` apart.
    pub weights: &'a [f32],
    pub set_len: usize,
    pub scale: &'a [f32],
    /// `[64][row_bytes]`
    pub v: &'a [u8],
    pub acc: &'a mut [f32],
    pub next: Fetch<'a>,
}

impl<E: Element, S: Scaling, const R: usize> Kernel for ValueTile<'_, E, S, R> {
    type Output = ();

    fn scalar(self) {
        let stride = self.acc.len() / R;
        let row_bytes = E::TYPE.row_bytes(stride);
        for (r, acc) in self.acc.chunks_exact_mut(stride).enumerate() {
            acc.iter_mut().for_each(|a| *a *= self.scale[r]);
            for slot in self.slots.clone() {
                for (d, a) in acc.iter_mut().enumerate() {
                    let set = if self.scaling.is_scaled() {
                        d / QUANT_BLOCK
                    } else {
                        0
                    };
                    let weight = self.weights[set * self.set_len + r * PAGE_TOKENS + slot];
                    *a += weight * E::TYPE.get(&self.v[slot * row_bytes..], d);
                }
            }
        }
    }

    #[inline(always)]
    fn lanes<L: Lanes>(mut self, l: L) {
        let stride = self.acc.len() / R;
        let sets = if self.scaling.is_scaled() {
            stride.div_ceil(QUANT_BLOCK)
        } else {
            1
        };
        assert!(self.acc.len() == R * stride && stride.is_multiple_of(16));
        assert!(self.weights.len() >= (sets - 1) * self.set_len + R * PAGE_TOKENS);
        assert!(self.scale.len() == R);
        assert!(self.slots.start <= self.slots.end && self.slots.end <= PAGE_TOKENS);
        assert!(self.v.len() >= self.slots.end * E::TYPE.row_bytes(stride));
        let mut first = 0;
        if L::WIDTH == 16 {
            while stride - first >= 64 {
                self.channels::<L, 4>(l, stride, first);
                first += 64;
            }
            match stride - first {
                16 => self.channels::<L, 1>(l, stride, first),
                32 => self.channels::<L, 2>(l, stride, first),
                48 => self.channels::<L, 3>(l, stride, first),
                _ => (),
            }
        } else {
            if R <= 2 {
                while stride - first >= 32 {
                    self.channels::<L, 4>(l, stride, first);
                    first += 32;
                }
            }
            while first < stride {
                self.channels::<L, 2>(l, stride, first);
                first += 16;
            }
        }
    }
}

impl<E: Element, S: Scaling, const R: usize> ValueTile<'_, E, S, R> {
    /// The `C` vectors of channels from `first` on, which is a multiple of 32 where they are more
    /// than 16 channels.
    #[inline(always)]
    fn channels<L: Lanes, const C: usize>(&mut self, l: L, stride: usize, first: usize) {
        let acc_start = self.acc.as_mut_ptr();
        let mut acc = [[l.splat(0.0); C]; R];
        for (r, acc) in acc.iter_mut().enumerate() {
            let scale = l.splat(self.scale[r]);
            for (c, acc) in acc.iter_mut().enumerate() {
                // SAFETY: `acc` holds R rows of `stride` numbers, and the caller keeps
                // `first + C * WIDTH` within `stride`.
                let so_far =
                    unsafe { l.load_ptr(acc_start.add(r * stride + first + c * L::WIDTH)) };
                *acc = l.mul(so_far, scale);
            }
        }
        let row_bytes = E::TYPE.row_bytes(stride);
        let mut v = self.v.as_ptr().wrapping_add(self.slots.start * row_bytes);
        // The share of these channels, as many lines a token as they have at most, with its
        // share of the scales.
        let lines = E::TYPE.row_bytes(C * L::WIDTH).div_ceil(64) + E::TYPE.scales(1);
        let share = self.next.part(first, first + C * L::WIDTH, stride);
        let mut next = share.pace(self.slots.len() * lines);
        // Rows of a prompt meet keys and values as floats, with nothing to fetch.
        let fetches = !matches!(E::TYPE, KvType::F32) || next.has_lines();
        let set = if self.scaling.is_scaled() {
            first / QUANT_BLOCK
        } else {
            0
        };
        let start = set * self.set_len + self.slots.start;
        let mut weights = self.weights.as_ptr().wrapping_add(start);
        for _ in self.slots.clone() {
            if fetches {
                for _ in 0..lines {
                    match E::TYPE.scales(1) {
                        0 => next.next_of_halves(l),
                        _ => next.next(l),
                    }
                }
            }
            let mut values = [l.splat(0.0); C];
            for (c, value) in values.iter_mut().enumerate() {
                // SAFETY: `v` holds `slots.end` rows of `stride` elements, checked by the caller.
                *value = unsafe { self.element.load(l, v, first + c * L::WIDTH) };
            }
            for (r, acc) in acc.iter_mut().enumerate() {
                for (c, acc) in acc.iter_mut().enumerate() {
                    let set = if self.scaling.is_scaled() {
                        c * L::WIDTH / QUANT_BLOCK
                    } else {
                        0
                    };
                    // SAFETY: `weights` holds R rows of 64 numbers in every set, checked by the
                    // caller.
                    let weight =
                        l.splat(unsafe { *weights.add(set * self.set_len + r * PAGE_TOKENS) });
                    *acc = l.fma(weight, values[c], *acc);
                }
            }
            v = v.wrapping_add(row_bytes);
            weights = weights.wrapping_add(1);
        }
        for (r, acc) in acc.iter().enumerate() {
            for (c, &acc) in acc.iter().enumerate() {
                // SAFETY: as for the loads above.
                unsafe { l.store_ptr(acc_start.add(r * stride + first + c * L::WIDTH), acc) };
            }
        }
    }
}

/// `scaled [sets][rows][64]`: the weights `[rows][64]` times the scales `[sets][64]`.
pub(super) struct ScaleWeights<'a> {
    pub weights: &'a [f32],
    /// Half precision.
    pub scales: &'a [u8],
    pub scaled: &'a mut [f32],
}

impl Kernel for ScaleWeights<'_> {
    type Output = ();

    fn scalar(self) {
        for (set, scaled) in self.scaled.chunks_exact_mut(self.weights.len()).enumerate() {
            for (i, (scaled, weight)) in scaled.iter_mut().zip(self.weights).enumerate() {
                *scaled = weight * scale_number(self.scales, i % PAGE_TOKENS, set);
            }
        }
    }

    #[inline(always)]
    fn lanes<L: Lanes>(self, l: L) {
        let sets = self.scales.chunks_exact(PAGE_TOKENS * 2);
        for (scales, scaled) in sets.zip(self.scaled.chunks_exact_mut(self.weights.len())) {
            for (i, scales) in scales.chunks_exact(L::WIDTH * 2).enumerate() {
                // SAFETY: `scales` holds `WIDTH` halves.
                let scale = unsafe { l.load_f16_ptr(scales.as_ptr()) };
                let rows = self.weights.chunks_exact(PAGE_TOKENS);
                for (weights, scaled) in rows.zip(scaled.chunks_exact_mut(PAGE_TOKENS)) {
                    let at = i * L::WIDTH;
                    l.store(&mut scaled[at..], l.mul(l.load(&weights[at..]), scale));
                }
            }
        }
    }
}

/// The weights `[rows][64]` times each set of scales, in `scratch`.
#[inline(always)]
pub(super) fn scale_weights<'s, L: Lanes>(
    l: L,
    weights: &[f32],
    scales: &[u8],
    scratch: &'s mut Floats,
) -> &'s [f32] {
    let numbers = scales.len() / (2 * PAGE_TOKENS) * weights.len();
    let scaled = scratch.sized(numbers);
    l.call(ScaleWeights {
        weights,
        scales,
        scaled,
    });
    scratch
}
