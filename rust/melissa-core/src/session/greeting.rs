//! From an accepted socket to a rank that has proved the study key and is admitted to its simulation.

use super::connection::{Connection, ConnectionId, Member, Phase, Stage};
use super::error::Refusal;
use super::reception::Reception;
use super::simulation::{Rank, Run};
use super::state::Status;
use crate::wire::auth::{Side, Transcript, nonce, prove, verify};
use crate::wire::handshake::{Accepted, Challenge, Hello, Proof, code, encode_frame, parse};
use crate::wire::header::Kind;
use crate::wire::{PROTOCOL, ROLE_CLIENT};
use std::time::{Duration, Instant};

/// Connections accepted in one turn of the loop: a storm of them keeps no rank that is sending waiting.
const ACCEPTS_PER_TURN: usize = 16;
/// After the process ran out of descriptors or memory for sockets.
const ACCEPT_PAUSE: Duration = Duration::from_millis(500);

/// What this side is called in handshakes.
const SOFTWARE: &str = concat!("melissa-core ", env!("CARGO_PKG_VERSION"));

/// What both sides sign.
fn transcript(hello: &Hello, server_nonce: [u8; 32]) -> Transcript<'_> {
    Transcript {
        protocol: hello.protocol,
        role: &hello.role,
        client_nonce: hello.nonce,
        server_nonce,
        study_epoch: hello.study_epoch,
        simulation: hello.simulation,
        attempt: hello.attempt,
        rank: hello.rank,
        size: hello.size,
    }
}

impl Reception {
    /// Whether a connection could be accepted now, if there is one.
    pub(super) fn can_accept(&self, now: Instant) -> bool {
        self.listeners.are_ready()
            && self.pending < self.config.max_pending_handshakes
            && self.accept_after.is_none_or(|time| time <= now)
    }

    /// Accepts what has connected. Beyond the number of handshakes that may pend, peers wait in the kernel.
    pub(super) fn accept(&mut self) {
        for _ in 0..ACCEPTS_PER_TURN {
            if !self.can_accept(self.now) {
                return;
            }
            self.accept_after = None;
            match self.listeners.accept() {
                Ok(Some((socket, peer))) => {
                    let deadline = self.now + self.config.handshake_timeout;
                    let taken = socket
                        .prepare()
                        .and_then(|()| self.insert(Connection::new(socket, peer, self.now, deadline)));
                    match taken {
                        Ok(()) => self.look_by(deadline),
                        Err(error) => {
                            log::warn!("the connection of {peer} broke while it was accepted: {error}")
                        }
                    }
                }
                Ok(None) => {}
                Err(error) => match error.raw_os_error() {
                    Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM) => {
                        log::error!("no connection can be accepted now, the next try follows: {error}");
                        self.accept_after = Some(self.now + ACCEPT_PAUSE);
                        self.look_by(self.now + ACCEPT_PAUSE);
                    }
                    // The peer was gone before it was accepted.
                    _ => log::debug!("a connection broke before it was accepted: {error}"),
                },
            }
        }
    }

    /// `Hello`: answers with this side's proof.
    pub(super) fn on_hello(&mut self, id: ConnectionId, payload: &[u8]) -> Result<(), Refusal> {
        let hello: Hello = parse(payload).map_err(|error| Refusal::new(code::PROTOCOL, error.to_string()))?;
        if hello.protocol != PROTOCOL {
            return Err(Refusal::new(
                code::PROTOCOL,
                format!(
                    "this server speaks version {PROTOCOL} of the protocol, and {} speaks version {}: use one version \
                     of Melissa for server and clients",
                    hello.software, hello.protocol
                ),
            ));
        }
        if hello.role != ROLE_CLIENT {
            return Err(Refusal::new(
                code::PROTOCOL,
                format!("the role here is \"{ROLE_CLIENT}\", and \"{}\" came", hello.role),
            ));
        }
        let server_nonce = nonce().map_err(|error| Refusal::new(code::BUSY, error.to_string()))?;
        let proof = prove(&self.config.key, Side::Server, &transcript(&hello, server_nonce));
        let challenge =
            Challenge { protocol: PROTOCOL, software: SOFTWARE.into(), nonce: server_nonce, proof };
        if let Some(connection) = self.connections.get_mut(id) {
            connection.stage = Stage::Challenged { hello: Box::new(hello), server_nonce };
        }
        self.send(id, &encode_frame(Kind::Challenge, &challenge));
        Ok(())
    }

    /// `Proof`: admits the rank to its simulation.
    pub(super) fn on_proof(&mut self, id: ConnectionId, payload: &[u8]) -> Result<(), Refusal> {
        let Some(connection) = self.connections.get_mut(id) else { return Ok(()) };
        let Stage::Challenged { hello, server_nonce } = &connection.stage else { return Ok(()) };
        let proof: Proof = parse(payload).map_err(|error| Refusal::new(code::PROTOCOL, error.to_string()))?;
        if !verify(&self.config.key, Side::Client, &transcript(hello, *server_nonce), &proof.proof) {
            return Err(Refusal::new(
                code::KEY,
                "the proof of the study key is wrong: this process holds the key of another study, or none",
            ));
        }
        let hello = (**hello).clone();
        // Known from here on, and no longer one of those that may be anybody; whether it is admitted is another matter.
        connection.authenticated = true;
        connection.deadline = None;
        self.pending -= 1;
        self.admit(id, hello)
    }

    fn admit(&mut self, id: ConnectionId, hello: Hello) -> Result<(), Refusal> {
        self.check_study(&hello)?;
        self.check_attempt(&hello)?;
        let now = self.now;
        let Hello { simulation, rank, size, attempt, host, .. } = hello;
        let entry = &mut self.simulations[simulation as usize];
        let run = entry.run.get_or_insert_with(|| Run::new(size));
        run.ranks.insert(rank, Rank::new(id));
        if rank == 0 || entry.host.is_empty() {
            entry.host.clone_from(&host);
        }
        let draw = entry.draw;
        if let Some(connection) = self.connections.get_mut(id) {
            connection.heard = now;
            connection.stage = Stage::Member(Member {
                simulation,
                draw,
                attempt,
                rank,
                host,
                phase: Phase::Accepted,
                wait: None,
                duplicate_told: false,
            });
            log::debug!("{} has connected", connection.describe());
        }
        self.counters.connections_accepted += 1;
        self.set_status(simulation, Status::Connected);
        if let Some(timeout) = self.config.simulation_timeout {
            self.look_by(now + timeout);
        }
        self.send(id, &encode_frame(Kind::Accepted, &Accepted {}));
        Ok(())
    }

    /// Whether this study knows the simulation and still wants it.
    fn check_study(&self, hello: &Hello) -> Result<(), Refusal> {
        let &Hello { simulation, study_epoch, .. } = hello;
        if study_epoch != self.config.study_epoch {
            return Err(Refusal::new(
                code::EPOCH,
                format!(
                    "this is epoch {} of the study, and this client was submitted in epoch {study_epoch}: the server \
                     was started again since, and will submit the simulation anew",
                    self.config.study_epoch
                ),
            ));
        }
        if self.stopped {
            return Err(Refusal::new(
                code::STOPPED,
                "the study is being stopped: no data is wanted any more",
            ));
        }
        match self.check_known(simulation) {
            Ok(true) => {}
            Ok(false) => {
                return Err(Refusal::new(
                    code::FINISHED,
                    format!(
                        "simulation {simulation} is for validation, which server rank 0 alone receives: nothing of it is \
                         wanted on rank {}",
                        self.config.rank
                    ),
                ));
            }
            Err(unknown) => return Err(Refusal::new(code::SIMULATION, unknown)),
        }
        let entry = &self.simulations[simulation as usize];
        if entry.status.is_final() {
            return Err(Refusal::new(
                code::FINISHED,
                format!(
                    "simulation {simulation} is {} already: nothing of it is wanted any more",
                    entry.status
                ),
            ));
        }
        if entry.attempt == 0 {
            return Err(Refusal::new(
                code::SIMULATION,
                format!("simulation {simulation} was not submitted by this study's server yet"),
            ));
        }
        Ok(())
    }

    /// Whether this is the attempt that may connect, and its rank the first of its number.
    fn check_attempt(&mut self, hello: &Hello) -> Result<(), Refusal> {
        let &Hello { simulation, attempt, rank, size, .. } = hello;
        let entry = &self.simulations[simulation as usize];
        let refused = |text: String| Err(Refusal::new(code::ATTEMPT, text));
        if attempt != entry.attempt {
            return refused(format!(
                "attempt {} of simulation {simulation} is the one that runs, and attempt {attempt} came",
                entry.attempt
            ));
        }
        if attempt <= entry.ended_attempt {
            return refused(format!(
                "attempt {attempt} of simulation {simulation} was given up: only a new attempt may connect"
            ));
        }
        let Some(run) = &entry.run else { return Ok(()) };
        if size != run.size {
            return Err(Refusal::new(
                code::SIZE,
                format!(
                    "rank {rank} of simulation {simulation} says that its client has {size} ranks, and an earlier \
                     rank said {}",
                    run.size
                ),
            ));
        }
        let Some(known) = run.ranks.get(&rank) else { return Ok(()) };
        let alive = known
            .connection
            .and_then(|id| self.connections.get(id))
            .filter(|connection| !connection.peer_closed)
            .map(|connection| connection.peer);
        match alive {
            Some(peer) => refused(format!(
                "rank {rank} of simulation {simulation}, attempt {attempt}, is connected already, from {peer}"
            )),
            None if known.sent.is_some() => refused(format!(
                "rank {rank} of simulation {simulation}, attempt {attempt}, has finalized already"
            )),
            None => {
                let text =
                    format!("rank {rank} of simulation {simulation} lost its connection and came again");
                self.break_attempt(simulation, None, &text, &Refusal::new(code::ATTEMPT, text.clone()));
                Ok(())
            }
        }
    }
}
