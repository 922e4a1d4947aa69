//! The receiving session: one thread that serves all clients of a server rank.
//!
//! It polls the sockets, proves the study key with each peer, reads bodies straight into slots of the slab, publishes
//! complete samples, and keeps the ledger. It never waits for the training buffer, for Python or for a peer. What the
//! control plane learns is the state of each simulation, coalesced: [`Session::changes`] gives what changed since the
//! last call, however much came in between.

mod assembly;
pub(crate) mod bell;
mod clocks;
mod config;
mod connection;
mod control;
mod counters;
mod cut;
mod data;
mod error;
mod greeting;
mod join;
mod listen;
mod member;
mod reception;
mod room;
mod simulation;
mod socket;
mod state;
mod table;
mod validation;

pub use config::{DataType, HANDSHAKE_TIMEOUT, MAX_PENDING_HANDSHAKES, RECEIVE_BUFFER_SIZE, SessionConfig};
pub use counters::{Counters, Refusals};
pub use cut::{
    CutError, CutRank, RestoredSession, RestoredSimulation, SessionCut, SessionState, SimulationCut,
};
pub use error::SessionError;
pub use state::{SimulationState, Status};

use crate::buffer::{Buffer, Sample, SampleKey};
use crate::ledger::{Ledger, Reason, Sums};
use crate::sync::{Arc, AtomicBool, Condvar, Mutex, Ordering, lock};
use bell::Bell;
use mio::{Poll, Waker};
use reception::{Reception, WAKER};
use socket::{Listeners, Local};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::PoisonError;
use std::sync::mpsc::{Receiver, Sender, channel, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Something for the receiving thread to do between two turns.
type Command = Box<dyn FnOnce(&mut Reception) + Send>;

/// How the receiving thread ended.
#[derive(Clone, Debug)]
enum End {
    Closed,
    Failed(String),
}

#[derive(Debug, Default)]
struct News {
    /// Something changed that is worth waking somebody for.
    there: bool,
    end: Option<End>,
    /// What was counted, once the thread has ended.
    last: Option<(Counters, Refusals)>,
}

/// Where the receiving thread says that there is something to ask for, and how it ended.
#[derive(Debug, Default)]
struct Board {
    news: Mutex<News>,
    changed: Condvar,
}

impl Board {
    fn tell(&self) {
        lock(&self.news).there = true;
        self.changed.notify_all();
    }

    fn told(&self) {
        lock(&self.news).there = false;
    }

    fn end(&self, end: End, last: Option<(Counters, Refusals)>) {
        {
            let mut news = lock(&self.news);
            news.end = Some(end);
            news.last = last;
        }
        self.changed.notify_all();
    }

    /// Waits until there are news, or the deadline (`None`: there is none) passes.
    fn wait(&self, deadline: Option<Instant>) -> Result<(), SessionError> {
        let mut news = lock(&self.news);
        loop {
            if let Some(end) = &news.end {
                return Err(end.error());
            }
            if news.there {
                return Ok(());
            }
            news = match deadline.map(|deadline| deadline.saturating_duration_since(Instant::now())) {
                Some(Duration::ZERO) => return Ok(()),
                Some(left) => self.changed.wait_timeout(news, left).unwrap_or_else(PoisonError::into_inner).0,
                None => self.changed.wait(news).unwrap_or_else(PoisonError::into_inner),
            };
        }
    }
}

impl End {
    fn error(&self) -> SessionError {
        match self {
            Self::Closed => SessionError::Closed,
            Self::Failed(text) => SessionError::Failed(text.clone()),
        }
    }
}

/// What the receiving thread and its handle share.
#[derive(Debug)]
struct Shared {
    ledger: Arc<Mutex<Ledger>>,
    validation: Validation,
    board: Board,
    room: Bell,
    over: AtomicBool,
}

impl Shared {
    /// The account of a simulation's time steps.
    fn ledger_of(&self, simulation: u32) -> &Mutex<Ledger> {
        if simulation < self.validation.first { &self.ledger } else { &self.validation.ledger }
    }
}

/// What came of the simulations for validation: it never gets near the training buffer and its account.
#[derive(Debug)]
struct Validation {
    /// The first id of these simulations.
    first: u32,
    ledger: Mutex<Ledger>,
    /// Complete samples that nobody has taken yet, in the order of completion.
    samples: Mutex<Vec<Sample>>,
}

/// The handle of a receiving session. Dropped, it closes the session.
#[derive(Debug)]
pub struct Session {
    address: String,
    shared: Arc<Shared>,
    commands: Sender<Command>,
    waker: Arc<Waker>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Session {
    /// Listens on a free port of the configured host and starts the receiving thread. A training buffer has one session
    /// in its life: the first is the one that it wakes.
    ///
    /// # Errors
    /// A configuration that makes no sense; a host that cannot be listened at; no thread or no descriptors left.
    pub fn start(config: SessionConfig, buffer: Arc<Buffer>) -> Result<Self, SessionError> {
        Self::resume(config, buffer, None)
    }

    /// Starts as [`Session::start`] does, and goes on from a cut with the training buffer that was restored from it.
    ///
    /// # Errors
    /// Those of `start`; a ledger that contradicts itself or the configuration.
    pub fn resume(
        config: SessionConfig,
        buffer: Arc<Buffer>,
        restored: Option<&RestoredSession>,
    ) -> Result<Self, SessionError> {
        config.check()?;
        let ledger = match restored {
            Some(restored) => {
                restored.ledger(config.nb_time_steps, config.server_rank()).map_err(|error| {
                    SessionError::Configuration(format!("the checkpoint cannot be used: {error}"))
                })?
            }
            None => Ledger::of_rank(config.nb_time_steps, config.server_rank()),
        };
        listen::check_descriptor_limit(config.nb_simulations());
        let (listener, address) = listen::listen(&config)?;
        let local =
            config.local_socket.then(|| Local::listen(&config.key, config.study_epoch, &address)).flatten();
        let listeners = Listeners::new(listener, local);
        let thread_error = |error: std::io::Error| SessionError::Thread(error.to_string());
        let poll = Poll::new().map_err(thread_error)?;
        let waker = Arc::new(Waker::new(poll.registry(), WAKER).map_err(thread_error)?);
        let shared = Arc::new(Shared {
            ledger: Arc::new(Mutex::new(ledger)),
            validation: Validation {
                first: config.planned,
                ledger: Mutex::new(Ledger::of_rank(config.nb_time_steps, config.server_rank_of_validation())),
                samples: Mutex::default(),
            },
            board: Board::default(),
            room: Bell::default(),
            over: AtomicBool::new(false),
        });
        log::info!(
            "server rank {} of {} receives at {address}, {} bytes of receive buffer per connection, fields {}, data \
             type {}",
            config.rank,
            config.nb_ranks,
            config.receive_buffer_size,
            config.field_names.join(", "),
            config.data_type.name()
        );
        let room = (Arc::clone(&shared), Arc::clone(&waker));
        buffer.set_room_waker(Arc::new(move || {
            let (shared, waker) = &room;
            shared.room.ring(|| wake(waker));
        }));
        let mut reception =
            Reception::new(config, address.clone(), buffer, Arc::clone(&shared), poll, listeners)
                .map_err(thread_error)?;
        if let Some(restored) = restored {
            reception.resume(restored);
            reception.check_not_over().map_err(|error| {
                SessionError::Configuration(format!("the checkpoint cannot be used: {error}"))
            })?;
        }
        reception.check_over();
        let (commands, received) = channel();
        let thread = std::thread::Builder::new()
            .name("melissa-session".into())
            .spawn(move || receive(reception, &received))
            .map_err(thread_error)?;
        Ok(Self { address, shared, commands, waker, thread: Mutex::new(Some(thread)) })
    }

    /// What clients connect to, as `host:port`.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Says which addresses all server ranks have, rank 0 first: clients are told, and compare. With one rank it is known.
    ///
    /// # Errors
    /// When there are more or fewer than server ranks, or that of this rank is not its own; when the session has failed.
    pub fn set_servers(&self, addresses: Vec<String>) -> Result<(), SessionError> {
        self.ask(move |reception| reception.set_servers(addresses))?
    }

    /// Runs `command` in the receiving thread and waits for what it returns: no longer than one turn of its loop.
    fn ask<R: Send + 'static>(
        &self,
        command: impl FnOnce(&mut Reception) -> R + Send + 'static,
    ) -> Result<R, SessionError> {
        let (answer, answered) = sync_channel(1);
        let boxed: Command = Box::new(move |reception| {
            // The caller waits for it, so that somebody is there.
            let _ = answer.send(command(reception));
        });
        if self.commands.send(boxed).is_ok() {
            wake(&self.waker);
            if let Ok(result) = answered.recv() {
                return Ok(result);
            }
        }
        Err(self.end_error())
    }

    fn end_error(&self) -> SessionError {
        lock(&self.shared.board.news).end.as_ref().map_or(SessionError::Closed, End::error)
    }

    /// Makes an attempt of a simulation known, before its job is submitted. Attempts start at 1 and increase; a higher
    /// one closes the connections of those before it, and opens a simulation again that is finished and not final. A higher draw
    /// says that the parameters are new ones. Of simulations for validation nothing happens on server ranks but 0.
    ///
    /// # Errors
    /// When the simulation is unknown or final, when attempt or draw do not increase, when the number of parameters
    /// is wrong, when there are several server ranks and nobody has said which; when the session has failed.
    pub fn register(
        &self,
        simulation: u32,
        attempt: u32,
        draw: u32,
        parameters: Vec<f64>,
    ) -> Result<(), SessionError> {
        self.ask(move |reception| reception.register(simulation, attempt, draw, parameters))?
    }

    /// Says that a simulation is finished on every server rank, and by that final. With one server rank, and for simulations
    /// for validation, the session knows that itself, and nothing happens.
    ///
    /// # Errors
    /// When the simulation is unknown or not finished on this server rank, or the session has failed.
    pub fn confirm(&self, simulation: u32) -> Result<(), SessionError> {
        self.ask(move |reception| reception.confirm(simulation))?
    }

    /// The registered attempt is dead: closes its connections and drops its incomplete time step from assembly.
    ///
    /// # Errors
    /// When the simulation is unknown or the session has failed.
    pub fn abandon_attempt(&self, simulation: u32) -> Result<(), SessionError> {
        self.ask(move |reception| reception.abandon_attempt(simulation))?
    }

    /// Gives a simulation up for good; its incomplete time steps are dropped for `reason`. Nothing happens when it is
    /// final already.
    ///
    /// # Errors
    /// When the simulation is unknown, the reason is not one for simulations, or the session has failed.
    pub fn finish(&self, simulation: u32, reason: Reason) -> Result<(), SessionError> {
        self.ask(move |reception| reception.finish(simulation, reason))?
    }

    /// Ends the study early: tells clients to stop, throws away what they still send, and counts it.
    ///
    /// # Errors
    /// When the session has failed or was closed.
    pub fn stop(&self) -> Result<(), SessionError> {
        self.ask(Reception::stop)
    }

    /// The simulations that changed since the last call, waiting up to `timeout` for a change of status; progress
    /// alone wakes nobody and comes with the next answer.
    ///
    /// # Errors
    /// When the session has failed or was closed.
    pub fn changes(&self, timeout: Duration) -> Result<Vec<SimulationState>, SessionError> {
        self.shared.board.wait(Instant::now().checked_add(timeout))?;
        self.ask(Reception::take_changes)
    }

    /// Figures since the start; after the end, the last ones.
    pub fn counters(&self) -> Counters {
        self.ask(|reception| reception.counters()).unwrap_or_else(|_| {
            lock(&self.shared.board.news).last.as_ref().map(|(counters, _)| *counters).unwrap_or_default()
        })
    }

    /// Texts of refusals and protocol errors since the last call.
    pub fn refusals(&self) -> Refusals {
        self.ask(Reception::take_refusals).unwrap_or_else(|_| {
            let mut news = lock(&self.shared.board.news);
            news.last.as_mut().map(|(_, refusals)| std::mem::take(refusals)).unwrap_or_default()
        })
    }

    /// Samples that this server rank will have had in the end; `None` until the number of time steps is known.
    pub fn expected_samples(&self) -> Option<u64> {
        self.counters().expected_samples
    }

    /// Every simulation is final, those for validation too, and every complete sample is where it belongs. The training buffer
    /// is closed by then, and earlier than that when simulations for validation go on alone.
    pub fn reception_over(&self) -> bool {
        self.shared.over.load(Ordering::Acquire)
    }

    /// The complete samples of simulations for validation since the last call, in the order of completion; each is a copy.
    pub fn take_validation(&self) -> Vec<Sample> {
        std::mem::take(&mut *lock(&self.shared.validation.samples))
    }

    /// Complete time steps of simulations for validation so far.
    pub fn validation_received(&self) -> u64 {
        lock(&self.shared.validation.ledger).sums().complete
    }

    /// Takes note that a training step on these samples has returned; returns how many were trained for the first time.
    pub fn mark_trained(&self, keys: impl IntoIterator<Item = SampleKey>) -> u64 {
        lock(&self.shared.ledger).mark_trained(keys)
    }

    /// The sums of the ledger so far.
    pub fn ledger_sums(&self) -> Sums {
        lock(&self.shared.ledger).sums()
    }

    /// Closes the ledger: complete time steps that were not trained are dropped for `reason`.
    pub fn close_ledger(&self, reason: Reason) -> Sums {
        lock(&self.shared.ledger).close(reason)
    }

    /// Ends the receiving thread and closes every connection; again it does nothing. Samplers that wait for data get
    /// an error when reception was not over.
    pub fn close(&self) {
        let thread = lock(&self.thread).take();
        if let Some(thread) = thread {
            // Either the thread is there and answers, or it has ended by itself.
            let _ = self.ask(Reception::close);
            // It catches what panics within it, so that there is nothing to pass on.
            let _ = thread.join();
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.close();
    }
}

fn wake(waker: &Waker) {
    // The descriptor is open as long as this waker; writing to it fails for no other reason.
    if let Err(error) = waker.wake() {
        log::error!("the receiving thread cannot be woken: {error}");
    }
}

/// The receiving thread.
fn receive(mut reception: Reception, commands: &Receiver<Command>) {
    let result = catch_unwind(AssertUnwindSafe(|| reception.run(commands)));
    let end = match result {
        Ok(Ok(())) => End::Closed,
        Ok(Err(text)) => End::Failed(text),
        Err(panic) => {
            let text = panic
                .downcast_ref::<&str>()
                .map(ToString::to_string)
                .or_else(|| panic.downcast_ref::<String>().cloned())
                .unwrap_or_default();
            End::Failed(format!("the receiving thread failed, which is a defect of Melissa: {text}"))
        }
    };
    match &end {
        End::Failed(text) => {
            log::error!("{text}");
            reception.buffer.fail(text.clone());
        }
        End::Closed if !reception.over => {
            reception
                .buffer
                .fail("the receiving session was closed before every simulation was final".into());
        }
        End::Closed => {}
    }
    let last = (reception.counters(), reception.take_refusals());
    let shared = Arc::clone(&reception.shared);
    // Slots go back and sockets are closed before anybody hears of the end.
    drop(reception);
    shared.board.end(end, Some(last));
}
