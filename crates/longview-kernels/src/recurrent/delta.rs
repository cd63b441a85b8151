//! One token of one value head.

use super::{EPSILON, PANEL};
use crate::lanes::{Kernel, Lanes};

/// Brings a row, zeros at its end, to a length.
pub(super) struct Unit<'a> {
    /// Whole panels.
    pub(super) row: &'a mut [f32],
    pub(super) length: f32,
}

impl Kernel for Unit<'_> {
    type Output = ();

    fn scalar(self) {
        let squares: f32 = self.row.iter().map(|x| x * x).sum();
        let factor = self.length / (squares + EPSILON).sqrt();
        self.row.iter_mut().for_each(|x| *x *= factor);
    }

    #[inline(always)]
    fn lanes<L: Lanes>(self, l: L) {
        let squares = dot(l, self.row, self.row);
        let factor = l.splat(self.length / (squares + EPSILON).sqrt());
        for x in self.row.chunks_exact_mut(L::WIDTH) {
            let v = l.mul(l.load(x), factor);
            l.store(x, v);
        }
    }
}

/// The scalar product of two rows of whole panels.
pub(super) struct Dot<'a> {
    pub(super) q: &'a [f32],
    pub(super) k: &'a [f32],
}

impl Kernel for Dot<'_> {
    type Output = f32;

    fn scalar(self) -> f32 {
        self.q.iter().zip(self.k).map(|(q, k)| q * k).sum()
    }

    #[inline(always)]
    fn lanes<L: Lanes>(self, l: L) -> f32 {
        dot(l, self.q, self.k)
    }
}

#[inline(always)]
fn dot<L: Lanes>(l: L, a: &[f32], b: &[f32]) -> f32 {
    let mut sum = l.splat(0.0);
    for (a, b) in a.chunks_exact(L::WIDTH).zip(b.chunks_exact(L::WIDTH)) {
        sum = l.fma(l.load(a), l.load(b), sum);
    }
    l.reduce_add(sum)
}

/// Decays, corrects and reads the state of one value head, row after row. With `D` the decay and `S`
/// the state before it, `u = β (v − D kᵀS)`, the state becomes `D S + k uᵀ`, and `qᵀ` of that is
/// `D qᵀS + (q·k) uᵀ`: so one pass over `S` gives both products, and a second one writes.
pub(super) struct Steps<'a> {
    pub(super) rows: Rows<'a>,
    /// `[padded value_dim / 16][key_dim][16]`
    pub(super) state: &'a mut [f32],
    /// `[rows][out_stride]`, of which the first `value_dim` of each row are written.
    pub(super) out: &'a mut [f32],
    pub(super) out_stride: usize,
    pub(super) value_dim: usize,
}

/// What one value head sees of a few rows.
#[derive(Clone, Copy)]
pub(super) struct Rows<'a> {
    /// `[rows][stride]`, of which the first `key_dim` of each row count.
    pub(super) k: &'a [f32],
    /// As `k`.
    pub(super) q: &'a [f32],
    pub(super) stride: usize,
    pub(super) key_dim: usize,
    /// `q · k` of each row.
    pub(super) dots: &'a [f32],
    /// `[rows][padded value_dim]`
    pub(super) v: &'a [f32],
    pub(super) v_stride: usize,
    /// One number a row, `gate_stride` apart.
    pub(super) decay: &'a [f32],
    /// As `decay`.
    pub(super) beta: &'a [f32],
    pub(super) gate_stride: usize,
}

/// What one value head sees of one row.
struct Row<'a> {
    k: &'a [f32],
    q: &'a [f32],
    dot: f32,
    v: &'a [f32],
    decay: f32,
    beta: f32,
}

impl<'a> Rows<'a> {
    #[inline(always)]
    fn at(&self, row: usize) -> Row<'a> {
        Row {
            k: &self.k[row * self.stride..][..self.key_dim],
            q: &self.q[row * self.stride..][..self.key_dim],
            dot: self.dots[row],
            v: &self.v[row * self.v_stride..][..self.v_stride],
            decay: self.decay[row * self.gate_stride],
            beta: self.beta[row * self.gate_stride],
        }
    }
}

impl Kernel for Steps<'_> {
    type Output = ();

    fn scalar(self) {
        for at in 0..self.rows.dots.len() {
            let row = self.rows.at(at);
            let panels = self.state.chunks_exact_mut(self.rows.key_dim * PANEL);
            let outs = self.out[at * self.out_stride..][..self.value_dim].chunks_mut(PANEL);
            for ((panel, v), out) in panels.zip(row.v.chunks_exact(PANEL)).zip(outs) {
                row.scalar(panel, v, out);
            }
        }
    }

    #[inline(always)]
    fn lanes<L: Lanes>(mut self, l: L) {
        // Four vectors of columns at a time hide the latency of their sums, and what they touch of
        // the state stays in the first cache from row to row.
        let columns = self.state.len() / self.rows.key_dim;
        let wide = columns - columns % (4 * L::WIDTH);
        for first in (0..wide).step_by(4 * L::WIDTH) {
            self.columns::<L, 4>(l, first);
        }
        for first in (wide..columns).step_by(L::WIDTH) {
            self.columns::<L, 1>(l, first);
        }
    }
}

impl Steps<'_> {
    /// All rows, for `N` vectors of columns from column `first` on.
    #[inline(always)]
    fn columns<L: Lanes, const N: usize>(&mut self, l: L, first: usize) {
        // Where row 0 of a vector lies in the panels.
        let at: [usize; N] = std::array::from_fn(|n| {
            let column = first + n * L::WIDTH;
            column / PANEL * self.rows.key_dim * PANEL + column % PANEL
        });
        for row in 0..self.rows.dots.len() {
            let read = self.rows.at(row).lanes(l, self.state, at, first);
            let out = &mut self.out[row * self.out_stride..][..self.value_dim];
            for (n, read) in read.into_iter().enumerate() {
                let begin = (first + n * L::WIDTH).min(out.len());
                let end = (begin + L::WIDTH).min(out.len());
                if end - begin == L::WIDTH {
                    l.store(&mut out[begin..end], read);
                } else {
                    l.store_part(&mut out[begin..end], read);
                }
            }
        }
    }
}

impl Row<'_> {
    /// One panel, `[key_dim][16]`; `out` may be shorter than it is wide.
    fn scalar(&self, panel: &mut [f32], v: &[f32], out: &mut [f32]) {
        let (mut by_k, mut by_q) = ([0.0; PANEL], [0.0; PANEL]);
        let keyed = self.k.iter().zip(self.q);
        for (s, (&k, &q)) in panel.chunks_exact(PANEL).zip(keyed) {
            for lane in 0..PANEL {
                by_k[lane] += k * s[lane];
                by_q[lane] += q * s[lane];
            }
        }
        let u: [f32; PANEL] =
            std::array::from_fn(|lane| self.beta * (v[lane] - self.decay * by_k[lane]));
        for (lane, out) in out.iter_mut().enumerate() {
            *out = self.decay * by_q[lane] + self.dot * u[lane];
        }
        for (s, &k) in panel.chunks_exact_mut(PANEL).zip(self.k) {
            for lane in 0..PANEL {
                s[lane] = self.decay * s[lane] + k * u[lane];
            }
        }
    }

    /// `N` vectors of columns from column `first` on, which begin at `at` in `state`; returns what
    /// is read of them.
    #[inline(always)]
    fn lanes<L: Lanes, const N: usize>(
        &self,
        l: L,
        state: &mut [f32],
        at: [usize; N],
        first: usize,
    ) -> [L::V; N] {
        let zero = l.splat(0.0);
        let (mut by_k, mut by_q) = ([zero; N], [zero; N]);
        for (i, (&k, &q)) in self.k.iter().zip(self.q).enumerate() {
            let (k, q) = (l.splat(k), l.splat(q));
            for n in 0..N {
                let s = l.load(&state[at[n] + i * PANEL..]);
                by_k[n] = l.fma(k, s, by_k[n]);
                by_q[n] = l.fma(q, s, by_q[n]);
            }
        }
        let (decay, negative) = (l.splat(self.decay), l.splat(-self.decay));
        let (beta, dot) = (l.splat(self.beta), l.splat(self.dot));
        let u: [L::V; N] = std::array::from_fn(|n| {
            let v = l.load(&self.v[first + n * L::WIDTH..]);
            l.mul(beta, l.fma(negative, by_k[n], v))
        });
        for (i, &k) in self.k.iter().enumerate() {
            let k = l.splat(k);
            for n in 0..N {
                let s = &mut state[at[n] + i * PANEL..];
                let updated = l.fma(k, u[n], l.mul(decay, l.load(s)));
                l.store(s, updated);
            }
        }
        std::array::from_fn(|n| l.fma(decay, by_q[n], l.mul(dot, u[n])))
    }
}
