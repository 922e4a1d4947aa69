//! What a session has counted, and the last texts of what it refused.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Figures of a session since it started.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct Counters {
    /// Complete time steps that are trained on.
    pub samples_received: u64,
    /// Complete time steps of simulations for validation.
    pub validation_received: u64,
    /// Bytes of fields that were received into samples.
    pub bytes_received: u64,
    /// Bytes of bodies that were read and thrown away: duplicates, and what came after a stop.
    pub bytes_discarded: u64,
    /// Client ranks that are connected and have proved the study key.
    pub connections: u64,
    /// Connections that have not proved it yet.
    pub handshakes_pending: u64,
    /// Connections that proved it since the start.
    pub connections_accepted: u64,
    /// Connections that were refused, or closed for what they sent or failed to send.
    pub connections_refused: u64,
    /// Arrivals of time steps, or parts of them, that were there already.
    pub duplicates_refused: u64,
    /// Seconds during which complete samples waited for room in the training buffer.
    pub room_wait_seconds: f64,
    /// Complete samples that wait for room now.
    pub samples_waiting: u64,
    /// Simulations that wait for a slot now.
    pub slot_waiters: u64,
    /// Samples that this server rank will have had; `None` until a number of time steps is known.
    pub expected_samples: Option<u64>,
    /// Final ones, without those for validation.
    pub simulations_finished: u64,
    pub simulations_dropped: u64,
}

/// The texts of refusals since somebody last asked.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Refusals {
    /// Oldest first.
    pub texts: Vec<String>,
    /// Further ones, older than these, that were not kept.
    pub forgotten: u64,
}

/// Texts kept for [`Refusals`].
const KEPT: usize = 256;
/// Lines per second that refusals may write to the log: a port scan must not fill the disk.
const LINES_PER_SECOND: u32 = 20;

/// Keeps the last refusals and writes them to the log.
#[derive(Debug)]
pub(super) struct RefusalLog {
    texts: VecDeque<String>,
    forgotten: u64,
    second: Instant,
    lines: u32,
    suppressed: u64,
}

impl RefusalLog {
    pub(super) fn new(now: Instant) -> Self {
        Self { texts: VecDeque::new(), forgotten: 0, second: now, lines: 0, suppressed: 0 }
    }

    pub(super) fn push(&mut self, text: String, now: Instant) {
        if now.duration_since(self.second) >= Duration::from_secs(1) {
            if self.suppressed > 0 {
                log::warn!("{} further refusals were not logged one by one", self.suppressed);
            }
            (self.second, self.lines, self.suppressed) = (now, 0, 0);
        }
        if self.lines < LINES_PER_SECOND {
            self.lines += 1;
            log::warn!("{text}");
        } else {
            self.suppressed += 1;
        }
        if self.texts.len() == KEPT {
            self.texts.pop_front();
            self.forgotten += 1;
        }
        self.texts.push_back(text);
    }

    pub(super) fn take(&mut self) -> Refusals {
        Refusals { texts: self.texts.drain(..).collect(), forgotten: std::mem::take(&mut self.forgotten) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_refusals_are_kept_and_the_others_counted() {
        let now = Instant::now();
        let mut log = RefusalLog::new(now);
        for number in 0..KEPT + 10 {
            log.push(number.to_string(), now);
        }
        assert_eq!(u64::from(log.lines) + log.suppressed, KEPT as u64 + 10);
        let taken = log.take();
        assert_eq!((taken.texts.len(), taken.forgotten), (KEPT, 10));
        assert_eq!(taken.texts.first().map(String::as_str), Some("10"));
        assert_eq!(log.take(), Refusals::default());
    }
}
