//! The kinds of training buffer: which sample comes next, which one goes, and who waits.
//!
//! A kind is put together from a population ([`removing`]: a get takes the sample out; [`reservoir`]: it stays), a
//! [`limiter`] (who waits for what) and, once reception is over, a [`drain`].

pub(crate) mod drain;
pub(crate) mod limiter;
pub(crate) mod removing;
pub(crate) mod reservoir;

use crate::error::BufferError;

/// The kinds of training buffer (design of the original: Meyer et al., "High throughput training of deep surrogates
/// from large ensemble runs", SC 2023).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// First in, first out: each sample is delivered once, in order of arrival.
    Fifo,
    /// First in, random out: each sample is delivered once (or `pseudo_epochs` times), drawn uniformly.
    Firo,
    /// Uniform over all samples kept, with repetition; a new sample takes the place of one seen before.
    Reservoir,
    /// A reservoir whose batches hold no sample twice.
    BatchReservoir,
}

impl Kind {
    pub const ALL: [Self; 4] = [Self::Fifo, Self::Firo, Self::Reservoir, Self::BatchReservoir];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Fifo => "FIFO",
            Self::Firo => "FIRO",
            Self::Reservoir => "Reservoir",
            Self::BatchReservoir => "BatchReservoir",
        }
    }

    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }

    pub(crate) const fn keeps_samples(self) -> bool {
        matches!(self, Self::Reservoir | Self::BatchReservoir)
    }
}

/// What a training buffer is told when it is made.
#[derive(Clone, Debug)]
pub struct BufferConfig {
    pub kind: Kind,
    /// Largest population, in samples.
    pub capacity: usize,
    /// Population below which no sample is drawn while reception goes on.
    pub watermark: usize,
    /// FIRO: passes over all samples. 1 for every other kind.
    pub pseudo_epochs: u32,
    /// Samples of a batch (BatchReservoir's condition, and the default number of lent slots).
    pub batch_size: usize,
    pub seed: u64,
    /// Slots for bodies that are being received, besides the population.
    pub assembly_slots: usize,
    /// Slots that lent views may keep from being used again; `None`: an eighth of the capacity, but no less than a
    /// batch and one sample more, and no more than two batches and one.
    pub lent_slots: Option<usize>,
}

impl BufferConfig {
    pub(crate) fn lent(&self) -> usize {
        let batch = self.batch_size;
        self.lent_slots.unwrap_or((self.capacity / 8).clamp(batch + 1, 2 * batch + 1)).max(1)
    }

    pub(crate) fn check(&self) -> Result<(), BufferError> {
        let name = self.kind.name();
        let (capacity, watermark, batch) = (self.capacity, self.watermark, self.batch_size);
        let problem = if capacity == 0 {
            Some("a training buffer needs a capacity of 1 sample or more; 0 came".to_string())
        } else if batch == 0 {
            Some("batches need 1 sample or more; 0 came".to_string())
        } else if self.assembly_slots == 0 {
            Some("a training buffer needs 1 assembly slot or more; 0 came".to_string())
        } else if self.kind == Kind::Firo && watermark >= capacity {
            Some(format!(
                "a FIRO delivers while its population is above the watermark: the watermark must be below the \
                 capacity; they are {watermark} and {capacity}"
            ))
        } else if self.kind.keeps_samples() && watermark > capacity {
            Some(format!(
                "the watermark of a {name} must not exceed its capacity; they are {watermark} and {capacity}"
            ))
        } else if self.kind == Kind::BatchReservoir && batch > capacity {
            Some(format!(
                "a batch of a BatchReservoir holds no sample twice: the batch size must not exceed the capacity; \
                 they are {batch} and {capacity}"
            ))
        } else if self.pseudo_epochs == 0 || (self.pseudo_epochs > 1 && self.kind != Kind::Firo) {
            Some(format!(
                "pseudo_epochs is for FIRO, and 1 or more; a {name} was given {}",
                self.pseudo_epochs
            ))
        } else {
            None
        };
        problem.map_or(Ok(()), |text| Err(BufferError::Configuration(text)))
    }
}
