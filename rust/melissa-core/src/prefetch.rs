//! One thread that gathers batches ahead of the training step.
//!
//! Batches form one sequence of draws, whoever gathers them: there is one sampler at a time. As long as training
//! steps take longer than a thread takes to wake up, the thread gathers the next batches meanwhile. A consumer that
//! comes back at once would only wait for a thread to be woken, so it gathers its batch itself.

use crate::batch::{Batch, BatchLayout, BatchPool};
use crate::buffer::Buffer;
use crate::checkpoint::Pending;
use crate::error::BufferError;
use crate::sync::{Arc, AtomicBool, AtomicU64, Mutex, Ordering, Waiters, lock, now, thread};
use std::collections::VecDeque;
use std::io;
use std::time::{Duration, Instant};
use thiserror::Error;

/// How long the thread waits for data before it looks whether it is to stop.
const STOP_POLL: Duration = Duration::from_millis(50);
/// A step that takes less is over before a batch that is gathered beside it could be of use.
const SHORTEST_STEP: Duration = Duration::from_micros(50);
/// So many steps in a row that speak against the present way of gathering change it: one alone may be an accident.
const STEPS_TO_CHANGE: u32 = 4;

#[derive(Debug)]
struct Queue {
    ready: VecDeque<Batch>,
    /// A batch whose gathering was interrupted by a deadline.
    partial: Option<Batch>,
    /// Somebody draws from the buffer: the thread, or a consumer for itself.
    drawing: bool,
    /// Nobody is to begin drawing: a cut is being taken.
    held: bool,
    /// The thread is to gather ahead.
    ahead: bool,
    /// Steps in a row that speak against `ahead` being what it is.
    against: u32,
    /// Why no further batch comes.
    end: Option<BufferError>,
    /// When the last batch was handed over.
    handed: Option<Instant>,
}

impl Queue {
    /// Learns how long a step took; true when that changes who is to gather.
    fn learn(&mut self, step: Duration) -> bool {
        if (step >= SHORTEST_STEP) == self.ahead {
            self.against = 0;
            return false;
        }
        self.against += 1;
        if self.against < STEPS_TO_CHANGE {
            return false;
        }
        self.against = 0;
        self.ahead = !self.ahead;
        true
    }
}

#[derive(Debug)]
struct Shared {
    buffer: Arc<Buffer>,
    batch_size: usize,
    depth: usize,
    drop_last: bool,
    pool: Arc<BatchPool>,
    layout: Mutex<Option<Arc<BatchLayout>>>,
    queue: Mutex<Queue>,
    /// Consumers wait here for a batch, the end, or their turn to draw.
    delivered: Waiters,
    /// The thread waits here until a batch is wanted of it. Apart from the consumers: whoever draws for itself wakes
    /// nobody.
    wanted: Waiters,
    stop: AtomicBool,
    wait_ns: AtomicU64,
}

/// Batches gathered ahead. Dropped, it stops and joins its thread.
#[derive(Debug)]
pub struct Prefetcher {
    shared: Arc<Shared>,
    thread: Mutex<Option<thread::JoinHandle<()>>>,
}

enum Turn {
    Batch(Batch),
    End(BufferError),
    /// The caller draws for itself, going on with what was begun.
    Draw(Option<Batch>),
}

impl Prefetcher {
    /// Starts the thread, which keeps up to `depth` batches ready. With `drop_last` a short last batch is not
    /// delivered.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn start(buffer: Arc<Buffer>, batch_size: usize, depth: usize, drop_last: bool) -> io::Result<Self> {
        Self::resume(buffer, batch_size, depth, drop_last, None).map_err(|error| match error {
            ResumeError::Thread(error) => error,
            // Without batches of before a restart nothing is allocated here.
            ResumeError::Buffer(error) => io::Error::other(error),
        })
    }

    /// Starts as [`Prefetcher::start`] does, and delivers the batches of a cut first.
    ///
    /// # Errors
    /// When the system gives no thread; when a batch of the cut is larger than `batch_size`.
    pub fn resume(
        buffer: Arc<Buffer>,
        batch_size: usize,
        depth: usize,
        drop_last: bool,
        pending: Option<&Pending>,
    ) -> Result<Self, ResumeError> {
        let pool = Arc::<BatchPool>::default();
        let (mut ready, mut partial, mut layout) = (VecDeque::new(), None, None);
        if let (Some(pending), Some(schema)) = (pending, buffer.schema()) {
            let known = layout.insert(BatchLayout::new(schema, batch_size.max(1)));
            let (batches, begun) = pending.batches(&pool, known)?;
            (ready, partial) = (batches.into(), begun);
        }
        let shared = Arc::new(Shared {
            buffer,
            batch_size: batch_size.max(1),
            depth: depth.max(1),
            drop_last,
            pool,
            layout: Mutex::new(layout),
            queue: Mutex::new(Queue {
                ready,
                partial,
                drawing: false,
                held: false,
                ahead: true,
                against: 0,
                end: None,
                handed: None,
            }),
            delivered: Waiters::default(),
            wanted: Waiters::default(),
            stop: AtomicBool::new(false),
            wait_ns: AtomicU64::new(0),
        });
        let worker = Arc::clone(&shared);
        let thread = thread::Builder::new().name("melissa-prefetch".into()).spawn(move || worker.run())?;
        Ok(Self { shared, thread: Mutex::new(Some(thread)) })
    }

    /// The next batch, waiting for it until the deadline.
    ///
    /// # Errors
    /// `EndOfData` after the last batch, `Timeout`, `Failed`, `Closed` after `stop`.
    pub fn next(&self, deadline: Option<Instant>) -> Result<Batch, BufferError> {
        let shared = &*self.shared;
        let begin = now();
        let handed = {
            let mut queue = lock(&shared.queue);
            let changed = queue.handed.is_some_and(|handed| queue.learn(begin - handed));
            let (handed, ahead) = (queue.handed.is_some(), queue.ahead);
            drop(queue);
            if changed {
                // Those whose turn it is now: the thread, or consumers that waited for it.
                if ahead { &shared.wanted } else { &shared.delivered }.notify();
            }
            handed
        };
        let mut waited = Duration::ZERO;
        let turn = shared.turn().or_else(|| {
            let turn = shared.delivered.wait_until(deadline, || shared.turn());
            waited = now().saturating_duration_since(begin);
            turn
        });
        let (result, notify) = match turn {
            None => (Err(BufferError::Timeout), false),
            Some(Turn::End(error)) => (Err(error), false),
            // There is room for a further batch.
            Some(Turn::Batch(batch)) => (Ok(batch), true),
            Some(Turn::Draw(begun)) => {
                let before = shared.buffer.data_wait();
                let result = shared.draw(begun, deadline, |_, batch| batch);
                waited += shared.buffer.data_wait() - before;
                (result, false)
            }
        };
        // The wait for the first batch is the wait for the watermark; what counts is the time after it.
        if handed {
            shared.wait_ns.fetch_add(waited.as_nanos() as u64, Ordering::Relaxed);
        }
        let mut queue = lock(&shared.queue);
        if result.is_ok() {
            queue.handed = Some(now());
        }
        let notify = notify && queue.ahead;
        drop(queue);
        if notify {
            shared.wanted.notify();
        }
        result
    }

    /// Keeps everybody from drawing until the guard is dropped; returns when nobody does any more, a wait for data of
    /// this thread's included, which takes no longer than a moment.
    ///
    /// # Errors
    /// `Timeout`: a consumer in another thread was drawing until the deadline.
    pub fn hold(&self, deadline: Option<Instant>) -> Result<HeldPrefetcher<'_>, BufferError> {
        lock(&self.shared.queue).held = true;
        let held = HeldPrefetcher(&self.shared);
        let is_still =
            self.shared.delivered.wait_until(deadline, || (!lock(&self.shared.queue).drawing).then_some(()));
        is_still.map(|()| held).ok_or(BufferError::Timeout)
    }

    /// Seconds that `next` waited for data or for a batch to be gathered, since the first batch came.
    pub fn wait_seconds(&self) -> f64 {
        self.shared.wait_ns.load(Ordering::Relaxed) as f64 * 1e-9
    }

    /// Ends the thread. Batches that are ready are given up; their samples count as not trained.
    pub fn stop(&self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.shared.delivered.notify();
        self.shared.wanted.notify();
        if let Some(thread) = lock(&self.thread).take() {
            // A panic of the thread was told to the waiting side already.
            let _ = thread.join();
        }
        lock(&self.shared.queue).ready.clear();
    }
}

/// A prefetcher that draws nothing as long as this is there.
#[derive(Debug)]
pub struct HeldPrefetcher<'a>(&'a Shared);

impl HeldPrefetcher<'_> {
    /// Copies of the batches that are ready, and of the one that is begun, in the order of delivery.
    pub fn pending(&self) -> Pending {
        let queue = lock(&self.0.queue);
        let mut pending = Pending::default();
        let batches = queue.ready.iter().chain(&queue.partial);
        let nb_samples = batches.clone().map(|batch| batch.keys().len()).sum();
        if let Some(batch) = batches.clone().next() {
            pending.reserve(nb_samples, batch.layout().schema());
        }
        for batch in &queue.ready {
            pending.push_batch(batch);
        }
        if let Some(begun) = queue.partial.as_ref().filter(|batch| !batch.keys().is_empty()) {
            pending.push_begun(begun);
        }
        pending
    }
}

impl Drop for HeldPrefetcher<'_> {
    fn drop(&mut self) {
        lock(&self.0.queue).held = false;
        self.0.delivered.notify();
        self.0.wanted.notify();
    }
}

/// Why batches of before a restart cannot be delivered.
#[derive(Debug, Error)]
pub enum ResumeError {
    #[error("no thread to gather batches in: {0}")]
    Thread(#[from] io::Error),
    #[error(transparent)]
    Buffer(#[from] BufferError),
}

impl Drop for Prefetcher {
    fn drop(&mut self) {
        self.stop();
    }
}

/// An error to be told again.
fn again(error: &BufferError) -> BufferError {
    match error {
        BufferError::EndOfData => BufferError::EndOfData,
        BufferError::Closed => BufferError::Closed,
        other => BufferError::Failed(other.to_string()),
    }
}

impl Shared {
    /// What a consumer can do now; `None`: wait.
    fn turn(&self) -> Option<Turn> {
        let mut queue = lock(&self.queue);
        if let Some(batch) = queue.ready.pop_front() {
            return Some(Turn::Batch(batch));
        }
        if let Some(end) = &queue.end {
            return Some(Turn::End(again(end)));
        }
        if self.stop.load(Ordering::Relaxed) {
            return Some(Turn::End(BufferError::Closed));
        }
        if queue.drawing || queue.held || queue.ahead {
            return None;
        }
        queue.drawing = true;
        Some(Turn::Draw(queue.partial.take()))
    }

    /// Gathers a batch for whoever has set `drawing`, and gives up the turn. `deliver` runs before anybody else can
    /// draw, so that batches keep the order in which they were drawn.
    fn draw<T>(
        &self,
        begun: Option<Batch>,
        deadline: Option<Instant>,
        deliver: impl FnOnce(&mut Queue, Batch) -> T,
    ) -> Result<T, BufferError> {
        let mut batch = begun;
        let result = self.fill(&mut batch, deadline);
        let mut queue = lock(&self.queue);
        queue.drawing = false;
        let result = match result {
            Ok(()) => batch.map(|batch| deliver(&mut queue, batch)).ok_or(BufferError::EndOfData),
            Err(error) => {
                if matches!(error, BufferError::Timeout) {
                    queue.partial = batch;
                } else {
                    queue.end = Some(again(&error));
                }
                Err(error)
            }
        };
        let ahead = queue.ahead;
        drop(queue);
        self.delivered.notify();
        if ahead {
            self.wanted.notify();
        }
        result
    }

    fn run(&self) {
        // Whoever waits learns of a panic, too.
        struct Ended<'a>(&'a Shared);
        impl Drop for Ended<'_> {
            fn drop(&mut self) {
                let text =
                    "the prefetching thread ended unexpectedly; this is a defect of Melissa".to_string();
                lock(&self.0.queue).end.get_or_insert(BufferError::Failed(text));
                self.0.delivered.notify();
            }
        }
        let ended = Ended(self);
        self.gather_ahead();
        lock(&self.queue).end.get_or_insert(BufferError::Closed);
        drop(ended);
    }

    fn gather_ahead(&self) {
        loop {
            let turn = self.wanted.wait_until(Some(now() + STOP_POLL), || {
                let mut queue = lock(&self.queue);
                if self.stop.load(Ordering::Relaxed) || queue.end.is_some() {
                    return Some(None);
                }
                if queue.drawing || queue.held || !queue.ahead || queue.ready.len() >= self.depth {
                    return None;
                }
                queue.drawing = true;
                Some(Some(queue.partial.take()))
            });
            let begun = match turn {
                None => continue,
                Some(None) => return,
                Some(Some(begun)) => begun,
            };
            // An error is the queue's end by now, and a time-out leaves a batch begun.
            let _ = self.draw(begun, Some(now() + STOP_POLL), |queue, batch| {
                queue.ready.push_back(batch);
            });
        }
    }

    /// Fills the batch until it is whole or the deadline passes.
    fn fill(&self, batch: &mut Option<Batch>, deadline: Option<Instant>) -> Result<(), BufferError> {
        let batch = match batch {
            Some(batch) => batch,
            None => batch.insert(Batch::new(&self.pool, self.layout(deadline)?)?),
        };
        self.buffer.gather(batch, deadline)?;
        let short = batch.keys().len() < self.batch_size;
        if short && self.drop_last && self.buffer.is_closed() { Err(BufferError::EndOfData) } else { Ok(()) }
    }

    /// The layout of batches, once the sizes of fields are known.
    fn layout(&self, deadline: Option<Instant>) -> Result<Arc<BatchLayout>, BufferError> {
        let mut known = lock(&self.layout);
        if let Some(layout) = &*known {
            return Ok(Arc::clone(layout));
        }
        if self.buffer.schema().is_none() && !self.buffer.wait_ready(deadline)? {
            return Err(BufferError::Timeout);
        }
        // Reception that ends before any sample came leaves the buffer without a schema.
        let schema = self.buffer.schema().ok_or(BufferError::EndOfData)?;
        Ok(Arc::clone(known.insert(BatchLayout::new(schema, self.batch_size))))
    }
}
