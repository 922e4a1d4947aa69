//! Samples for validation: kept beside the training buffer until the end of the study, within the memory that there is.

use super::reception::Reception;
use crate::buffer::{SampleKey, SlotWriter};
use crate::error::BufferError;
use crate::memory::{self, MIB};
use crate::schema::Schema;
use crate::sync::lock;

/// Bytes of samples after which the memory is looked at again.
const LOOK_EVERY: u64 = 64 * MIB;

/// How much is kept, and when the memory was looked at.
#[derive(Debug, Default)]
pub(super) struct Kept {
    samples: u64,
    bytes: u64,
    /// Of `bytes`, when the memory was looked at last.
    looked_at: u64,
}

impl Kept {
    /// Takes note of a sample of `bytes`. `promised` bytes are the training buffer's, though it has not touched them yet.
    ///
    /// # Errors
    /// With both figures, when what comes until the next look would not fit.
    fn add(
        &mut self,
        bytes: u64,
        promised: impl FnOnce() -> u64,
        available: impl FnOnce() -> Option<u64>,
    ) -> Result<(), String> {
        self.samples += 1;
        self.bytes += bytes;
        if self.bytes - self.looked_at < LOOK_EVERY {
            return Ok(());
        }
        self.looked_at = self.bytes;
        let needed = promised().saturating_add(LOOK_EVERY).saturating_add(bytes);
        match available() {
            Some(available) if available < needed => Err(format!(
                "{} samples for validation take {} MiB and more come: {} MiB of memory are available, and {} MiB of them \
                 are needed for the next samples and for what the training buffer has not used yet; lower \
                 validation_sweep_size or dl_config.buffer_size, or give the server more memory",
                self.samples,
                self.bytes.div_ceil(MIB),
                available / MIB,
                needed.div_ceil(MIB)
            )),
            _ => Ok(()),
        }
    }
}

impl Reception {
    /// Whether all samples for validation will fit beside a training buffer that is about to be allocated, as far as their
    /// number is known.
    ///
    /// # Errors
    /// [`BufferError::ValidationMemory`].
    pub(super) fn check_validation_fits(&self, schema: &Schema) -> Result<(), BufferError> {
        let simulations = u64::from(self.config.nb_simulations() - self.config.planned);
        if simulations == 0 {
            return Ok(());
        }
        let stride = schema.stride();
        let Some(steps) = self.config.nb_time_steps else {
            log::info!(
                "samples of {simulations} simulations for validation are kept beside the training buffer, {stride} bytes \
                 each; how many come is not known (study_options.nb_time_steps)"
            );
            return Ok(());
        };
        let samples = simulations.saturating_mul(steps);
        let bytes = samples.saturating_mul(stride as u64);
        let available = memory::available().unwrap_or(u64::MAX);
        let slots = self.buffer.slot_counts().total();
        let buffer = if self.buffer.schema().is_some() { 0 } else { slots.saturating_mul(stride) as u64 };
        log::info!(
            "{samples} samples for validation of {stride} bytes will take {} MiB beside the training buffer; {} MiB of \
             memory are available",
            bytes.div_ceil(MIB),
            available / MIB
        );
        if bytes.saturating_add(buffer) > available {
            return Err(BufferError::ValidationMemory {
                needed_mib: bytes.div_ceil(MIB),
                available_mib: available / MIB,
                samples,
                stride,
                buffer_mib: buffer.div_ceil(MIB),
            });
        }
        Ok(())
    }

    /// A sample for validation: it is copied to where Python takes it from, and its slot is free again.
    pub(super) fn keep_for_validation(&mut self, slot: SlotWriter, key: SampleKey, parameters: &[f64]) {
        let sample = slot.into_copy(key, parameters);
        let stride = sample.schema().stride() as u64;
        lock(&self.shared.validation.samples).push(sample);
        let promised = || {
            let slots = self.buffer.slot_counts().total() as u64;
            slots.saturating_sub(self.buffer.metrics().published) * stride
        };
        if let Err(text) = self.kept_for_validation.add(stride, promised, memory::available) {
            self.fatal = Some(text);
        }
        self.let_go_of_slot(key.simulation);
        // Somebody may wait for it.
        self.changed(key.simulation, true);
        self.serve_rows();
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_memory_is_looked_at_every_so_often_and_its_end_is_told_with_both_figures() {
        let mut kept = Kept::default();
        let sample = 16 * MIB;
        let unseen = || -> Option<u64> { unreachable!("nobody has to look yet") };
        for _ in 0..3 {
            kept.add(sample, || 0, unseen).unwrap();
        }
        kept.add(sample, || 100 * MIB, || Some(180 * MIB)).unwrap();
        for _ in 0..3 {
            kept.add(sample, || 0, unseen).unwrap();
        }
        let text = kept.add(sample, || 100 * MIB, || Some(180 * MIB - 1)).unwrap_err();
        assert!(text.starts_with("8 samples for validation take 128 MiB"), "{text}");
        assert!(text.contains("179 MiB of memory are available, and 180 MiB of them are needed"), "{text}");
        for _ in 0..4 {
            kept.add(sample, || u64::MAX, || None).unwrap();
        }
    }
}
