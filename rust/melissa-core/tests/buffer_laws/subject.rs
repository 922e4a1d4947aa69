//! A buffer under test, with what its users hold of it.

use crate::samples::{Saved, fill, key, number_of, parameters, schema};
use melissa_core::buffer::{Buffer, BufferConfig, LentBatch, Sample, SlotWriter};
use melissa_core::error::BufferError;
use melissa_core::snapshot::{PinnedSamples, SnapshotState};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// How a draw ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ended {
    Filled,
    EndOfData,
    Timeout,
    Failed,
}

/// A cut whose samples are being saved while the run goes on.
pub struct OpenCut {
    pub state: SnapshotState,
    samples: PinnedSamples,
    saved: Vec<Saved>,
}

impl OpenCut {
    /// Saves the next samples: they are those of the cut, whatever happened since.
    pub fn save(&mut self, count: usize) {
        for sample in self.samples.by_ref().take(count) {
            assert_eq!(sample.key(), self.state.samples[self.saved.len()].key());
            assert!(!sample.is_copy(), "a snapshot copies no payload");
            number_of(&sample);
            self.saved.push(Saved::of(&sample));
        }
    }

    fn pinned(&self) -> impl Iterator<Item = u64> + '_ {
        self.state.samples[self.saved.len()..].iter().map(|sample| sample.time_step)
    }
}

pub struct Subject {
    pub buffer: Buffer,
    pub held: Vec<Sample>,
    /// The slot of the sample that waits for room.
    pub waiting: Option<SlotWriter>,
    /// The waker was called since the last time that a slot or room was refused.
    pub woken: Arc<AtomicBool>,
    pub lacks_slot: bool,
    pub lacks_room: bool,
    pub cut: Option<OpenCut>,
    views: usize,
    view_limit: usize,
    slots: usize,
}

impl Subject {
    pub fn new(config: &BufferConfig) -> Self {
        let buffer = Buffer::new(config.clone()).expect("a buffer");
        assert!(matches!(buffer.snapshot(), Err(BufferError::Unbound)));
        buffer.bind(schema()).expect("a slab");
        Self::of(buffer)
    }

    fn of(buffer: Buffer) -> Self {
        let woken = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&woken);
        buffer.set_room_waker(Arc::new(move || flag.store(true, Ordering::Relaxed)));
        Self {
            held: Vec::new(),
            waiting: None,
            woken,
            lacks_slot: false,
            lacks_room: false,
            cut: None,
            views: 0,
            view_limit: buffer.slot_counts().lent,
            slots: buffer.slot_counts().total(),
            buffer,
        }
    }

    /// What a restart makes of a cut: its state goes through JSON, its payloads through memory.
    pub fn restored(config: &BufferConfig, mut cut: OpenCut) -> Self {
        cut.save(usize::MAX);
        let json = serde_json::to_string(&cut.state).expect("JSON");
        let state: SnapshotState = serde_json::from_str(&json).expect("a state");
        assert_eq!(state, cut.state);
        // The seed is no part of what is restored: the states of the generators are.
        let config = BufferConfig { seed: !config.seed, ..config.clone() };
        let buffer = Buffer::restore::<BufferError>(config, schema(), &state, |index, sample| {
            for (field, bytes) in cut.saved[index].fields.iter().enumerate() {
                sample.set_field(field, bytes)?;
            }
            sample.set_parameters(&cut.saved[index].parameters)
        });
        Self::of(buffer.expect("a snapshot that was just taken is restored"))
    }

    /// Slots in use, counted from who uses them.
    fn slots_used(&self, population: impl Iterator<Item = u64>) -> usize {
        let mut samples: BTreeSet<u64> = population.collect();
        samples
            .extend(self.held.iter().filter(|sample| !sample.is_copy()).map(|sample| sample.key().time_step));
        samples.extend(self.cut.iter().flat_map(OpenCut::pinned));
        samples.len() + usize::from(self.waiting.is_some())
    }

    pub fn has_free_slot(&self, population: impl Iterator<Item = u64>) -> bool {
        self.slots_used(population) < self.slots
    }

    /// Takes a slot for sample `number`, unless it has one already; false when none is free.
    pub fn prepare(&mut self, number: u64) -> bool {
        if self.waiting.is_none() {
            self.woken.store(false, Ordering::Relaxed);
            self.waiting = self.buffer.take_slot();
            self.lacks_slot = self.waiting.is_none();
            if let Some(slot) = &mut self.waiting {
                fill(slot, number);
            }
        }
        self.waiting.is_some()
    }

    /// Publishes the prepared sample; false when there is no room, and the sample waits.
    pub fn publish(&mut self, number: u64) -> bool {
        let slot = self.waiting.take().expect("a prepared slot");
        self.woken.store(false, Ordering::Relaxed);
        self.waiting = self.buffer.publish(slot, key(number), &parameters(number)).err();
        self.lacks_room = self.waiting.is_some();
        self.waiting.is_none()
    }

    /// Draws up to `size` samples.
    pub fn draw(&mut self, size: usize, hold: bool) -> (Vec<u64>, Ended) {
        let mut batch = LentBatch::default();
        let ended = match self.buffer.get_batch(&mut batch, size, Some(Instant::now())) {
            Ok(()) => Ended::Filled,
            Err(BufferError::EndOfData) => Ended::EndOfData,
            Err(BufferError::Timeout) => Ended::Timeout,
            Err(BufferError::Failed(_)) => Ended::Failed,
            Err(other) => panic!("{other}"),
        };
        let numbers: Vec<u64> = batch.samples.iter().map(number_of).collect();
        for sample in batch.samples {
            assert_eq!(
                sample.is_copy(),
                self.views == self.view_limit,
                "only beyond the limit are views copies"
            );
            self.views += usize::from(!sample.is_copy());
            self.held.push(sample);
        }
        if !hold {
            for sample in self.held.split_off(self.held.len() - numbers.len()) {
                self.views -= usize::from(!sample.is_copy());
            }
        }
        (numbers, ended)
    }

    pub fn let_go(&mut self, index: usize) {
        if !self.held.is_empty() {
            let sample = self.held.swap_remove(index % self.held.len());
            number_of(&sample);
            self.views -= usize::from(!sample.is_copy());
        }
    }

    pub fn open_cut(&mut self) -> &SnapshotState {
        self.cut = None;
        let snapshot = self.buffer.snapshot().expect("a snapshot");
        assert_eq!(snapshot.samples.len(), snapshot.state.samples.len());
        let cut = OpenCut { state: snapshot.state, samples: snapshot.samples, saved: Vec::new() };
        &self.cut.insert(cut).state
    }

    /// The population, each sample checked.
    pub fn peeked(&self) -> Vec<u64> {
        (0..).map_while(|index| self.buffer.peek(index)).map(|sample| number_of(&sample)).collect()
    }
}
