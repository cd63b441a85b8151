//! What tasks draw by chance: the same seed draws the same.

use std::collections::HashSet;

use longview_engine::sampling::Rng;

const ADJECTIVES: &str = "quiet amber hollow silver ancient crimson gentle frozen narrow bitter golden distant bright \
    broken clever dusty eager fierce grand humble ivory jolly keen lively mellow noble olive proud rapid scarlet tender \
    upright velvet wild young zealous brave calm dark early fancy giant heavy inner joint kind late major native open \
    plain royal sharp tall urban vivid warm";

const NOUNS: &str = "river lantern castle falcon meadow harbor engine garden mirror needle ocean pepper quarry ribbon \
    saddle timber valley window anchor basket candle desert eagle forest goblet hammer island jacket kettle ladder \
    market nickel orchard palace rabbit school temple urchin violin wagon yarrow zephyr barrel copper dragon ember \
    feather glacier jungle kitten lemon mountain nugget opal pillow";

/// A whole number below `end`, which is at least 1.
pub(crate) fn below(rng: &mut Rng, end: usize) -> usize {
    ((rng.next_f64() * end as f64) as usize).min(end - 1)
}

/// Puts `items` in an order drawn evenly.
pub(crate) fn shuffle<T>(rng: &mut Rng, items: &mut [T]) {
    for last in (1..items.len()).rev() {
        items.swap(last, below(rng, last + 1));
    }
}

/// One of `items`, of which there is at least one.
pub(crate) fn choose<'a, T>(rng: &mut Rng, items: &'a [T]) -> &'a T {
    &items[below(rng, items.len())]
}

/// A number of `digits` digits, the first not 0.
pub(crate) fn number(rng: &mut Rng, digits: usize) -> String {
    let digit = |at: usize, rng: &mut Rng| match at {
        0 => 1 + below(rng, 9),
        _ => below(rng, 10),
    };
    (0..digits).map(|at| digit(at, rng).to_string()).collect()
}

/// A random 128-bit name, as databases write them.
pub(crate) fn uuid(rng: &mut Rng) -> String {
    let (a, b) = (rng.next_u64(), rng.next_u64());
    format!(
        "{:08x}-{:04x}-4{:03x}-{:04x}-{:012x}",
        a >> 32,
        a >> 16 & 0xffff,
        a & 0xfff,
        b >> 48 & 0x3fff | 0x8000,
        b & 0xffff_ffff_ffff
    )
}

/// `count` capital letters.
pub(crate) fn capitals(rng: &mut Rng, count: usize) -> String {
    let letter = |_| char::from(b'A' + below(rng, 26) as u8);
    (0..count).map(letter).collect()
}

/// An adjective and a noun that `used` does not have yet; with further adjectives where the pairs are
/// used up.
pub(crate) fn phrase(rng: &mut Rng, used: &mut HashSet<String>) -> String {
    let adjectives: Vec<&str> = ADJECTIVES.split_whitespace().collect();
    let nouns: Vec<&str> = NOUNS.split_whitespace().collect();
    let mut tries = 0;
    loop {
        let mut words: Vec<&str> = Vec::new();
        words.resize_with(1 + tries / 20, || choose::<&str>(rng, &adjectives));
        words.push(choose::<&str>(rng, &nouns));
        let phrase = words.join(" ");
        if used.insert(phrase.clone()) {
            return phrase;
        }
        tries += 1;
    }
}

/// `make()` until it gives what `used` does not have; then `used` has it.
pub(crate) fn unused(used: &mut HashSet<String>, mut make: impl FnMut() -> String) -> String {
    loop {
        let drawn = make();
        if used.insert(drawn.clone()) {
            return drawn;
        }
    }
}

/// A seed that follows from a seed and from words.
pub(crate) fn seed_of(seed: u64, words: &str) -> u64 {
    // FNV-1a.
    let start = 0xcbf2_9ce4_8422_2325 ^ seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    words.bytes().fold(start, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_have_their_form() {
        let mut rng = Rng::new(1);
        for digits in 1..10 {
            let number = number(&mut rng, digits);
            assert!(
                number.len() == digits && !number.starts_with('0'),
                "{number}"
            );
        }
        let name = uuid(&mut rng);
        let parts: Vec<usize> = name.split('-').map(str::len).collect();
        assert_eq!(parts, [8, 4, 4, 4, 12], "{name}");
        assert_eq!(capitals(&mut rng, 3).len(), 3);
        let mut order = [0, 1, 2, 3, 4, 5, 6, 7];
        shuffle(&mut rng, &mut order);
        assert_ne!(order, [0, 1, 2, 3, 4, 5, 6, 7]);
        order.sort_unstable();
        assert_eq!(order, [0, 1, 2, 3, 4, 5, 6, 7]);
    }

    #[test]
    fn phrases_never_repeat_and_never_run_out() {
        let (mut rng, mut used) = (Rng::new(1), HashSet::new());
        for _ in 0..6000 {
            phrase(&mut rng, &mut used);
        }
        assert_eq!(used.len(), 6000);
        assert_ne!(seed_of(1, "a"), seed_of(2, "a"));
        assert_ne!(seed_of(1, "a"), seed_of(1, "b"));
    }
}
