//! Forms that are made of a whole page at a time, because the tokens of a channel share a scale or
//! because a number's place depends on the others'.
//!
//! **kivi** (keys per channel, values per token). A group of numbers is stored as codes `c` of 4 or
//! 2 bits that stand for `middle + scale · (c - (2^bits - 1) / 2)`, where `scale` is the distance of
//! the largest from the smallest over `2^bits - 1`, rounded up to half precision, and `middle` lies
//! halfway between them, rounded to nearest. A group of keys is 32 or 64 consecutive tokens of one
//! channel, a group of values 32 consecutive channels of one token. So a number is off by at most
//! `scale / 2 + |middle| / 2048`.
//!
//! Codes lie as products of bytes read them, see `quads`.
//!
//! **sparse** (mustafar). Of the `width` numbers of a token's key or value the
//! `width - floor(width · percent / 100)` largest magnitudes stay, in half precision, ties to the
//! lower channel; the others are 0. Keys: a bitmap of 64 bits for each channel, bit `t` for token `t`,
//! then what stays of channel after channel. Values: a bitmap for each token in words of 64 channels,
//! then what stays of token after token.

use half::f16;

use super::form::{KvType, LARGEST_F16, QUANT_BLOCK, QueryBits, half_rounded_up};
use super::quads::CodeBits;
use super::{PAGE_TOKENS, PageGeometry, check, read_key, read_value, write_key, write_value};

/// How kivi stores numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Kivi {
    /// Bits of a code.
    pub bits: KiviBits,
    /// Tokens of a channel that share a scale.
    pub group: KiviGroup,
    /// What attention rounds to before it multiplies with codes; says nothing of what is stored.
    pub queries: KiviQueries,
}

/// What attention over kivi pages rounds a query times its key's scales to, and weights times their
/// values' scales.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum KiviQueries {
    /// 16 bits of the largest number of a page: as good as floats.
    Float,
    /// 8 bits of it: half the arithmetic, and an error below that of the codes.
    Int8,
}

/// Bits of a code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum KiviBits {
    /// Sixteen levels.
    Four,
    /// Four levels.
    Two,
}

/// Tokens of a channel that share a scale.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum KiviGroup {
    /// Half a page.
    Tokens32,
    /// A whole page.
    Tokens64,
}

/// How sparse numbers are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Sparse {
    /// How many of a hundred numbers become 0, below 100.
    pub percent: u8,
}

/// Bytes after the last number that vector loads may read.
const OVERREAD: usize = 32;

impl Kivi {
    /// How its codes lie.
    pub(crate) fn codes(self) -> CodeBits {
        match self.bits {
            KiviBits::Four => CodeBits::Four,
            KiviBits::Two => CodeBits::Two,
        }
    }
}

impl KiviBits {
    /// The largest code.
    pub(crate) fn steps(self) -> f32 {
        match self {
            KiviBits::Four => 15.0,
            KiviBits::Two => 3.0,
        }
    }
}

impl KiviQueries {
    /// Bits of a factor.
    pub(crate) fn bits(self) -> QueryBits {
        match self {
            KiviQueries::Float => QueryBits::Sixteen,
            KiviQueries::Int8 => QueryBits::Eight,
        }
    }
}

impl KiviGroup {
    /// Tokens in a group.
    pub fn tokens(self) -> usize {
        match self {
            KiviGroup::Tokens32 => 32,
            KiviGroup::Tokens64 => 64,
        }
    }
}

impl Sparse {
    /// Numbers that stay of `width`.
    pub(crate) fn kept(self, width: usize) -> usize {
        width - width * usize::from(self.percent) / 100
    }

    /// Bytes of what stays of 64 tokens.
    pub(crate) fn numbers_bytes(self, width: usize) -> usize {
        PAGE_TOKENS * self.kept(width) * 2 + OVERREAD
    }
}

/// Words of a token's bitmap over `width` channels.
pub(crate) fn bitmap_words(width: usize) -> usize {
    width.div_ceil(64)
}

/// Writes a whole page in the forms of `to` from one in the forms of `from`, which must be forms
/// that are written token by token, of the same shape.
///
/// # Panics
/// When a length or a shape does not fit.
pub fn pack_page(
    from: &PageGeometry,
    (from_k, from_v): (&[u8], &[u8]),
    to: &PageGeometry,
    (to_k, to_v): (&mut [u8], &mut [u8]),
) {
    assert_eq!(
        (from.head_dim, from.v_dim),
        (to.head_dim, to.v_dim),
        "pages of one shape"
    );
    check(from_k.len(), from.k_bytes(), 0, PAGE_TOKENS);
    check(from_v.len(), from.v_bytes(), 0, PAGE_TOKENS);
    check(to_k.len(), to.k_bytes(), 0, PAGE_TOKENS);
    check(to_v.len(), to.v_bytes(), 0, PAGE_TOKENS);
    let mut keys = vec![0f32; PAGE_TOKENS * to.head_dim];
    for (slot, key) in keys.chunks_exact_mut(to.head_dim.max(1)).enumerate() {
        read_key(from, from_k, slot, key);
    }
    match to.k_type {
        KvType::Kivi(kivi) => kivi_keys(kivi, to, to_k, &keys),
        KvType::Sparse(sparse) => sparse_keys(sparse, to, to_k, &keys),
        _ => {
            for (slot, key) in keys.chunks_exact(to.head_dim.max(1)).enumerate() {
                write_key(to, to_k, slot, key);
            }
        }
    }
    let mut value = vec![0f32; to.v_dim];
    for slot in 0..PAGE_TOKENS {
        read_value(from, from_v, slot, &mut value);
        match to.v_type {
            KvType::Kivi(kivi) => kivi_value(kivi, to, to_v, slot, &value),
            KvType::Sparse(sparse) => sparse_value(sparse, to, to_v, slot, &value),
            _ => write_value(to, to_v, slot, &value),
        }
    }
}

/// A group of numbers as codes. A group that holds a NaN becomes NaN whole: it is not hidden.
struct Group {
    scale: f16,
    middle: f16,
    inverse: f32,
    steps: f32,
}

impl Group {
    fn of(numbers: impl Iterator<Item = f32> + Clone, steps: f32) -> Group {
        let (mut low, mut high) = (f32::INFINITY, f32::NEG_INFINITY);
        for x in numbers.clone() {
            let x = x.clamp(-LARGEST_F16, LARGEST_F16);
            (low, high) = (low.min(x), high.max(x));
        }
        if numbers.clone().any(f32::is_nan) || numbers.count() == 0 {
            let scale = f16::NAN;
            return Group {
                scale,
                middle: scale,
                inverse: 0.0,
                steps,
            };
        }
        // Half of each: their difference may be more than half precision holds.
        let scale = half_rounded_up((high / steps) - (low / steps));
        let middle = f16::from_f32(low / 2.0 + high / 2.0);
        let step = scale.to_f32();
        Group {
            scale,
            middle,
            inverse: if step == 0.0 { 0.0 } else { 1.0 / step },
            steps,
        }
    }

    /// The code of `x`, ties to even.
    fn code(&self, x: f32) -> f32 {
        let x = x.clamp(-LARGEST_F16, LARGEST_F16);
        let code = (x - self.middle.to_f32()) * self.inverse + self.steps / 2.0;
        code.round_ties_even().clamp(0.0, self.steps)
    }
}

/// `keys [64][head_dim]`.
fn kivi_keys(kivi: Kivi, geom: &PageGeometry, page_k: &mut [u8], keys: &[f32]) {
    let (dim, group) = (geom.head_dim, kivi.group.tokens());
    let (codes, scales) = page_k.split_at_mut(geom.k_codes_bytes());
    let (scales, middles) = scales.split_at_mut(PAGE_TOKENS / group * dim * 2);
    codes.fill(0);
    for d in 0..dim {
        for (g, first) in (0..PAGE_TOKENS).step_by(group).enumerate() {
            let column = (first..first + group).map(|t| keys[t * dim + d]);
            let of_group = Group::of(column.clone(), kivi.bits.steps());
            for (t, x) in (first..).zip(column) {
                kivi.codes()
                    .put(codes, (d, t), PAGE_TOKENS, of_group.code(x) as u8);
            }
            let at = (g * dim + d) * 2;
            scales[at..at + 2].copy_from_slice(&of_group.scale.to_le_bytes());
            middles[at..at + 2].copy_from_slice(&of_group.middle.to_le_bytes());
        }
    }
}

fn kivi_value(kivi: Kivi, geom: &PageGeometry, page_v: &mut [u8], slot: usize, value: &[f32]) {
    let (codes, scales) = page_v.split_at_mut(geom.v_codes_bytes());
    let (scales, middles) = scales.split_at_mut(scales.len() / 2);
    if slot == 0 {
        // What no channel fills is 0, so that the bits follow from the numbers alone.
        codes.fill(0);
    }
    for (block, numbers) in value.chunks(QUANT_BLOCK).enumerate() {
        let of_group = Group::of(numbers.iter().copied(), kivi.bits.steps());
        for (i, &x) in numbers.iter().enumerate() {
            let place = (slot, block * QUANT_BLOCK + i);
            kivi.codes()
                .put(codes, place, geom.v_dim, of_group.code(x) as u8);
        }
        let at = (block * PAGE_TOKENS + slot) * 2;
        scales[at..at + 2].copy_from_slice(&of_group.scale.to_le_bytes());
        middles[at..at + 2].copy_from_slice(&of_group.middle.to_le_bytes());
    }
}

/// Whether each of `numbers` is among the `kept` of largest magnitude, ties to the lower channel. A
/// NaN is larger than any number: it is not hidden.
fn largest(numbers: &[f32], kept: usize) -> Vec<bool> {
    let mut order: Vec<usize> = (0..numbers.len()).collect();
    if kept < numbers.len() {
        let rank = |&a: &usize, &b: &usize| {
            let (x, y) = (numbers[a].abs(), numbers[b].abs());
            y.total_cmp(&x).then(a.cmp(&b))
        };
        order.select_nth_unstable_by(kept, rank);
    }
    let mut stays = vec![false; numbers.len()];
    order[..kept].iter().for_each(|&at| stays[at] = true);
    stays
}

/// `keys [64][head_dim]`.
fn sparse_keys(sparse: Sparse, geom: &PageGeometry, page_k: &mut [u8], keys: &[f32]) {
    let dim = geom.head_dim;
    let kept = sparse.kept(dim);
    let stays: Vec<Vec<bool>> = keys
        .chunks_exact(dim.max(1))
        .map(|key| largest(key, kept))
        .collect();
    let (bitmaps, numbers) = page_k.split_at_mut(dim * 8);
    numbers.fill(0);
    let mut places = numbers.chunks_exact_mut(2);
    for (d, bitmap) in bitmaps.chunks_exact_mut(8).enumerate() {
        let mut bits = 0u64;
        for (t, stays) in stays.iter().enumerate() {
            if stays[d] {
                bits |= 1 << t;
                put_half(&mut places, keys[t * dim + d]);
            }
        }
        bitmap.copy_from_slice(&bits.to_le_bytes());
    }
}

fn sparse_value(
    sparse: Sparse,
    geom: &PageGeometry,
    page_v: &mut [u8],
    slot: usize,
    value: &[f32],
) {
    let words = bitmap_words(geom.v_dim);
    let kept = sparse.kept(geom.v_dim);
    let stays = largest(value, kept);
    let (bitmaps, numbers) = page_v.split_at_mut(PAGE_TOKENS * words * 8);
    let bitmap = &mut bitmaps[slot * words * 8..][..words * 8];
    let end = numbers.len() - OVERREAD;
    numbers[end..].fill(0);
    let mut places = numbers[slot * kept * 2..].chunks_exact_mut(2);
    for (word, bitmap) in bitmap.chunks_exact_mut(8).enumerate() {
        let mut bits = 0u64;
        for (i, &x) in value.iter().skip(word * 64).take(64).enumerate() {
            if stays[word * 64 + i] {
                bits |= 1 << i;
                put_half(&mut places, x);
            }
        }
        bitmap.copy_from_slice(&bits.to_le_bytes());
    }
}

fn put_half<'a>(places: &mut impl Iterator<Item = &'a mut [u8]>, x: f32) {
    let half = f16::from_f32(x.clamp(-LARGEST_F16, LARGEST_F16));
    let place = places
        .next()
        .expect("as many numbers stay as there is room for");
    place.copy_from_slice(&half.to_le_bytes());
}

/// Channel `d` of the key in `slot` of a page whose keys are made whole.
#[inline(never)]
pub(crate) fn key_number(geom: &PageGeometry, page_k: &[u8], slot: usize, d: usize) -> f32 {
    match geom.k_type {
        KvType::Kivi(kivi) => kivi_key_number(kivi, geom, page_k, slot, d),
        _ => sparse_key_number(geom, page_k, slot, d),
    }
}

/// Channel `d` of the value in `slot` of a page whose values are made whole.
#[inline(never)]
pub(crate) fn value_number(geom: &PageGeometry, page_v: &[u8], slot: usize, d: usize) -> f32 {
    match geom.v_type {
        KvType::Kivi(kivi) => kivi_value_number(kivi, geom, page_v, slot, d),
        KvType::Sparse(sparse) => sparse_value_number(sparse, geom, page_v, slot, d),
        _ => unreachable!("values that are made whole"),
    }
}

/// Channel `d` of the key in `slot` of a kivi page.
fn kivi_key_number(kivi: Kivi, geom: &PageGeometry, page_k: &[u8], slot: usize, d: usize) -> f32 {
    let (codes, scales) = page_k.split_at(geom.k_codes_bytes());
    let (scales, middles) = scales.split_at(scales.len() / 2);
    let at = slot / kivi.group.tokens() * geom.head_dim + d;
    let code = kivi.codes().code(codes, d, slot, PAGE_TOKENS);
    half_at(middles, at) + half_at(scales, at) * (f32::from(code) - kivi.codes().middle())
}

/// Channel `d` of the value in `slot` of a kivi page.
fn kivi_value_number(kivi: Kivi, geom: &PageGeometry, page_v: &[u8], slot: usize, d: usize) -> f32 {
    let (codes, scales) = page_v.split_at(geom.v_codes_bytes());
    let (scales, middles) = scales.split_at(scales.len() / 2);
    let at = d / QUANT_BLOCK * PAGE_TOKENS + slot;
    let code = kivi.codes().code(codes, slot, d, geom.v_dim);
    half_at(middles, at) + half_at(scales, at) * (f32::from(code) - kivi.codes().middle())
}

/// Channel `d` of the key in `slot` of a sparse page.
fn sparse_key_number(geom: &PageGeometry, page_k: &[u8], slot: usize, d: usize) -> f32 {
    let (bitmaps, numbers) = page_k.split_at(geom.head_dim * 8);
    let word = |d: usize| word_at(bitmaps, d);
    if word(d) >> slot & 1 == 0 {
        return 0.0;
    }
    let before: u32 = (0..d).map(|d| word(d).count_ones()).sum();
    let before = before + (word(d) & ((1 << slot) - 1)).count_ones();
    half_at(numbers, before as usize)
}

/// Channel `d` of the value in `slot` of a sparse page.
fn sparse_value_number(
    sparse: Sparse,
    geom: &PageGeometry,
    page_v: &[u8],
    slot: usize,
    d: usize,
) -> f32 {
    let words = bitmap_words(geom.v_dim);
    let (bitmaps, numbers) = page_v.split_at(PAGE_TOKENS * words * 8);
    let word = |word: usize| word_at(bitmaps, slot * words + word);
    if word(d / 64) >> (d % 64) & 1 == 0 {
        return 0.0;
    }
    let before: u32 = (0..d / 64).map(|at| word(at).count_ones()).sum();
    let before = before + (word(d / 64) & ((1 << (d % 64)) - 1)).count_ones();
    half_at(numbers, slot * sparse.kept(geom.v_dim) + before as usize)
}

/// Half-precision number `at`.
pub(crate) fn half_at(numbers: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([numbers[at * 2], numbers[at * 2 + 1]]).to_f32()
}

/// Word `at` of bitmaps.
pub(crate) fn word_at(bitmaps: &[u8], at: usize) -> u64 {
    let bytes = bitmaps[at * 8..][..8].try_into();
    u64::from_le_bytes(bytes.expect("a word has eight bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const FROM: KvType = KvType::F32;

    /// A page of `numbers [64][dim]` as keys and values of `kv_type`.
    fn packed(kv_type: KvType, dim: usize, numbers: &[f32]) -> (PageGeometry, Vec<u8>, Vec<u8>) {
        let of = |kv_type| PageGeometry {
            head_dim: dim,
            v_dim: dim,
            k_type: kv_type,
            v_type: kv_type,
        };
        let (from, to) = (of(FROM), of(kv_type));
        let (mut k, mut v) = (vec![0xff; from.k_bytes()], vec![0xff; from.v_bytes()]);
        for (slot, row) in numbers.chunks_exact(dim).enumerate() {
            write_key(&from, &mut k, slot, row);
            write_value(&from, &mut v, slot, row);
        }
        let (mut to_k, mut to_v) = (vec![0xff; to.k_bytes()], vec![0xff; to.v_bytes()]);
        pack_page(&from, (&k, &v), &to, (&mut to_k, &mut to_v));
        (to, to_k, to_v)
    }

    /// All keys and all values of a page, `[64][dim]`.
    fn unpacked(geom: &PageGeometry, k: &[u8], v: &[u8]) -> (Vec<f32>, Vec<f32>) {
        let dim = geom.head_dim;
        let (mut keys, mut values) = (vec![0.0; 64 * dim], vec![0.0; 64 * dim]);
        for slot in 0..PAGE_TOKENS {
            read_key(geom, k, slot, &mut keys[slot * dim..][..dim]);
            read_value(geom, v, slot, &mut values[slot * dim..][..dim]);
        }
        (keys, values)
    }

    /// Numbers of very different size from channel to channel, as keys have them.
    fn numbers(dim: usize) -> Vec<f32> {
        let draw = |i: usize| (i * 2_654_435_761 % 10_007) as f32 / 5003.5 - 1.0;
        (0..64 * dim)
            .map(|i| draw(i) * 1.5f32.powi((i % dim % 12) as i32 - 6) + (i % dim % 3) as f32)
            .collect()
    }

    #[test]
    fn groups_by_hand() {
        // The card's case: scale 2, codes 0 1 1 3; and its tie, half to even.
        for (x, codes) in [
            ([0., 1.2, 2., 6.], [0., 1., 1., 3.]),
            ([0., 1., 2., 6.], [0., 0., 1., 3.]),
        ] {
            let group = Group::of(x.into_iter(), 3.0);
            assert_eq!((group.scale.to_f32(), group.middle.to_f32()), (2.0, 3.0));
            assert_eq!(x.map(|x| group.code(x)), codes);
        }
        let even = Group::of([7.0; 4].into_iter(), 15.0);
        assert_eq!((even.scale.to_f32(), even.middle.to_f32()), (0.0, 7.0));
        assert!(Group::of([1.0, f32::NAN].into_iter(), 3.0).scale.is_nan());
        let wide = Group::of([f32::INFINITY, f32::NEG_INFINITY].into_iter(), 3.0);
        assert!(wide.scale.is_finite() && wide.middle.to_f32() == 0.0);
    }

    #[test]
    fn kivi_is_within_its_stated_error() {
        for bits in [KiviBits::Four, KiviBits::Two] {
            for group in [KiviGroup::Tokens32, KiviGroup::Tokens64] {
                for dim in [16, 40, 64, 80] {
                    let numbers = numbers(dim);
                    let (geom, k, v) = packed(KvType::kivi(bits, group), dim, &numbers);
                    let (keys, values) = unpacked(&geom, &k, &v);
                    let near = |of: &dyn Fn(usize) -> f32,
                                at: std::ops::Range<usize>,
                                back: &dyn Fn(usize) -> f32| {
                        let all = || at.clone().map(of);
                        let (low, high) = (
                            all().fold(f32::MAX, f32::min),
                            all().fold(f32::MIN, f32::max),
                        );
                        let scale = (high - low) / bits.steps() * 1.001 + 1e-7;
                        let allowed = scale / 2.0 * 1.001 + (low + high).abs() / 2.0 / 2048.0;
                        for i in at.clone() {
                            assert!((of(i) - back(i)).abs() <= allowed, "{} {}", of(i), back(i));
                        }
                    };
                    let tokens = group.tokens();
                    for d in 0..dim {
                        for g in (0..64).step_by(tokens) {
                            near(&|t| numbers[t * dim + d], g..g + tokens, &|t| {
                                keys[t * dim + d]
                            });
                        }
                    }
                    for t in 0..64 {
                        for b in (0..dim).step_by(32) {
                            let of = |d: usize| numbers[t * dim + d];
                            near(&of, b..dim.min(b + 32), &|d| values[t * dim + d]);
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn what_is_evenly_spaced_is_exact() {
        let dim = 32;
        for (bits, steps) in [(KiviBits::Four, 16), (KiviBits::Two, 4)] {
            let numbers: Vec<f32> = (0..64 * dim)
                .map(|i| ((i / dim + i % dim) % steps) as f32 * 0.5 - 1.0)
                .collect();
            let (geom, k, v) = packed(KvType::kivi(bits, KiviGroup::Tokens32), dim, &numbers);
            assert_eq!(unpacked(&geom, &k, &v), (numbers.clone(), numbers));
        }
    }

    #[test]
    fn the_largest_stay_and_nothing_else() {
        // The card's case.
        assert_eq!(
            largest(&[3.0, -1.0, 0.5, -4.0], 2),
            [true, false, false, true]
        );
        assert_eq!(largest(&[1.0, -1.0, 1.0], 2), [true, true, false]);
        assert_eq!(largest(&[0.0, f32::NAN], 1), [false, true]);
        for percent in [0, 50, 70, 99] {
            for dim in [5, 16, 64, 80, 128] {
                let sparse = Sparse { percent };
                let numbers: Vec<f32> = numbers(dim)
                    .into_iter()
                    .map(|x| f16::from_f32(x).to_f32())
                    .collect();
                let (geom, k, v) = packed(KvType::Sparse(sparse), dim, &numbers);
                let (keys, values) = unpacked(&geom, &k, &v);
                assert_eq!(keys, values);
                for (row, back) in numbers.chunks(dim).zip(keys.chunks(dim)) {
                    let stays = largest(row, sparse.kept(dim));
                    let kept = stays.iter().filter(|&&stays| stays).count();
                    assert_eq!(kept, dim - dim * usize::from(percent) / 100);
                    for ((x, back), stays) in row.iter().zip(back).zip(stays) {
                        assert_eq!(*back, if stays { *x } else { 0.0 });
                    }
                }
                let bytes = dim * 8 + 64 * sparse.kept(dim) * 2 + OVERREAD;
                assert_eq!(geom.k_bytes(), bytes);
            }
        }
    }
}
