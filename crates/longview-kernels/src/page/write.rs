//! Writing tokens into pages.

use super::form::{Codes, KvType, LARGEST_F16, QUANT_BLOCK, SCALE_BYTES};
use super::{PAGE_TOKENS, PageGeometry, check};
use crate::Isa;
use crate::lanes::{self, Kernel, Lanes};

/// Rows of numbers inside a larger matrix: row `i` starts at `data[i * stride]`.
#[derive(Clone, Copy, Debug)]
pub struct StridedRows<'a> {
    /// The numbers, from the first row's first on.
    pub data: &'a [f32],
    /// Numbers from the start of a row to the start of the next.
    pub stride: usize,
}

impl<'a> StridedRows<'a> {
    /// Row `i`, `width` numbers of it.
    ///
    /// # Panics
    /// When the row does not lie inside `data`.
    pub fn row(&self, i: usize, width: usize) -> &'a [f32] {
        &self.data[i * self.stride..][..width]
    }
}

/// Writes the key of one token, `k [head_dim]`, to `slot` of a page.
///
/// # Panics
/// When a length or the slot does not fit the geometry.
#[inline(always)]
pub fn write_key(geom: &PageGeometry, page_k: &mut [u8], slot: usize, k: &[f32]) {
    check(page_k.len(), geom.k_bytes(), slot, 1);
    assert!(
        !geom.k_type.is_whole(),
        "{} is made of whole pages",
        geom.k_type
    );
    assert_eq!(k.len(), geom.head_dim, "a key has head_dim numbers");
    let kv_type = geom.k_type;
    let (codes, scales) = page_k.split_at_mut(geom.k_codes_bytes());
    if let KvType::Dotted(dotted) = kv_type {
        for (block, k) in k.chunks(QUANT_BLOCK).enumerate() {
            let numbers = stored(dotted.numbers(), scales, slot, block, k);
            for (i, &x) in numbers[..k.len()].iter().enumerate() {
                let place = (block * QUANT_BLOCK + i, slot);
                dotted
                    .codes()
                    .put(codes, place, PAGE_TOKENS, dotted.stored(x));
            }
        }
        return;
    }
    let row_bytes = kv_type.row_bytes(PAGE_TOKENS);
    let mut rows = codes.chunks_exact_mut(row_bytes);
    for (block, k) in k.chunks(QUANT_BLOCK).enumerate() {
        let numbers = stored(kv_type, scales, slot, block, k);
        for (&x, row) in numbers[..k.len()].iter().zip(&mut rows) {
            kv_type.put(row, slot, x);
        }
    }
}

/// Writes the value of one token, `v [v_dim]`, to `slot` of a page.
///
/// # Panics
/// When a length or the slot does not fit the geometry.
#[inline(always)]
pub fn write_value(geom: &PageGeometry, page_v: &mut [u8], slot: usize, v: &[f32]) {
    check(page_v.len(), geom.v_bytes(), slot, 1);
    assert!(
        !geom.v_type.is_whole(),
        "{} is made of whole pages",
        geom.v_type
    );
    assert_eq!(v.len(), geom.v_dim, "a value has v_dim numbers");
    let kv_type = geom.v_type;
    let (codes, scales) = page_v.split_at_mut(geom.v_codes_bytes());
    if let KvType::Dotted(dotted) = kv_type {
        let bits = dotted.codes();
        for lane in v.len()..bits.padded(v.len()) {
            bits.put(codes, (slot, lane), geom.v_dim, 0);
        }
        for (block, v) in v.chunks(QUANT_BLOCK).enumerate() {
            let numbers = stored(dotted.numbers(), scales, slot, block, v);
            for (i, &x) in numbers[..v.len()].iter().enumerate() {
                let place = (slot, block * QUANT_BLOCK + i);
                bits.put(codes, place, geom.v_dim, dotted.stored(x));
            }
        }
        return;
    }
    let row = &mut codes[slot * geom.v_row_bytes()..][..geom.v_row_bytes()];
    // What no channel fills is 0, so that the bits follow from the numbers alone.
    row.fill(0);
    for (block, v) in v.chunks(QUANT_BLOCK).enumerate() {
        let numbers = stored(kv_type, scales, slot, block, v);
        for (i, &x) in numbers[..v.len()].iter().enumerate() {
            kv_type.put(row, block * QUANT_BLOCK + i, x);
        }
    }
}

/// Writes the keys and values of `count` consecutive tokens from `first_slot` on; the same bits as
/// [`write_key`] and [`write_value`] token by token.
///
/// # Panics
/// When a length or a slot does not fit the geometry.
#[expect(
    clippy::too_many_arguments,
    reason = "two matrices, their pages and their place"
)]
pub fn write_tokens(
    isa: Isa,
    geom: &PageGeometry,
    page_k: &mut [u8],
    page_v: &mut [u8],
    first_slot: usize,
    count: usize,
    k: StridedRows<'_>,
    v: StridedRows<'_>,
) {
    check(page_k.len(), geom.k_bytes(), first_slot, count);
    check(page_v.len(), geom.v_bytes(), first_slot, count);
    if count > 0 {
        lanes::run(
            isa,
            WriteTokens {
                geom,
                page_k,
                page_v,
                first_slot,
                count,
                k,
                v,
            },
        );
    }
}

/// What is to be put for the channels `x` of one block: the numbers themselves, or their codes,
/// whose scale is written to `scales`.
#[inline(always)]
fn stored(
    kv_type: KvType,
    scales: &mut [u8],
    slot: usize,
    block: usize,
    x: &[f32],
) -> [f32; QUANT_BLOCK] {
    if scales.is_empty() {
        let mut numbers = [0f32; QUANT_BLOCK];
        numbers[..x.len()].copy_from_slice(x);
        return numbers;
    }
    let Codes { codes, scale } = Codes::new(kv_type, x);
    let at = (block * PAGE_TOKENS + slot) * SCALE_BYTES;
    scales[at..at + SCALE_BYTES].copy_from_slice(&scale.to_le_bytes());
    codes
}

struct WriteTokens<'a> {
    geom: &'a PageGeometry,
    page_k: &'a mut [u8],
    page_v: &'a mut [u8],
    first_slot: usize,
    count: usize,
    k: StridedRows<'a>,
    v: StridedRows<'a>,
}

impl WriteTokens<'_> {
    #[inline(always)]
    fn keys_one_by_one(&mut self) {
        for i in 0..self.count {
            let key = self.k.row(i, self.geom.head_dim);
            write_key(self.geom, self.page_k, self.first_slot + i, key);
        }
    }

    #[inline(always)]
    fn values_one_by_one(&mut self) {
        for i in 0..self.count {
            let value = self.v.row(i, self.geom.v_dim);
            write_value(self.geom, self.page_v, self.first_slot + i, value);
        }
    }

    /// Keys of a form that vectors are converted to: as many tokens at once as a vector has lanes.
    #[inline(always)]
    fn key_vectors<L: Lanes>(&mut self, l: L) {
        let (geom, k_type) = (self.geom, self.geom.k_type);
        let mut first = 0;
        while first < self.count {
            let tokens = (self.count - first).min(L::WIDTH);
            // Rows are cut once here, so that the loop over channels has nothing left to check.
            let mut rows = [&[][..]; 16];
            for (i, row) in rows[..tokens].iter_mut().enumerate() {
                *row = self.k.row(first + i, geom.head_dim);
            }
            for d in 0..geom.head_dim {
                let mut column = [0f32; 16];
                for (x, row) in column[..tokens].iter_mut().zip(&rows) {
                    *x = row[d];
                }
                let at = k_type.row_bytes(d * PAGE_TOKENS + self.first_slot + first);
                let to = &mut self.page_k[at..][..k_type.row_bytes(tokens)];
                write_vector(l, k_type, to, &column);
            }
            first += tokens;
        }
    }

    /// The same for one token: vectors of its channels are converted, and their numbers spread.
    #[inline(always)]
    fn key_of_one<L: Lanes, const BYTES: usize>(&mut self, l: L) {
        let (geom, k_type) = (self.geom, self.geom.k_type);
        let rows = self.page_k.chunks_exact_mut(k_type.row_bytes(PAGE_TOKENS));
        let mut rows = rows.map(|row| &mut row[k_type.row_bytes(self.first_slot)..]);
        for some in self.k.row(0, geom.head_dim).chunks(16) {
            let (mut whole, mut stored) = ([0f32; 16], [[0u8; BYTES]; 16]);
            whole[..some.len()].copy_from_slice(some);
            for (to, from) in stored
                .as_flattened_mut()
                .chunks_mut(BYTES * L::WIDTH)
                .zip(whole.chunks(L::WIDTH))
            {
                let mut numbers = [0f32; 16];
                numbers[..L::WIDTH].copy_from_slice(from);
                write_vector(l, k_type, to, &numbers);
            }
            for (number, row) in stored[..some.len()].iter().zip(&mut rows) {
                row[..BYTES].copy_from_slice(number);
            }
        }
    }

    #[inline(always)]
    fn value_vectors<L: Lanes>(&mut self, l: L) {
        let (v_type, row_bytes) = (self.geom.v_type, self.geom.v_row_bytes());
        for i in 0..self.count {
            let row = self.v.row(i, self.geom.v_dim);
            let to = &mut self.page_v[(self.first_slot + i) * row_bytes..][..row_bytes];
            for (to, from) in to
                .chunks_mut(v_type.row_bytes(L::WIDTH))
                .zip(row.chunks(L::WIDTH).chain(std::iter::repeat(&[][..])))
            {
                let mut whole = [0f32; 16];
                whole[..from.len()].copy_from_slice(from);
                write_vector(l, v_type, to, &whole);
            }
        }
    }
}

impl Kernel for WriteTokens<'_> {
    type Output = ();

    fn scalar(mut self) {
        self.keys_one_by_one();
        self.values_one_by_one();
    }

    #[inline(always)]
    fn lanes<L: Lanes>(mut self, l: L) {
        match (self.geom.k_type, self.count) {
            (KvType::F16, 1) => self.key_of_one::<L, 2>(l),
            (KvType::F32, 1) => self.key_of_one::<L, 4>(l),
            (k_type, _) if has_vectors(k_type) => self.key_vectors(l),
            _ => self.keys_one_by_one(),
        }
        if has_vectors(self.geom.v_type) {
            self.value_vectors(l);
        } else {
            self.values_one_by_one();
        }
    }
}

/// Whether [`write_vector`] knows the form; the others are written once and read often, so plain
/// code, compiled for the instruction set, is enough.
fn has_vectors(kv_type: KvType) -> bool {
    matches!(kv_type, KvType::F32 | KvType::F16)
}

/// Writes as many of `numbers` as `to` has room for, at most a vector of them, as f32 or f16.
#[inline(always)]
fn write_vector<L: Lanes>(l: L, kv_type: KvType, to: &mut [u8], numbers: &[f32; 16]) {
    let v = l.load(numbers);
    let v = match kv_type {
        KvType::F32 => v,
        _ => l.min(l.splat(LARGEST_F16), l.max(l.splat(-LARGEST_F16), v)),
    };
    let store = |p: *mut u8| match kv_type {
        // SAFETY: both callers below offer room for a whole vector of this type.
        KvType::F32 => unsafe { l.store_ptr(p.cast(), v) },
        // SAFETY: as above.
        _ => unsafe { l.store_f16_ptr(p, v) },
    };
    if to.len() == kv_type.row_bytes(L::WIDTH) {
        store(to.as_mut_ptr());
    } else {
        let mut whole = [0u8; 64];
        store(whole.as_mut_ptr());
        to.copy_from_slice(&whole[..to.len()]);
    }
}
