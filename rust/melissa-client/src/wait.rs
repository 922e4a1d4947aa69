//! Waiting that ends: by an interrupt, at a deadline, and never without a word in the log.

use std::time::{Duration, Instant};

/// Asked about every 100 ms while a call waits: true ends the wait. (Python looks for Ctrl-C here.)
pub type Interrupt<'a> = Option<&'a dyn Fn() -> bool>;

/// Longest sleep without a look at interrupt and deadline.
const SLICE: Duration = Duration::from_millis(100);
/// How often a wait says what it waits for.
const REPORT_EVERY: Duration = Duration::from_secs(30);

/// Why a wait is over without what it waited for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Over {
    Interrupted,
    TimedOut,
}

/// The clock of one waiting call.
pub struct Wait<'a> {
    interrupt: Interrupt<'a>,
    deadline: Option<Instant>,
    begun: Instant,
    asked: Instant,
    reported: Instant,
}

impl<'a> Wait<'a> {
    pub fn new(interrupt: Interrupt<'a>, deadline: Option<Instant>) -> Self {
        let now = Instant::now();
        Self { interrupt, deadline, begun: now, asked: now, reported: now }
    }

    /// How long to sleep at most now.
    pub fn slice(&self) -> Duration {
        match self.deadline {
            Some(deadline) => SLICE.min(deadline.saturating_duration_since(Instant::now())),
            None => SLICE,
        }
    }

    pub fn waited(&self) -> Duration {
        self.begun.elapsed()
    }

    /// Whether the wait is over; `signal`: a signal has just arrived, so ask at once.
    pub fn over(&mut self, signal: bool) -> Option<Over> {
        let now = Instant::now();
        if signal || now.duration_since(self.asked) >= SLICE {
            self.asked = now;
            if self.interrupt.is_some_and(|interrupt| interrupt()) {
                return Some(Over::Interrupted);
            }
        }
        self.deadline.is_some_and(|deadline| now >= deadline).then_some(Over::TimedOut)
    }

    /// How long this call has waited, when that is to be said again.
    pub fn report_due(&mut self) -> Option<Duration> {
        self.report_due_at(Instant::now())
    }

    fn report_due_at(&mut self, now: Instant) -> Option<Duration> {
        if now.duration_since(self.reported) < REPORT_EVERY {
            return None;
        }
        self.reported = now;
        Some(now.duration_since(self.begun))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn an_interrupt_is_asked_at_once_after_a_signal_and_else_after_a_slice() {
        let interrupt = || true;
        let mut wait = Wait::new(Some(&interrupt), None);
        assert_eq!(wait.over(false), None);
        assert_eq!(wait.over(true), Some(Over::Interrupted));
        std::thread::sleep(SLICE);
        assert_eq!(wait.over(false), Some(Over::Interrupted));
    }

    #[test]
    fn a_deadline_shortens_the_last_sleep_and_ends_the_wait() {
        let mut wait = Wait::new(None, Some(Instant::now() + Duration::from_millis(20)));
        assert!(wait.slice() <= Duration::from_millis(20));
        assert_eq!(wait.over(false), None);
        std::thread::sleep(Duration::from_millis(20));
        assert_eq!(wait.over(false), Some(Over::TimedOut));
        assert_eq!(wait.slice(), Duration::ZERO);
    }

    #[test]
    fn a_wait_is_reported_every_thirty_seconds() {
        let mut wait = Wait::new(None, None);
        let begun = wait.begun;
        let second = Duration::from_secs(1);
        assert_eq!(wait.report_due_at(begun + 29 * second), None);
        assert_eq!(wait.report_due_at(begun + 31 * second), Some(31 * second));
        assert_eq!(wait.report_due_at(begun + 60 * second), None);
        assert_eq!(wait.report_due_at(begun + 61 * second), Some(61 * second));
    }
}
