//! Random numbers that samplers take without a lock.

use crate::sync::{AtomicU64, Ordering};

const GAMMA: u64 = 0x9e37_79b9_7f4a_7c15;

/// The output function of SplitMix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014).
const fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// SplitMix64 with its state in one atomic: each number costs one addition, any number of threads can draw, and the
/// whole state is one integer.
#[derive(Debug)]
pub(crate) struct CounterRng {
    state: AtomicU64,
}

impl CounterRng {
    /// `stream` keeps generators of one seed apart.
    pub(crate) fn new(seed: u64, stream: u64) -> Self {
        Self { state: AtomicU64::new(mix(seed ^ mix(stream.wrapping_add(GAMMA)))) }
    }

    fn next(&self) -> u64 {
        mix(self.state.fetch_add(GAMMA, Ordering::Relaxed).wrapping_add(GAMMA))
    }

    /// An integer in `0..bound`, uniform up to a bias below `bound / 2^64`. `bound` is not 0.
    pub(crate) fn below(&self, bound: usize) -> usize {
        debug_assert!(bound > 0);
        ((u128::from(self.next()) * bound as u128) >> 64) as usize
    }

    /// Fisher-Yates.
    pub(crate) fn shuffle<T>(&self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.below(last + 1));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_gives_the_same_numbers_and_streams_differ() {
        let take = |seed, stream| {
            let rng = CounterRng::new(seed, stream);
            (0..50).map(|_| rng.below(1000)).collect::<Vec<_>>()
        };
        assert_eq!(take(7, 0), take(7, 0));
        assert_ne!(take(7, 0), take(7, 1));
        assert_ne!(take(7, 0), take(8, 0));
    }

    #[test]
    fn numbers_below_a_bound_are_uniform() {
        let rng = CounterRng::new(3, 0);
        let (bound, draws) = (50, 200_000);
        let mut counts = vec![0u32; bound];
        for _ in 0..draws {
            counts[rng.below(bound)] += 1;
        }
        let expected = f64::from(draws) / bound as f64;
        let chi2: f64 = counts.iter().map(|&c| (f64::from(c) - expected).powi(2) / expected).sum();
        // 49 degrees of freedom: 0.999999 quantile is about 113.
        assert!(chi2 < 113.0, "chi-square {chi2}");
    }
}
