//! Tokens that move from page to page as they are stored, bit for bit.

use std::ops::Range;

use super::form::{KvType, SCALE_BYTES, nibble};
use super::{PAGE_TOKENS, PageGeometry, check};

/// Copies the keys and values in the slots `from_slots` of one page, in this order, to another page
/// of the same geometry from slot `first` on. Codes and scales are copied as they are.
///
/// # Panics
/// When a length or a slot does not fit the geometry.
pub fn copy_slots(
    geom: &PageGeometry,
    (from_k, from_v): (&[u8], &[u8]),
    from_slots: &[u8],
    (to_k, to_v): (&mut [u8], &mut [u8]),
    first: usize,
) {
    assert!(
        !geom.is_whole(),
        "tokens do not move out of pages that are made whole"
    );
    let count = from_slots.len();
    for (k, v) in [(from_k, from_v), (&*to_k, &*to_v)] {
        check(k.len(), geom.k_bytes(), first, count);
        check(v.len(), geom.v_bytes(), first, count);
    }
    assert!(
        from_slots
            .iter()
            .all(|&slot| usize::from(slot) < PAGE_TOKENS),
        "a page has {PAGE_TOKENS} slots"
    );
    let runs = Runs::of(from_slots);
    let (k_codes, v_codes) = (geom.k_codes_bytes(), geom.v_codes_bytes());
    let slots = || {
        from_slots
            .iter()
            .map(|&slot| usize::from(slot))
            .zip(first..)
    };
    if let KvType::Dotted(dotted) = geom.k_type {
        let bits = dotted.codes();
        for (d, (from, slot)) in (0..geom.head_dim).flat_map(|d| slots().map(move |pair| (d, pair)))
        {
            let code = bits.code(from_k, d, from, PAGE_TOKENS);
            bits.put(to_k, (d, slot), PAGE_TOKENS, code);
        }
    } else {
        let row = geom.k_type.row_bytes(PAGE_TOKENS);
        let from_rows = from_k[..k_codes].chunks_exact(row);
        for (from, to) in from_rows.zip(to_k[..k_codes].chunks_exact_mut(row)) {
            match geom.k_type {
                KvType::Q4 => copy_nibbles(from, from_slots, to, first),
                KvType::F32 => copy_numbers::<4>(from, &runs, to, first),
                KvType::F16 | KvType::BF16 => copy_numbers::<2>(from, &runs, to, first),
                KvType::Q8 => copy_numbers::<1>(from, &runs, to, first),
                KvType::Dotted(_) | KvType::Kivi(_) | KvType::Sparse(_) => {
                    unreachable!("checked above")
                }
            }
        }
    }
    if let KvType::Dotted(dotted) = geom.v_type {
        let bits = dotted.codes();
        for (from, slot) in slots() {
            for lane in 0..bits.padded(geom.v_dim) {
                let code = bits.code(from_v, from, lane, geom.v_dim);
                bits.put(to_v, (slot, lane), geom.v_dim, code);
            }
        }
    } else {
        let row = geom.v_row_bytes();
        let mut to = &mut to_v[first * row..];
        for run in runs.all() {
            let (now, rest) = to.split_at_mut(run.len() * row);
            now.copy_from_slice(&from_v[run.start * row..run.end * row]);
            to = rest;
        }
    }
    for (from, to, codes) in [(from_k, to_k, k_codes), (from_v, to_v, v_codes)] {
        let row = PAGE_TOKENS * SCALE_BYTES;
        let from_rows = from[codes..].chunks_exact(row);
        for (from, to) in from_rows.zip(to[codes..].chunks_exact_mut(row)) {
            copy_numbers::<SCALE_BYTES>(from, &runs, to, first);
        }
    }
}

/// Slots as runs of neighbours: what is kept of a page mostly is.
struct Runs {
    runs: [(u8, u8); PAGE_TOKENS],
    count: usize,
}

impl Runs {
    /// Those of `slots`, at most a page of them, in their order.
    fn of(slots: &[u8]) -> Runs {
        let mut found = Runs {
            runs: [(0, 0); PAGE_TOKENS],
            count: 0,
        };
        for &slot in slots {
            match found.runs[..found.count].last_mut() {
                Some((_, end)) if *end == slot => *end += 1,
                _ => {
                    found.runs[found.count] = (slot, slot + 1);
                    found.count += 1;
                }
            }
        }
        found
    }

    fn all(&self) -> impl Iterator<Item = Range<usize>> {
        let range = |&(start, end): &(u8, u8)| usize::from(start)..usize::from(end);
        self.runs[..self.count].iter().map(range)
    }
}

/// Numbers of `N` bytes from the places `runs` of one row to `first` and after it in another.
fn copy_numbers<const N: usize>(from: &[u8], runs: &Runs, to: &mut [u8], first: usize) {
    let (from, _) = from.as_chunks::<N>();
    let (to, _) = to.as_chunks_mut::<N>();
    let mut to = &mut to[first..];
    for run in runs.all() {
        let (now, rest) = to.split_at_mut(run.len());
        // A few numbers are there before a call would be.
        match run.len() < 8 {
            true => now
                .iter_mut()
                .zip(&from[run])
                .for_each(|(to, from)| *to = *from),
            false => now.copy_from_slice(&from[run]),
        }
        to = rest;
    }
}

fn copy_nibbles(from: &[u8], slots: &[u8], to: &mut [u8], first: usize) {
    for (i, &slot) in slots.iter().enumerate() {
        let (byte, shift) = nibble(usize::from(slot));
        let code = from[byte] >> shift & 15;
        let (byte, shift) = nibble(first + i);
        to[byte] = to[byte] & !(15 << shift) | code << shift;
    }
}

#[cfg(test)]
mod tests {
    use super::super::{read_key, read_value, write_key, write_value};
    use super::*;

    #[test]
    fn what_is_copied_reads_the_same_and_its_neighbours_stay() {
        for kv_type in KvType::ALL {
            let geom = PageGeometry {
                head_dim: 40,
                v_dim: 33,
                k_type: kv_type,
                v_type: kv_type,
            };
            let page = |seed: usize| {
                let (mut k, mut v) = (vec![0; geom.k_bytes()], vec![0; geom.v_bytes()]);
                for slot in 0..PAGE_TOKENS {
                    let number = |d: usize| ((seed + slot * 71 + d * 13) % 101) as f32 - 50.0;
                    let key: Vec<f32> = (0..40).map(number).collect();
                    let value: Vec<f32> = (0..33).map(number).collect();
                    write_key(&geom, &mut k, slot, &key);
                    write_value(&geom, &mut v, slot, &value);
                }
                (k, v)
            };
            let read = |(k, v): &(Vec<u8>, Vec<u8>), slot| {
                let (mut key, mut value) = ([0.0; 40], [0.0; 33]);
                read_key(&geom, k, slot, &mut key);
                read_value(&geom, v, slot, &mut value);
                (key, value)
            };
            let (from, before) = (page(3), page(50));
            let mut to = before.clone();
            let slots = [63, 0, 17, 18];
            copy_slots(
                &geom,
                (&from.0, &from.1),
                &slots,
                (&mut to.0, &mut to.1),
                30,
            );
            for slot in 0..PAGE_TOKENS {
                let expected = match slot {
                    30..34 => read(&from, usize::from(slots[slot - 30])),
                    _ => read(&before, slot),
                };
                assert_eq!(read(&to, slot), expected, "{kv_type} slot {slot}");
            }
        }
    }
}
