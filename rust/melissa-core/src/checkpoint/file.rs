//! Reads a checkpoint, and makes of it what a server rank goes on with.

use super::CheckpointError;
use super::layout::{Layout, Tensor};
use super::pending::Pending;
use super::state::{FileState, PARAMETERS, PENDING_PARAMETERS, field_array, pending_field_array};
use crate::buffer::{Buffer, BufferConfig};
use crate::error::BufferError;
use crate::ledger::{Ledger, LedgerState, Sums};
use crate::schema::{Dtype, Field, Schema};
use crate::session::SessionState;
use crate::snapshot::{FieldState, SnapshotState};
use crate::sync::Arc;
use crate::wire::distribution::ServerRank;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Bytes that are read at once.
const READ_AT_ONCE: usize = 1 << 20;

/// A checkpoint file whose head and numbers were read and found in order; payloads are read when they are wanted.
#[derive(Debug)]
pub struct CheckpointFile {
    path: PathBuf,
    file: File,
    layout: Layout,
    schema: Arc<Schema>,
    buffer: SnapshotState,
    pending: Pending,
    ledger: LedgerState,
    session: SessionState,
}

impl CheckpointFile {
    /// Opens a file. Where its size and checksum are `known`, all of it is read and compared first.
    ///
    /// # Errors
    /// `Io`; `Damaged`, with what is wrong.
    pub fn open(path: &Path, known: Option<(u64, u32)>) -> Result<Self, CheckpointError> {
        let io = CheckpointError::io(path);
        let mut file = File::open(path).map_err(&io)?;
        let bytes = file.metadata().map_err(&io)?.len();
        let damaged = |what: String| CheckpointError::damaged(path, what);
        if let Some((expected, crc32c)) = known {
            if bytes != expected {
                return Err(damaged(format!("it has {bytes} bytes, and {expected} were written")));
            }
            let found = checksum(&mut file).map_err(&io)?;
            if found != crc32c {
                return Err(damaged(format!(
                    "the checksum of its bytes is {found:#010x}, and it was {crc32c:#010x} when they were written"
                )));
            }
        }
        let mut start = [0; 8];
        file.read_exact_at(&mut start, 0)
            .map_err(|_| damaged(format!("it has {bytes} bytes, fewer than its head")))?;
        let length = Layout::head_length(start, bytes).map_err(damaged)?;
        let mut head = vec![0; length as usize];
        file.read_exact_at(&mut head, 8).map_err(&io)?;
        let layout = Layout::parse(&head, bytes).map_err(damaged)?;
        let mut state = FileState::read(&layout.metadata).map_err(damaged)?;
        let (keys, ledger) = state.put_back(&layout, |tensor| integers(&file, tensor)).map_err(damaged)?;
        let schema = schema(&state.buffer).map_err(damaged)?;
        let samples = (state.buffer.samples.len(), keys.len());
        let mut pending = Pending { state: state.pending, keys, ..Pending::default() };
        let check = |name: &str, dtype, columns, rows: usize| {
            let tensor = layout.find(name, dtype, columns)?;
            if tensor.shape[0] == rows as u64 {
                return Ok(tensor);
            }
            Err(format!("array \"{name}\" has {} rows, and {rows} were expected", tensor.shape[0]))
        };
        for field in schema.fields() {
            let (dtype, size) = (field.dtype, field.size as u64);
            check(&field_array(&field.name), dtype, size, samples.0).map_err(damaged)?;
            let rows = check(&pending_field_array(&field.name), dtype, size, samples.1).map_err(damaged)?;
            pending.fields.push(whole(&file, rows).map_err(&io)?);
        }
        let parameters = schema.nb_parameters() as u64;
        check(PARAMETERS, Dtype::F64, parameters, samples.0).map_err(damaged)?;
        let rows = check(PENDING_PARAMETERS, Dtype::F64, parameters, samples.1).map_err(damaged)?;
        pending.parameters = whole(&file, rows).map_err(&io)?;
        Ledger::restored(None, ServerRank::ALONE, &ledger).map_err(|error| damaged(error.to_string()))?;
        let (buffer, session) = (state.buffer, state.session);
        Ok(Self { path: path.to_path_buf(), file, layout, schema, buffer, pending, ledger, session })
    }

    /// The size and the checksum of a file as it is.
    ///
    /// # Errors
    /// `Io`.
    pub fn measure(path: &Path) -> Result<(u64, u32), CheckpointError> {
        let io = CheckpointError::io(path);
        let mut file = File::open(path).map_err(&io)?;
        let bytes = file.metadata().map_err(&io)?.len();
        Ok((bytes, checksum(&mut file).map_err(&io)?))
    }

    pub const fn bytes(&self) -> u64 {
        self.layout.bytes
    }

    pub const fn schema(&self) -> &Arc<Schema> {
        &self.schema
    }

    pub const fn buffer_state(&self) -> &SnapshotState {
        &self.buffer
    }

    pub const fn pending(&self) -> &Pending {
        &self.pending
    }

    pub const fn ledger(&self) -> &LedgerState {
        &self.ledger
    }

    pub const fn session(&self) -> &SessionState {
        &self.session
    }

    /// The sums of the ledger.
    pub fn ledger_sums(&self) -> Sums {
        // It was restored once already, when the file was opened.
        Ledger::restored(None, ServerRank::ALONE, &self.ledger)
            .map(|ledger| ledger.sums())
            .unwrap_or_default()
    }

    /// The training buffer of the checkpoint, its payloads read from the file straight into their slots.
    ///
    /// # Errors
    /// `Io`; `Buffer`, those of [`Buffer::restore`].
    pub fn restore_buffer(&self, config: BufferConfig) -> Result<Buffer, CheckpointError> {
        let failed = |source: BufferError| CheckpointError::Buffer { path: self.path.clone(), source };
        let rows = |name: &str, dtype, columns| {
            self.layout
                .find(name, dtype, columns)
                .map(|tensor| Rows::new(&self.file, tensor))
                .map_err(|what| CheckpointError::damaged(&self.path, what))
        };
        let mut fields = Vec::with_capacity(self.schema.fields().len());
        for field in self.schema.fields() {
            fields.push(rows(&field_array(&field.name), field.dtype, field.size as u64)?);
        }
        let mut parameters = rows(PARAMETERS, Dtype::F64, self.schema.nb_parameters() as u64)?;
        /// An error of reading on its way through [`Buffer::restore`].
        enum Failure {
            Read(io::Error),
            Buffer(BufferError),
        }
        impl From<BufferError> for Failure {
            fn from(error: BufferError) -> Self {
                Self::Buffer(error)
            }
        }
        let buffer = Buffer::restore(config, Arc::clone(&self.schema), &self.buffer, |_, sample| {
            for (field, rows) in fields.iter_mut().enumerate() {
                rows.read(sample.field_mut(field)).map_err(Failure::Read)?;
            }
            parameters.read(sample.parameters_mut()).map_err(Failure::Read)
        });
        buffer.map_err(|failure| match failure {
            Failure::Read(error) => CheckpointError::io(&self.path)(error),
            Failure::Buffer(error) => failed(error),
        })
    }
}

/// An array that is read row after row.
struct Rows<'a> {
    file: &'a File,
    offset: u64,
    end: u64,
    ahead: Vec<u8>,
    used: usize,
}

impl<'a> Rows<'a> {
    const fn new(file: &'a File, tensor: &Tensor) -> Self {
        let end = tensor.start + tensor.bytes;
        Self { file, offset: tensor.start, end, ahead: Vec::new(), used: 0 }
    }

    fn read(&mut self, row: &mut [u8]) -> io::Result<()> {
        if row.len() >= READ_AT_ONCE {
            self.file.read_exact_at(row, self.offset)?;
            self.offset += row.len() as u64;
            return Ok(());
        }
        if self.ahead.len() - self.used < row.len() {
            // Whole rows, so that none is torn between two reads.
            let rows = (READ_AT_ONCE / row.len() * row.len()) as u64;
            let bytes = rows.min(self.end - self.offset) as usize;
            self.ahead.resize(bytes, 0);
            self.file.read_exact_at(&mut self.ahead, self.offset)?;
            self.offset += bytes as u64;
            self.used = 0;
        }
        row.copy_from_slice(&self.ahead[self.used..self.used + row.len()]);
        self.used += row.len();
        Ok(())
    }
}

fn whole(file: &File, tensor: &Tensor) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; tensor.bytes as usize];
    file.read_exact_at(&mut bytes, tensor.start)?;
    Ok(bytes)
}

fn integers(file: &File, tensor: &Tensor) -> Result<Vec<i64>, String> {
    let bytes = whole(file, tensor).map_err(|error| format!("array \"{}\": {error}", tensor.name))?;
    let number = |chunk: &[u8]| {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(chunk);
        i64::from_le_bytes(bytes)
    };
    Ok(bytes.chunks_exact(8).map(number).collect())
}

fn checksum(file: &mut File) -> io::Result<u32> {
    let mut buffer = vec![0; READ_AT_ONCE];
    let mut crc = 0;
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok(crc),
            Ok(bytes) => crc = crc32c::crc32c_append(crc, &buffer[..bytes]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

fn schema(state: &SnapshotState) -> Result<Arc<Schema>, String> {
    let field = |field: &FieldState| {
        let dtype = Dtype::from_name(&field.dtype);
        let dtype = dtype.ok_or_else(|| format!("field \"{}\" has dtype \"{}\"", field.name, field.dtype))?;
        Ok(Field { name: field.name.clone(), dtype, size: field.size as usize })
    };
    let fields = state.fields.iter().map(field).collect::<Result<Vec<_>, String>>()?;
    Schema::new(fields, state.nb_parameters as usize).map(Arc::new).map_err(|error| error.to_string())
}
