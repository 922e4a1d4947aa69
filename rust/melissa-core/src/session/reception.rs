//! The state of the receiving thread and its loop.
//!
//! Everything here belongs to that one thread; others reach it by commands, which it runs between two turns. It waits
//! in one place only, the poll, and for no longer than the next time it has to look at a clock.

use super::config::SessionConfig;
use super::connection::{Connection, ConnectionId};
use super::counters::{Counters, RefusalLog};
use super::room::Room;
use super::simulation::Simulation;
use super::socket::Listeners;
use super::state::Status;
use super::table::Connections;
use super::validation::Kept;
use super::{Command, Shared};
use crate::buffer::Buffer;
use crate::error::BufferError;
use crate::planted::{Bug, planted};
use crate::schema::Schema;
use crate::sync::{Arc, Ordering};
use crate::wire::distribution::{Distribution, Steps};
use mio::{Events, Poll, Token};
use std::collections::VecDeque;
use std::io;
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

pub(super) const WAKER: Token = Token(0);
const LISTENER: Token = Token(1);
const LOCAL_LISTENER: Token = Token(2);
/// Tokens of connections are their places, from here on.
const FIRST_CONNECTION: usize = 3;

const EVENTS: usize = 1024;
/// Turns after which the kernel is asked for news although there is work left: one connection that is always readable
/// costs about one system call per message, and many do not keep others waiting.
const TURNS_PER_POLL: usize = 32;
/// What nobody wants is read into this.
const SCRATCH: usize = 64 * 1024;
/// Two looks at the clocks lie at least this far apart.
const CLOCK_STEP: Duration = Duration::from_millis(10);

#[derive(Debug)]
pub(super) struct Reception {
    pub(super) config: SessionConfig,
    /// What clients are told of this server rank.
    pub(super) address: String,
    /// What they are told of all server ranks, rank 0 first; empty until somebody has said it.
    pub(super) servers: Vec<String>,
    pub(super) buffer: Arc<Buffer>,
    pub(super) shared: Arc<Shared>,
    pub(super) schema: Option<Arc<Schema>>,
    pub(super) poll: Poll,
    pub(super) listeners: Listeners,
    /// The process was out of descriptors; accepting is tried again then.
    pub(super) accept_after: Option<Instant>,
    /// Connections that have not proved the study key.
    pub(super) pending: usize,
    pub(super) connections: Connections,
    /// Connections with work, each once, in the order of their turns.
    pub(super) ready: VecDeque<ConnectionId>,
    pub(super) simulations: Vec<Simulation>,
    pub(super) room: Room,
    pub(super) kept_for_validation: Kept,
    pub(super) counters: Counters,
    pub(super) refusals: RefusalLog,
    pub(super) scratch: Box<[u8]>,
    /// The time of this turn of the loop.
    pub(super) now: Instant,
    /// Turns since the last poll.
    pub(super) turns: usize,
    /// Simulations that changed since somebody asked.
    pub(super) dirty: Vec<u32>,
    /// One of the changes is worth waking somebody for.
    pub(super) urgent: bool,
    /// Steps of a simulation: configured, or learned from the first that finalized.
    pub(super) steps_per_simulation: Option<u64>,
    pub(super) nb_final: u32,
    /// Simulations that are not final, without those for validation, by the remainder of their ids when divided by the number
    /// of server ranks: those of one remainder have as many steps for this rank.
    pub(super) open: Vec<u32>,
    /// Complete steps of simulations that are final and of draws that were replaced.
    pub(super) settled_steps: u64,
    pub(super) stopped: bool,
    /// Nothing more comes to train on: the training buffer is closed.
    pub(super) training_over: bool,
    pub(super) over: bool,
    pub(super) closing: bool,
    /// Why the thread cannot go on.
    pub(super) fatal: Option<String>,
    next_look: Option<Instant>,
}

impl Reception {
    pub(super) fn new(
        config: SessionConfig,
        address: String,
        buffer: Arc<Buffer>,
        shared: Arc<Shared>,
        poll: Poll,
        mut listeners: Listeners,
    ) -> io::Result<Self> {
        listeners.register(poll.registry(), LISTENER, LOCAL_LISTENER)?;
        let now = Instant::now();
        let nb_simulations = config.nb_simulations();
        let nb_ranks = config.nb_ranks;
        let open = (0..nb_ranks)
            .map(|remainder| config.planned / nb_ranks + u32::from(remainder < config.planned % nb_ranks))
            .collect();
        Ok(Self {
            servers: if nb_ranks == 1 { vec![address.clone()] } else { Vec::new() },
            address,
            schema: None,
            poll,
            listeners,
            accept_after: None,
            pending: 0,
            connections: Connections::default(),
            ready: VecDeque::new(),
            simulations: (0..nb_simulations).map(|_| Simulation::new()).collect(),
            kept_for_validation: Kept::default(),
            room: Room::new(buffer.slot_counts(), nb_simulations as usize),
            counters: Counters::default(),
            refusals: RefusalLog::new(now),
            scratch: vec![0; SCRATCH].into_boxed_slice(),
            now,
            turns: 0,
            dirty: Vec::new(),
            urgent: false,
            steps_per_simulation: config.nb_time_steps,
            nb_final: 0,
            open,
            settled_steps: 0,
            stopped: false,
            training_over: false,
            over: false,
            closing: false,
            fatal: None,
            next_look: None,
            config,
            buffer,
            shared,
        })
    }

    /// Receives until the session is closed.
    ///
    /// # Errors
    /// What keeps it from going on, in words.
    pub(super) fn run(&mut self, commands: &Receiver<Command>) -> Result<(), String> {
        let mut events = Events::with_capacity(EVENTS);
        loop {
            if self.ready.is_empty() || self.turns >= TURNS_PER_POLL {
                self.poll_sockets(&mut events)?;
            }
            self.now = Instant::now();
            while let Ok(command) = commands.try_recv() {
                command(self);
            }
            if self.closing {
                return Ok(());
            }
            if self.shared.room.answer() {
                self.serve_room();
            }
            self.accept();
            for _ in 0..self.ready.len() {
                if let Some(id) = self.ready.pop_front() {
                    self.turn(id);
                }
            }
            if self.next_look.is_some_and(|look| look <= self.now) {
                self.look_at_clocks();
            }
            if let Some(error) = self.fatal.take() {
                return Err(error);
            }
            if std::mem::take(&mut self.urgent) {
                self.shared.board.tell();
            }
        }
    }

    fn poll_sockets(&mut self, events: &mut Events) -> Result<(), String> {
        self.turns = 0;
        let timeout = if self.ready.is_empty() && !self.can_accept(Instant::now()) {
            self.next_look.map(|look| look.saturating_duration_since(Instant::now()))
        } else {
            Some(Duration::ZERO)
        };
        match self.poll.poll(events, timeout) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(()),
            Err(error) => return Err(format!("the receiving thread cannot poll its sockets: {error}")),
        }
        for event in events.iter() {
            match event.token() {
                WAKER => {}
                LISTENER => self.listeners.tcp_became_ready(),
                LOCAL_LISTENER => self.listeners.local_became_ready(),
                Token(token) => {
                    let Some(id) = self.connections.at(token - FIRST_CONNECTION) else { continue };
                    let Some(connection) = self.connections.get_mut(id) else { continue };
                    connection.peer_closed |= event.is_read_closed() || event.is_error();
                    if event.is_readable() || event.is_read_closed() || event.is_error() {
                        connection.became_readable();
                    }
                    if event.is_writable() {
                        self.flush(id);
                    }
                    self.enqueue(id);
                }
            }
        }
        Ok(())
    }

    /// Whether the samples of the simulation are for validation and not for training.
    pub(super) const fn is_for_validation(&self, simulation: u32) -> bool {
        simulation >= self.config.planned
    }

    /// How the simulation's time steps are dealt out to the server ranks.
    pub(super) const fn distribution_of(&self, simulation: u32) -> Distribution {
        if self.is_for_validation(simulation) { Distribution::First } else { self.config.distribution }
    }

    /// The time steps of the simulation that are this server rank's.
    pub(super) const fn steps_of(&self, simulation: u32) -> Steps {
        self.distribution_of(simulation).steps_of(simulation, self.config.rank, self.config.nb_ranks)
    }

    /// Whether this server rank gets a time step of the simulation at all, as far as that is known.
    pub(super) fn gets_steps_of(&self, simulation: u32) -> bool {
        self.steps_of(simulation).at(0) < self.config.nb_time_steps.unwrap_or(u64::MAX)
    }

    /// Puts a connection with work on the ready list.
    pub(super) fn enqueue(&mut self, id: ConnectionId) {
        if let Some(connection) = self.connections.get_mut(id)
            && !connection.queued
            && connection.has_work()
        {
            connection.queued = true;
            self.ready.push_back(id);
        }
    }

    /// Takes a connection in and gives it its first turn.
    pub(super) fn insert(&mut self, connection: Connection) -> io::Result<()> {
        let id = self.connections.insert(connection);
        // Each connection stands on the list once: being ready allocates nothing later.
        self.ready.reserve(self.connections.places().saturating_sub(self.ready.len()));
        self.pending += 1;
        let token = Token(id.index as usize + FIRST_CONNECTION);
        if let Some(connection) = self.connections.get_mut(id)
            && let Err(error) = connection.socket_mut().register(self.poll.registry(), token)
        {
            self.remove(id);
            return Err(error);
        }
        self.enqueue(id);
        Ok(())
    }

    /// Sends a frame, as much of it as the kernel takes now; the rest follows when it takes more.
    pub(super) fn send(&mut self, id: ConnectionId, frame: &[u8]) {
        if let Some(connection) = self.connections.get_mut(id) {
            connection.send(frame);
            self.flush(id);
        }
    }

    pub(super) fn flush(&mut self, id: ConnectionId) {
        if let Some(connection) = self.connections.get_mut(id)
            && connection.flush().is_err()
        {
            // The read path finds the same error, or what the peer sent before it went, and deals with it.
            connection.peer_closed = true;
            connection.became_readable();
            self.enqueue(id);
        }
    }

    /// Closes a connection; nothing of its simulation is touched.
    pub(super) fn remove(&mut self, id: ConnectionId) {
        if let Some(mut connection) = self.connections.remove(id) {
            self.pending -= usize::from(!connection.authenticated);
            // A failure leaves nothing behind: closing the descriptor ends its registration too.
            let _ = connection.socket_mut().deregister(self.poll.registry());
        }
    }

    /// Looks at the clocks at `time` at the latest.
    pub(super) fn look_by(&mut self, time: Instant) {
        let time = time.max(self.now + CLOCK_STEP);
        self.next_look = Some(self.next_look.map_or(time, |look| look.min(time)));
    }

    /// Forgets when to look at the clocks; whoever has one says so anew.
    pub(super) const fn clear_look(&mut self) {
        self.next_look = None;
    }

    /// Takes note that a simulation's state changed; `urgent` changes wake who waits for them.
    pub(super) fn changed(&mut self, simulation: u32, urgent: bool) {
        let entry = &mut self.simulations[simulation as usize];
        if !std::mem::replace(&mut entry.dirty, true) {
            self.dirty.push(simulation);
        }
        self.urgent |= urgent;
    }

    pub(super) fn set_status(&mut self, simulation: u32, status: Status) {
        let entry = &mut self.simulations[simulation as usize];
        if entry.status != status {
            entry.status = status;
            self.changed(simulation, true);
        }
    }

    /// Opens a restored buffer again that was closed at the cut, where a simulation that is trained on runs again.
    ///
    /// # Errors
    /// Those of [`Buffer::reopen`].
    pub(super) fn check_not_over(&self) -> Result<(), BufferError> {
        if self.open.iter().any(|&open| open > 0) { self.buffer.reopen() } else { Ok(()) }
    }

    /// Closes the training buffer once every simulation that is trained on is final and every complete sample is in it, and
    /// ends reception once those for validation are final as well: training waits for none of these.
    pub(super) fn check_over(&mut self) {
        let finished = || self.simulations.iter().all(|entry| entry.status.is_final());
        let open = self.open.iter().any(|&open| open > 0) && !(planted(Bug::OverUnconfirmed) && finished());
        if self.over || !self.room.is_drained() || open {
            return;
        }
        if self.nb_final >= self.config.nb_simulations() {
            self.over = true;
            // First the word, then the deed: who sees the end of data finds that reception is over.
            self.shared.over.store(true, Ordering::Release);
        }
        if !std::mem::replace(&mut self.training_over, true) {
            self.buffer.close();
            if !self.over && !self.stopped {
                log::info!(
                    "all time steps to train on are in the training buffer; {} simulations for validation go on",
                    self.config.nb_simulations() - self.nb_final
                );
            }
        }
        if self.over {
            self.urgent = true;
            log::info!(
                "reception is over: {} simulations finished, {} dropped, {} time steps received",
                self.counters.simulations_finished,
                self.counters.simulations_dropped,
                self.counters.samples_received
            );
        }
    }
}
