//! The one door to threads' primitives: everything concurrent in this crate comes through here, so that a model
//! checker can take the place of the standard library in one file (`--cfg loom`, `--cfg shuttle`; `--cfg tsan` for locks
//! that ThreadSanitizer sees).
//!
//! Reference counts and cells that are set once stay the standard library's under the model checkers: no protocol of this
//! crate rests on when they change.

pub(crate) use cells::{Access, UnsafeCell};
pub(crate) use primitives::{
    AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Condvar, Mutex, MutexGuard, fence, now, spin_loop, thread,
};
pub(crate) use std::sync::Arc;
#[cfg(not(tsan))]
pub(crate) use std::sync::OnceLock;
use std::sync::PoisonError;
pub(crate) use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::planted::{Bug, planted};
#[cfg(tsan)]
pub(crate) use crate::tsan::OnceLock;

#[cfg(not(any(loom, shuttle)))]
mod primitives {
    #[cfg(tsan)]
    pub(crate) use crate::tsan::{Condvar, Mutex, MutexGuard};
    pub(crate) use std::hint::spin_loop;
    pub(crate) use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, fence};
    #[cfg(not(tsan))]
    pub(crate) use std::sync::{Condvar, Mutex, MutexGuard};
    pub(crate) use std::thread;

    pub(crate) fn now() -> std::time::Instant {
        std::time::Instant::now()
    }

    /// Where a model checker may let another thread go on; nothing here.
    pub(super) const fn others_may_go_on() {}
}

#[cfg(loom)]
mod primitives {
    pub(crate) use loom::hint::spin_loop;
    pub(crate) use loom::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, fence};
    pub(crate) use loom::sync::{Condvar, Mutex, MutexGuard};
    pub(crate) use loom::thread;

    /// Time stands still: no wait ends by its deadline.
    pub(crate) fn now() -> std::time::Instant {
        static START: std::sync::OnceLock<std::time::Instant> = std::sync::OnceLock::new();
        *START.get_or_init(std::time::Instant::now)
    }
}

#[cfg(loom)]
mod cells {
    pub(crate) use loom::cell::UnsafeCell;

    /// The bytes of a slot: an access that is not ordered with a write to them is an error of the model.
    #[derive(Debug)]
    pub(crate) struct Access(UnsafeCell<()>);

    impl Access {
        pub(crate) fn new() -> Self {
            Self(UnsafeCell::new(()))
        }

        pub(crate) fn read(&self) {
            self.0.with(|_| ());
        }

        pub(crate) fn write(&self) {
            self.0.with_mut(|_| ());
        }
    }
}

#[cfg(shuttle)]
mod primitives {
    pub(crate) use shuttle::hint::spin_loop;
    pub(crate) use shuttle::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, fence};
    pub(crate) use shuttle::sync::{Condvar, Mutex, MutexGuard};
    pub(crate) use shuttle::thread;

    /// Time goes on when somebody asks for it, now and then.
    pub(crate) fn now() -> std::time::Instant {
        use shuttle::rand::{Rng, thread_rng};
        use std::sync::OnceLock;
        use std::sync::atomic::{AtomicU64, Ordering};
        use std::time::{Duration, Instant};
        static START: OnceLock<Instant> = OnceLock::new();
        static MICROSECONDS: AtomicU64 = AtomicU64::new(0);
        let more = if thread_rng().gen_bool(0.3) { 100 } else { 0 };
        let past = MICROSECONDS.fetch_add(more, Ordering::Relaxed) + more;
        *START.get_or_init(Instant::now) + Duration::from_micros(past)
    }

    pub(super) use shuttle::thread::yield_now as others_may_go_on;
}

#[cfg(not(loom))]
mod cells {
    use super::primitives::others_may_go_on;

    /// A place that is written by one thread at a time and read by others as some protocol says.
    #[derive(Debug)]
    #[repr(transparent)]
    pub(crate) struct UnsafeCell<T>(std::cell::UnsafeCell<T>);

    impl<T> UnsafeCell<T> {
        pub(crate) const fn new(value: T) -> Self {
            Self(std::cell::UnsafeCell::new(value))
        }

        pub(crate) fn with<R>(&self, read: impl FnOnce(*const T) -> R) -> R {
            others_may_go_on();
            read(self.0.get())
        }

        pub(crate) fn with_mut<R>(&self, write: impl FnOnce(*mut T) -> R) -> R {
            others_may_go_on();
            write(self.0.get())
        }
    }

    /// Where a model checker is told of an access to memory that it cannot see.
    #[derive(Debug)]
    pub(crate) struct Access;

    impl Access {
        pub(crate) const fn new() -> Self {
            Self
        }

        pub(crate) fn read(&self) {
            others_may_go_on();
        }

        pub(crate) fn write(&self) {
            others_may_go_on();
        }
    }
}

/// Locks; a thread that panicked while it held the lock does not take the others with it. Every critical section
/// of this crate leaves its data whole at each point where it could panic.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
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
            let held = planted(Bug::CheckUnderLock).then(|| lock(&self.epoch));
            if let Some(value) = if planted(Bug::NoSecondLook) { None } else { ready() } {
                break Some(value);
            }
            drop(held);
            if !self.wait_for_another(epoch, deadline) {
                break None;
            }
        };
        self.count.fetch_sub(1, Ordering::Relaxed);
        value
    }

    /// Sleeps until the epoch is another one; false at the deadline.
    fn wait_for_another(&self, epoch: u64, deadline: Option<Instant>) -> bool {
        let mut current = lock(&self.epoch);
        while *current == epoch {
            current = match deadline {
                None => self.condition.wait(current).unwrap_or_else(PoisonError::into_inner),
                Some(deadline) => {
                    let left = deadline.saturating_duration_since(now());
                    if left == Duration::ZERO {
                        return false;
                    }
                    self.condition.wait_timeout(current, left).unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
        true
    }

    /// Wakes every waiter; to be called after the state that they wait for was changed.
    pub(crate) fn notify(&self) {
        // SYNC(waiters): pairs with the fence in `wait_until`.
        if !planted(Bug::WeakNotify) {
            fence(Ordering::SeqCst);
        }
        if self.count.load(Ordering::Relaxed) > 0 {
            *lock(&self.epoch) += 1;
            self.condition.notify_all();
        }
    }
}
