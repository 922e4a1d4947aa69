//! What the population of a buffer is like at one moment: how often its samples were seen, how old they are, and how
//! their inputs are spread.

use crate::buffer::Buffer;
use crate::sample::{SlotGuard, parameters};
use crate::sync::Ordering;

/// Figures over the samples of a population; all zero for an empty one.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct PopulationStatistics {
    /// Samples that the figures are of: the population, but for what left it meanwhile.
    pub samples: usize,
    /// Those that were not delivered yet.
    pub unseen: usize,
    pub deliveries_mean: f64,
    pub deliveries_max: u32,
    /// Of a sample, the age is the number of samples that were published after it.
    pub age_mean: f64,
    pub age_max: u64,
    /// Of each parameter, and of the time step at the end.
    pub input_mean: Vec<f64>,
    pub input_std: Vec<f64>,
}

/// Mean and spread of numbers that come one by one (Welford 1962).
#[derive(Clone, Copy, Default)]
struct Spread {
    count: f64,
    mean: f64,
    squares: f64,
}

impl Spread {
    fn add(&mut self, number: f64) {
        self.count += 1.0;
        let before = number - self.mean;
        self.mean += before / self.count;
        self.squares += before * (number - self.mean);
    }

    fn std(&self) -> f64 {
        (self.squares / self.count.max(1.0)).sqrt()
    }
}

impl Buffer {
    /// Looks at every sample of the population once, without delivering any. Publishing and drawing go on.
    pub fn statistics(&self) -> PopulationStatistics {
        let Some(bound) = self.bound.get() else { return PopulationStatistics::default() };
        let schema = bound.slab.schema();
        let mut inputs = vec![Spread::default(); schema.nb_parameters() + 1];
        let (mut deliveries, mut ages) = (Spread::default(), Spread::default());
        let mut statistics = PopulationStatistics::default();
        let entries = self.current_entries(bound);
        let published = self.published.load(Ordering::Relaxed);
        for entry in entries {
            if let Err(freed) = bound.slab.pin(entry) {
                if freed {
                    bound.room.signal();
                }
                continue;
            }
            let guard = SlotGuard::new(bound, entry.slot);
            let word = bound.slab.word(entry.slot);
            let seen = word.deliveries();
            let age = published.saturating_sub(word.ordinal() + 1);
            statistics.samples += 1;
            statistics.unseen += usize::from(seen == 0);
            statistics.deliveries_max = statistics.deliveries_max.max(seen);
            statistics.age_max = statistics.age_max.max(age);
            deliveries.add(f64::from(seen));
            ages.add(age as f64);
            let numbers = parameters(schema, guard.bytes()).chain([guard.key().time_step as f64]);
            inputs.iter_mut().zip(numbers).for_each(|(input, number)| input.add(number));
        }
        if statistics.samples > 0 {
            statistics.deliveries_mean = deliveries.mean;
            statistics.age_mean = ages.mean;
            statistics.input_mean = inputs.iter().map(|input| input.mean).collect();
            statistics.input_std = inputs.iter().map(Spread::std).collect();
        }
        statistics
    }
}
