//! How samplers tell the receiving thread that a slot or room may be there.

use crate::sync::{AtomicBool, Ordering};

/// Rung from any thread, answered by the receiving thread alone.
///
/// Whoever rings leaves word first and wakes the thread afterwards; the thread looks for word each time it wakes. So a wake-up
/// that comes while the thread is busy is not lost, and many of them cost one look.
#[derive(Debug, Default)]
pub(crate) struct Bell {
    rung: AtomicBool,
}

impl Bell {
    /// Leaves word, and wakes the thread by `wake`.
    pub(crate) fn ring(&self, wake: impl FnOnce()) {
        // SYNC(bell): pairs with the acquire in `answer`.
        self.rung.store(true, Ordering::Release);
        wake();
    }

    /// Whether somebody rang since the last call.
    pub(crate) fn answer(&self) -> bool {
        // SYNC(bell): pairs with the release in `ring`.
        self.rung.swap(false, Ordering::Acquire)
    }
}
