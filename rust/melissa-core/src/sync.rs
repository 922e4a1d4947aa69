//! The one door to threads' primitives: everything concurrent in this crate comes through here, so that a model
//! checker can take the place of the standard library in one file.

use std::sync::PoisonError;
pub(crate) use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence};
pub(crate) use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock};
use std::time::{Duration, Instant};

/// Locks; a thread that panicked while it held the lock does not take the others with it. Every critical section
/// of this crate leaves its data whole at each point where it could panic.
pub(crate) fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Threads that wait until a condition holds, and those who may make it hold.
///
/// The waker's fast path is one fence and one load while nobody waits. No wake-up is lost: the waiter announces
/// itself, notes the epoch, fences, and checks the condition; the waker changes the state, fences, looks for waiters,
/// and begins a new epoch before it notifies. Either the waker sees the waiter, or the waiter sees the change.
///
/// The condition is checked without the lock: it may draw or publish a sample, and so wake those who wait elsewhere.
#[derive(Debug, Default)]
pub(crate) struct Waiters {
    count: AtomicUsize,
    epoch: Mutex<u64>,
    condition: Condvar,
}

impl Waiters {
    /// Waits until `ready` gives a value or `deadline` passes; `None` after the deadline.
    pub(crate) fn wait_until<T>(
        &self,
        deadline: Option<Instant>,
        mut ready: impl FnMut() -> Option<T>,
    ) -> Option<T> {
        if let Some(value) = ready() {
            return Some(value);
        }
        self.count.fetch_add(1, Ordering::Relaxed);
        let value = loop {
            let epoch = *lock(&self.epoch);
            // SYNC(waiters): pairs with the fence in `notify`.
            fence(Ordering::SeqCst);
            if let Some(value) = ready() {
                break Some(value);
            }
            if !self.wait_for_another(epoch, deadline) {
                break None;
            }
        };
        self.count.fetch_sub(1, Ordering::Relaxed);
        value
    }

    /// Sleeps until the epoch is another one; false at the deadline.
    fn wait_for_another(&self, epoch: u64, deadline: Option<Instant>) -> bool {
        let mut now = lock(&self.epoch);
        while *now == epoch {
            now = match deadline {
                None => self.condition.wait(now).unwrap_or_else(PoisonError::into_inner),
                Some(deadline) => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    if left == Duration::ZERO {
                        return false;
                    }
                    self.condition.wait_timeout(now, left).unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
        true
    }

    /// Wakes every waiter; to be called after the state that they wait for was changed.
    pub(crate) fn notify(&self) {
        // SYNC(waiters): pairs with the fence in `wait_until`.
        fence(Ordering::SeqCst);
        if self.count.load(Ordering::Relaxed) > 0 {
            *lock(&self.epoch) += 1;
            self.condition.notify_all();
        }
    }
}
