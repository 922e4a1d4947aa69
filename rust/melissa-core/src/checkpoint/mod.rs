//! Checkpoints of a server rank's data plane: one file, written beside training, and what goes on from it.
//!
//! A [`Cut`] is taken between two batches: the training buffer (its state, and its payloads under pins), the batches that
//! were drawn and not yet trained, the ledger, and what the session knows of its simulations. [`Cut::write`] hands it to a
//! thread of its own, which writes it slot by slot and lets go of each pin as its sample is written ([`writer`]). The file
//! is a valid safetensors file ([`layout`]): an array per field, one row per sample of the population. [`CheckpointFile`]
//! reads it again, and trusts nothing in it.

mod file;
mod layout;
mod pending;
mod state;
mod writer;

pub use file::CheckpointFile;
pub use pending::{Pending, PendingState};
pub use writer::{Writing, Written};

use crate::error::BufferError;
use crate::ledger::LedgerState;
use crate::session::SessionState;
use crate::snapshot::Snapshot;
use std::io;
use std::path::{Path, PathBuf};
use thiserror::Error;

/// Everything that a server rank's data plane goes on from, at one moment.
#[derive(Debug)]
pub struct Cut {
    pub buffer: Snapshot,
    /// Drawn and not yet trained, in the order of delivery.
    pub pending: Pending,
    pub ledger: LedgerState,
    pub session: SessionState,
}

/// Why a checkpoint cannot be written or read.
#[derive(Debug, Error)]
pub enum CheckpointError {
    #[error("checkpoint {path}: {source}")]
    Io { path: PathBuf, source: io::Error },
    #[error("checkpoint {path} is damaged: {what}")]
    Damaged { path: PathBuf, what: String },
    #[error("checkpoint {path}: {source}")]
    Buffer { path: PathBuf, source: BufferError },
    #[error("no thread to write a checkpoint in: {0}")]
    Thread(io::Error),
}

impl CheckpointError {
    fn io(path: &Path) -> impl Fn(io::Error) -> Self + '_ {
        |source| Self::Io { path: path.to_path_buf(), source }
    }

    fn damaged(path: &Path, what: impl Into<String>) -> Self {
        Self::Damaged { path: path.to_path_buf(), what: what.into() }
    }
}
