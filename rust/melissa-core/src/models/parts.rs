//! What the models are put together from: a small buffer, the receiving thread's side of it, and samplers that look twice.

use crate::buffer::{Buffer, BufferConfig, Kind, SampleKey, SlotWriter};
use crate::draw::BatchCursor;
use crate::error::BufferError;
use crate::sample::SlotGuard;
use crate::schema::{Dtype, Field, Schema};
use crate::session::bell::Bell;
use crate::sync::{Arc, Condvar, Mutex, lock, thread};

const FIELD_BYTES: usize = 8;

pub(super) fn schema() -> Arc<Schema> {
    let field = Field { name: "u".into(), dtype: Dtype::U8, size: FIELD_BYTES };
    Arc::new(Schema::new(vec![field], 1).unwrap())
}

pub(super) fn config(kind: Kind, capacity: usize) -> BufferConfig {
    BufferConfig {
        kind,
        capacity,
        watermark: usize::from(kind.keeps_samples()),
        pseudo_epochs: 1,
        batch_size: 1,
        seed: 1,
        assembly_slots: 1,
        lent_slots: Some(1),
    }
}

pub(super) fn buffer(config: BufferConfig) -> Arc<Buffer> {
    let buffer = Buffer::new(config).unwrap();
    buffer.bind(schema()).unwrap();
    Arc::new(buffer)
}

const fn key(number: u64) -> SampleKey {
    SampleKey { simulation: number as u32 + 1, draw: 0, time_step: number }
}

/// Stands for the descriptor that the receiving thread polls: it stays readable until it is read.
#[derive(Default)]
struct Descriptor {
    written: Mutex<bool>,
    changed: Condvar,
}

impl Descriptor {
    fn write(&self) {
        *lock(&self.written) = true;
        self.changed.notify_all();
    }

    fn poll(&self) {
        let mut written = lock(&self.written);
        while !*written {
            written = self.changed.wait(written).unwrap();
        }
        *written = false;
    }
}

/// The receiving thread's side: as in the session, it never waits for the buffer but polls its descriptor.
pub(super) struct Receiver {
    buffer: Arc<Buffer>,
    wake: Arc<(Bell, Descriptor)>,
}

impl Receiver {
    pub(super) fn new(buffer: &Arc<Buffer>) -> Self {
        let wake = Arc::new((Bell::default(), Descriptor::default()));
        let ring = Arc::clone(&wake);
        buffer.set_room_waker(Arc::new(move || ring.0.ring(|| ring.1.write())));
        Self { buffer: Arc::clone(buffer), wake }
    }

    fn wait_for_bell(&self) {
        loop {
            self.wake.1.poll();
            if self.wake.0.answer() {
                return;
            }
        }
    }

    /// Receives the body of a sample into a slot of its own.
    pub(super) fn assemble(&self, number: u64) -> SlotWriter {
        loop {
            match self.buffer.take_slot() {
                Some(mut slot) => {
                    fill(&mut slot, number);
                    return slot;
                }
                None => self.wait_for_bell(),
            }
        }
    }

    /// Receives a sample and publishes it.
    pub(super) fn receive(&self, number: u64) {
        let mut slot = self.assemble(number);
        loop {
            match self.buffer.publish(slot, key(number), &[number as f64]) {
                Ok(()) => return,
                Err(back) => slot = back,
            }
            self.wait_for_bell();
        }
    }
}

/// Writes the body of a sample in two reads, as a socket brings it.
fn fill(slot: &mut SlotWriter, number: u64) {
    slot.field_bytes_mut(0)[..FIELD_BYTES / 2].fill(number as u8 + 1);
    slot.field_bytes_mut(0)[FIELD_BYTES / 2..].fill(number as u8 + 1);
}

/// Publishes a sample if that goes now.
#[cfg(loom)]
pub(super) fn try_publish(buffer: &Buffer, number: u64) -> bool {
    let mut slot = buffer.take_slot().unwrap();
    fill(&mut slot, number);
    buffer.publish(slot, key(number), &[number as f64]).is_ok()
}

/// Publishes a sample, waiting for room.
pub(super) fn put(buffer: &Buffer, number: u64) {
    let body = [number as u8 + 1; FIELD_BYTES];
    buffer.put(key(number), &[&body], &[number as f64], None).unwrap();
}

/// Reads a sample as a copy would, with time for others between its two halves: it is whole, and one.
pub(super) fn read(guard: &SlotGuard<'_>) -> u64 {
    let found = guard.key();
    let number = found.time_step;
    assert_eq!(found, key(number), "the identity of one sample");
    assert_eq!(guard.bytes()[..FIELD_BYTES / 2], [number as u8 + 1; FIELD_BYTES / 2], "the first half");
    thread::yield_now();
    assert_eq!(
        guard.bytes()[FIELD_BYTES / 2..FIELD_BYTES],
        [number as u8 + 1; FIELD_BYTES / 2],
        "the second half"
    );
    assert_eq!(guard.key(), found, "the same sample to the end of the copy");
    number
}

/// Draws a sample and reads it; `None` at the end of data.
pub(super) fn draw(buffer: &Buffer) -> Option<u64> {
    match buffer.draw(&mut BatchCursor::default(), None) {
        Ok(guard) => Some(read(&guard.expect("one sample is no batch that ends"))),
        Err(BufferError::EndOfData) => None,
        Err(error) => panic!("{error}"),
    }
}

/// Every slot is free again, each once.
pub(super) fn assert_all_slots_are_free(buffer: &Buffer) {
    let slots: Vec<SlotWriter> = std::iter::from_fn(|| buffer.take_slot()).collect();
    assert_eq!(slots.len(), buffer.slot_counts().total(), "slots that are free in the end");
}
