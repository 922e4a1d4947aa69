//! The three calls of a solver: init, send, finalize.

use crate::config::ClientConfig;
use crate::connection::Connection;
use crate::error::{ClientError, Doing, Endpoint};
use crate::handshake;
use crate::values::{Values, converts};
use crate::wait::{Interrupt, Wait};
use melissa_core::schema::Dtype;
use melissa_core::wire::handshake::{FieldShare, Join, Message, Welcome, encode_frame};
use melissa_core::wire::header::{FLAG_PAYLOAD_CRC, HEADER_SIZE, Header, Kind};
use std::io::IoSlice;
use std::sync::Arc;

/// Bytes that are converted at once: no copy of a whole field is ever made.
const SCRATCH_BYTES: usize = 64 * 1024;

/// Whether [`Client::init`] declared something.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum InitOutcome {
    New,
    /// The field was declared before, with the same size and dtype: worth a warning to the solver's author.
    Again,
}

/// A field of this solver.
struct DeclaredField {
    name: String,
    dtype: Dtype,
    /// Elements on this rank.
    size: usize,
    /// Steps sent, and thus the number of the next.
    steps: u64,
}

/// What the server has said about a field.
#[derive(Clone, Copy)]
struct Place {
    index: u32,
    dtype: Dtype,
    offset: u64,
}

/// What the server has said about the study.
struct Joined {
    /// In the order of the declared fields.
    places: Vec<Place>,
    /// Ranges (first, last) of time steps that the server has already.
    complete: Vec<(u64, u64)>,
    payload_crc: bool,
}

/// One rank of one simulation, connected to its server.
pub struct Client {
    connection: Connection,
    at: Arc<Endpoint>,
    /// The process that connected.
    process: u32,
    fields: Vec<DeclaredField>,
    joined: Option<Joined>,
    scratch: Vec<u8>,
    finalized: bool,
    /// What ended the connection: every later call returns it again.
    failed: Option<ClientError>,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client")
            .field("at", &self.at)
            .field("finalized", &self.finalized)
            .finish_non_exhaustive()
    }
}

impl Client {
    /// Connects, checks that the server holds the study's key, and proves that this client does.
    pub fn connect(config: ClientConfig, interrupt: Interrupt<'_>) -> Result<Self, ClientError> {
        let at = Arc::new(Endpoint {
            address: config.address.clone(),
            simulation: config.simulation,
            attempt: config.attempt,
            rank: config.rank,
            size: config.size,
        });
        if config.rank >= config.size {
            return Err(ClientError::Rank { at });
        }
        Ok(Self {
            connection: handshake::connect(&config, &at, interrupt)?,
            at,
            process: std::process::id(),
            fields: Vec::new(),
            joined: None,
            scratch: Vec::new(),
            finalized: false,
            failed: None,
        })
    }

    /// Declares a field: `local_size` elements on this rank, handed over as `dtype`.
    ///
    /// Every field is declared before the first [`send`](Self::send). A rank without a part of the field declares 0.
    pub fn init(&mut self, name: &str, local_size: usize, dtype: Dtype) -> Result<InitOutcome, ClientError> {
        self.usable("melissa_init")?;
        if let Some(field) = self.fields.iter().find(|field| field.name == name) {
            if (field.size, field.dtype) == (local_size, dtype) {
                return Ok(InitOutcome::Again);
            }
            return Err(ClientError::Redeclared {
                at: Arc::clone(&self.at),
                name: name.into(),
                before: field.size,
                dtype_before: field.dtype,
                now: local_size,
                dtype_now: dtype,
            });
        }
        if self.joined.is_some() {
            return Err(ClientError::LateField { at: Arc::clone(&self.at), name: name.into() });
        }
        let share = FieldShare { name: name.into(), dtype, size: local_size as u64 };
        Join { fields: vec![share] }.check().map_err(|source| ClientError::FieldName {
            at: Arc::clone(&self.at),
            name: name.escape_debug().to_string(),
            source: Arc::new(source),
        })?;
        self.fields.push(DeclaredField { name: name.into(), dtype, size: local_size, steps: 0 });
        Ok(InitOutcome::New)
    }

    /// Sends this rank's values of one field for its next time step; returns when the kernel has them.
    ///
    /// Waits while the server does not read, that is while its training buffer is full. The first call waits for the
    /// server's answer to the declarations, which comes when all ranks of this simulation have made theirs.
    pub fn send(
        &mut self,
        name: &str,
        values: Values<'_>,
        interrupt: Interrupt<'_>,
    ) -> Result<(), ClientError> {
        self.usable("melissa_send")?;
        let index = self.check_call(name, &values)?;
        let joined = match self.joined.take() {
            Some(joined) => joined,
            None => {
                let joined = self.join(interrupt);
                self.remember(joined)?
            }
        };
        let joined = self.joined.insert(joined);
        let (place, payload_crc) = (joined.places[index], joined.payload_crc);
        let step = self.fields[index].steps;
        let wanted = !joined.complete.iter().any(|&(first, last)| (first..=last).contains(&step));
        if !converts(values.dtype(), place.dtype) {
            return Err(self.wrong_dtype(name, place.dtype, values.dtype()));
        }
        let doing = Doing::Sending { field: name.into(), step };
        let sent = self.connection.listen(&doing).and_then(|()| {
            if wanted { self.send_data(place, step, payload_crc, values, &doing, interrupt) } else { Ok(()) }
        });
        self.remember(sent)?;
        self.fields[index].steps += 1;
        Ok(())
    }

    /// Says that every step was sent, and waits until the server has every one complete in memory, or has dropped it
    /// for a reason: nothing that was sent can be lost after that.
    pub fn finalize(&mut self, interrupt: Interrupt<'_>) -> Result<(), ClientError> {
        self.usable("melissa_finalize")?;
        let steps = self.fields.first().map_or(0, |field| field.steps);
        if self.fields.iter().any(|field| field.steps != steps) {
            let counts = self.fields.iter().map(|field| (field.name.clone(), field.steps)).collect();
            return Err(ClientError::UnequalSteps { at: Arc::clone(&self.at), counts });
        }
        let header = Header {
            simulation: self.at.simulation,
            client_rank: self.at.rank,
            time_step: steps,
            ..Header::control(Kind::Finalize, 0)
        };
        let mut wait = Wait::new(interrupt, None);
        let acknowledged = self
            .connection
            .write(&mut [IoSlice::new(&header.encode())], &Doing::Finalizing, &mut wait)
            .and_then(|()| self.connection.expect(Kind::FinalizeAck, &Doing::Finalizing, &mut wait));
        self.remember(acknowledged)?;
        self.finalized = true;
        self.connection.close();
        Ok(())
    }

    /// Time steps of a field that were sent or skipped; `None` for a field that was never declared.
    pub fn steps(&self, name: &str) -> Option<u64> {
        self.fields.iter().find(|field| field.name == name).map(|field| field.steps)
    }

    /// Whether this connection can still be used, for this call, in this process.
    fn usable(&self, call: &'static str) -> Result<(), ClientError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        if self.finalized {
            return Err(ClientError::Finalized { at: Arc::clone(&self.at), call });
        }
        let current = std::process::id();
        if current != self.process {
            return Err(ClientError::Forked { at: Arc::clone(&self.at), connected: self.process, current });
        }
        Ok(())
    }

    /// Keeps what ended the connection: half a frame may be out, so that nothing can follow.
    fn remember<T>(&mut self, result: Result<T, ClientError>) -> Result<T, ClientError> {
        if let Err(error) = &result {
            self.failed = Some(error.clone());
            self.connection.close();
        }
        result
    }

    /// The field of that name, when the solver may send it now.
    fn check_call(&self, name: &str, values: &Values<'_>) -> Result<usize, ClientError> {
        let at = || Arc::clone(&self.at);
        let Some(index) = self.fields.iter().position(|field| field.name == name) else {
            let known = self.fields.iter().map(|field| field.name.clone()).collect();
            return Err(ClientError::UnknownField { at: at(), name: name.into(), known });
        };
        let field = &self.fields[index];
        if values.len() != field.size {
            let (expected, got) = (field.size, values.len());
            return Err(ClientError::WrongSize { at: at(), field: name.into(), expected, got });
        }
        // The server assembles one step of a rank at a time: a second one before the first is whole would wait for
        // a field that this solver, waiting itself, never sends.
        if let Some(behind) = self.fields.iter().find(|other| other.steps < field.steps) {
            return Err(ClientError::Ahead {
                at: at(),
                field: name.into(),
                step: field.steps,
                behind: behind.name.clone(),
                missing: behind.steps,
            });
        }
        Ok(index)
    }

    fn wrong_dtype(&self, field: &str, wanted: Dtype, got: Dtype) -> ClientError {
        ClientError::WrongDtype { at: Arc::clone(&self.at), field: field.into(), wanted, got }
    }

    /// Sends the declarations and takes the places that the server gives to the fields.
    fn join(&mut self, interrupt: Interrupt<'_>) -> Result<Joined, ClientError> {
        let fields: Vec<_> = self
            .fields
            .iter()
            .map(|field| FieldShare { name: field.name.clone(), dtype: field.dtype, size: field.size as u64 })
            .collect();
        let frame = encode_frame(Kind::Join, &Join { fields });
        let bytes = (frame.len() - HEADER_SIZE) as u64;
        if let Some(limit) = Kind::Join.payload_limit()
            && bytes > limit
        {
            let fields = self.fields.len();
            return Err(ClientError::TooManyFields { at: Arc::clone(&self.at), fields, bytes, limit });
        }
        let mut wait = Wait::new(interrupt, None);
        self.connection.write(&mut [IoSlice::new(&frame)], &Doing::Joining, &mut wait)?;
        let welcome: Welcome = self.connection.expect_message(&Doing::Joining, &mut wait)?;
        self.settle(welcome)
    }

    fn settle(&self, welcome: Welcome) -> Result<Joined, ClientError> {
        if welcome.servers.len() != 1 {
            return Err(ClientError::SeveralServers { at: Arc::clone(&self.at), servers: welcome.servers });
        }
        let unfit = |reason| ClientError::Welcome { at: Arc::clone(&self.at), reason };
        let mut places = Vec::with_capacity(self.fields.len());
        for field in &self.fields {
            let name = &field.name;
            let Some(layout) = welcome.fields.iter().find(|layout| layout.name == *name) else {
                return Err(unfit(format!("it has no place for field \"{name}\"")));
            };
            if layout.offset.checked_add(field.size as u64).is_none_or(|end| end > layout.size) {
                return Err(unfit(format!(
                    "{} elements of field \"{name}\" from offset {} on end beyond its {} elements",
                    field.size, layout.offset, layout.size
                )));
            }
            if !converts(field.dtype, layout.dtype) {
                return Err(self.wrong_dtype(name, layout.dtype, field.dtype));
            }
            if field.dtype != layout.dtype {
                log::info!("{}: field \"{name}\" is sent as {}, not {}", self.at, layout.dtype, field.dtype);
            }
            places.push(Place { index: layout.index, dtype: layout.dtype, offset: layout.offset });
        }
        if !welcome.complete.is_empty() {
            let steps: u64 =
                welcome.complete.iter().map(|&(first, last)| (last - first).saturating_add(1)).sum();
            log::info!(
                "{}: the server has {steps} time steps of this simulation already; they are skipped",
                self.at
            );
        }
        Ok(Joined { places, complete: welcome.complete, payload_crc: welcome.payload_crc })
    }

    /// One data frame: header and body in one call of the system when the body needs no conversion, else the body
    /// piece by piece through the scratch.
    fn send_data(
        &mut self,
        place: Place,
        time_step: u64,
        payload_crc: bool,
        values: Values<'_>,
        doing: &Doing,
        interrupt: Interrupt<'_>,
    ) -> Result<(), ClientError> {
        let mut wait = Wait::new(interrupt, None);
        let count = values.len() as u64;
        let mut header = Header {
            kind: Kind::Data,
            dtype: Some(place.dtype),
            simulation: self.at.simulation,
            client_rank: self.at.rank,
            field: place.index,
            flags: 0,
            time_step,
            element_offset: place.offset,
            element_count: count,
            payload_length: count * place.dtype.size() as u64,
            payload_crc: 0,
        };
        if let Some(body) = values.as_wire(place.dtype) {
            if payload_crc {
                header.flags = FLAG_PAYLOAD_CRC;
                header.payload_crc = crc32c::crc32c(body);
            }
            let head = header.encode();
            let mut pieces = [IoSlice::new(&head), IoSlice::new(body)];
            return self.connection.write(&mut pieces, doing, &mut wait);
        }
        self.scratch.resize(SCRATCH_BYTES, 0);
        if payload_crc {
            header.flags = FLAG_PAYLOAD_CRC;
            let mut start = 0;
            while start < values.len() {
                let written = values.convert(place.dtype, start, &mut self.scratch);
                header.payload_crc = crc32c::crc32c_append(header.payload_crc, &self.scratch[..written]);
                start += written / place.dtype.size();
            }
        }
        let bytes = header.encode();
        let mut head = &bytes[..];
        let mut start = 0;
        loop {
            let written = values.convert(place.dtype, start, &mut self.scratch);
            let mut pieces = [IoSlice::new(head), IoSlice::new(&self.scratch[..written])];
            self.connection.write(&mut pieces, doing, &mut wait)?;
            head = &[];
            start += written / place.dtype.size();
            if start >= values.len() {
                return Ok(());
            }
        }
    }
}
