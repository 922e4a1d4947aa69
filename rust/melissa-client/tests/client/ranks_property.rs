//! Whatever becomes of the attempts at simulations, every time step arrives once, at its server rank.

use crate::ranks::{ELEMENTS, Server, connect, fifo, values};
use melissa_client::{Client, ClientError, Values};
use melissa_core::buffer::SampleKey;
use melissa_core::session::SessionError;
use melissa_core::wire::distribution::Distribution;
use proptest::prelude::*;
use std::collections::HashSet;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

/// A call that takes as long waits for ever.
const DEADLINE: Duration = Duration::from_secs(30);

/// How an attempt ends before its time.
#[derive(Clone, Copy, Debug)]
struct Cut {
    /// Steps after which the ranks of the client end: the first, and the others.
    steps: (u64, u64),
    /// They do not end by themselves: the next attempt is registered while they send.
    replaced: bool,
    /// The next attempt has new parameters.
    redrawn: bool,
}

#[derive(Clone, Debug)]
struct Scenario {
    nb_ranks: u32,
    distribution: Distribution,
    steps: u64,
    capacity: usize,
    assembly_slots: usize,
    /// Of each simulation: its ranks, and how its first attempts end.
    simulations: Vec<(u32, Vec<Cut>)>,
}

fn scenarios() -> impl Strategy<Value = Scenario> {
    let cut = ((0..6u64, 0..6u64), prop::bool::ANY, prop::bool::weighted(0.2))
        .prop_map(|(steps, replaced, redrawn)| Cut { steps, replaced, redrawn });
    let simulations = prop::collection::vec((1..4u32, prop::collection::vec(cut, 0..3)), 1..5);
    let buffer = (1..4usize, 1..3usize);
    (1..4u32, prop::bool::weighted(0.7), 0..6u64, buffer, simulations).prop_map(
        |(nb_ranks, by_turns, steps, (capacity, assembly_slots), simulations)| Scenario {
            nb_ranks,
            distribution: if by_turns { Distribution::RoundRobin } else { Distribution::Simulation },
            steps,
            capacity,
            assembly_slots,
            simulations,
        },
    )
}

/// One rank of one attempt: sends `steps` time steps; finalizes when these are all, and is gone when not.
fn attempt(
    address: &str,
    place: (u32, u32),
    rank: (u32, u32),
    steps: u64,
    all: u64,
) -> Result<(), ClientError> {
    let (simulation, attempt) = place;
    let (rank, size) = rank;
    let begun = Instant::now();
    let interrupt = || begun.elapsed() > DEADLINE;
    let mut client: Client = connect(address, simulation, attempt, rank, size)?;
    let share = ELEMENTS / size as usize;
    while client.steps("u").unwrap() < steps {
        let values = values(simulation, client.steps("u").unwrap());
        client.send("u", Values::F64(&values[rank as usize * share..][..share]), Some(&interrupt))?;
    }
    if steps == all { client.finalize(Some(&interrupt)) } else { Ok(()) }
}

/// All attempts at a simulation; returns the last draw.
fn run(server: &Server, scenario: &Scenario, simulation: u32) -> u32 {
    let (size, cuts) = &scenario.simulations[simulation as usize];
    let address = server.address();
    let all = scenario.steps;
    let (mut number, mut draw) = (0, 0);
    let mut register = |redrawn: bool| {
        number += 1;
        let next = draw + u32::from(redrawn);
        for session in server.sessions() {
            match session.register(simulation, number, next, vec![f64::from(simulation)]) {
                Ok(()) => {}
                // It came to its end before it could be replaced.
                Err(SessionError::Simulation(text)) if text.contains("finished already") => return None,
                Err(error) => panic!("{error}"),
            }
        }
        draw = next;
        Some((number, draw))
    };
    let ended = |result: Result<(), ClientError>| match result {
        Ok(()) => true,
        Err(ClientError::Refused { code, .. }) if code == "attempt" => false,
        Err(error) => panic!("{error}"),
    };
    let mut place = register(false).unwrap();
    for cut in cuts {
        let next = std::thread::scope(|scope| {
            let address = &address;
            let (gone, one_is_gone) = channel();
            for rank in 0..*size {
                let steps = if rank == 0 { cut.steps.0 } else { cut.steps.1 };
                let steps = if cut.replaced { all } else { steps.min(all.saturating_sub(1)) };
                let gone = gone.clone();
                scope.spawn(move || {
                    ended(attempt(address, (simulation, place.0), (rank, *size), steps, all));
                    // Nobody listens any more to the second.
                    let _ = gone.send(());
                });
            }
            if cut.replaced {
                std::thread::sleep(Duration::from_micros(300 * cut.steps.0));
            } else {
                // As a scheduler ends a job of which a rank has died: the others may wait for it.
                one_is_gone.recv().unwrap();
            }
            register(cut.redrawn)
        });
        match next {
            Some(next) => place = next,
            None => return place.1,
        }
    }
    std::thread::scope(|scope| {
        let address = &address;
        let last: Vec<_> = (0..*size)
            .map(|rank| {
                scope.spawn(move || ended(attempt(address, (simulation, place.0), (rank, *size), all, all)))
            })
            .collect();
        assert!(last.into_iter().all(|rank| rank.join().unwrap()));
    });
    place.1
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn every_time_step_comes_once_to_its_server_rank_whatever_becomes_of_attempts(scenario in scenarios()) {
        let planned = scenario.simulations.len() as u32;
        let buffer = fifo(scenario.capacity, scenario.assembly_slots);
        let server = Server::start(scenario.nb_ranks, planned, buffer, |config| {
            config.distribution = scenario.distribution;
        });
        let (draws, keys) = std::thread::scope(|scope| {
            let (server, scenario) = (&server, &scenario);
            let samplers: Vec<_> =
                (0..scenario.nb_ranks as usize).map(|rank| scope.spawn(move || server.drain(rank))).collect();
            let solvers: Vec<_> =
                (0..planned).map(|simulation| scope.spawn(move || run(server, scenario, simulation))).collect();
            let draws: Vec<u32> = solvers.into_iter().map(|solver| solver.join().unwrap()).collect();
            (0..planned).for_each(|simulation| server.confirm_on_all(simulation));
            let keys: Vec<Vec<SampleKey>> = samplers.into_iter().map(|sampler| sampler.join().unwrap()).collect();
            (draws, keys)
        });
        for ((rank, keys), sums) in (0..).zip(&keys).zip(server.close()) {
            let unique: HashSet<&SampleKey> = keys.iter().collect();
            prop_assert_eq!(unique.len(), keys.len(), "a sample came twice");
            for (simulation, &draw) in (0..).zip(&draws) {
                let own = scenario.distribution.steps_of(simulation, rank, scenario.nb_ranks);
                prop_assert!(keys.iter().all(|key| key.simulation != simulation || own.contains(key.time_step)));
                for time_step in (0..scenario.steps).filter(|&step| own.contains(step)) {
                    prop_assert!(unique.contains(&SampleKey { simulation, draw, time_step }), "lost");
                }
            }
            prop_assert_eq!(sums.trained, keys.len() as u64);
            prop_assert_eq!(sums.dropped(), sums.dropped_client_failed);
            prop_assert_eq!(sums.declared, sums.trained + sums.dropped());
            let session = &server.ranks[rank as usize].0;
            prop_assert_eq!(session.expected_samples(), Some(sums.trained));
            prop_assert!(session.reception_over());
        }
    }
}
