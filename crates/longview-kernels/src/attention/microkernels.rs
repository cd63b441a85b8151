//! The inner loops of attention: scores, softmax and weighted values of one register tile.

use std::ops::Range;

use crate::lanes::{Kernel, Lanes, exp_scalar};
use crate::page::{KvType, PAGE_TOKENS, read_number};

/// Rows of a register tile at most: 6 rows by 64 tokens are 24 of AVX-512's 32 registers, 6 rows
/// by 16 tokens 12 of AVX2's 16.
pub(super) const TILE_ROWS: usize = 6;

/// A number type that vectors of f32 are loaded from.
pub(super) trait Element: Copy {
    const TYPE: KvType;
    const BYTES: usize;

    /// # Safety
    /// `p` is valid for reading `L::WIDTH` elements.
    unsafe fn load<L: Lanes>(self, l: L, p: *const u8) -> L::V;
}

/// [`KvType::F32`].
#[derive(Clone, Copy)]
pub(super) struct Single;

/// [`KvType::F16`].
#[derive(Clone, Copy)]
pub(super) struct Half;

impl Element for Single {
    const TYPE: KvType = KvType::F32;
    const BYTES: usize = 4;

    #[inline(always)]
    unsafe fn load<L: Lanes>(self, l: L, p: *const u8) -> L::V {
        // SAFETY: the caller vouches for the memory.
        unsafe { l.load_ptr(p.cast()) }
    }
}

impl Element for Half {
    const TYPE: KvType = KvType::F16;
    const BYTES: usize = 2;

    #[inline(always)]
    unsafe fn load<L: Lanes>(self, l: L, p: *const u8) -> L::V {
        // SAFETY: the caller vouches for the memory.
        unsafe { l.load_f16_ptr(p) }
    }
}

/// Half precision to f32, a multiple of 16 numbers.
pub(super) struct Convert<'a> {
    pub from: &'a [u8],
    pub to: &'a mut [f32],
}

impl Kernel for Convert<'_> {
    type Output = ();

    fn scalar(self) {
        for (i, to) in self.to.iter_mut().enumerate() {
            *to = read_number(KvType::F16, self.from, i);
        }
    }

    #[inline(always)]
    fn lanes<L: Lanes>(self, l: L) {
        let from = self.from.chunks_exact(L::WIDTH * 2);
        for (from, to) in from.zip(self.to.chunks_exact_mut(L::WIDTH)) {
            // SAFETY: `from` holds `WIDTH` halves.
            l.store(to, unsafe { l.load_f16_ptr(from.as_ptr()) });
        }
    }
}

/// Scores of `R` rows `q [R][dim]` against the keys `k [dim][64]` of a page, `[R][64]`, while the
/// keys of the `next` page are being fetched.
pub(super) struct ScoreTile<'a, E, const R: usize> {
    pub element: E,
    pub q: &'a [f32],
    pub k: &'a [u8],
    pub scores: &'a mut [f32],
    pub next: Option<&'a [u8]>,
}

impl<E: Element, const R: usize> Kernel for ScoreTile<'_, E, R> {
    type Output = ();

    fn scalar(self) {
        let dim = self.q.len() / R;
        for (q, scores) in self
            .q
            .chunks_exact(dim)
            .zip(self.scores.chunks_exact_mut(PAGE_TOKENS))
        {
            for (slot, score) in scores.iter_mut().enumerate() {
                let key = (0..dim).map(|d| read_number(E::TYPE, self.k, d * PAGE_TOKENS + slot));
                *score = q.iter().zip(key).map(|(q, k)| q * k).sum();
            }
        }
    }

    #[inline(always)]
    fn lanes<L: Lanes>(self, l: L) {
        let dim = self.q.len() / R;
        assert!(self.q.len() == R * dim && self.scores.len() == R * PAGE_TOKENS);
        assert!(self.k.len() >= dim * PAGE_TOKENS * E::BYTES);
        // As many columns of tokens as leave registers for the keys and a query.
        match (L::WIDTH, R) {
            (16, _) => self.columns::<L, 4>(l, dim),
            (_, 1) => self.columns::<L, 8>(l, dim),
            (_, 2) => self.columns::<L, 4>(l, dim),
            _ => self.columns::<L, 2>(l, dim),
        }
    }
}

impl<E: Element, const R: usize> ScoreTile<'_, E, R> {
    /// The tile in passes over `C` vectors of tokens.
    #[inline(always)]
    fn columns<L: Lanes, const C: usize>(self, l: L, dim: usize) {
        const { assert!(PAGE_TOKENS.is_multiple_of(C * 8)) };
        let row_bytes = PAGE_TOKENS * E::BYTES;
        let mut next = self.next.map_or(std::ptr::null(), |next| next.as_ptr());
        for first in (0..PAGE_TOKENS).step_by(C * L::WIDTH) {
            let mut acc = [[l.splat(0.0); C]; R];
            let mut q = self.q.as_ptr();
            let mut k = self.k.as_ptr().wrapping_add(first * E::BYTES);
            for _ in 0..dim {
                if !next.is_null() {
                    for line in 0..row_bytes / 64 {
                        l.prefetch(next.wrapping_add(line * 64));
                    }
                    next = next.wrapping_add(row_bytes);
                }
                let mut keys = [l.splat(0.0); C];
                for (c, key) in keys.iter_mut().enumerate() {
                    // SAFETY: `k` holds `dim` rows of 64 elements, checked by the caller, and
                    // `first + C * WIDTH` is at most 64.
                    *key = unsafe { self.element.load(l, k.add(c * L::WIDTH * E::BYTES)) };
                }
                for (r, acc) in acc.iter_mut().enumerate() {
                    // SAFETY: `q` holds R rows of `dim` numbers, checked by the caller.
                    let x = l.splat(unsafe { *q.add(r * dim) });
                    for c in 0..C {
                        acc[c] = l.fma(x, keys[c], acc[c]);
                    }
                }
                q = q.wrapping_add(1);
                k = k.wrapping_add(row_bytes);
            }
            next = std::ptr::null();
            for (r, acc) in acc.iter().enumerate() {
                for (c, &v) in acc.iter().enumerate() {
                    let at = r * PAGE_TOKENS + first + c * L::WIDTH;
                    // SAFETY: `scores` holds R rows of 64 numbers, checked by the caller.
                    unsafe { l.store_ptr(self.scores.as_mut_ptr().add(at), v) };
                }
            }
        }
    }
}

/// Turns the scores of some rows into weights `exp(score - max)`, 0 in the slots a row does not
/// see, and brings the rows' running `max` and `sum` up to date. What was accumulated so far must be
/// multiplied with `scale`: 1 where a row sees no slot.
pub(super) struct SoftmaxTile<'a> {
    pub scores: &'a mut [f32],
    pub slots: &'a [Range<usize>],
    pub softcap: f32,
    pub max: &'a mut [f32],
    pub sum: &'a mut [f32],
    pub scale: &'a mut [f32],
}

impl Kernel for SoftmaxTile<'_> {
    type Output = ();

    fn scalar(self) {
        for (row, slots) in self.slots.iter().enumerate() {
            let scores = &mut self.scores[row * PAGE_TOKENS..][slots.clone()];
            if self.softcap != 0.0 {
                scores
                    .iter_mut()
                    .for_each(|s| *s = self.softcap * (*s / self.softcap).tanh());
            }
            let max = scores.iter().fold(self.max[row], |m, &s| m.max(s));
            let base = if max == f32::NEG_INFINITY { 0.0 } else { max };
            self.scale[row] = if slots.is_empty() {
                1.0
            } else {
                exp_scalar(self.max[row] - base)
            };
            self.max[row] = max;
            scores.iter_mut().for_each(|s| *s = exp_scalar(*s - base));
            self.sum[row] = self.sum[row] * self.scale[row] + scores.iter().sum::<f32>();
        }
    }

    #[inline(always)]
    fn lanes<L: Lanes>(self, l: L) {
        let rows = self.slots.len();
        assert!(rows <= TILE_ROWS && self.scores.len() == rows * PAGE_TOKENS);
        assert!(self.max.len() == rows && self.sum.len() == rows && self.scale.len() == rows);
        // Maxima of all rows first, then all exponentials: the rows' short chains of dependent
        // operations run side by side.
        let mut base = [0f32; 16];
        let mut change = [0f32; 16];
        for (row, scores) in self.scores.chunks_exact_mut(PAGE_TOKENS).enumerate() {
            let slots = &self.slots[row];
            if slots.is_empty() {
                continue;
            }
            let mut s = load_page(l, scores);
            if self.softcap != 0.0 || slots.len() < PAGE_TOKENS {
                cap_and_hide(l, self.softcap, slots, &mut s);
                store_page(l, scores, &s);
            }
            let before = self.max[row];
            let max = before.max(l.reduce_max(pairwise::<L>(s, |a, b| l.max(a, b))));
            // Scores of -inf alone leave the maximum at -inf, to which there is no difference.
            base[row] = if max == f32::NEG_INFINITY { 0.0 } else { max };
            change[row] = before - base[row];
            self.max[row] = max;
        }
        for (row, scores) in self.scores.chunks_exact_mut(PAGE_TOKENS).enumerate() {
            if self.slots[row].is_empty() {
                continue;
            }
            let mut s = load_page(l, scores);
            for s in &mut s[..PAGE_TOKENS / L::WIDTH] {
                *s = l.exp_nonpositive(l.sub(*s, l.splat(base[row])));
            }
            store_page(l, scores, &s);
            base[row] = l.reduce_add(pairwise::<L>(s, |a, b| l.add(a, b)));
        }
        // Rows that see nothing have a change of 0 and a sum of 0: nothing happens to them.
        let mut scale = [0f32; 16];
        l.store(&mut scale, l.exp_nonpositive(l.load(&change)));
        for row in 0..rows {
            self.scale[row] = scale[row];
            self.sum[row] = self.sum[row] * scale[row] + base[row];
        }
    }
}

/// Applies the soft cap and gives the slots that a row does not see a score of -inf.
#[inline(always)]
fn cap_and_hide<L: Lanes>(l: L, softcap: f32, slots: &Range<usize>, s: &mut [L::V; 8]) {
    let (cap, inverse) = (l.splat(softcap), l.splat(1.0 / softcap));
    for (i, s) in s[..PAGE_TOKENS / L::WIDTH].iter_mut().enumerate() {
        if softcap != 0.0 {
            *s = l.mul(cap, l.tanh(l.mul(*s, inverse)));
        }
        let first = (i * L::WIDTH) as i32;
        let (lo, hi) = (slots.start as i32 - first, slots.end as i32 - first);
        *s = l.keep(*s, lo, hi, l.splat(f32::NEG_INFINITY));
    }
}

/// The 64 numbers of a row of scores; of the 8 vectors only as many are used as that takes.
#[inline(always)]
fn load_page<L: Lanes>(l: L, scores: &[f32]) -> [L::V; 8] {
    let mut s = [l.splat(0.0); 8];
    for (s, from) in s
        .iter_mut()
        .zip(scores[..PAGE_TOKENS].chunks_exact(L::WIDTH))
    {
        *s = l.load(from);
    }
    s
}

#[inline(always)]
fn store_page<L: Lanes>(l: L, scores: &mut [f32], s: &[L::V; 8]) {
    for (&s, to) in s
        .iter()
        .zip(scores[..PAGE_TOKENS].chunks_exact_mut(L::WIDTH))
    {
        l.store(to, s);
    }
}

/// Folds the vectors of a page's scores in halves.
#[inline(always)]
fn pairwise<L: Lanes>(mut v: [L::V; 8], fold: impl Fn(L::V, L::V) -> L::V) -> L::V {
    let mut half = PAGE_TOKENS / L::WIDTH / 2;
    while half > 0 {
        for i in 0..half {
            v[i] = fold(v[i], v[i + half]);
        }
        half /= 2;
    }
    v[0]
}

/// `acc [R][stride] = acc * scale + Σ weight * value` over the `slots` of a page `v [64][stride]`,
/// weights `[R][64]`, while the values of the `next` page are being fetched.
pub(super) struct ValueTile<'a, E, const R: usize> {
    pub element: E,
    pub slots: Range<usize>,
    pub weights: &'a [f32],
    pub scale: &'a [f32],
    pub v: &'a [u8],
    pub acc: &'a mut [f32],
    pub next: Option<&'a [u8]>,
}

impl<E: Element, const R: usize> Kernel for ValueTile<'_, E, R> {
    type Output = ();

    fn scalar(self) {
        let stride = self.acc.len() / R;
        for (r, acc) in self.acc.chunks_exact_mut(stride).enumerate() {
            acc.iter_mut().for_each(|a| *a *= self.scale[r]);
            for slot in self.slots.clone() {
                let weight = self.weights[r * PAGE_TOKENS + slot];
                for (d, a) in acc.iter_mut().enumerate() {
                    *a += weight * read_number(E::TYPE, self.v, slot * stride + d);
                }
            }
        }
    }

    #[inline(always)]
    fn lanes<L: Lanes>(mut self, l: L) {
        let stride = self.acc.len() / R;
        assert!(self.acc.len() == R * stride && stride.is_multiple_of(16));
        assert!(self.weights.len() == R * PAGE_TOKENS && self.scale.len() == R);
        assert!(self.slots.start <= self.slots.end && self.slots.end <= PAGE_TOKENS);
        assert!(self.v.len() >= self.slots.end * stride * E::BYTES);
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

impl<E: Element, const R: usize> ValueTile<'_, E, R> {
    /// The `C` vectors of channels from `first` on.
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
        let row_bytes = stride * E::BYTES;
        let start = self.slots.start * row_bytes + first * E::BYTES;
        let mut v = self.v.as_ptr().wrapping_add(start);
        let mut next = self
            .next
            .map_or(std::ptr::null(), |next| next.as_ptr().wrapping_add(start));
        let mut weights = self.weights.as_ptr().wrapping_add(self.slots.start);
        for _ in self.slots.clone() {
            if !next.is_null() {
                for byte in (0..C * L::WIDTH * E::BYTES).step_by(64) {
                    l.prefetch(next.wrapping_add(byte));
                }
                next = next.wrapping_add(row_bytes);
            }
            let mut values = [l.splat(0.0); C];
            for (c, value) in values.iter_mut().enumerate() {
                // SAFETY: `v` holds `slots.end` rows of `stride` elements, checked by the caller.
                *value = unsafe { self.element.load(l, v.add(c * L::WIDTH * E::BYTES)) };
            }
            for (r, acc) in acc.iter_mut().enumerate() {
                // SAFETY: `weights` holds R rows of 64 numbers, checked by the caller.
                let weight = l.splat(unsafe { *weights.add(r * PAGE_TOKENS) });
                for c in 0..C {
                    acc[c] = l.fma(weight, values[c], acc[c]);
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
