//! The training buffer: a slab, a population with its policy, and those who wait.
//!
//! One receiving session takes slots, fills and publishes them; samplers draw, pin, copy and unpin. Neither waits
//! for the other under a lock: the session never waits at all (it raises "room wanted" and is woken), and samplers
//! wait for the population only.

use crate::bound::{Bound, Population, Room, Writer};
pub use crate::draw::LentBatch;
use crate::error::{BufferError, describe};
use crate::memory::Apart;
use crate::planted::{Bug, planted};
use crate::policy::drain::Drain;
use crate::policy::limiter::Limiter;
use crate::policy::removing::Removing;
use crate::policy::reservoir::{Evictable, Positions};
pub use crate::policy::{BufferConfig, Kind};
use crate::rng::CounterRng;
pub use crate::sample::{Sample, SampleKey, SlotWriter};
use crate::schema::Schema;
use crate::slab::Slab;
pub use crate::slab::SlotCounts;
use crate::snapshot::SnapshotError;
use crate::sync::{Arc, AtomicBool, AtomicU64, AtomicUsize, Mutex, OnceLock, Ordering, Waiters, lock};
use std::fmt;
use std::time::{Duration, Instant};

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
    pub(crate) config: BufferConfig,
    pub(crate) limiter: Limiter,
    pub(crate) bound: OnceLock<Arc<Bound>>,
    binding: Mutex<()>,
    pub(crate) closed: AtomicBool,
    pub(crate) failure: OnceLock<String>,
    pub(crate) paused: AtomicUsize,
    pub(crate) data: Waiters,
    pub(crate) room: Arc<Room>,
    pub(crate) draws: Apart<CounterRng>,
    pub(crate) published: Apart<AtomicU64>,
    pub(crate) drawn: Apart<AtomicU64>,
    pub(crate) data_wait_ns: AtomicU64,
    pub(crate) view_copies: AtomicU64,
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
            draws: Apart(CounterRng::new(config.seed, DRAW_STREAM)),
            published: Apart::default(),
            drawn: Apart::default(),
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
            evictable: Evictable::new(capacity, eviction_rng),
        };
        let bound = Arc::new(Bound {
            slab,
            population,
            writer: Apart(Mutex::new(writer)),
            drain: Mutex::new(None),
            lent: Apart::default(),
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

    /// The end of reception: from now on samples are delivered until the population is empty.
    pub fn close(&self) {
        if let Some(bound) = self.bound.get() {
            // Under the writer's lock: the close follows the last publish.
            let _writer = (!planted(Bug::CloseBesidePublish)).then(|| lock(&bound.writer));
            self.closed.store(true, Ordering::Release);
        } else {
            self.closed.store(true, Ordering::Release);
        }
        self.data.notify();
        self.room.waiters.notify();
    }

    /// Takes samples again after the end of reception: a restart found that there is more to receive than was known when
    /// the snapshot was taken. To be called before the restored buffer is drawn from. The samples of a reservoir that a
    /// drain has not delivered stay, and are drawn like before the drain.
    ///
    /// # Errors
    /// `Snapshot` when a drain of several passes has begun: samples that come now have missed some of them.
    pub fn reopen(&self) -> Result<(), BufferError> {
        if !self.is_closed() {
            return Ok(());
        }
        if let Some(bound) = self.bound.get() {
            let mut writer = lock(&bound.writer);
            let mut drain = lock(&bound.drain);
            if let Some(begun) = &*drain {
                let Population::Positions(positions) = &bound.population else {
                    return Err(SnapshotError::BegunPasses { passes: self.config.pseudo_epochs }.into());
                };
                let mut seen = Vec::with_capacity(begun.entries().len());
                for (position, entry) in begun.entries().iter().enumerate() {
                    bound.slab.set_position(entry.slot, position);
                    positions.replace(position, *entry);
                    if bound.slab.word(entry.slot).deliveries() > 0 {
                        seen.push(position as u32);
                    }
                }
                positions.set_population(begun.entries().len());
                writer.evictable.restore(&seen);
            }
            *drain = None;
        }
        self.closed.store(false, Ordering::Release);
        Ok(())
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
        self.bound.get().map_or(0, |bound| bound.population())
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
            metrics.slab_bytes = bound.slab.size();
            metrics.slots = bound.slab.slots();
            metrics.stride = bound.slab.schema().stride();
            metrics.huge_pages = bound.slab.huge_pages();
        }
        metrics
    }
}
