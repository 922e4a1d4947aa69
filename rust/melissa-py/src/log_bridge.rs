//! The log of the Rust threads, kept until Python asks for it: no Rust thread ever waits for the interpreter to log.

use log::{Level, LevelFilter, Log, Metadata, Record};
use pyo3::prelude::*;
use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

/// Lines kept; when nobody asks, older ones are dropped and counted.
const LIMIT: usize = 2000;

#[derive(Default)]
struct Lines {
    kept: VecDeque<(u8, String)>,
    dropped: u64,
}

struct Bridge {
    lines: Mutex<Lines>,
}

static BRIDGE: Bridge = Bridge { lines: Mutex::new(Lines { kept: VecDeque::new(), dropped: 0 }) };

/// The number that Python's logging has for a level.
const fn python_level(level: Level) -> u8 {
    match level {
        Level::Error => 40,
        Level::Warn => 30,
        Level::Info => 20,
        Level::Debug | Level::Trace => 10,
    }
}

impl Log for Bridge {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        // The poller below us logs every registration.
        metadata.level() <= Level::Debug && metadata.target().starts_with("melissa")
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        if lines.kept.len() == LIMIT {
            lines.kept.pop_front();
            lines.dropped += 1;
        }
        lines.kept.push_back((python_level(record.level()), record.args().to_string()));
    }

    fn flush(&self) {}
}

pub fn install() {
    // A second import of the module finds the bridge in place.
    if log::set_logger(&BRIDGE).is_ok() {
        log::set_max_level(LevelFilter::Debug);
    }
}

/// The lines logged by Rust threads since the last call: (level of Python's logging, text).
#[pyfunction]
pub fn take_log(py: Python<'_>) -> Vec<(u8, String)> {
    py.detach(|| {
        let mut lines = BRIDGE.lines.lock().unwrap_or_else(PoisonError::into_inner);
        let mut taken: Vec<_> = lines.kept.drain(..).collect();
        if lines.dropped > 0 {
            taken.push((
                30,
                format!("{} older lines of the log were dropped: nobody took them", lines.dropped),
            ));
            lines.dropped = 0;
        }
        taken
    })
}
