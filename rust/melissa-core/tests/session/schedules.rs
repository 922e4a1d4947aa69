//! Random schedules of sends, deaths, resubmissions, redraws and drops against one to three server ranks, whose training
//! buffers are drawn from now and then: nothing is lost, nothing comes twice, every simulation that is not given up can
//! be confirmed in the end, and the ledgers' sums hold.

use crate::client::{Answer, Client, Identity, PATIENCE};
use crate::server::Server;
use crate::study::{bytes_of, check, config, fifo, key};
use melissa_core::buffer::SampleKey;
use melissa_core::error::BufferError;
use melissa_core::ledger::Reason;
use melissa_core::schema::Dtype;
use melissa_core::session::{SessionConfig, SessionError};
use melissa_core::wire::distribution::Distribution;
use melissa_core::wire::header::Kind;
use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use std::cell::{Cell, RefCell};
use std::collections::HashSet;
use std::time::{Duration, Instant};

const STEPS: u64 = 6;
/// Ranks of each simulation.
const SIZES: [u32; 4] = [1, 1, 2, 3];
/// Elements of the two fields, over all ranks.
const ELEMENTS: [u64; 2] = [10, 6];

/// The server and its buffers.
#[derive(Clone, Debug)]
struct Setting {
    nb_ranks: u32,
    by_turns: bool,
    capacity: usize,
    assembly_slots: usize,
}

#[derive(Clone, Debug)]
enum Operation {
    /// So many further steps, of every rank or of one that runs ahead.
    Send {
        simulation: usize,
        rank: Option<usize>,
        steps: u64,
    },
    /// All steps that are left; then the first so many server ranks are told that these were all.
    Finalize {
        simulation: usize,
        servers: usize,
    },
    /// A step of some of the ranks, the last of them cut off after so many bytes; then all of them die.
    DieWithin {
        simulation: usize,
        ranks: usize,
        bytes: usize,
    },
    /// All ranks close their connections, be it between two server ranks.
    Die {
        simulation: usize,
    },
    /// The server takes them for dead, and they are not.
    Resubmit {
        simulation: usize,
    },
    Redraw {
        simulation: usize,
    },
    GiveUp {
        simulation: usize,
    },
    /// Sends a step again that is complete.
    Repeat {
        simulation: usize,
    },
    /// Sends a step to a server rank that it does not belong to, and is gone.
    Astray {
        simulation: usize,
    },
    /// What is finished on every server rank becomes final, beginning with this one; what is not, does not.
    Confirm {
        simulation: usize,
        first: usize,
    },
    /// The trainer of a server rank takes so many samples, if they are there.
    Train {
        server: usize,
        samples: usize,
    },
}

fn settings() -> impl Strategy<Value = Setting> {
    (1..4u32, prop::bool::weighted(0.7), 1..5usize, 1..4usize).prop_map(
        |(nb_ranks, by_turns, capacity, assembly_slots)| Setting {
            nb_ranks,
            by_turns,
            capacity,
            assembly_slots,
        },
    )
}

fn operations() -> impl Strategy<Value = Vec<Operation>> {
    let simulation = || 0..SIZES.len();
    let rank = prop::option::weighted(0.3, 0..3usize);
    let operation = prop_oneof![
        8 => (simulation(), rank, 1..4u64)
            .prop_map(|(simulation, rank, steps)| Operation::Send { simulation, rank, steps }),
        4 => (simulation(), 1..4usize).prop_map(|(simulation, servers)| Operation::Finalize { simulation, servers }),
        2 => (simulation(), 0..3usize, 0..200usize)
            .prop_map(|(simulation, ranks, bytes)| Operation::DieWithin { simulation, ranks, bytes }),
        2 => simulation().prop_map(|simulation| Operation::Die { simulation }),
        1 => simulation().prop_map(|simulation| Operation::Resubmit { simulation }),
        1 => simulation().prop_map(|simulation| Operation::Redraw { simulation }),
        1 => simulation().prop_map(|simulation| Operation::GiveUp { simulation }),
        1 => simulation().prop_map(|simulation| Operation::Repeat { simulation }),
        1 => simulation().prop_map(|simulation| Operation::Astray { simulation }),
        2 => (simulation(), 0..3usize).prop_map(|(simulation, first)| Operation::Confirm { simulation, first }),
        8 => (0..3usize, 1..5usize).prop_map(|(server, samples)| Operation::Train { server, samples }),
    ];
    prop::collection::vec(operation, 1..40)
}

/// The server, what was trained on, and what happened on the way.
struct World {
    server: Server,
    /// Samples that each server rank's trainer has had.
    trained: Vec<RefCell<Vec<SampleKey>>>,
    /// Steps of which a whole header was written.
    written: RefCell<HashSet<SampleKey>>,
    /// A server rank has been told to stop.
    stopping: Cell<bool>,
    /// A simulation was opened again that a server rank had finished, for the same parameters and for new ones.
    reopened: Cell<bool>,
    redrawn: Cell<bool>,
    /// A complete sample waited for room.
    full: Cell<bool>,
}

impl World {
    fn start(setting: &Setting) -> Self {
        let config = SessionConfig {
            nb_time_steps: Some(STEPS),
            distribution: if setting.by_turns { Distribution::RoundRobin } else { Distribution::Simulation },
            ..config(SIZES.len() as u32)
        };
        let server =
            Server::start(setting.nb_ranks, &config, &fifo(setting.capacity, setting.assembly_slots));
        Self {
            trained: server.ranks.iter().map(|_| RefCell::default()).collect(),
            server,
            written: RefCell::default(),
            stopping: Cell::new(false),
            reopened: Cell::new(false),
            redrawn: Cell::new(false),
            full: Cell::new(false),
        }
    }

    /// Takes up to so many samples of those that are there.
    fn train(&self, server: usize, samples: usize) -> bool {
        let study = &self.server.ranks[server];
        self.full.set(self.full.get() || study.session.counters().samples_waiting > 0);
        for taken in 0..samples {
            match study.buffer.get(Some(Instant::now())) {
                Ok(sample) => {
                    let key = check(&sample);
                    study.session.mark_trained([key]);
                    self.trained[server].borrow_mut().push(key);
                }
                Err(BufferError::Timeout | BufferError::EndOfData) => return taken > 0,
                // Before the first simulation has joined there is none.
                Err(BufferError::Unbound) => return false,
                Err(error) => panic!("{error}"),
            }
        }
        true
    }

    /// Trains on the rest; every server rank comes to its end by itself.
    fn drain(&self) {
        for (study, trained) in self.server.ranks.iter().zip(&self.trained) {
            trained.borrow_mut().extend(study.drain());
            assert!(study.session.reception_over());
        }
    }
}

/// One rank of an attempt. It joins the server ranks one after the other, and does all that it does without waiting.
struct Rank<'a> {
    world: &'a World,
    who: Identity,
    draw: u32,
    links: Vec<Link>,
    /// The step that it sends next, and the first of those that it does not send yet.
    next: u64,
    target: u64,
    /// So many server ranks are told once all steps are sent.
    finalize_on: usize,
}

/// A rank's connection to one server rank.
struct Link {
    client: Client,
    finalized: bool,
    acknowledged: bool,
}

impl Rank<'_> {
    /// First element and number of elements of its share: the first rank has the remainder.
    fn share(&self, field: usize) -> (u64, u64) {
        let (size, elements) = (u64::from(self.who.size), ELEMENTS[field]);
        let (each, rest) = (elements / size, elements % size);
        let rank = u64::from(self.who.rank);
        if rank == 0 { (0, each + rest) } else { (rest + rank * each, each) }
    }

    fn has_joined(&self) -> bool {
        self.links.len() == self.world.server.ranks.len()
            && self.links.iter().all(|link| link.client.welcome.is_some())
    }

    /// Joins the next server rank, or hears that the last one has welcomed it; false when it has to wait.
    fn join(&mut self) -> bool {
        let server = &self.world.server;
        if let Some(link) = self.links.last_mut().filter(|link| link.client.welcome.is_none()) {
            if !link.client.has_answer() {
                return false;
            }
            return match link.client.read_welcome() {
                Ok(welcome) => {
                    let own = (0..STEPS)
                        .filter(|&step| server.owner(self.who.simulation, step) == self.links.len() - 1);
                    let complete =
                        |step: &u64| welcome.complete.iter().any(|range| (range.0..=range.1).contains(step));
                    let skipped = own.clone().filter(complete).count();
                    assert_eq!(own.take_while(complete).count(), skipped, "steps become complete in order");
                    true
                }
                Err(answer) => {
                    assert!(self.world.stopping.get(), "{answer:?}");
                    false
                }
            };
        }
        if self.links.len() == server.ranks.len() {
            return false;
        }
        match server.connect(self.links.len(), self.who.clone()) {
            Ok(mut client) => {
                let (a, b) = (self.share(0).1, self.share(1).1);
                client.send_join(&[("temperature", Dtype::F32, a), ("flux", Dtype::F64, b)]);
                self.links.push(Link { client, finalized: false, acknowledged: false });
                true
            }
            Err(answer) => {
                assert!(self.world.stopping.get(), "{answer:?}");
                false
            }
        }
    }

    fn owner(&self, step: u64) -> usize {
        self.world.server.owner(self.who.simulation, step)
    }

    fn is_complete(&self, step: u64) -> bool {
        let welcome = self.links[self.owner(step)].client.welcome.as_ref();
        welcome
            .is_some_and(|welcome| welcome.complete.iter().any(|range| (range.0..=range.1).contains(&step)))
    }

    /// All fields of its part of a step, as a connection takes them.
    fn frame(&self, step: u64, server: usize) -> Vec<u8> {
        let key = key(self.who.simulation, self.draw, step);
        let mut bytes = Vec::new();
        for (field, dtype) in [Dtype::F32, Dtype::F64].into_iter().enumerate() {
            let (from, count) = self.share(field);
            bytes.extend(self.links[server].client.header(field, step, count).encode());
            bytes.extend(bytes_of(key, field, dtype, from, count));
        }
        bytes
    }

    /// Writes a step, or so many bytes of it, to its server rank.
    fn write(&mut self, step: u64, bytes: Option<usize>) {
        let server = self.owner(step);
        let frame = self.frame(step, server);
        let end = bytes.map_or(frame.len(), |bytes| bytes.min(frame.len() - 1));
        self.world.written.borrow_mut().insert(key(self.who.simulation, self.draw, step));
        let open = self.links[server].client.write(&frame[..end]);
        assert!(open || self.world.stopping.get(), "the server has closed the connection");
    }

    fn skip_complete(&mut self) {
        while self.next < STEPS && self.is_complete(self.next) {
            self.next += 1;
        }
    }

    /// Does what can be done without waiting; whether there was something.
    fn go_on(&mut self) -> bool {
        let mut moved = false;
        while self.join() {
            moved = true;
        }
        if !self.has_joined() {
            return moved;
        }
        self.skip_complete();
        while self.next < self.target {
            self.write(self.next, None);
            self.next += 1;
            self.skip_complete();
            moved = true;
        }
        let finalize_on = if self.next == STEPS { self.finalize_on } else { 0 };
        for (index, link) in self.links.iter_mut().enumerate() {
            if index < finalize_on && !link.finalized {
                link.client.send_finalize(STEPS);
                link.finalized = true;
                moved = true;
            }
            while link.finalized && !link.acknowledged && link.client.has_answer() {
                link.hear(self.world);
                moved = true;
            }
        }
        moved
    }

    /// Goes on as a solver does that does not look at what the servers say, until its finalize.
    fn send_in_vain(&mut self) {
        if self.has_joined() {
            for step in self.next..STEPS {
                let server = self.owner(step);
                if !self.links[server].finalized {
                    self.write(step, None);
                }
            }
        }
        for link in &mut self.links {
            if !link.finalized {
                link.client.send_finalize(STEPS);
            }
            while !link.acknowledged {
                link.hear(self.world);
            }
        }
    }
}

impl Link {
    /// Waits for the answer to Finalize, or for a stop before it.
    fn hear(&mut self, world: &World) {
        match self.client.answer() {
            Answer::Frame(Kind::FinalizeAck) => self.acknowledged = true,
            answer => {
                let welcomed = answer == Answer::Frame(Kind::Welcome);
                assert!(world.stopping.get() && (welcomed || answer == Answer::Stop), "{answer:?}");
            }
        }
    }
}

/// The client of one simulation, as the control plane would run it.
struct Runner<'a> {
    world: &'a World,
    simulation: u32,
    attempt: u32,
    draw: u32,
    ranks: Vec<Rank<'a>>,
    given_up: bool,
    /// Final: finished on every server rank, and confirmed.
    confirmed: bool,
}

impl<'a> Runner<'a> {
    fn new(world: &'a World, simulation: usize) -> Self {
        let simulation = simulation as u32;
        Self { world, simulation, attempt: 0, draw: 0, ranks: Vec::new(), given_up: false, confirmed: false }
    }

    fn size(&self) -> u32 {
        SIZES[self.simulation as usize]
    }

    fn is_final(&self) -> bool {
        self.given_up || self.confirmed
    }

    /// The next attempt, with these parameters.
    fn submit(&mut self, draw: u32) {
        let server = &self.world.server;
        let finished =
            (0..server.ranks.len()).any(|rank| server.has_finished(rank, self.simulation, self.attempt));
        match server.register(self.simulation, self.attempt + 1, draw) {
            Ok(()) => {}
            // With one server rank it is final when it has finalized.
            Err(SessionError::Simulation(text))
                if !server.has_several_ranks() && text.contains("it is finished already") =>
            {
                self.confirmed = true;
                return;
            }
            Err(error) => panic!("{error}"),
        }
        self.world.reopened.set(self.world.reopened.get() || finished);
        self.world.redrawn.set(self.world.redrawn.get() || (finished && draw > self.draw));
        (self.attempt, self.draw) = (self.attempt + 1, draw);
        let who = Identity::of(self.simulation).attempt(self.attempt);
        self.ranks = (0..self.size())
            .map(|rank| Rank {
                world: self.world,
                who: who.clone().rank(rank, self.size()),
                draw,
                links: Vec::new(),
                next: 0,
                target: 0,
                finalize_on: 0,
            })
            .collect();
    }

    /// Has an attempt of its own now; false when it is at its end.
    fn is_running(&mut self) -> bool {
        if !self.is_final() && self.ranks.is_empty() {
            self.submit(self.draw);
        }
        !self.is_final()
    }

    /// All of its ranks do what they can, and again while one does something.
    fn go_on(&mut self) -> bool {
        let mut moved = false;
        loop {
            let again = self.ranks.iter_mut().map(Rank::go_on).filter(|&moved| moved).count() > 0;
            if !again {
                return moved;
            }
            moved = true;
        }
    }

    fn apply(&mut self, operation: &Operation) {
        if self.is_final() {
            return;
        }
        if let Operation::Confirm { first, .. } = *operation {
            self.confirm(first);
            return;
        }
        if !self.is_running() {
            return;
        }
        match *operation {
            Operation::Send { rank, steps, .. } => {
                let size = self.ranks.len();
                for (index, each) in self.ranks.iter_mut().enumerate() {
                    if rank.is_none_or(|rank| rank % size == index) {
                        each.target = (each.target.max(each.next) + steps).min(STEPS);
                    }
                }
                self.go_on();
            }
            Operation::Finalize { servers, .. } => {
                self.aim_at(servers);
                self.go_on();
                // Each session has a turn with it.
                for study in &self.world.server.ranks {
                    let _ = study.session.counters();
                }
                self.go_on();
            }
            Operation::DieWithin { ranks, bytes, .. } => {
                self.go_on();
                let last = ranks.min(self.ranks.len() - 1);
                for (index, rank) in self.ranks.iter_mut().enumerate().take(last + 1) {
                    if rank.has_joined() && rank.next < STEPS {
                        rank.write(rank.next, (index == last).then_some(bytes));
                    }
                }
                self.ranks.clear();
            }
            Operation::Die { .. } => self.ranks.clear(),
            Operation::Resubmit { .. } => {
                let old = std::mem::take(&mut self.ranks);
                self.submit(self.draw);
                drop(old);
            }
            Operation::Redraw { .. } => {
                for study in &self.world.server.ranks {
                    study.session.abandon_attempt(self.simulation).unwrap();
                }
                let old = std::mem::take(&mut self.ranks);
                self.submit(self.draw + 1);
                drop(old);
            }
            Operation::GiveUp { .. } => {
                for study in &self.world.server.ranks {
                    study.session.finish(self.simulation, Reason::ClientFailed).unwrap();
                }
                // With one server rank it may have been final before.
                self.confirmed = self.world.server.has_finished(0, self.simulation, self.attempt);
                self.given_up = !self.confirmed;
                self.ranks.clear();
            }
            Operation::Repeat { .. } => {
                self.go_on();
                let [rank] = self.ranks.as_mut_slice() else { return };
                if rank.has_joined() && rank.next > 0 && !rank.links[rank.owner(rank.next - 1)].finalized {
                    rank.write(rank.next - 1, None);
                }
            }
            Operation::Astray { .. } => {
                self.go_on();
                let nb_ranks = self.world.server.ranks.len();
                let rank = &mut self.ranks[0];
                if rank.has_joined() && nb_ranks > 1 {
                    let step = rank.next.min(STEPS - 1);
                    let wrong = (rank.owner(step) + 1) % nb_ranks;
                    let frame = rank.frame(step, wrong);
                    rank.links[wrong].client.write(&frame);
                    self.ranks.clear();
                }
            }
            Operation::Confirm { .. } | Operation::Train { .. } => {}
        }
    }

    /// Lets every rank send what is left, and finalize on the first so many server ranks.
    fn aim_at(&mut self, servers: usize) {
        for rank in &mut self.ranks {
            (rank.target, rank.finalize_on) = (STEPS, rank.finalize_on.max(servers));
        }
    }

    /// Confirms it, if it is finished on every server rank.
    fn confirm(&mut self, first: usize) {
        let server = &self.world.server;
        let nb_ranks = server.ranks.len();
        let order = move || (first..first + nb_ranks).map(move |rank| rank % nb_ranks);
        if order().all(|rank| server.has_finished(rank, self.simulation, self.attempt)) {
            for rank in order() {
                server.ranks[rank].session.confirm(self.simulation).unwrap();
            }
            self.confirmed = true;
            // Whoever has finalized is told so.
            for link in self.ranks.iter_mut().flat_map(|rank| &mut rank.links) {
                while !link.acknowledged {
                    link.hear(self.world);
                }
            }
            return;
        }
        let has_not_finalized = |server: usize| {
            let finalized = |rank: &Rank<'_>| rank.links.get(server).is_some_and(|link| link.finalized);
            self.attempt == 0 || (!self.ranks.is_empty() && !self.ranks.iter().all(finalized))
        };
        if let Some(rank) = order().find(|&rank| has_not_finalized(rank)) {
            match server.ranks[rank].session.confirm(self.simulation) {
                Err(SessionError::Simulation(text)) if text.contains("cannot be confirmed: it is") => {}
                other => panic!("{other:?}"),
            }
        }
    }

    /// Goes on until it is final; whether there was something to do.
    fn finish(&mut self) -> bool {
        if !self.is_running() {
            return false;
        }
        self.aim_at(self.world.server.ranks.len());
        let moved = self.go_on();
        self.confirm(0);
        moved || self.confirmed
    }

    /// Of its present parameters, whether it was asked for every step.
    fn keys(&self) -> impl Iterator<Item = SampleKey> + '_ {
        (0..STEPS).map(|step| key(self.simulation, self.draw, step))
    }
}

fn run<'a>(world: &'a World, operations: &[Operation]) -> Vec<Runner<'a>> {
    let mut runners: Vec<_> = (0..SIZES.len()).map(|simulation| Runner::new(world, simulation)).collect();
    for operation in operations {
        match *operation {
            Operation::Train { server, samples } => {
                world.train(server % world.server.ranks.len(), samples);
            }
            Operation::Send { simulation, .. }
            | Operation::Finalize { simulation, .. }
            | Operation::DieWithin { simulation, .. }
            | Operation::Die { simulation }
            | Operation::Resubmit { simulation }
            | Operation::Redraw { simulation }
            | Operation::GiveUp { simulation }
            | Operation::Repeat { simulation }
            | Operation::Astray { simulation }
            | Operation::Confirm { simulation, .. } => runners[simulation].apply(operation),
        }
        for study in &world.server.ranks {
            let sums = study.session.ledger_sums();
            assert!(sums.declared >= sums.trained + sums.dropped());
        }
    }
    runners
}

/// Goes on with all simulations, and trains beside, until each is final.
fn finish(world: &World, runners: &mut [Runner<'_>]) {
    let start = Instant::now();
    while !runners.iter().all(Runner::is_final) {
        let mut moved = false;
        for runner in runners.iter_mut() {
            moved |= runner.finish();
        }
        for server in 0..world.server.ranks.len() {
            moved |= world.train(server, usize::MAX);
        }
        if !moved {
            std::thread::sleep(Duration::from_micros(100));
        }
        assert!(start.elapsed() < PATIENCE, "not at its end: {}", describe(world));
    }
    world.drain();
}

fn describe(world: &World) -> String {
    let states = world.server.ranks.iter().enumerate().map(|(rank, study)| {
        let simulations =
            (0..SIZES.len() as u32).map(|simulation| format!("{:?}\n", study.state(simulation)));
        let (counters, metrics) = (study.session.counters(), study.buffer.metrics());
        format!("server rank {rank}: {counters:?}\n{metrics:?}\n{}", simulations.collect::<String>())
    });
    states.collect()
}

/// What each server rank was trained on is its own, and came once.
fn check_trained(world: &World) -> HashSet<SampleKey> {
    let mut all = HashSet::new();
    for (rank, trained) in world.trained.iter().enumerate() {
        for &key in trained.borrow().iter() {
            assert!(all.insert(key), "{key:?} came twice");
            assert_eq!(world.server.owner(key.simulation, key.time_step), rank, "{key:?}");
        }
    }
    all
}

/// `MELISSA_LONG=1` asks for the long form.
fn cases() -> u32 {
    if std::env::var_os("MELISSA_LONG").is_some() { 5000 } else { 150 }
}

/// Plays random schedules. In some of them has to happen what they are for.
fn play(test: impl Fn(&World, &[Operation])) {
    let config = ProptestConfig { cases: cases(), failure_persistence: None, ..ProptestConfig::default() };
    let [reopened, redrawn, full] = [const { Cell::new(0u32) }; 3];
    let count = |cell: &Cell<u32>, seen: &Cell<bool>| cell.set(cell.get() + u32::from(seen.get()));
    let result = TestRunner::new(config).run(&(settings(), operations()), |(setting, operations)| {
        let world = World::start(&setting);
        test(&world, &operations);
        count(&reopened, &world.reopened);
        count(&redrawn, &world.redrawn);
        count(&full, &world.full);
        Ok(())
    });
    if let Err(error) = result {
        panic!("{error}");
    }
    let seen = (reopened.get(), redrawn.get(), full.get());
    assert!(seen.0 > 0 && seen.1 > 0 && seen.2 > 0, "schedules (reopened, redrawn, full): {seen:?}");
    println!(
        "schedules in which a finished simulation was opened again, for new parameters, a buffer was full: {seen:?}"
    );
}

#[test]
fn whatever_clients_do_nothing_is_lost_and_nothing_comes_twice() {
    play(|world, operations| {
        let mut runners = run(world, operations);
        finish(world, &mut runners);
        let trained = check_trained(world);
        for runner in runners.iter().filter(|runner| runner.confirmed) {
            for key in runner.keys() {
                assert!(trained.contains(&key), "{key:?} is lost");
            }
        }
        let confirmed = runners.iter().filter(|runner| runner.confirmed).count() as u64;
        let mut declared = 0;
        for (study, keys) in world.server.ranks.iter().zip(&world.trained) {
            let keys = keys.borrow().len() as u64;
            let counters = study.session.counters();
            assert_eq!((counters.samples_received, counters.expected_samples), (keys, Some(keys)));
            let ends = (counters.simulations_finished, counters.simulations_dropped);
            assert_eq!(ends, (confirmed, SIZES.len() as u64 - confirmed));
            let sums = study.session.close_ledger(Reason::Untrained);
            assert_eq!((sums.trained, sums.dropped()), (keys, sums.dropped_client_failed));
            assert_eq!(sums.declared, sums.trained + sums.dropped());
            declared += sums.declared;
        }
        // No step is in the ledgers of two server ranks.
        assert!(declared <= world.written.borrow().len() as u64);
    });
}

#[test]
fn a_stop_at_any_moment_keeps_the_sums() {
    play(|world, operations| {
        let mut runners = run(world, operations);
        world.stopping.set(true);
        for study in &world.server.ranks {
            study.session.stop().unwrap();
            // Those that have not heard of it yet go on for a while.
            for runner in &mut runners {
                runner.go_on();
            }
        }
        for rank in runners.iter_mut().flat_map(|runner| &mut runner.ranks) {
            rank.send_in_vain();
        }
        world.drain();
        let trained = check_trained(world);
        let sums: Vec<_> =
            world.server.ranks.iter().map(|study| study.session.close_ledger(Reason::StoppedEarly)).collect();
        for (sums, keys) in sums.iter().zip(&world.trained) {
            assert_eq!((sums.trained, sums.dropped_untrained), (keys.borrow().len() as u64, 0));
            assert_eq!(sums.declared, sums.trained + sums.dropped());
        }
        // Of what was final before, the rest had waited for room.
        let final_before = runners.iter().filter(|runner| runner.confirmed).flat_map(|runner| runner.keys());
        let dropped = final_before.filter(|key| !trained.contains(key)).count() as u64;
        assert!(dropped <= sums.iter().map(|sums| sums.dropped_stopped_early).sum::<u64>());
        let declared = sums.iter().map(|sums| sums.declared).sum::<u64>();
        assert!(declared <= world.written.borrow().len() as u64);
    });
}
