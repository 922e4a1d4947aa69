//! Locks and once-cells that ThreadSanitizer understands (`--cfg tsan`, `ci/verify/tsan.sh`).
//!
//! The standard library is not instrumented: a lock that was waited for is taken, and a cell is set, in code in which
//! ThreadSanitizer sees no atomic operation, so that all that a lock orders would look like a race. Here each lock has an
//! atomic number besides, which is written with release before every unlock and read with acquire after every lock:
//! exactly the order that the lock itself gives, and no more. Everything else is what it is without `--cfg tsan`.

use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicPtr, AtomicU32, Ordering};
use std::sync::{self, LockResult, PoisonError, WaitTimeoutResult};
use std::time::Duration;

/// The order that a lock gives, in instrumented code.
#[derive(Debug, Default)]
struct Edge(AtomicU32);

impl Edge {
    fn locked(&self) {
        self.0.load(Ordering::Acquire);
    }

    fn unlocks(&self) {
        self.0.fetch_add(1, Ordering::Release);
    }
}

#[derive(Debug, Default)]
pub(crate) struct Mutex<T> {
    edge: Edge,
    mutex: sync::Mutex<T>,
}

#[derive(Debug)]
pub(crate) struct MutexGuard<'a, T> {
    edge: &'a Edge,
    /// `None` only while a condition is waited for.
    guard: Option<sync::MutexGuard<'a, T>>,
}

impl<T> Mutex<T> {
    pub(crate) const fn new(value: T) -> Self {
        Self { edge: Edge(AtomicU32::new(0)), mutex: sync::Mutex::new(value) }
    }

    pub(crate) fn lock(&self) -> LockResult<MutexGuard<'_, T>> {
        locked(&self.edge, self.mutex.lock())
    }
}

fn locked<'a, T>(
    edge: &'a Edge,
    result: LockResult<sync::MutexGuard<'a, T>>,
) -> LockResult<MutexGuard<'a, T>> {
    edge.locked();
    match result {
        Ok(guard) => Ok(MutexGuard { edge, guard: Some(guard) }),
        Err(poison) => Err(PoisonError::new(MutexGuard { edge, guard: Some(poison.into_inner()) })),
    }
}

const HELD: &str = "a guard has its lock but while it waits";

#[allow(clippy::expect_used)]
impl<T> Deref for MutexGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.guard.as_ref().expect(HELD)
    }
}

#[allow(clippy::expect_used)]
impl<T> DerefMut for MutexGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        self.guard.as_mut().expect(HELD)
    }
}

impl<T> Drop for MutexGuard<'_, T> {
    fn drop(&mut self) {
        if self.guard.is_some() {
            self.edge.unlocks();
        }
    }
}

#[derive(Debug, Default)]
pub(crate) struct Condvar(sync::Condvar);

#[allow(clippy::expect_used)]
impl Condvar {
    pub(crate) fn wait<'a, T>(&self, mut guard: MutexGuard<'a, T>) -> LockResult<MutexGuard<'a, T>> {
        let (edge, inner) = (guard.edge, guard.guard.take().expect(HELD));
        edge.unlocks();
        locked(edge, self.0.wait(inner))
    }

    pub(crate) fn wait_timeout<'a, T>(
        &self,
        mut guard: MutexGuard<'a, T>,
        time: Duration,
    ) -> LockResult<(MutexGuard<'a, T>, WaitTimeoutResult)> {
        let (edge, inner) = (guard.edge, guard.guard.take().expect(HELD));
        edge.unlocks();
        let (inner, timeout) = self.0.wait_timeout(inner, time).unwrap_or_else(PoisonError::into_inner);
        match locked(edge, Ok(inner)) {
            Ok(guard) => Ok((guard, timeout)),
            Err(poison) => Err(PoisonError::new((poison.into_inner(), timeout))),
        }
    }

    pub(crate) fn notify_all(&self) {
        self.0.notify_all();
    }
}

/// A cell that is set once; who sees the value sees all that its setter did before.
#[derive(Debug)]
pub(crate) struct OnceLock<T>(AtomicPtr<T>);

impl<T> OnceLock<T> {
    pub(crate) const fn new() -> Self {
        Self(AtomicPtr::new(std::ptr::null_mut()))
    }

    pub(crate) fn get(&self) -> Option<&T> {
        // SAFETY: a pointer that is not null is one of `set`, and lives as long as the cell.
        unsafe { self.0.load(Ordering::Acquire).as_ref() }
    }

    pub(crate) fn set(&self, value: T) -> Result<(), T> {
        let new = Box::into_raw(Box::new(value));
        match self.0.compare_exchange(std::ptr::null_mut(), new, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => Ok(()),
            // SAFETY: nobody else has got the pointer.
            Err(_) => Err(*unsafe { Box::from_raw(new) }),
        }
    }
}

impl<T> Default for OnceLock<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T> Drop for OnceLock<T> {
    fn drop(&mut self) {
        let value = *self.0.get_mut();
        if !value.is_null() {
            // SAFETY: the pointer is one of `set`, and the cell is gone after this.
            drop(unsafe { Box::from_raw(value) });
        }
    }
}
