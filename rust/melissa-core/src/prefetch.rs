//! One thread that gathers batches ahead of the training step.

use crate::batch::{Batch, BatchLayout, BatchPool};
use crate::buffer::Buffer;
use crate::error::BufferError;
use crate::sync::{Arc, AtomicBool, AtomicU64, Mutex, Ordering, Waiters, lock};
use std::collections::VecDeque;
use std::io;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long the thread waits for data before it looks whether it is to stop.
const STOP_POLL: Duration = Duration::from_millis(50);

#[derive(Debug, Default)]
struct Queue {
    ready: VecDeque<Batch>,
    /// Why no further batch comes.
    end: Option<BufferError>,
}

#[derive(Debug)]
struct Shared {
    buffer: Arc<Buffer>,
    batch_size: usize,
    depth: usize,
    drop_last: bool,
    queue: Mutex<Queue>,
    changed: Waiters,
    stop: AtomicBool,
    wait_ns: AtomicU64,
}

/// Batches gathered ahead. Dropped, it stops and joins its thread.
#[derive(Debug)]
pub struct Prefetcher {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
    started: AtomicBool,
}

impl Prefetcher {
    /// Starts the thread, which keeps up to `depth` batches ready. With `drop_last` a short last batch is not
    /// delivered.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn start(buffer: Arc<Buffer>, batch_size: usize, depth: usize, drop_last: bool) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            buffer,
            batch_size: batch_size.max(1),
            depth: depth.max(1),
            drop_last,
            queue: Mutex::default(),
            changed: Waiters::default(),
            stop: AtomicBool::new(false),
            wait_ns: AtomicU64::new(0),
        });
        let worker = Arc::clone(&shared);
        let thread =
            std::thread::Builder::new().name("melissa-prefetch".into()).spawn(move || worker.run())?;
        Ok(Self { shared, thread: Mutex::new(Some(thread)), started: AtomicBool::new(false) })
    }

    /// The next batch, waiting for it until the deadline.
    ///
    /// # Errors
    /// `EndOfData` after the last batch, `Timeout`, `Failed`, `Closed` after `stop`.
    pub fn next(&self, deadline: Option<Instant>) -> Result<Batch, BufferError> {
        let begin = Instant::now();
        let shared = &self.shared;
        let result = shared.changed.wait_until(deadline, || {
            let mut queue = lock(&shared.queue);
            if let Some(batch) = queue.ready.pop_front() {
                return Some(Ok(batch));
            }
            match &queue.end {
                None => shared.stop.load(Ordering::Relaxed).then_some(Err(BufferError::Closed)),
                Some(BufferError::Failed(text)) => Some(Err(BufferError::Failed(text.clone()))),
                Some(BufferError::EndOfData) => Some(Err(BufferError::EndOfData)),
                Some(BufferError::Closed) => Some(Err(BufferError::Closed)),
                Some(other) => Some(Err(BufferError::Failed(other.to_string()))),
            }
        });
        shared.changed.notify();
        // The wait for the first batch is the wait for the watermark; what counts is the time after it.
        if self.started.load(Ordering::Relaxed) {
            shared.wait_ns.fetch_add(begin.elapsed().as_nanos() as u64, Ordering::Relaxed);
        }
        if matches!(result, Some(Ok(_))) {
            self.started.store(true, Ordering::Relaxed);
        }
        result.unwrap_or(Err(BufferError::Timeout))
    }

    /// Seconds that `next` waited since the first batch came.
    pub fn wait_seconds(&self) -> f64 {
        self.shared.wait_ns.load(Ordering::Relaxed) as f64 * 1e-9
    }

    /// Ends the thread. Batches that are ready are given up; their samples count as not trained.
    pub fn stop(&self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.shared.changed.notify();
        if let Some(thread) = lock(&self.thread).take() {
            // A panic of the thread was told to the waiting side already.
            let _ = thread.join();
        }
        lock(&self.shared.queue).ready.clear();
    }
}

impl Drop for Prefetcher {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Shared {
    fn run(&self) {
        // Whoever waits learns of a panic, too.
        struct Ended<'a>(&'a Shared);
        impl Drop for Ended<'_> {
            fn drop(&mut self) {
                let text =
                    "the prefetching thread ended unexpectedly; this is a defect of Melissa".to_string();
                lock(&self.0.queue).end.get_or_insert(BufferError::Failed(text));
                self.0.changed.notify();
            }
        }
        let ended = Ended(self);
        let end = self.fill_until_end();
        lock(&self.queue).end = Some(end);
        drop(ended);
    }

    fn fill_until_end(&self) -> BufferError {
        let pool = Arc::<BatchPool>::default();
        loop {
            let wanted = self.changed.wait_until(Some(Instant::now() + STOP_POLL), || {
                (self.stop.load(Ordering::Relaxed) || lock(&self.queue).ready.len() < self.depth)
                    .then_some(())
            });
            if self.stop.load(Ordering::Relaxed) {
                return BufferError::Closed;
            }
            if wanted.is_none() {
                continue;
            }
            match self.fill(&pool) {
                Ok(Some(batch)) => {
                    lock(&self.queue).ready.push_back(batch);
                    self.changed.notify();
                }
                Ok(None) => return BufferError::EndOfData,
                Err(end) => return end,
            }
        }
    }

    /// The next batch; `None` for one that is not delivered because it is short.
    fn fill(&self, pool: &Arc<BatchPool>) -> Result<Option<Batch>, BufferError> {
        let mut batch: Option<Batch> = None;
        loop {
            if self.stop.load(Ordering::Relaxed) {
                return Err(BufferError::Closed);
            }
            let deadline = Some(Instant::now() + STOP_POLL);
            let Some(schema) = self.buffer.schema() else {
                if !self.buffer.wait_ready(deadline)? {
                    continue;
                }
                if self.buffer.schema().is_none() {
                    return Err(BufferError::EndOfData);
                }
                continue;
            };
            let batch_now = match &mut batch {
                Some(batch) => batch,
                None => batch.insert(Batch::new(pool, BatchLayout::new(schema, self.batch_size))?),
            };
            match self.buffer.gather(batch_now, deadline) {
                Err(BufferError::Timeout) => {}
                Err(error) => return Err(error),
                Ok(()) => {
                    let short = batch_now.keys().len() < self.batch_size;
                    return Ok(if short && self.drop_last && self.buffer.is_closed() { None } else { batch });
                }
            }
        }
    }
}
