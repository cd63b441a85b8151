//! A causal convolution over the last few tokens, each channel by itself.

use super::MOST_TAPS;
use crate::lanes::{Kernel, Lanes};

/// Convolves `width` channels of consecutive rows.
pub(super) struct Convolve<'a> {
    /// `[taps][channels]`, the newest token last.
    pub(super) weight: &'a [f32],
    /// `[rows][channels]`
    pub(super) mixed: &'a [f32],
    pub(super) channels: usize,
    pub(super) taps: usize,
    /// The first of the channels.
    pub(super) first: usize,
    pub(super) width: usize,
    /// The inputs of the last tokens, `[taps − 1][width]`, oldest first; brought up to date.
    pub(super) history: &'a mut [f32],
    /// `[rows][stride]`, of which the first `width` of each row are written.
    pub(super) out: &'a mut [f32],
    pub(super) stride: usize,
}

impl Kernel for Convolve<'_> {
    type Output = ();

    fn scalar(self) {
        let past = self.taps - 1;
        for channel in 0..self.width {
            let weight = |tap: usize| self.weight[tap * self.channels + self.first + channel];
            let rows = self.mixed.chunks_exact(self.channels);
            for (row, out) in rows.zip(self.out.chunks_exact_mut(self.stride)) {
                let x = row[self.first + channel];
                let mut sum = 0.0;
                for tap in 0..past {
                    sum += weight(tap) * self.history[tap * self.width + channel];
                }
                out[channel] = sum + weight(past) * x;
                for tap in 1..past {
                    self.history[(tap - 1) * self.width + channel] =
                        self.history[tap * self.width + channel];
                }
                if past > 0 {
                    self.history[(past - 1) * self.width + channel] = x;
                }
            }
        }
    }

    #[inline(always)]
    fn lanes<L: Lanes>(self, l: L) {
        let past = self.taps - 1;
        for at in (0..self.width).step_by(L::WIDTH) {
            let count = L::WIDTH.min(self.width - at);
            let get = |x: &[f32]| {
                if count == L::WIDTH {
                    l.load(x)
                } else {
                    l.load_part(&x[..count])
                }
            };
            let put = |x: &mut [f32], v| {
                if count == L::WIDTH {
                    l.store(x, v);
                } else {
                    l.store_part(&mut x[..count], v);
                }
            };
            let zero = l.splat(0.0);
            let (mut weight, mut held) = ([zero; MOST_TAPS], [zero; MOST_TAPS]);
            for (tap, weight) in weight[..self.taps].iter_mut().enumerate() {
                *weight = get(&self.weight[tap * self.channels + self.first + at..]);
            }
            for (tap, held) in held[..past].iter_mut().enumerate() {
                *held = get(&self.history[tap * self.width + at..]);
            }
            let rows = self.mixed.chunks_exact(self.channels);
            for (row, out) in rows.zip(self.out.chunks_exact_mut(self.stride)) {
                held[past] = get(&row[self.first + at..]);
                let mut sum = zero;
                for tap in 0..self.taps {
                    sum = l.fma(weight[tap], held[tap], sum);
                }
                put(&mut out[at..], sum);
                held.copy_within(1.., 0);
            }
            for (tap, held) in held[..past].iter().enumerate() {
                put(&mut self.history[tap * self.width + at..], *held);
            }
        }
    }
}
