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
const ELEMENTS: usize = 12;

fn fifo(capacity: usize, assembly_slots: usize) -> BufferConfig {
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
struct Server {
    ranks: Vec<(Session, Arc<Buffer>)>,
    /// The latest state of each simulation that has changed, per rank.
    states: Vec<Mutex<HashMap<u32, SimulationState>>>,
}

impl Server {
    fn start(nb_ranks: u32, planned: u32, buffer: BufferConfig, change: impl Fn(&mut SessionConfig)) -> Self {
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

    fn sessions(&self) -> impl Iterator<Item = &Session> {
        self.ranks.iter().map(|(session, _)| session)
    }

    fn address(&self) -> String {
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
        for session in self.sessions() {
            session.confirm(simulation).unwrap();
        }
    }

    /// The time steps of one simulation that a rank's buffer gives until the end of data.
    fn drain(&self, rank: usize) -> Vec<SampleKey> {
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

    fn close(&self) -> Vec<Sums> {
        self.sessions().map(|session| session.close_ledger(Reason::Untrained)).collect()
    }
}

fn connect(
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

/// Values that no other element has.
fn values(simulation: u32, step: u64) -> Vec<f64> {
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

fn steps_of(keys: &[SampleKey], simulation: u32) -> Vec<u64> {
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
