//! Who waits for the population: the conditions of a get.

use super::{BufferConfig, Kind};
use crate::sync::{AtomicUsize, Ordering};

/// Population that a get needs while reception goes on.
#[derive(Debug)]
pub(crate) struct Limiter {
    needed: AtomicUsize,
    lifted: usize,
}

impl Limiter {
    pub(crate) fn new(config: &BufferConfig) -> Self {
        let least = if config.kind == Kind::BatchReservoir { config.batch_size } else { 1 };
        let needed = match config.kind {
            Kind::Fifo => 1,
            // Every expected sample is gathered first; the passes are made by the drain.
            Kind::Firo if config.pseudo_epochs > 1 => usize::MAX,
            Kind::Firo => config.watermark + 1,
            Kind::Reservoir | Kind::BatchReservoir => config.watermark.max(least),
        };
        let lifted = if needed == usize::MAX { needed } else { least };
        Self { needed: AtomicUsize::new(needed), lifted }
    }

    pub(crate) fn needed(&self) -> usize {
        self.needed.load(Ordering::Relaxed)
    }

    /// Whether lifting makes a difference.
    pub(crate) fn can_lift(&self) -> bool {
        self.needed() > self.lifted
    }

    /// From now on a get needs no more than what makes it possible at all.
    pub(crate) fn lift(&self) {
        self.needed.fetch_min(self.lifted, Ordering::Relaxed);
    }
}
