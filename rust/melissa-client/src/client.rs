//! The three calls of a solver: init, send, finalize.

use crate::config::ClientConfig;
use crate::connection::{Connection, Others, listen_to_all};
use crate::error::{ClientError, Doing, Endpoint};
use crate::handshake;
use crate::values::{Values, converts};
use crate::wait::{Interrupt, Wait};
use melissa_core::schema::Dtype;
use melissa_core::wire::distribution::Distribution;
use melissa_core::wire::handshake::{FieldLayout, FieldShare, Join, Message, Welcome, code, encode_frame};
use melissa_core::wire::header::{FLAG_PAYLOAD_CRC, HEADER_SIZE, Header, Kind};
use std::io::IoSlice;
use std::sync::Arc;

fn counted(count: usize, one: &str, several: &str) -> String {
    format!("{count} {}", if count == 1 { one } else { several })
}

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
    distribution: Distribution,
    /// One per connected server rank.
    ranks: Vec<JoinedRank>,
}

/// What one server rank has said for itself.
struct JoinedRank {
    /// Ranges (first, last) of time steps; those of them that go to this rank it has already.
    complete: Vec<(u64, u64)>,
    payload_crc: bool,
}

/// One rank of one simulation, connected to the ranks of its server.
pub struct Client {
    config: ClientConfig,
    /// Those connected, rank 0 first: the others follow when all fields are declared.
    connections: Vec<Connection>,
    /// One per server rank.
    endpoints: Vec<Arc<Endpoint>>,
    /// Of all of them.
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
    /// Connects to server rank 0, checks that it holds the study's key, and proves that this client does.
    pub fn connect(config: ClientConfig, interrupt: Interrupt<'_>) -> Result<Self, ClientError> {
        let endpoint = |address: &str| {
            Arc::new(Endpoint {
                address: address.to_owned(),
                simulation: config.simulation,
                attempt: config.attempt,
                rank: config.rank,
                size: config.size,
            })
        };
        let at = endpoint(&config.address);
        if config.rank >= config.size {
            return Err(ClientError::Rank { at });
        }
        let endpoints: Vec<_> = config.addresses().map(endpoint).collect();
        let first = handshake::connect(&config, &endpoints[0], interrupt, &mut Others::of(&mut []))?;
        Ok(Self {
            connections: vec![first],
            endpoints,
            at,
            config,
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

    /// Sends this rank's values of one field for its next time step, to the server rank that gets it; returns when the kernel
    /// has them.
    ///
    /// Waits while the server does not read, that is while its training buffer is full. The first call waits for the
    /// server ranks' answers to the declarations, which come when all ranks of this simulation have made theirs.
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
        let step = self.fields[index].steps;
        let rank =
            joined.distribution.rank_of(self.at.simulation, step, self.endpoints.len() as u32) as usize;
        let (place, there) = (joined.places[index], &joined.ranks[rank]);
        let payload_crc = there.payload_crc;
        let wanted = !there.complete.iter().any(|&(first, last)| (first..=last).contains(&step));
        if !converts(values.dtype(), place.dtype) {
            return Err(self.wrong_dtype(name, place.dtype, values.dtype()));
        }
        let doing = Doing::Sending { field: name.into(), step };
        let sent = listen_to_all(&mut self.connections, &doing).and_then(|()| {
            if wanted {
                self.send_data(rank, place, step, payload_crc, values, &doing, interrupt)
            } else {
                Ok(())
            }
        });
        self.remember(sent)?;
        self.fields[index].steps += 1;
        Ok(())
    }

    /// Says to every server rank that every step was sent, and waits until they have every one complete in memory, or have
    /// dropped it for a reason: nothing that was sent can be lost after that.
    pub fn finalize(&mut self, interrupt: Interrupt<'_>) -> Result<(), ClientError> {
        self.usable("melissa_finalize")?;
        let steps = self.fields.first().map_or(0, |field| field.steps);
        if self.fields.iter().any(|field| field.steps != steps) {
            let counts = self.fields.iter().map(|field| (field.name.clone(), field.steps)).collect();
            return Err(ClientError::UnequalSteps { at: Arc::clone(&self.at), counts });
        }
        let acknowledged = self.finalize_all(steps, interrupt);
        self.remember(acknowledged)?;
        self.finalized = true;
        self.close();
        Ok(())
    }

    /// First all are told, then all answers are waited for: each server rank waits for the other ranks of this solver, and
    /// none for another server rank.
    fn finalize_all(&mut self, steps: u64, interrupt: Interrupt<'_>) -> Result<(), ClientError> {
        if self.joined.is_none() {
            self.connect_all_without_steps(interrupt)?;
        }
        let header = Header {
            simulation: self.at.simulation,
            client_rank: self.at.rank,
            time_step: steps,
            ..Header::control(Kind::Finalize, 0)
        };
        let frame = header.encode();
        let mut wait = Wait::new(interrupt, None);
        for rank in 0..self.connections.len() {
            if let Some((connection, mut others)) = Others::beside(&mut self.connections, rank) {
                connection.write(&mut [IoSlice::new(&frame)], &Doing::Finalizing, &mut wait, &mut others)?;
                connection.set_finalized();
            }
        }
        for rank in 0..self.connections.len() {
            if let Some((connection, mut others)) = Others::beside(&mut self.connections, rank) {
                connection.expect_acknowledgement(&mut wait, &mut others)?;
            }
        }
        Ok(())
    }

    /// A solver that sends nothing has connected to server rank 0 only; the others are told of its end as well.
    fn connect_all_without_steps(&mut self, interrupt: Interrupt<'_>) -> Result<(), ClientError> {
        while self.connections.len() < self.endpoints.len() {
            match self.connect_next(interrupt) {
                // Of a simulation for validation, which is rank 0's alone; without Join this client cannot know.
                // Rank 0 has taken it then; what a connected rank says meanwhile is of another kind.
                Err(ClientError::Refused { at, code, message })
                    if code == code::FINISHED
                        && at.address == self.endpoints[self.connections.len()].address =>
                {
                    log::debug!("{at}: no part in this simulation: {message}");
                    return Ok(());
                }
                result => result?,
            }
        }
        Ok(())
    }

    /// Connects to the lowest server rank that is not connected yet.
    fn connect_next(&mut self, interrupt: Interrupt<'_>) -> Result<(), ClientError> {
        let at = &self.endpoints[self.connections.len()];
        let connection =
            handshake::connect(&self.config, at, interrupt, &mut Others::of(&mut self.connections))?;
        self.connections.push(connection);
        Ok(())
    }

    fn close(&self) {
        self.connections.iter().for_each(Connection::close);
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
            self.close();
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

    /// Sends the declarations and takes the places that the server gives to the fields; of one server rank after the other,
    /// for the slots that each of them promises: were each asked in another order, simulations could wait for each other.
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
        let first = self.join_rank(0, &frame, interrupt)?;
        let (distribution, places) = self.settle(&first)?;
        let mut ranks = vec![self.joined_rank(0, &first)];
        let nb_ranks = if distribution == Distribution::First { 1 } else { self.endpoints.len() };
        for rank in 1..nb_ranks {
            self.connect_next(interrupt)?;
            let welcome = self.join_rank(rank, &frame, interrupt)?;
            self.check_same(rank, &first, &welcome)?;
            ranks.push(self.joined_rank(rank, &welcome));
        }
        Ok(Joined { places, distribution, ranks })
    }

    /// One server rank's answer to the declarations.
    fn join_rank(
        &mut self,
        rank: usize,
        frame: &[u8],
        interrupt: Interrupt<'_>,
    ) -> Result<Welcome, ClientError> {
        let mut wait = Wait::new(interrupt, None);
        let Some((connection, mut others)) = Others::beside(&mut self.connections, rank) else {
            unreachable!("server rank {rank} is connected before it is joined")
        };
        connection.write(&mut [IoSlice::new(frame)], &Doing::Joining, &mut wait, &mut others)?;
        connection.expect_message(&Doing::Joining, &mut wait, &mut others)
    }

    fn joined_rank(&self, rank: usize, welcome: &Welcome) -> JoinedRank {
        if !welcome.complete.is_empty() {
            log::info!(
                "{}: the server has time steps of this simulation already, the last of them {}; they are skipped",
                self.endpoints[rank],
                welcome.complete.last().map_or(0, |&(_, last)| last)
            );
        }
        JoinedRank { complete: welcome.complete.clone(), payload_crc: welcome.payload_crc }
    }

    /// Server ranks of one study give the same answer, but for what each has received.
    fn check_same(&self, rank: usize, first: &Welcome, other: &Welcome) -> Result<(), ClientError> {
        let place = |welcome: &Welcome, name: &str| -> Option<FieldLayout> {
            welcome.fields.iter().find(|layout| layout.name == name).cloned()
        };
        let (address, at) = (&self.endpoints[0].address, Arc::clone(&self.endpoints[rank]));
        let reason = if (&first.servers, &first.distribution) != (&other.servers, &other.distribution) {
            format!(
                "server rank {rank} names the server ranks {} (distribution \"{}\"), and rank 0, {address}, names {} \
                 (distribution \"{}\")",
                other.servers.join(", "),
                other.distribution,
                first.servers.join(", "),
                first.distribution
            )
        } else if let Some(field) =
            self.fields.iter().find(|field| place(first, &field.name) != place(other, &field.name))
        {
            let words = |welcome| {
                place(welcome, &field.name).map_or("no place".to_owned(), |layout| {
                    let FieldLayout { index, dtype, size, offset, .. } = layout;
                    format!("index {index}, {size} elements of {dtype}, and offset {offset}")
                })
            };
            format!(
                "field \"{}\" has {} on server rank {rank}, and {} on rank 0, {address}",
                field.name,
                words(other),
                words(first)
            )
        } else {
            return Ok(());
        };
        Err(ClientError::ServerRanks { at, reason })
    }

    fn settle(&self, welcome: &Welcome) -> Result<(Distribution, Vec<Place>), ClientError> {
        if welcome.servers.len() != self.endpoints.len() {
            let reason = format!(
                "MELISSA_SERVER_ADDRESS has {}, and the server has {}: {}",
                counted(self.endpoints.len(), "address", "addresses"),
                counted(welcome.servers.len(), "rank", "ranks"),
                welcome.servers.join(", ")
            );
            return Err(ClientError::ServerRanks { at: Arc::clone(&self.at), reason });
        }
        let unfit = |reason| ClientError::Welcome { at: Arc::clone(&self.at), reason };
        let Some(distribution) = Distribution::from_name(&welcome.distribution) else {
            let known = Distribution::ALL.map(Distribution::name).join(", ");
            return Err(unfit(format!(
                "it deals out time steps by the rule \"{}\", and this client knows {known}",
                welcome.distribution
            )));
        };
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
        Ok((distribution, places))
    }

    /// One data frame: header and body in one call of the system when the body needs no conversion, else the body
    /// piece by piece through the scratch.
    #[expect(clippy::too_many_arguments, reason = "what makes up one frame, and how to wait")]
    fn send_data(
        &mut self,
        rank: usize,
        place: Place,
        time_step: u64,
        payload_crc: bool,
        values: Values<'_>,
        doing: &Doing,
        interrupt: Interrupt<'_>,
    ) -> Result<(), ClientError> {
        let mut wait = Wait::new(interrupt, None);
        let Some((connection, mut others)) = Others::beside(&mut self.connections, rank) else {
            unreachable!("every server rank that gets time steps is connected")
        };
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
            return connection.write(&mut pieces, doing, &mut wait, &mut others);
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
            connection.write(&mut pieces, doing, &mut wait, &mut others)?;
            head = &[];
            start += written / place.dtype.size();
            if start >= values.len() {
                return Ok(());
            }
        }
    }
}
