//! Random numbers that samplers take without a lock.

use crate::sync::{AtomicU64, Ordering};

const GAMMA: u64 = 0x9e37_79b9_7f4a_7c15;

/// The output function of SplitMix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014).
const fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// An integer in `0..bound` from a uniform number.
///
/// The low bits of either half are taken as they are when they are below the bound, so that a bound that grows or shrinks
/// a little hardly ever changes the integer: it can be guessed ahead. Only what is left falls back to scaling.
fn integer(number: u64, bound: usize) -> usize {
    debug_assert!(bound > 0 && u32::try_from(bound).is_ok());
    let mask = bound.next_power_of_two() - 1;
    let (low, high) = (number as u32 as usize & mask, (number >> 32) as usize & mask);
    if low < bound {
        low
    } else if high < bound {
        high
    } else {
        ((u128::from(mix(number)) * bound as u128) >> 64) as usize
    }
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

    pub(crate) fn state(&self) -> u64 {
        self.state.load(Ordering::Relaxed)
    }

    /// Goes on where a generator was that had this state.
    pub(crate) fn set_state(&self, state: u64) {
        self.state.store(state, Ordering::Relaxed);
    }

    /// An integer in `0..bound`, uniform up to a bias below `bound / 2^64`. `bound` is not 0.
    pub(crate) fn below(&self, bound: usize) -> usize {
        integer(mix(self.state.fetch_add(GAMMA, Ordering::Relaxed).wrapping_add(GAMMA)), bound)
    }

    /// What `below` will give after `ahead` calls more, if nobody else draws meanwhile and the bound is about the same then:
    /// a guess, for those who want memory to be near by then. Nothing is drawn.
    pub(crate) fn guess(&self, ahead: usize, bound: usize) -> usize {
        let state = self.state.load(Ordering::Relaxed);
        integer(mix(state.wrapping_add(GAMMA.wrapping_mul(ahead as u64 + 1))), bound)
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
    fn a_guess_is_what_is_drawn_later_and_draws_nothing() {
        let rng = CounterRng::new(5, 1);
        let guesses: Vec<_> = (0..20).map(|ahead| rng.guess(ahead, 1000)).collect();
        assert_eq!(guesses, (0..20).map(|_| rng.below(1000)).collect::<Vec<_>>());
        let right = (0..1000).filter(|_| rng.guess(0, 1001) == rng.below(1000)).count();
        assert!(right > 980, "a bound that is off by one spoilt {} of 1000 guesses", 1000 - right);
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
