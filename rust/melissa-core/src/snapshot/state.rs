//! A training buffer as plain data, and what must be true of it.

use crate::error::describe;
use crate::policy::BufferConfig;
use crate::policy::limiter::Limiter;
use crate::sample::SampleKey;
use crate::schema::Schema;
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// A training buffer at a cut, without the payloads. Two buffers of equal state and payloads draw and evict alike.
///
/// The place of a sample in `samples` is its position (reservoirs), its place in the order of arrival (FIFO) or in the
/// index that draws choose from (FIRO); once a drain hands out tickets, its place in the drain's order.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SnapshotState {
    /// The name of the kind.
    pub kind: String,
    pub capacity: u64,
    pub watermark: u64,
    pub pseudo_epochs: u32,
    pub batch_size: u64,
    pub fields: Vec<FieldState>,
    pub nb_parameters: u64,
    pub samples: Vec<SampleState>,
    /// Reservoirs before their drain: the places of samples that were seen. Choices of victims depend on this order.
    pub evictable: Vec<u32>,
    /// `None` before a drain hands out its first ticket, and for kinds whose end is drawn like everything before.
    pub drain: Option<DrainState>,
    /// Reception is over.
    pub closed: bool,
    /// Gets wait for less than the configuration says.
    pub watermark_lifted: bool,
    /// State of the random generator of draws.
    pub draws: u64,
    /// State of the random generator of evictions.
    pub evictions: u64,
    /// Samples published since the buffer was new.
    pub published: u64,
    /// Samples drawn since the buffer was new.
    pub drawn: u64,
}

/// A field of the schema in a [`SnapshotState`].
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FieldState {
    pub name: String,
    /// The NumPy name of the dtype.
    pub dtype: String,
    pub size: u64,
}

impl FieldState {
    pub(super) fn of(schema: &Schema) -> Vec<Self> {
        let fields = schema.fields().iter();
        fields
            .map(|field| Self {
                name: field.name.clone(),
                dtype: field.dtype.name().to_string(),
                size: field.size as u64,
            })
            .collect()
    }
}

/// A sample of the population in a [`SnapshotState`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SampleState {
    pub simulation: u32,
    pub draw: u32,
    pub time_step: u64,
    /// Times that it was delivered; it was seen when this is not 0.
    pub deliveries: u32,
}

impl SampleState {
    pub const fn key(&self) -> SampleKey {
        SampleKey { simulation: self.simulation, draw: self.draw, time_step: self.time_step }
    }
}

/// How far a drain is in a [`SnapshotState`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DrainState {
    /// Tickets of this pass that were handed out; 0 in the last pass, whose samples leave with their tickets.
    pub next: u64,
    /// Passes that are not over, this one included.
    pub passes_left: u32,
}

/// Why a snapshot cannot be restored.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum SnapshotError {
    #[error(
        "the snapshot is of a training buffer whose {what} is {saved}; the configuration says {configured}; restart \
         with the configuration that the snapshot was taken under"
    )]
    OtherConfiguration { what: &'static str, saved: String, configured: String },
    #[error("the snapshot holds samples of {saved}; this study's are of {expected}")]
    OtherSchema { saved: String, expected: String },
    #[error("the snapshot is damaged: {what}: {got} came, and {expected} was expected; use an older one")]
    Damaged { what: String, got: String, expected: String },
    #[error(
        "the snapshot is of a training buffer that has begun its {passes} passes over all samples (pseudo_epochs), and \
         simulations have to run again whose samples would miss some of them; use an older one"
    )]
    BegunPasses { passes: u32 },
    #[error("the payload of sample {index} of the snapshot came without {missing}; use an older snapshot")]
    Payload { index: usize, missing: String },
}

fn damaged(what: impl Into<String>, got: impl ToString, expected: impl Into<String>) -> SnapshotError {
    SnapshotError::Damaged { what: what.into(), got: got.to_string(), expected: expected.into() }
}

impl SnapshotState {
    /// Whether a buffer of that configuration and schema can have been in this state.
    pub(super) fn check(&self, config: &BufferConfig, schema: &Schema) -> Result<(), SnapshotError> {
        self.check_configuration(config)?;
        self.check_schema(schema)?;
        let (population, capacity) = (self.samples.len(), config.capacity);
        if population > capacity {
            return Err(damaged("population", population, format!("at most the capacity, {capacity}")));
        }
        if self.watermark_lifted && !Limiter::new(config).can_lift() {
            return Err(damaged(
                "watermark_lifted",
                true,
                "false where gets wait for one sample or one batch",
            ));
        }
        self.check_drain(config)?;
        self.check_deliveries(config)?;
        self.check_counts(config)
    }

    fn check_configuration(&self, config: &BufferConfig) -> Result<(), SnapshotError> {
        let name = config.kind.name();
        if self.kind != name {
            let (saved, configured) = (self.kind.clone(), name.to_string());
            return Err(SnapshotError::OtherConfiguration { what: "kind", saved, configured });
        }
        let numbers = [
            ("capacity", self.capacity, config.capacity as u64),
            ("watermark", self.watermark, config.watermark as u64),
            ("pseudo_epochs", self.pseudo_epochs.into(), config.pseudo_epochs.into()),
            ("batch size", self.batch_size, config.batch_size as u64),
        ];
        match numbers.into_iter().find(|(_, saved, configured)| saved != configured) {
            Some((what, saved, configured)) => Err(SnapshotError::OtherConfiguration {
                what,
                saved: saved.to_string(),
                configured: configured.to_string(),
            }),
            None => Ok(()),
        }
    }

    fn check_schema(&self, schema: &Schema) -> Result<(), SnapshotError> {
        if self.fields == FieldState::of(schema) && self.nb_parameters == schema.nb_parameters() as u64 {
            return Ok(());
        }
        let field = |field: &FieldState| format!("{} ({} x {})", field.name, field.size, field.dtype);
        let fields: Vec<String> = self.fields.iter().map(field).collect();
        let saved = format!("{} and {} parameters", fields.join(", "), self.nb_parameters);
        Err(SnapshotError::OtherSchema { saved, expected: describe(schema) })
    }

    fn check_drain(&self, config: &BufferConfig) -> Result<(), SnapshotError> {
        let Some(DrainState { next, passes_left }) = self.drain else { return Ok(()) };
        if !config.kind.keeps_samples() && config.pseudo_epochs == 1 {
            let expected = format!("none for a {} of one pass", config.kind.name());
            return Err(damaged("drain", "one", expected));
        }
        if !self.closed {
            return Err(damaged("drain", "one", "none before the end of reception"));
        }
        let passes = config.pseudo_epochs;
        if passes_left == 0 || passes_left > passes {
            return Err(damaged("passes left in the drain", passes_left, format!("1 to {passes}")));
        }
        let most = if passes_left == 1 { 0 } else { self.samples.len() as u64 };
        if next > most {
            return Err(damaged("next ticket of the drain", next, format!("at most {most}")));
        }
        Ok(())
    }

    /// Each sample was delivered as often as the state of the buffer says, and may be evicted if it was.
    fn check_deliveries(&self, config: &BufferConfig) -> Result<(), SnapshotError> {
        if config.kind.keeps_samples() && self.drain.is_none() {
            return self.check_evictable();
        }
        if !self.evictable.is_empty() {
            let expected = "none, where no sample is evicted";
            return Err(damaged("index of evictable samples", self.evictable.len(), expected));
        }
        if config.kind.keeps_samples() {
            return Ok(());
        }
        for (index, sample) in self.samples.iter().enumerate() {
            let expected = match self.drain {
                Some(drain) => {
                    config.pseudo_epochs - drain.passes_left + u32::from((index as u64) < drain.next)
                }
                None => 0,
            };
            if sample.deliveries != expected {
                let what = format!("deliveries of sample {index}");
                return Err(damaged(what, sample.deliveries, expected.to_string()));
            }
        }
        Ok(())
    }

    fn check_evictable(&self) -> Result<(), SnapshotError> {
        let population = self.samples.len();
        let mut listed = vec![false; population];
        for position in &self.evictable {
            let Some(listed) = listed.get_mut(*position as usize) else {
                let expected = format!("a position below the population, {population}");
                return Err(damaged("index of evictable samples", position, expected));
            };
            if std::mem::replace(listed, true) {
                let got = format!("position {position} twice");
                return Err(damaged("index of evictable samples", got, "each position once"));
            }
        }
        for (index, (sample, listed)) in self.samples.iter().zip(listed).enumerate() {
            if listed != (sample.deliveries > 0) {
                let got = format!("sample {index}, delivered {} times, ", sample.deliveries)
                    + if listed { "in it" } else { "missing in it" };
                return Err(damaged("index of evictable samples", got, "all that were seen and no other"));
            }
        }
        Ok(())
    }

    fn check_counts(&self, config: &BufferConfig) -> Result<(), SnapshotError> {
        let population = self.samples.len() as u64;
        if self.published < population {
            let expected = format!("at least the population, {population}");
            return Err(damaged("samples published", self.published, expected));
        }
        // Samples leave one by one: by draws, in the last pass of a drain, or by eviction. A reservoir that is not full may
        // have been drained in part before a restart that had more to receive.
        let once = !config.kind.keeps_samples() && config.pseudo_epochs == 1;
        let last_pass = self.drain.is_some_and(|drain| drain.passes_left == 1);
        if self.published > population && !once && !last_pass && !config.kind.keeps_samples() {
            let expected = format!("the population, {population}, which nothing has left yet");
            return Err(damaged("samples published", self.published, expected));
        }
        let least = self.least_drawn();
        let exact = !config.kind.keeps_samples();
        if self.drawn < least || (exact && self.drawn > least) {
            let expected = format!("{}{least}", if exact { "" } else { "at least " });
            return Err(damaged("samples drawn", self.drawn, expected));
        }
        Ok(())
    }

    /// Draws that there must have been: those of the samples that are there, and one in each pass (the only one, for
    /// all but FIRO with several) of each sample that is gone.
    pub(super) fn least_drawn(&self) -> u64 {
        let there: u64 = self.samples.iter().map(|sample| u64::from(sample.deliveries)).sum();
        let gone = self.published.saturating_sub(self.samples.len() as u64);
        there.saturating_add(gone.saturating_mul(self.pseudo_epochs.into()))
    }
}
