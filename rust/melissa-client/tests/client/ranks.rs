//! A client of several server ranks, with real sessions and real sockets: what goes where, and what comes of it when one of
//! them is full, stops, or refuses.

use crate::server::{PATIENCE, config, key};
use melissa_client::{Client, ClientConfig, ClientError, Values};
use melissa_core::buffer::{Buffer, BufferConfig, Kind, SampleKey};
use melissa_core::error::BufferError;
use melissa_core::ledger::{Reason, Sums};
use melissa_core::schema::Dtype;
use melissa_core::session::{DataType, Session, SessionConfig, SimulationState, Status};
use melissa_core::wire::distribution::Distribution;
use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Elements of the one field over all ranks of a client.
pub const ELEMENTS: usize = 12;

pub fn fifo(capacity: usize, assembly_slots: usize) -> BufferConfig {
    BufferConfig {
        kind: Kind::Fifo,
        capacity,
        watermark: 0,
        pseudo_epochs: 1,
        batch_size: 1,
        seed: 0,
        assembly_slots,
        lent_slots: Some(1),
    }
}

/// A server of several ranks, each with a session and a buffer of its own.
pub struct Server {
    pub ranks: Vec<(Session, Arc<Buffer>)>,
    /// The latest state of each simulation that has changed, per rank.
    states: Vec<Mutex<HashMap<u32, SimulationState>>>,
}

impl Server {
    pub fn start(
        nb_ranks: u32,
        planned: u32,
        buffer: BufferConfig,
        change: impl Fn(&mut SessionConfig),
    ) -> Self {
        let start = |rank| {
            let mut config = SessionConfig {
                data_type: DataType::F64,
                rank,
                nb_ranks,
                ..SessionConfig::new(key(), 1, vec!["u".into()], 1, planned)
            };
            change(&mut config);
            let buffer = Arc::new(Buffer::new(buffer.clone()).unwrap());
            (Session::start(config, Arc::clone(&buffer)).unwrap(), buffer)
        };
        let states = (0..nb_ranks).map(|_| Mutex::default()).collect();
        let server = Self { ranks: (0..nb_ranks).map(start).collect(), states };
        let addresses: Vec<String> = server.sessions().map(|session| session.address().to_owned()).collect();
        for session in server.sessions() {
            session.set_servers(addresses.clone()).unwrap();
        }
        server
    }

    pub fn sessions(&self) -> impl Iterator<Item = &Session> {
        self.ranks.iter().map(|(session, _)| session)
    }

    pub fn address(&self) -> String {
        self.sessions().map(Session::address).collect::<Vec<_>>().join(",")
    }

    fn register(&self, simulation: u32, attempt: u32) {
        for session in self.sessions() {
            session.register(simulation, attempt, 0, vec![f64::from(simulation)]).unwrap();
        }
    }

    /// Waits until a simulation has the status on a rank.
    fn wait(&self, rank: usize, simulation: u32, status: Status) -> SimulationState {
        let start = Instant::now();
        loop {
            let mut states = self.states[rank].lock().unwrap();
            for state in self.ranks[rank].0.changes(Duration::from_millis(5)).unwrap() {
                states.insert(state.simulation_id, state);
            }
            if let Some(state) = states.get(&simulation).filter(|state| state.status == status) {
                return state.clone();
            }
            assert!(start.elapsed() < PATIENCE, "rank {rank}, {status}: {:?}", states.get(&simulation));
        }
    }

    fn confirm(&self, simulation: u32) {
        for rank in 0..self.ranks.len() {
            self.wait(rank, simulation, Status::Finished);
        }
        self.confirm_on_all(simulation);
    }

    pub fn confirm_on_all(&self, simulation: u32) {
        for session in self.sessions() {
            session.confirm(simulation).unwrap();
        }
    }

    /// The time steps of one simulation that a rank's buffer gives until the end of data.
    pub fn drain(&self, rank: usize) -> Vec<SampleKey> {
        let (session, buffer) = &self.ranks[rank];
        let mut keys = Vec::new();
        loop {
            match buffer.get(Some(Instant::now() + PATIENCE)) {
                Ok(sample) => {
                    assert_eq!(sample.parameters(), [f64::from(sample.key().simulation)]);
                    assert_eq!(sample.field_bytes(0), bytes(sample.key().simulation, sample.key().time_step));
                    session.mark_trained([sample.key()]);
                    keys.push(sample.key());
                }
                Err(BufferError::EndOfData) => return keys,
                Err(error) => panic!("{error}"),
            }
        }
    }

    pub fn close(&self) -> Vec<Sums> {
        self.sessions().map(|session| session.close_ledger(Reason::Untrained)).collect()
    }
}

pub fn connect(
    address: &str,
    simulation: u32,
    attempt: u32,
    rank: u32,
    size: u32,
) -> Result<Client, ClientError> {
    let config = ClientConfig { simulation, attempt, rank, size, ..config(address) };
    let mut client = Client::connect(config, None)?;
    client.init("u", ELEMENTS / size as usize, Dtype::F64)?;
    Ok(client)
}

fn connect_with_field(address: &str, simulation: u32, elements: usize) -> Client {
    let config = ClientConfig { simulation, attempt: 1, rank: 0, size: 1, ..config(address) };
    let mut client = Client::connect(config, None).unwrap();
    client.init("u", elements, Dtype::F64).unwrap();
    client
}

/// Values that no other element has.
pub fn values(simulation: u32, step: u64) -> Vec<f64> {
    (0..ELEMENTS).map(|element| f64::from(simulation) * 1e6 + step as f64 * 1e3 + element as f64).collect()
}

fn bytes(simulation: u32, step: u64) -> Vec<u8> {
    values(simulation, step).iter().flat_map(|value| value.to_ne_bytes()).collect()
}

/// Sends a rank's share of the client's next time step.
fn send(client: &mut Client, simulation: u32, rank: u32, size: u32) -> Result<(), ClientError> {
    let step = client.steps("u").unwrap();
    let share = ELEMENTS / size as usize;
    let all = values(simulation, step);
    client.send("u", Values::F64(&all[rank as usize * share..][..share]), None)
}

/// All ranks of a client, each in a thread, from the first step to the end.
fn run(server: &Server, simulation: u32, attempt: u32, size: u32, steps: u64) -> Vec<JoinHandle<()>> {
    let rank = |rank| {
        let address = server.address();
        std::thread::spawn(move || {
            let mut client = connect(&address, simulation, attempt, rank, size).unwrap();
            while client.steps("u").unwrap() < steps {
                send(&mut client, simulation, rank, size).unwrap();
            }
            client.finalize(None).unwrap();
        })
    };
    (0..size).map(rank).collect()
}

fn join(threads: Vec<JoinHandle<()>>) {
    for thread in threads {
        thread.join().unwrap();
    }
}

pub fn steps_of(keys: &[SampleKey], simulation: u32) -> Vec<u64> {
    keys.iter().filter(|key| key.simulation == simulation).map(|key| key.time_step).collect()
}

#[test]
fn the_time_steps_of_clients_of_several_ranks_go_to_the_server_ranks_by_turns() {
    for nb_ranks in [2, 3] {
        let server = Server::start(nb_ranks, 3, fifo(100, 3), |_| {});
        let mut clients = Vec::new();
        for (simulation, size) in [(0, 1), (1, 2), (2, 3)] {
            server.register(simulation, 1);
            clients.extend(run(&server, simulation, 1, size, 7));
        }
        join(clients);
        (0..3).for_each(|simulation| server.confirm(simulation));
        let trained = (0..nb_ranks as usize).map(|rank| {
            let keys = server.drain(rank);
            for simulation in 0..3 {
                let own = Distribution::RoundRobin.steps_of(simulation, rank as u32, nb_ranks);
                let expected: Vec<u64> = (0..7).filter(|&step| own.contains(step)).collect();
                assert_eq!(steps_of(&keys, simulation), expected, "rank {rank} of {nb_ranks}");
            }
            let session = &server.ranks[rank].0;
            assert_eq!(session.expected_samples(), Some(keys.len() as u64));
            keys.len() as u64
        });
        let trained: Vec<u64> = trained.collect();
        for (sums, trained) in server.close().iter().zip(trained) {
            assert_eq!(
                (sums.declared, sums.complete, sums.trained, sums.dropped()),
                (trained, trained, trained, 0)
            );
        }
        assert!(
            server.sessions().all(|session| session.reception_over() && session.refusals().texts.is_empty())
        );
    }
}

#[test]
fn a_client_that_dies_after_one_rank_has_acknowledged_it_runs_again_and_nothing_is_lost_or_comes_twice() {
    let server = Server::start(2, 1, fifo(100, 2), |_| {});
    server.register(0, 1);
    // Two ranks, by hand: on server rank 0 both are acknowledged, on rank 1 a step is missing when they die.
    let mut ranks: Vec<Client> =
        (0..2).map(|rank| connect(&server.address(), 0, 1, rank, 2).unwrap()).collect();
    std::thread::scope(|scope| {
        for (client, rank) in ranks.iter_mut().zip(0..) {
            scope.spawn(move || (0..3).for_each(|_| send(client, 0, rank, 2).unwrap()));
        }
    });
    drop(ranks);
    server.wait(0, 0, Status::Disconnected);
    server.wait(1, 0, Status::Disconnected);
    server.register(0, 2);
    // The steps 0, 1, 2 are there; a solver that has three of them finalizes, and dies before server rank 1 hears of it.
    let mut wire = crate::ranks_by_hand::Rank::join(&server.address(), 0, 2);
    wire.finalize(0, 3);
    server.wait(0, 0, Status::Finished);
    drop(wire);
    server.wait(1, 0, Status::Disconnected);
    assert!(
        server.ranks[1].0.confirm(0).unwrap_err().to_string().contains("is disconnected on server rank 1")
    );
    server.register(0, 3);
    assert_eq!(server.wait(0, 0, Status::Planned).steps_complete, 2);
    join(run(&server, 0, 3, 1, 5));
    server.confirm(0);
    assert_eq!(steps_of(&server.drain(0), 0), [0, 2, 4]);
    assert_eq!(steps_of(&server.drain(1), 0), [1, 3]);
    for (sums, own) in server.close().iter().zip([3, 2]) {
        assert_eq!((sums.declared, sums.trained, sums.dropped(), sums.duplicates_refused), (own, own, 0, 0));
    }
}

#[test]
fn a_finished_simulation_keeps_reception_open_until_it_is_confirmed() {
    let server = Server::start(2, 1, fifo(10, 2), |_| {});
    server.register(0, 1);
    join(run(&server, 0, 1, 1, 4));
    let sessions: Vec<&Session> = server.sessions().collect();
    for session in &sessions {
        assert!(!session.reception_over());
        assert_eq!(session.counters().simulations_finished, 0);
        session.confirm(0).unwrap();
        session.confirm(0).unwrap();
        assert!(session.reception_over());
        let error = session.register(0, 2, 0, vec![0.0]).unwrap_err().to_string();
        assert!(error.contains("it is finished already"), "{error}");
    }
}

#[test]
fn a_stop_of_one_rank_is_noticed_while_a_client_waits_for_another_one_that_is_full() {
    let server = Server::start(2, 1, fifo(1, 1), |config| config.data_type = DataType::F64);
    server.register(0, 1);
    let address = server.address();
    let solver = std::thread::spawn(move || {
        let mut client = connect_with_field(&address, 0, 200_000);
        let values = vec![1.0; 200_000];
        loop {
            if let Err(error) = client.send("u", Values::F64(&values), None) {
                return error;
            }
        }
    });
    // Rank 1 is read on and on, and rank 0 not at all.
    let (session, buffer) = &server.ranks[1];
    let mut taken = 0;
    while let Ok(sample) = buffer.get(Some(Instant::now() + Duration::from_millis(500))) {
        drop(sample);
        taken += 1;
    }
    assert!(taken > 0 && !solver.is_finished(), "{taken}");
    let start = Instant::now();
    session.stop().unwrap();
    let error = solver.join().unwrap();
    assert!(matches!(error, ClientError::Stopped { .. }), "{error}");
    assert!(error.to_string().contains(session.address()), "{error}");
    assert!(start.elapsed() < Duration::from_secs(5));
}

#[test]
fn a_rank_that_joins_late_is_no_reason_to_miss_the_refusal_of_another() {
    let server = Server::start(2, 1, fifo(10, 2), |_| {});
    server.register(0, 1);
    // Rank 1 of the client never comes to server rank 1: rank 0 waits there for the Welcome.
    let mut absent = crate::ranks_by_hand::Rank::of(&server.address(), 0, 1, 1, 2);
    let address = server.address();
    let solver = std::thread::spawn(move || {
        let mut client = connect(&address, 0, 1, 0, 2).unwrap();
        send(&mut client, 0, 0, 2).unwrap_err()
    });
    absent.join_one(0, "u", ELEMENTS as u64 / 2);
    server.wait(0, 0, Status::Running);
    server.wait(1, 0, Status::Connected);
    server.ranks[0].0.abandon_attempt(0).unwrap();
    let error = solver.join().unwrap();
    assert!(matches!(&error, ClientError::Refused { code, .. } if code == "attempt"), "{error}");
    assert!(error.to_string().contains(server.ranks[0].0.address()), "{error}");
}

#[test]
fn all_steps_of_a_simulation_go_to_one_rank_when_the_study_says_so() {
    let server = Server::start(2, 3, fifo(100, 1), |config| {
        config.distribution = Distribution::Simulation;
        config.nb_time_steps = Some(4);
    });
    assert_eq!(server.ranks[0].0.expected_samples(), Some(8));
    assert_eq!(server.ranks[1].0.expected_samples(), Some(4));
    let mut clients = Vec::new();
    for (simulation, size) in [(0, 2), (1, 3), (2, 1)] {
        server.register(simulation, 1);
        clients.extend(run(&server, simulation, 1, size, 4));
    }
    join(clients);
    (0..3).for_each(|simulation| server.confirm(simulation));
    let (first, second) = (server.drain(0), server.drain(1));
    assert_eq!((first.len(), second.len()), (8, 4));
    assert!(first.iter().all(|key| key.simulation != 1) && second.iter().all(|key| key.simulation == 1));
    for state in (0..3).flat_map(|simulation| {
        [server.wait(0, simulation, Status::Finished), server.wait(1, simulation, Status::Finished)]
    }) {
        assert_eq!(state.error, "", "{state:?}");
    }
}

#[test]
fn a_simulation_of_fewer_steps_than_server_ranks_or_none_finishes_on_all_of_them() {
    let server = Server::start(3, 2, fifo(10, 1), |_| {});
    for (simulation, steps) in [(0, 1), (1, 0)] {
        server.register(simulation, 1);
        join(run(&server, simulation, 1, 2, steps));
        server.confirm(simulation);
    }
    assert_eq!((0..3).map(|rank| server.drain(rank).len()).collect::<Vec<_>>(), [1, 0, 0]);
    assert!(server.sessions().all(|session| session.refusals().texts.is_empty()));
}

#[test]
fn a_step_of_another_rank_is_refused_with_where_it_belongs() {
    let server = Server::start(2, 1, fifo(10, 1), |_| {});
    server.register(0, 1);
    let addresses: Vec<String> = server.sessions().map(|session| session.address().to_owned()).collect();
    // The list in the wrong order: step 0 of simulation 0 comes to rank 1.
    let mut client = connect(&format!("{},{}", addresses[1], addresses[0]), 0, 1, 0, 1).unwrap();
    let error = loop {
        if let Err(error) = send(&mut client, 0, 0, 1) {
            break error;
        }
    };
    let text = error.to_string();
    assert!(matches!(&error, ClientError::Refused { code, .. } if code == "step"), "{text}");
    assert!(
        text.contains("belongs to server rank 0, and this is server rank 1 of 2")
            || text.contains("belongs to server rank 1, and this is server rank 0 of 2"),
        "{text}"
    );
}

#[test]
fn server_ranks_that_do_not_agree_are_told_apart() {
    let server = Server::start(2, 1, fifo(10, 1), |config| {
        if config.rank == 1 {
            config.data_type = DataType::F32;
        }
    });
    server.register(0, 1);
    let mut client = connect(&server.address(), 0, 1, 0, 1).unwrap();
    let error = send(&mut client, 0, 0, 1).unwrap_err();
    assert!(matches!(error, ClientError::ServerRanks { .. }), "{error}");
    let expected =
        "12 elements of float32, and offset 0 on server rank 1, and index 0, 12 elements of float64";
    assert!(error.to_string().contains(expected), "{error}");
}

#[test]
fn a_client_that_knows_too_few_of_the_server_ranks_is_told() {
    let server = Server::start(2, 1, fifo(10, 1), |_| {});
    server.register(0, 1);
    let mut client = connect(server.ranks[0].0.address(), 0, 1, 0, 1).unwrap();
    let error = send(&mut client, 0, 0, 1).unwrap_err().to_string();
    assert!(error.contains("MELISSA_SERVER_ADDRESS has 1 address, and the server has 2 ranks"), "{error}");
}

#[test]
fn no_attempt_is_taken_before_the_server_ranks_are_known() {
    let config = SessionConfig { nb_ranks: 2, ..SessionConfig::new(key(), 1, vec!["u".into()], 0, 1) };
    let buffer = Arc::new(Buffer::new(fifo(1, 1)).unwrap());
    let session = Session::start(config, buffer).unwrap();
    let error = session.register(0, 1, 0, Vec::new()).unwrap_err().to_string();
    assert!(error.contains("nobody has said where the 2 server ranks listen"), "{error}");
    for wrong in [vec![session.address().to_owned()], vec!["a:1".to_owned(), session.address().to_owned()]] {
        let error = session.set_servers(wrong).unwrap_err().to_string();
        assert!(error.contains("the addresses of 2 server ranks were expected"), "{error}");
    }
    session.set_servers(vec![session.address().to_owned(), "b:1".to_owned()]).unwrap();
    session.register(0, 1, 0, Vec::new()).unwrap();
}

#[test]
fn simulations_for_validation_go_to_rank_0_beside_the_training_buffer() {
    let server = Server::start(2, 1, fifo(100, 2), |config| config.validation = 2);
    for (simulation, size, steps) in [(0, 1, 4), (1, 2, 3), (2, 1, 0)] {
        server.register(simulation, 1);
        join(run(&server, simulation, 1, size, steps));
    }
    server.confirm_on_all(0);
    // Those for validation are final by themselves, whether somebody confirms them or not.
    server.confirm_on_all(1);
    assert!(server.sessions().all(Session::reception_over));
    let samples = server.ranks[0].0.take_validation();
    assert_eq!(samples.iter().map(|sample| sample.key().time_step).collect::<Vec<_>>(), [0, 1, 2]);
    for sample in &samples {
        assert!(sample.is_copy() && sample.key().simulation == 1 && sample.parameters() == [1.0]);
        assert_eq!(sample.field_bytes(0), bytes(1, sample.key().time_step));
    }
    assert!(server.ranks[0].0.take_validation().is_empty() && server.ranks[1].0.take_validation().is_empty());
    assert_eq!((server.drain(0).len(), server.drain(1).len()), (2, 2));
    let (session, sums) = (&server.ranks[0].0, server.close()[0]);
    assert_eq!((sums.declared, sums.complete, sums.trained), (2, 2, 2));
    assert_eq!((session.validation_received(), session.counters().validation_received), (3, 3));
    assert_eq!((session.counters().samples_received, session.counters().simulations_finished), (2, 1));
    let error = session.register(3, 1, 0, vec![0.0]).unwrap_err().to_string();
    assert!(error.contains("1 simulations, 0 to 0, and 2 for validation, 1 to 2"), "{error}");
}

#[test]
fn the_training_buffer_closes_when_all_that_is_trained_on_has_come_and_validation_goes_on() {
    for nb_ranks in [1, 2] {
        let server = Server::start(nb_ranks, 1, fifo(100, 2), |config| config.validation = 1);
        server.register(0, 1);
        join(run(&server, 0, 1, 1, 4));
        if nb_ranks > 1 {
            server.confirm(0);
        }
        let drained: usize = (0..nb_ranks as usize).map(|rank| server.drain(rank).len()).sum();
        assert_eq!(drained, 4);
        // Rank 0 still receives.
        assert_eq!(
            server.sessions().filter(|session| session.reception_over()).count(),
            nb_ranks as usize - 1
        );
        server.register(1, 1);
        join(run(&server, 1, 1, 2, 3));
        assert_eq!(server.ranks[0].0.take_validation().len(), 3);
        assert!(server.sessions().all(Session::reception_over));
        assert_eq!(server.ranks[0].0.counters().simulations_finished, 1);
    }
}

#[test]
fn validation_goes_on_while_the_training_buffer_is_full() {
    let server = Server::start(1, 1, fifo(2, 2), |config| config.validation = 1);
    server.register(0, 1);
    let training = run(&server, 0, 1, 1, 10);
    let start = Instant::now();
    while server.ranks[0].0.counters().samples_waiting == 0 {
        assert!(start.elapsed() < PATIENCE);
        std::thread::sleep(Duration::from_millis(1));
    }
    server.register(1, 1);
    join(run(&server, 1, 1, 1, 5));
    assert_eq!(server.ranks[0].0.take_validation().len(), 5);
    assert_eq!(server.drain(0).len(), 10);
    join(training);
}
