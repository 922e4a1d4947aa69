//! Random schedules of sends, deaths, resubmissions, redraws and drops, with a consumer beside: nothing is lost,
//! nothing comes twice, and the ledger's sums hold.

use crate::client::{Answer, Client, Identity};
use crate::study::{Study, bytes_of, config, fifo, key};
use melissa_core::buffer::SampleKey;
use melissa_core::ledger::Reason;
use melissa_core::schema::Dtype;
use melissa_core::session::SessionConfig;
use melissa_core::wire::header::Kind;
use proptest::prelude::*;
use std::collections::HashSet;

const STEPS: u64 = 6;
/// Ranks of each simulation.
const SIZES: [u32; 4] = [1, 1, 2, 3];
/// Elements of the two fields, over all ranks.
const ELEMENTS: [u64; 2] = [10, 6];

#[derive(Clone, Debug)]
enum Operation {
    /// So many further steps, of every rank.
    Send {
        simulation: usize,
        steps: u64,
    },
    /// A step of some of the ranks, the last of them cut off after so many bytes; then all of them die.
    DieWithin {
        simulation: usize,
        ranks: u32,
        bytes: usize,
    },
    /// All ranks close their connections between two steps.
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
}

fn operations() -> impl Strategy<Value = Vec<Operation>> {
    let simulation = 0..SIZES.len();
    let operation = prop_oneof![
        8 => (simulation.clone(), 1..4u64).prop_map(|(simulation, steps)| Operation::Send { simulation, steps }),
        2 => (simulation.clone(), 0..3u32, 0..200usize)
            .prop_map(|(simulation, ranks, bytes)| Operation::DieWithin { simulation, ranks, bytes }),
        1 => simulation.clone().prop_map(|simulation| Operation::Die { simulation }),
        1 => simulation.clone().prop_map(|simulation| Operation::Resubmit { simulation }),
        1 => simulation.clone().prop_map(|simulation| Operation::Redraw { simulation }),
        1 => simulation.clone().prop_map(|simulation| Operation::GiveUp { simulation }),
        1 => simulation.prop_map(|simulation| Operation::Repeat { simulation }),
    ];
    prop::collection::vec(operation, 1..25)
}

/// The clients of one simulation, as the control plane would run them.
struct Runner<'a> {
    study: &'a Study,
    simulation: u32,
    attempt: u32,
    draw: u32,
    ranks: Vec<Client>,
    next: u64,
    given_up: bool,
}

impl<'a> Runner<'a> {
    fn new(study: &'a Study, simulation: usize) -> Self {
        let simulation = simulation as u32;
        Self { study, simulation, attempt: 0, draw: 0, ranks: Vec::new(), next: 0, given_up: false }
    }

    fn size(&self) -> u32 {
        SIZES[self.simulation as usize]
    }

    /// First element and number of elements of a rank's share: the first rank has the remainder.
    fn share(&self, rank: u32, field: usize) -> (u64, u64) {
        let (size, elements) = (u64::from(self.size()), ELEMENTS[field]);
        let (each, rest) = (elements / size, elements % size);
        let rank = u64::from(rank);
        if rank == 0 { (0, each + rest) } else { (rest + rank * each, each) }
    }

    fn frame(&self, rank: u32, step: u64) -> Vec<u8> {
        let client = &self.ranks[rank as usize];
        let mut bytes = Vec::new();
        for (field, dtype) in [Dtype::F32, Dtype::F64].into_iter().enumerate() {
            let (from, count) = self.share(rank, field);
            bytes.extend(client.header(field, step, count).encode());
            let key = SampleKey { simulation: self.simulation, draw: self.draw, time_step: step };
            bytes.extend(bytes_of(key, field, dtype, from, count));
        }
        bytes
    }

    fn submit(&mut self) {
        self.attempt += 1;
        self.study.register(self.simulation, self.attempt, self.draw);
        self.connect();
    }

    fn connect(&mut self) {
        let size = self.size();
        let who = |rank| Identity::of(self.simulation).attempt(self.attempt).rank(rank, size);
        let mut ranks: Vec<Client> = (0..size).map(|rank| self.study.connect(who(rank))).collect();
        for (rank, client) in (0..size).zip(&mut ranks) {
            let (a, b) = (self.share(rank, 0).1, self.share(rank, 1).1);
            client.send_join(&[("temperature", Dtype::F32, a), ("flux", Dtype::F64, b)]);
        }
        for client in &mut ranks {
            let complete = client.read_welcome().unwrap().complete;
            self.next = complete.first().map_or(0, |&(first, last)| {
                assert_eq!((first, complete.len()), (0, 1), "steps become complete in order");
                last + 1
            });
        }
        self.ranks = ranks;
    }

    /// Running, with an attempt of its own.
    fn running(&mut self) -> bool {
        if self.given_up {
            return false;
        }
        if self.ranks.is_empty() {
            self.submit();
        }
        true
    }

    fn send(&mut self, steps: u64) {
        for _ in 0..steps {
            if self.next == STEPS {
                return;
            }
            for rank in 0..self.size() {
                let frame = self.frame(rank, self.next);
                assert!(self.ranks[rank as usize].write(&frame));
            }
            self.next += 1;
        }
    }

    fn apply(&mut self, operation: &Operation) {
        if !self.running() {
            return;
        }
        match *operation {
            Operation::Send { steps, .. } => self.send(steps),
            Operation::DieWithin { ranks, bytes, .. } => {
                if self.next < STEPS {
                    let ranks = ranks.min(self.size() - 1);
                    for rank in 0..ranks {
                        let frame = self.frame(rank, self.next);
                        assert!(self.ranks[rank as usize].write(&frame));
                    }
                    let frame = self.frame(ranks, self.next);
                    let bytes = bytes.min(frame.len() - 1);
                    assert!(self.ranks[ranks as usize].write(&frame[..bytes]));
                }
                self.ranks.clear();
            }
            Operation::Die { .. } => self.ranks.clear(),
            Operation::Resubmit { .. } => {
                let old = std::mem::take(&mut self.ranks);
                self.submit();
                drop(old);
            }
            Operation::Redraw { .. } => {
                self.study.session.abandon_attempt(self.simulation).unwrap();
                self.draw += 1;
                let old = std::mem::take(&mut self.ranks);
                self.submit();
                drop(old);
            }
            Operation::GiveUp { .. } => {
                self.study.session.finish(self.simulation, Reason::ClientFailed).unwrap();
                self.given_up = true;
                self.ranks.clear();
            }
            Operation::Repeat { .. } => {
                if self.next > 0 {
                    let frame = self.frame(0, self.next - 1);
                    if self.size() == 1 {
                        assert!(self.ranks[0].write(&frame));
                    }
                }
            }
        }
    }

    /// Goes on as a solver does that does not look at what the server says, until its finalize.
    fn send_in_vain(&mut self) {
        if self.ranks.is_empty() {
            return;
        }
        self.send(STEPS);
        for client in &mut self.ranks {
            client.send_finalize(STEPS);
        }
        for client in &mut self.ranks {
            loop {
                match client.answer() {
                    Answer::Stop => {}
                    Answer::Frame(Kind::FinalizeAck) => break,
                    other => panic!("{other:?}"),
                }
            }
        }
    }

    /// Runs to the end.
    fn complete(&mut self) {
        if !self.running() {
            return;
        }
        self.send(STEPS);
        for client in &mut self.ranks {
            client.send_finalize(STEPS);
        }
        for client in &mut self.ranks {
            client.read_acknowledgement().unwrap();
        }
    }
}

/// A study with one runner per simulation and a consumer that trains on all it gets.
fn run(study: &Study, operations: &[Operation], end: impl FnOnce(&mut [Runner<'_>])) -> Vec<SampleKey> {
    std::thread::scope(|scope| {
        let consumer = scope.spawn(|| study.drain());
        let mut runners: Vec<_> = (0..SIZES.len()).map(|simulation| Runner::new(study, simulation)).collect();
        for operation in operations {
            let (Operation::Send { simulation, .. }
            | Operation::DieWithin { simulation, .. }
            | Operation::Die { simulation }
            | Operation::Resubmit { simulation }
            | Operation::Redraw { simulation }
            | Operation::GiveUp { simulation }
            | Operation::Repeat { simulation }) = *operation;
            runners[simulation].apply(operation);
            let sums = study.session.ledger_sums();
            assert!(sums.declared >= sums.trained + sums.dropped());
        }
        end(&mut runners);
        consumer.join().unwrap()
    })
}

fn start() -> Study {
    let config = SessionConfig { nb_time_steps: Some(STEPS), ..config(SIZES.len() as u32) };
    Study::start(config, fifo(3, 4))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn whatever_clients_do_nothing_is_lost_and_nothing_comes_twice(operations in operations()) {
        let study = start();
        let mut wanted = Vec::new();
        let keys = run(&study, &operations, |runners| {
            for runner in runners {
                runner.complete();
                if !runner.given_up {
                    wanted.extend((0..STEPS).map(|step| key(runner.simulation, runner.draw, step)));
                }
            }
        });
        let unique: HashSet<SampleKey> = keys.iter().copied().collect();
        prop_assert_eq!(unique.len(), keys.len(), "a sample came twice");
        for key in wanted {
            prop_assert!(unique.contains(&key), "{:?} is lost", key);
        }
        let counters = study.session.counters();
        prop_assert_eq!(counters.samples_received, keys.len() as u64);
        prop_assert_eq!(counters.expected_samples, Some(keys.len() as u64));
        let sums = study.session.close_ledger(Reason::Untrained);
        prop_assert_eq!(sums.trained, keys.len() as u64);
        prop_assert_eq!(sums.dropped(), sums.dropped_client_failed);
        prop_assert_eq!(sums.declared, sums.trained + sums.dropped());
    }

    #[test]
    fn a_stop_at_any_moment_keeps_the_sums(operations in operations()) {
        let study = start();
        let keys = run(&study, &operations, |runners| {
            study.session.stop().unwrap();
            for runner in runners {
                runner.send_in_vain();
            }
        });
        let unique: HashSet<SampleKey> = keys.iter().copied().collect();
        prop_assert_eq!(unique.len(), keys.len(), "a sample came twice");
        prop_assert!(study.session.reception_over());
        let sums = study.session.close_ledger(Reason::StoppedEarly);
        prop_assert_eq!((sums.trained, sums.dropped_untrained), (keys.len() as u64, 0));
        prop_assert_eq!(sums.declared, sums.trained + sums.dropped());
    }
}
