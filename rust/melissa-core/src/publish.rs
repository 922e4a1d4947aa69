//! The writer's side of a training buffer: slots to fill, and complete samples into the population.

use crate::bound::{Bound, Population, Writer};
use crate::buffer::Buffer;
use crate::error::BufferError;
use crate::memory::prefetch;
use crate::planted::{Bug, planted};
use crate::sample::{SampleKey, SlotWriter};
use crate::sync::{Arc, Ordering, lock};
use std::time::Instant;

impl Buffer {
    /// A free slot, or `None`: then "room wanted" is raised, and the waker called when one may be there.
    pub fn take_slot(&self) -> Option<SlotWriter> {
        let bound = self.bound.get()?;
        let mut writer = lock(&bound.writer);
        // What came back last is taken first: its bytes are the likeliest to be in a cache, and memory that was never
        // written stays the kernel's for as long as the population does without it.
        bound.slab.take_free(&mut writer.free);
        if writer.free.is_empty() {
            self.room.want();
            bound.slab.take_free(&mut writer.free);
        }
        let Some(slot) = writer.free.pop() else {
            drop(writer);
            self.room.starve();
            return None;
        };
        let next = writer.free.last().copied();
        let ahead = match &bound.population {
            _ if cfg!(any(loom, shuttle)) => None,
            Population::Positions(positions) => writer.evictable.look_ahead(positions),
            Population::Removing(_) => None,
        };
        drop(writer);
        bound.slab.word(slot).claim();
        // What comes next is the slot's body, which leaves time for these.
        let victim = ahead.map(|(addresses, victim)| {
            addresses.into_iter().for_each(prefetch);
            victim
        });
        for next in [next, victim].into_iter().flatten() {
            bound.slab.prefetch_word(next);
            bound.slab.prefetch_bytes(next);
        }
        Some(SlotWriter::new(Arc::clone(bound), slot))
    }

    /// Puts a complete sample into the population. Never waits.
    ///
    /// # Errors
    /// The slot comes back when there is no room now (or publication is paused); "room wanted" is then raised.
    pub fn publish(&self, slot: SlotWriter, key: SampleKey, parameters: &[f64]) -> Result<(), SlotWriter> {
        let bound = Arc::clone(&slot.bound);
        let mut slot = Some(slot);
        let published = {
            let mut writer = lock(&bound.writer);
            let published = self.paused.load(Ordering::Relaxed) == 0
                && !self.is_closed()
                && self.publish_locked(&bound, &mut writer, &mut slot, key, parameters);
            // Under the lock, so that a snapshot counts what it holds.
            self.published.fetch_add(u64::from(published), Ordering::Relaxed);
            published
        };
        if published && !planted(Bug::PublishWakesNobody) {
            self.data.notify();
        }
        slot.map_or(Ok(()), Err)
    }

    fn publish_locked(
        &self,
        bound: &Arc<Bound>,
        writer: &mut Writer,
        slot: &mut Option<SlotWriter>,
        key: SampleKey,
        parameters: &[f64],
    ) -> bool {
        // Takes the slot out of the option only when it is published.
        let publish = |slot: &mut Option<SlotWriter>| {
            slot.take().map(|mut slot| {
                if !planted(Bug::PublishedUnwritten) {
                    slot.set_identity(key, parameters);
                }
                slot.set_ordinal(self.published.load(Ordering::Relaxed));
                slot.publish()
            })
        };
        match &bound.population {
            Population::Removing(removing) => {
                if !removing.has_room() {
                    if self.config.pseudo_epochs > 1 {
                        self.fail(self.too_small_for_passes());
                        return false;
                    }
                    self.room.want();
                    if !removing.has_room() {
                        return false;
                    }
                }
                // This writer holds the writer's lock: nobody else can have used the room up.
                removing.add(|| publish(slot))
            }
            Population::Positions(positions) => {
                let population = positions.population();
                if population < positions.capacity() {
                    let Some(entry) = publish(slot) else { return false };
                    bound.slab.set_position(entry.slot, population);
                    positions.append(entry);
                    return true;
                }
                writer.evictable.learn(&bound.slab);
                if writer.evictable.is_empty() {
                    self.room.want();
                    writer.evictable.learn(&bound.slab);
                }
                let Some(position) = writer.evictable.choose() else { return false };
                let neighbour = (position + 1) % positions.capacity();
                let position = if planted(Bug::VictimUnseen) { neighbour } else { position };
                let old = positions.entry(position);
                let Some(entry) = publish(slot) else { return false };
                bound.slab.set_position(entry.slot, position);
                positions.replace(position, entry);
                let release = bound.slab.word(old.slot).retire();
                if !bound.slab.released(old.slot, release) {
                    bound.room.note_retired(old.slot);
                }
                true
            }
        }
    }

    fn too_small_for_passes(&self) -> String {
        format!(
            "a FIRO with pseudo_epochs = {} gathers every sample before training starts: its {} places are full and \
             more samples came; set dl_config.buffer_size to the number of samples that this rank receives, or \
             pseudo_epochs to 1",
            self.config.pseudo_epochs, self.config.capacity
        )
    }

    /// Puts a sample, waiting for room until the deadline.
    ///
    /// # Errors
    /// `Closed` after the end of reception, `Timeout`, `Failed`; sizes that are not the schema's.
    pub fn put(
        &self,
        key: SampleKey,
        fields: &[&[u8]],
        parameters: &[f64],
        deadline: Option<Instant>,
    ) -> Result<(), BufferError> {
        let bound = self.bound.get().ok_or(BufferError::Unbound)?;
        let schema = bound.slab.schema();
        let count = |what, expected, got| {
            if expected == got { Ok(()) } else { Err(BufferError::Count { what, expected, got }) }
        };
        count("fields", schema.fields().len(), fields.len())?;
        count("parameters", schema.nb_parameters(), parameters.len())?;
        for (index, bytes) in fields.iter().enumerate() {
            let expected = schema.field_bytes(index);
            if bytes.len() != expected {
                let field = schema.fields()[index].name.clone();
                return Err(BufferError::FieldBytes { field, expected, got: bytes.len() });
            }
        }
        let check_open = || {
            if let Some(text) = self.failure.get() {
                Err(BufferError::Failed(text.clone()))
            } else if self.is_closed() {
                Err(BufferError::Closed)
            } else {
                Ok(())
            }
        };
        let wait = |attempt: &mut dyn FnMut() -> Option<()>| {
            self.room
                .waiters
                .wait_until(deadline, || if check_open().is_err() { Some(()) } else { attempt() })
                .ok_or(BufferError::Timeout)
                .and_then(|()| check_open())
        };
        check_open()?;
        let mut slot = None;
        wait(&mut || {
            slot = self.take_slot();
            slot.as_ref().map(|_| ())
        })?;
        let Some(mut writer) = slot else { return Err(BufferError::Closed) };
        for (index, bytes) in fields.iter().enumerate() {
            writer.field_bytes_mut(index).copy_from_slice(bytes);
        }
        let mut slot = Some(writer);
        let result = wait(&mut || match slot.take().map(|writer| self.publish(writer, key, parameters)) {
            None | Some(Ok(())) => Some(()),
            Some(Err(writer)) => {
                slot = Some(writer);
                None
            }
        });
        // Published just before reception was closed is published.
        if slot.is_none() { Ok(()) } else { result }
    }
}
