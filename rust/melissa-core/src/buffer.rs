//! The training buffer: a slab, a population with its policy, and those who wait.
//!
//! One receiving session takes slots, fills and publishes them; samplers draw, pin, copy and unpin. Neither waits
//! for the other under a lock: the session never waits at all (it raises "room wanted" and is woken), and samplers
//! wait for the population only.

use crate::error::{BufferError, describe};
use crate::policy::drain::Drain;
use crate::policy::limiter::Limiter;
use crate::policy::removing::Removing;
use crate::policy::reservoir::{Evictable, Positions};
pub use crate::policy::{BufferConfig, Kind};
use crate::rng::CounterRng;
use crate::schema::Schema;
use crate::slab::Slab;
pub use crate::slab::SlotCounts;
use crate::slot::Entry;
use crate::sync::{Arc, AtomicBool, AtomicU64, AtomicUsize, Mutex, OnceLock, Ordering, Waiters, fence, lock};
use std::fmt;
use std::time::{Duration, Instant};

/// Which sample it is: the key of the ledger.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct SampleKey {
    pub simulation: u32,
    /// How often the simulation's parameters were drawn anew.
    pub draw: u32,
    pub time_step: u64,
}

/// Those who wait for a free slot or for room in the population.
#[derive(Default)]
struct Room {
    wanted: AtomicBool,
    waiters: Waiters,
    waker: OnceLock<Arc<dyn Fn() + Send + Sync>>,
}

impl Room {
    /// Says that a slot or room is wanted. The caller looks once more afterwards.
    fn want(&self) {
        self.wanted.store(true, Ordering::Relaxed);
        // SYNC(room): pairs with the fence in `signal`.
        fence(Ordering::SeqCst);
    }

    /// To be called after a slot became free, a sample was seen for the first time, or the population shrank.
    fn signal(&self) {
        // SYNC(room): pairs with the fence in `want`.
        fence(Ordering::SeqCst);
        if self.wanted.load(Ordering::Relaxed) && self.wanted.swap(false, Ordering::Relaxed) {
            if let Some(waker) = self.waker.get() {
                waker();
            }
            self.waiters.notify();
        }
    }
}

enum Population {
    Removing(Removing),
    Positions(Positions),
}

/// What belongs to the one who publishes; the session's, and a `put`'s from Python.
struct Writer {
    free: Vec<u32>,
    evictable: Evictable,
}

/// Everything that exists once the schema is known.
struct Bound {
    slab: Slab,
    population: Population,
    writer: Mutex<Writer>,
    drain: Mutex<Option<Drain>>,
    lent: AtomicUsize,
    lent_limit: usize,
    room: Arc<Room>,
}

impl Bound {
    /// Lets go of a pin.
    fn unpin(&self, slot: u32) {
        let release = self.slab.word(slot).unpin();
        if self.slab.released(slot, release) {
            self.room.signal();
        }
    }
}

/// A slot in which a body is received: the only way to write payload bytes. Dropped unpublished, it gives the slot
/// back.
pub struct SlotWriter {
    bound: Arc<Bound>,
    slot: u32,
    armed: bool,
}

impl SlotWriter {
    /// All bytes of the slot.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        let bytes = self.bound.slab.schema().stride();
        // SAFETY: the slot is in state Filling, which this writer alone has brought about, so nobody reads or
        // writes these bytes beside it; they are initialised (zeroed by the kernel), and `stride` of them are there.
        unsafe { std::slice::from_raw_parts_mut(self.bound.slab.slot_ptr(self.slot), bytes) }
    }

    /// The bytes of one field.
    pub fn field_bytes_mut(&mut self, field: usize) -> &mut [u8] {
        let schema = Arc::clone(self.bound.slab.schema());
        let start = schema.field_offset(field);
        &mut self.bytes_mut()[start..start + schema.field_bytes(field)]
    }

    fn set_identity(&mut self, key: SampleKey, parameters: &[f64]) {
        let schema = Arc::clone(self.bound.slab.schema());
        let start = schema.parameters_offset();
        let bytes = &mut self.bytes_mut()[start..start + 8 * schema.nb_parameters()];
        for (place, parameter) in bytes.chunks_exact_mut(8).zip(parameters) {
            place.copy_from_slice(&parameter.to_ne_bytes());
        }
        // SAFETY: as for the bytes: the key of a slot in state Filling belongs to its one writer.
        unsafe { *self.bound.slab.key_ptr(self.slot) = key };
    }

    /// `Filling -> Published`.
    fn publish(&mut self) -> Entry {
        self.armed = false;
        Entry { slot: self.slot, generation: self.bound.slab.word(self.slot).publish() }
    }
}

impl Drop for SlotWriter {
    fn drop(&mut self) {
        if self.armed {
            self.bound.slab.word(self.slot).unclaim();
            self.bound.slab.push_free(self.slot);
            self.bound.room.signal();
        }
    }
}

impl fmt::Debug for SlotWriter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SlotWriter").field("slot", &self.slot).finish()
    }
}

/// A drawn sample under a pin, for the time of a copy.
pub(crate) struct SlotGuard<'a> {
    bound: &'a Arc<Bound>,
    slot: u32,
}

impl SlotGuard<'_> {
    pub(crate) fn key(&self) -> SampleKey {
        // SAFETY: the pin was given after the sample was published, and keeps the slot from being written again.
        unsafe { *self.bound.slab.key_ptr(self.slot) }
    }

    /// All bytes of the slot.
    pub(crate) fn bytes(&self) -> &[u8] {
        // SAFETY: as in `key`.
        unsafe {
            std::slice::from_raw_parts(self.bound.slab.slot_ptr(self.slot), self.bound.slab.schema().stride())
        }
    }
}

impl Drop for SlotGuard<'_> {
    fn drop(&mut self) {
        self.bound.unpin(self.slot);
    }
}

/// The float64 parameters of a sample in the bytes of its slot.
pub(crate) fn parameters<'a>(schema: &Schema, bytes: &'a [u8]) -> impl Iterator<Item = f64> + 'a {
    let start = schema.parameters_offset();
    bytes[start..start + 8 * schema.nb_parameters()].chunks_exact(8).map(|chunk| {
        let mut number = [0; 8];
        number.copy_from_slice(chunk);
        f64::from_ne_bytes(number)
    })
}

enum Payload {
    View { bound: Arc<Bound>, slot: u32 },
    Copy(Box<[u64]>),
}

/// A sample lent to the user: a view that holds a pin, or, when as many views are out as may be, a private copy.
pub struct Sample {
    key: SampleKey,
    schema: Arc<Schema>,
    payload: Payload,
}

impl Sample {
    pub const fn key(&self) -> SampleKey {
        self.key
    }

    pub fn schema(&self) -> &Arc<Schema> {
        &self.schema
    }

    pub const fn is_copy(&self) -> bool {
        matches!(self.payload, Payload::Copy(_))
    }

    pub fn parameters(&self) -> Vec<f64> {
        parameters(&self.schema, self.bytes()).collect()
    }

    /// The bytes of one field, in native byte order, aligned for its dtype.
    pub fn field_bytes(&self, field: usize) -> &[u8] {
        let start = self.schema.field_offset(field);
        &self.bytes()[start..start + self.schema.field_bytes(field)]
    }

    fn bytes(&self) -> &[u8] {
        match &self.payload {
            // SAFETY: this sample holds a pin, given after publication, until it is dropped.
            Payload::View { bound, slot } => unsafe {
                std::slice::from_raw_parts(bound.slab.slot_ptr(*slot), self.schema.stride())
            },
            // SAFETY: the box holds stride / 8 words, all initialised.
            Payload::Copy(words) => unsafe {
                std::slice::from_raw_parts(words.as_ptr().cast::<u8>(), self.schema.stride())
            },
        }
    }
}

impl Drop for Sample {
    fn drop(&mut self) {
        if let Payload::View { bound, slot } = &self.payload {
            bound.lent.fetch_sub(1, Ordering::Relaxed);
            bound.unpin(*slot);
        }
    }
}

impl fmt::Debug for Sample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sample").field("key", &self.key).field("copy", &self.is_copy()).finish()
    }
}

/// What must not repeat within a batch that is being drawn.
#[derive(Debug, Default)]
pub(crate) struct BatchCursor {
    positions: Vec<usize>,
    drawn: usize,
}

impl BatchCursor {
    pub(crate) fn clear(&mut self) {
        self.positions.clear();
        self.drawn = 0;
    }

    pub(crate) const fn drawn(&self) -> usize {
        self.drawn
    }
}

enum Draw<'a> {
    Sample(SlotGuard<'a>),
    /// The batch ends here although samples are left: reception ended while it was drawn, and what comes now could
    /// repeat what it holds.
    EndOfBatch,
    EndOfData,
}

/// Figures of a training buffer since it was made.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct BufferMetrics {
    pub population: usize,
    pub published: u64,
    pub drawn: u64,
    /// Seconds that draws waited for data since the first draw.
    pub data_wait_seconds: f64,
    /// Samples lent as copies because too many views were out.
    pub view_copies: u64,
    pub slab_bytes: usize,
    pub slots: usize,
    pub stride: usize,
    pub huge_pages: bool,
}

/// A training buffer. See the module's text.
pub struct Buffer {
    config: BufferConfig,
    limiter: Limiter,
    bound: OnceLock<Arc<Bound>>,
    binding: Mutex<()>,
    closed: AtomicBool,
    failure: OnceLock<String>,
    paused: AtomicUsize,
    data: Waiters,
    room: Arc<Room>,
    draws: CounterRng,
    published: AtomicU64,
    drawn: AtomicU64,
    data_wait_ns: AtomicU64,
    view_copies: AtomicU64,
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Buffer")
            .field("config", &self.config)
            .field("population", &self.population())
            .finish()
    }
}

const DRAW_STREAM: u64 = 0;
const EVICTION_STREAM: u64 = 1;

impl Buffer {
    /// # Errors
    /// When the configuration of the kind makes no sense; the text says what and why.
    pub fn new(config: BufferConfig) -> Result<Self, BufferError> {
        config.check()?;
        Ok(Self {
            limiter: Limiter::new(&config),
            bound: OnceLock::new(),
            binding: Mutex::new(()),
            closed: AtomicBool::new(false),
            failure: OnceLock::new(),
            paused: AtomicUsize::new(0),
            data: Waiters::default(),
            room: Arc::default(),
            draws: CounterRng::new(config.seed, DRAW_STREAM),
            published: AtomicU64::new(0),
            drawn: AtomicU64::new(0),
            data_wait_ns: AtomicU64::new(0),
            view_copies: AtomicU64::new(0),
            config,
        })
    }

    pub const fn config(&self) -> &BufferConfig {
        &self.config
    }

    pub fn slot_counts(&self) -> SlotCounts {
        SlotCounts {
            capacity: self.config.capacity,
            assembly: self.config.assembly_slots,
            lent: self.config.lent(),
        }
    }

    /// Slots for bodies that are being received.
    pub const fn assembly_slots(&self) -> usize {
        self.config.assembly_slots
    }

    /// Allocates the slab. Again with an equal schema it does nothing.
    ///
    /// # Errors
    /// Another schema than before; too little memory, with both figures.
    pub fn bind(&self, schema: Arc<Schema>) -> Result<(), BufferError> {
        let _binding = lock(&self.binding);
        if let Some(bound) = self.bound.get() {
            let known = bound.slab.schema();
            return if **known == *schema {
                Ok(())
            } else {
                Err(BufferError::OtherSchema { bound: describe(known), other: describe(&schema) })
            };
        }
        let counts = self.slot_counts();
        let capacity = counts.capacity;
        let slab = Slab::new(schema, counts)?;
        let slots = slab.slots();
        let population = match self.config.kind {
            Kind::Fifo => Population::Removing(Removing::new(false, capacity)),
            Kind::Firo => Population::Removing(Removing::new(true, capacity)),
            Kind::Reservoir | Kind::BatchReservoir => Population::Positions(Positions::new(capacity)),
        };
        let eviction_rng = CounterRng::new(self.config.seed, EVICTION_STREAM);
        let writer = Writer {
            free: (0..slots as u32).rev().collect(),
            evictable: Evictable::new(slots, capacity, eviction_rng),
        };
        let bound = Arc::new(Bound {
            slab,
            population,
            writer: Mutex::new(writer),
            drain: Mutex::new(None),
            lent: AtomicUsize::new(0),
            lent_limit: counts.lent,
            room: Arc::clone(&self.room),
        });
        let _ = self.bound.set(bound);
        self.data.notify();
        Ok(())
    }

    pub fn schema(&self) -> Option<Arc<Schema>> {
        self.bound.get().map(|bound| Arc::clone(bound.slab.schema()))
    }

    /// Who is called when a slot or room may be there after it was wanted; one for the life of the buffer.
    pub fn set_room_waker(&self, waker: Arc<dyn Fn() + Send + Sync>) {
        let _ = self.room.waker.set(waker);
    }

    /// A free slot, or `None`: then "room wanted" is raised, and the waker called when one may be there.
    pub fn take_slot(&self) -> Option<SlotWriter> {
        let bound = self.bound.get()?;
        let mut writer = lock(&bound.writer);
        if writer.free.is_empty() {
            bound.slab.take_free(&mut writer.free);
            if writer.free.is_empty() {
                self.room.want();
                bound.slab.take_free(&mut writer.free);
            }
        }
        let slot = writer.free.pop()?;
        bound.slab.word(slot).claim();
        Some(SlotWriter { bound: Arc::clone(bound), slot, armed: true })
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
            self.paused.load(Ordering::Relaxed) == 0
                && !self.is_closed()
                && self.publish_locked(&bound, &mut writer, &mut slot, key, parameters)
        };
        if published {
            self.published.fetch_add(1, Ordering::Relaxed);
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
                slot.set_identity(key, parameters);
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
                    writer.evictable.placed(entry.slot, population);
                    positions.append(entry);
                    return true;
                }
                writer.evictable.learn(&bound.slab);
                if writer.evictable.is_empty() {
                    self.room.want();
                    writer.evictable.learn(&bound.slab);
                }
                let Some(position) = writer.evictable.choose() else { return false };
                let old = positions.entry(position);
                let Some(entry) = publish(slot) else { return false };
                writer.evictable.placed(entry.slot, position);
                positions.replace(position, entry);
                let release = bound.slab.word(old.slot).retire();
                bound.slab.released(old.slot, release);
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

    /// The end of reception: from now on samples are delivered until the population is empty.
    pub fn close(&self) {
        if let Some(bound) = self.bound.get() {
            // Under the writer's lock: the close follows the last publish.
            let _writer = lock(&bound.writer);
            self.closed.store(true, Ordering::Release);
        } else {
            self.closed.store(true, Ordering::Release);
        }
        self.data.notify();
        self.room.waiters.notify();
    }

    pub fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// The receiver cannot go on: whoever waits for data, or asks for it later, gets this text as an error.
    pub fn fail(&self, message: String) {
        let _ = self.failure.set(message);
        self.data.notify();
        self.room.waiters.notify();
    }

    pub fn failure(&self) -> Option<&str> {
        self.failure.get().map(String::as_str)
    }

    /// Nothing is published until `resume`; calls nest.
    pub fn pause(&self) {
        let bound = self.bound.get();
        // Under the writer's lock: once this returns, no publication is under way.
        let _writer = bound.map(|bound| lock(&bound.writer));
        self.paused.fetch_add(1, Ordering::Relaxed);
    }

    pub fn resume(&self) {
        let before =
            self.paused.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |count| count.checked_sub(1));
        if before == Ok(1) {
            self.room.want();
            self.room.signal();
        }
    }

    pub fn is_paused(&self) -> bool {
        self.paused.load(Ordering::Relaxed) > 0
    }

    /// Gets no longer wait for the watermark.
    pub fn lift_watermark(&self) {
        self.limiter.lift();
        self.data.notify();
    }

    pub fn population(&self) -> usize {
        self.bound.get().map_or(0, |bound| match &bound.population {
            Population::Removing(removing) => removing.population(),
            Population::Positions(positions) => positions.population(),
        })
    }

    /// Deliveries still to come, once reception is over and the drain has begun.
    pub fn remaining(&self) -> Option<usize> {
        let bound = self.bound.get()?;
        lock(&bound.drain).as_ref().map(Drain::remaining)
    }

    /// Waits until a get would not wait: true, or false at the deadline.
    ///
    /// # Errors
    /// `Failed` when the receiver cannot go on.
    pub fn wait_ready(&self, deadline: Option<Instant>) -> Result<bool, BufferError> {
        let ready = self.data.wait_until(deadline, || {
            (self.failure.get().is_some() || self.is_closed() || self.population() >= self.limiter.needed())
                .then_some(())
        });
        match self.failure.get() {
            Some(text) => Err(BufferError::Failed(text.clone())),
            None => Ok(ready.is_some()),
        }
    }

    /// Draws the next sample of a batch, waiting for it until the deadline. `Ok(None)`: the batch ends here.
    pub(crate) fn draw(
        &self,
        cursor: &mut BatchCursor,
        deadline: Option<Instant>,
    ) -> Result<Option<SlotGuard<'_>>, BufferError> {
        if let Some(draw) = self.try_draw(cursor)? {
            return self.drawn(draw, cursor);
        }
        let start = Instant::now();
        let waited = self.data.wait_until(deadline, || self.try_draw(cursor).transpose());
        if self.drawn.load(Ordering::Relaxed) > 0 {
            self.data_wait_ns.fetch_add(start.elapsed().as_nanos() as u64, Ordering::Relaxed);
        }
        self.drawn(waited.ok_or(BufferError::Timeout)??, cursor)
    }

    fn drawn<'a>(
        &self,
        draw: Draw<'a>,
        cursor: &mut BatchCursor,
    ) -> Result<Option<SlotGuard<'a>>, BufferError> {
        match draw {
            Draw::Sample(guard) => {
                cursor.drawn += 1;
                self.drawn.fetch_add(1, Ordering::Relaxed);
                Ok(Some(guard))
            }
            Draw::EndOfBatch => Ok(None),
            Draw::EndOfData => Err(BufferError::EndOfData),
        }
    }

    /// `Ok(None)`: nothing to draw now.
    fn try_draw(&self, cursor: &mut BatchCursor) -> Result<Option<Draw<'_>>, BufferError> {
        if let Some(text) = self.failure.get() {
            return Err(BufferError::Failed(text.clone()));
        }
        let closed = self.is_closed();
        let Some(bound) = self.bound.get() else {
            return Ok(closed.then_some(Draw::EndOfData));
        };
        if closed && self.config.kind == Kind::BatchReservoir && !cursor.positions.is_empty() {
            return Ok(Some(Draw::EndOfBatch));
        }
        Ok(match &bound.population {
            Population::Removing(removing) if self.config.pseudo_epochs == 1 => {
                let needed = if closed { 1 } else { self.limiter.needed() };
                let take = |entry: Entry| bound.slab.word(entry.slot).pin_and_retire();
                match removing.remove(needed, &self.draws, take) {
                    Some(entry) => {
                        bound.slab.word(entry.slot).deliver();
                        bound.room.signal();
                        Some(Draw::Sample(SlotGuard { bound, slot: entry.slot }))
                    }
                    None if closed => Some(Draw::EndOfData),
                    None => None,
                }
            }
            _ if closed => Some(self.draw_in_drain(bound)),
            Population::Removing(_) => None,
            Population::Positions(positions) => {
                let population = positions.population();
                if population < self.limiter.needed() {
                    None
                } else {
                    self.draw_position(bound, positions, population, cursor)
                }
            }
        })
    }

    /// Uniform over the positions; `None` when reception ended meanwhile.
    fn draw_position<'a>(
        &self,
        bound: &'a Arc<Bound>,
        positions: &Positions,
        population: usize,
        cursor: &mut BatchCursor,
    ) -> Option<Draw<'a>> {
        let distinct = self.config.kind == Kind::BatchReservoir;
        let position = loop {
            let position = self.draws.below(population);
            if !distinct || !cursor.positions.contains(&position) {
                break position;
            }
            if cursor.positions.len() >= population {
                return Some(Draw::EndOfBatch);
            }
        };
        loop {
            let entry = positions.entry(position);
            match bound.slab.pin(entry) {
                Ok(()) => {
                    if distinct {
                        cursor.positions.push(position);
                    }
                    if bound.slab.word(entry.slot).deliver() {
                        bound.slab.push_seen(entry.slot);
                        bound.room.signal();
                    }
                    return Some(Draw::Sample(SlotGuard { bound, slot: entry.slot }));
                }
                Err(freed) => {
                    if freed {
                        bound.room.signal();
                    }
                    // Either a successor stands at this position by now, or a drain has taken the sample.
                    if self.is_closed() {
                        return None;
                    }
                    std::hint::spin_loop();
                }
            }
        }
    }

    fn draw_in_drain<'a>(&self, bound: &'a Arc<Bound>) -> Draw<'a> {
        let mut drain = lock(&bound.drain);
        let drain =
            drain.get_or_insert_with(|| Drain::new(entries(bound), self.config.pseudo_epochs, &self.draws));
        let Some(ticket) = drain.next(&self.draws) else { return Draw::EndOfData };
        let slot = ticket.entry.slot;
        let word = bound.slab.word(slot);
        if ticket.last {
            word.pin_and_retire();
        } else {
            // Only this drain takes samples out, and it does so under the lock that is held here.
            let pinned = word.pin(ticket.entry.generation);
            debug_assert!(pinned.is_ok());
        }
        word.deliver();
        match &bound.population {
            Population::Positions(positions) => positions.set_population(ticket.left),
            Population::Removing(removing) => removing.set_population(ticket.left),
        }
        Draw::Sample(SlotGuard { bound, slot })
    }

    /// Lends a drawn sample to the user.
    pub(crate) fn lend(&self, guard: SlotGuard<'_>) -> Sample {
        let bound = guard.bound;
        let (key, schema) = (guard.key(), Arc::clone(bound.slab.schema()));
        let payload = if bound.lent.fetch_add(1, Ordering::Relaxed) < bound.lent_limit {
            bound.slab.word(guard.slot).pin_again();
            Payload::View { bound: Arc::clone(bound), slot: guard.slot }
        } else {
            bound.lent.fetch_sub(1, Ordering::Relaxed);
            if self.view_copies.fetch_add(1, Ordering::Relaxed) == 0 {
                log::warn!(
                    "more than {} samples are held at once (SimulationData kept by user code?): further ones are \
                     copies, so that reception goes on",
                    bound.lent_limit
                );
            }
            let mut words = vec![0u64; schema.stride() / 8].into_boxed_slice();
            // SAFETY: both sides are `stride` bytes long, and the source is pinned.
            unsafe {
                std::ptr::copy_nonoverlapping(
                    guard.bytes().as_ptr(),
                    words.as_mut_ptr().cast::<u8>(),
                    schema.stride(),
                );
            }
            Payload::Copy(words)
        };
        Sample { key, schema, payload }
    }

    /// One sample, lent.
    ///
    /// # Errors
    /// `EndOfData`, `Timeout` at the deadline, `Failed`.
    pub fn get(&self, deadline: Option<Instant>) -> Result<Sample, BufferError> {
        let mut cursor = BatchCursor::default();
        self.draw(&mut cursor, deadline)?.map(|guard| self.lend(guard)).ok_or(BufferError::EndOfData)
    }

    /// Draws samples into `batch` until it holds `nb_samples`, or the batch is to end earlier (then it is what is
    /// there, at least one sample).
    ///
    /// # Errors
    /// As `get`; samples drawn before a `Timeout` stay in `batch`, and a further call goes on.
    pub fn get_batch(
        &self,
        batch: &mut LentBatch,
        nb_samples: usize,
        deadline: Option<Instant>,
    ) -> Result<(), BufferError> {
        while batch.samples.len() < nb_samples {
            match self.draw(&mut batch.cursor, deadline) {
                Ok(Some(guard)) => batch.samples.push(self.lend(guard)),
                Ok(None) => break,
                Err(BufferError::EndOfData) if !batch.samples.is_empty() => break,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// The sample at a place of the population, lent without counting as a delivery; `None` past its end.
    pub fn peek(&self, index: usize) -> Option<Sample> {
        let bound = self.bound.get()?;
        loop {
            let entry = *self.current_entries(bound).get(index)?;
            match bound.slab.pin(entry) {
                Ok(()) => return Some(self.lend(SlotGuard { bound, slot: entry.slot })),
                Err(freed) => {
                    if freed {
                        bound.room.signal();
                    }
                }
            }
        }
    }

    fn current_entries(&self, bound: &Arc<Bound>) -> Vec<Entry> {
        match &*lock(&bound.drain) {
            Some(drain) => drain.entries().to_vec(),
            None => entries(bound),
        }
    }

    /// How often each sample of the population was delivered.
    pub fn deliveries(&self) -> Vec<u32> {
        self.bound.get().map_or_else(Vec::new, |bound| {
            let entries = self.current_entries(bound);
            entries.iter().map(|entry| bound.slab.word(entry.slot).deliveries()).collect()
        })
    }

    /// Time that draws waited for data since the first draw.
    pub(crate) fn data_wait(&self) -> Duration {
        Duration::from_nanos(self.data_wait_ns.load(Ordering::Relaxed))
    }

    pub fn metrics(&self) -> BufferMetrics {
        let mut metrics = BufferMetrics {
            population: self.population(),
            published: self.published.load(Ordering::Relaxed),
            drawn: self.drawn.load(Ordering::Relaxed),
            data_wait_seconds: self.data_wait().as_secs_f64(),
            view_copies: self.view_copies.load(Ordering::Relaxed),
            ..BufferMetrics::default()
        };
        if let Some(bound) = self.bound.get() {
            metrics.slab_bytes = bound.slab.bytes();
            metrics.slots = bound.slab.slots();
            metrics.stride = bound.slab.schema().stride();
            metrics.huge_pages = bound.slab.huge_pages();
        }
        metrics
    }
}

fn entries(bound: &Bound) -> Vec<Entry> {
    match &bound.population {
        Population::Removing(removing) => removing.entries(),
        Population::Positions(positions) => (0..positions.population()).map(|i| positions.entry(i)).collect(),
    }
}

/// A batch of lent samples that is being drawn.
#[derive(Debug, Default)]
pub struct LentBatch {
    cursor: BatchCursor,
    pub samples: Vec<Sample>,
}
