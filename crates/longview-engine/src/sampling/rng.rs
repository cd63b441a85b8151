//! Random numbers that are the same on every platform.

/// xoshiro256++ (Blackman and Vigna, <https://prng.di.unimi.it/>), seeded through SplitMix64.
///
/// Not for secrets. The stream of a seed is part of Longview's behaviour: a changed stream would
/// change every sampled text that was asked for by seed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rng {
    state: [u64; 4],
}

impl Rng {
    /// The stream of `seed`.
    pub fn new(seed: u64) -> Rng {
        let mut counter = seed;
        // SplitMix64 spreads seeds that differ in one bit and never gives four zeros in a row.
        let state = std::array::from_fn(|_| {
            counter = counter.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = counter;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            z ^ (z >> 31)
        });
        Rng { state }
    }

    /// The next 64 random bits.
    pub fn next_u64(&mut self) -> u64 {
        let [s0, s1, s2, s3] = self.state;
        let result = s0.wrapping_add(s3).rotate_left(23).wrapping_add(s0);
        let s2 = s2 ^ s0;
        let s3 = s3 ^ s1;
        self.state = [s0 ^ s3, s1 ^ s2, s2 ^ (s1 << 17), s3.rotate_left(45)];
        result
    }

    /// A number in [0, 1), a multiple of 2⁻⁵³.
    pub fn next_f64(&mut self) -> f64 {
        (self.next_u64() >> 11) as f64 * (1.0 / (1_u64 << 53) as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn follows_the_published_recurrence() {
        // From the state (1, 2, 3, 4), worked by hand:
        // first output: rotl(1 + 4, 23) + 1.
        let mut rng = Rng {
            state: [1, 2, 3, 4],
        };
        assert_eq!(rng.next_u64(), (5 << 23) + 1);
        // s2 ^= s0 → 2, s3 ^= s1 → 6, s1 ^= s2 → 0, s0 ^= s3 → 7, s2 ^= 2 << 17, s3 = rotl(6, 45).
        assert_eq!(rng.state, [7, 0, 2 ^ (2 << 17), 6 << 45]);
    }

    #[test]
    fn seeds_are_expanded_by_splitmix() {
        // The first SplitMix64 output of seed 0 is widely published.
        assert_eq!(Rng::new(0).state[0], 0xe220_a839_7b1d_cdaf);
        assert_eq!(Rng::new(7), Rng::new(7));
        assert_ne!(Rng::new(7), Rng::new(8));
    }

    #[test]
    fn uniform_numbers_fill_the_unit_interval() {
        let mut rng = Rng::new(1);
        let mut buckets = [0_u32; 10];
        for _ in 0..100_000 {
            buckets[(rng.next_f64() * 10.0) as usize] += 1;
        }
        assert!(
            buckets.iter().all(|count| (9_600..10_400).contains(count)),
            "{buckets:?}"
        );
    }
}
