//! How time steps are put together across the connections of a simulation and across server ranks, as a model
//! that is explored as a whole: no schedule of reads, draws, deaths and replacements leads anywhere but to the
//! end, and the laws of the design hold in every state on the way.
//!
//! `server.rs` is the session's part, function by function as in `src/session/`; `buffer.rs` is what it sees of
//! the training buffer; `model.rs` says what may happen when, and what must hold. Why clients join the server ranks in
//! their order, and when a simulation is final: see `docs/decisions/0005-promises-by-server-rank.md`.
//!
//! `MELISSA_LONG=1` explores the large configurations too (`ci/verify/assembly.sh`).
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]

mod buffer;
mod config;
mod model;
mod server;
mod state;

use config::{Config, Fault, Kind, Rule, Sampling};
use model::{
    Action, COMPLETES, CONFIRMED, GOES_ON, LAWS, OCCURS, ONE_SLOT, OWNED, PROMISES, RIGHT, SERVES, Study,
    UNTIED,
};
use state::State;
use stateright::{Checker, Model};
use std::collections::{BTreeSet, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};

const RESERVOIR: Kind = Kind::Reservoir { watermark: 1 };

/// Explored with every run of the tests.
fn short() -> Vec<(&'static str, Config)> {
    let pairs = || Config::new(&[2, 2], 2);
    let mixed = || Config::new(&[2, 1], 2);
    vec![
        ("one promise for three simulations", Config::new(&[2, 2, 2], 2)),
        ("two promises for three simulations", Config { assembly: 2, ..Config::new(&[2, 2, 2], 2) }),
        ("simulations of one rank and a promise", Config { capacity: 2, ..Config::new(&[2, 1, 1, 1], 1) }),
        (
            "two replacements, drops and a stop",
            Config { replacements: 2, gives_up: true, stops: true, ..pairs() },
        ),
        (
            "a user who hoards views, and a replacement",
            Config { replacements: 1, sampling: Sampling::Hoards, ..mixed() },
        ),
        (
            "a sampler that pins for a while, and a replacement",
            Config { replacements: 1, sampling: Sampling::Gathers, ..mixed() },
        ),
        (
            "a reservoir and a user who hoards views",
            Config { kind: RESERVOIR, sampling: Sampling::Hoards, redraws: 1, ..Config::new(&[2, 1, 1], 2) },
        ),
        (
            "a reservoir that has to be full, views, and a replacement",
            Config {
                kind: Kind::Reservoir { watermark: 2 },
                capacity: 2,
                sampling: Sampling::Views,
                redraws: 1,
                replacements: 1,
                ..pairs()
            },
        ),
        ("two server ranks", Config { servers: 2, ..Config::new(&[2, 2], 4) }),
        ("two server ranks, three simulations", Config { servers: 2, ..Config::new(&[2, 2, 2], 2) }),
        ("two server ranks and a replacement", Config { servers: 2, replacements: 1, ..pairs() }),
        (
            "two server ranks, simulations of one rank too, a sampler that pins",
            Config { servers: 2, sampling: Sampling::Gathers, ..mixed() },
        ),
        ("two server ranks and a stop", Config { servers: 2, stops: true, ..pairs() }),
        (
            "two server ranks, and a replacement that may have new parameters",
            Config { servers: 2, parts: 1, replacements: 1, redrawn: true, ..Config::new(&[2], 3) },
        ),
        (
            "two server ranks, each with all steps of its simulations, and a replacement",
            Config { servers: 2, parts: 1, by_simulation: true, replacements: 1, ..mixed() },
        ),
        ("three server ranks, and one that gets nothing", Config { servers: 3, parts: 1, ..pairs() }),
        (
            "three server ranks and a replacement",
            Config { servers: 3, parts: 1, replacements: 1, ..Config::new(&[2], 3) },
        ),
    ]
}

/// Explored on demand.
fn long() -> Vec<(&'static str, Config)> {
    let pairs = |steps| Config::new(&[2, 2], steps);
    let three = || Config::new(&[2, 2, 2], 2);
    vec![
        (
            "two promises for three simulations, and a replacement",
            Config { assembly: 2, replacements: 1, ..three() },
        ),
        (
            "one promise for three simulations, two replacements, and a stop",
            Config { replacements: 2, stops: true, ..three() },
        ),
        (
            "simulations of one rank, a sampler that pins, and a replacement",
            Config { replacements: 1, sampling: Sampling::Gathers, ..Config::new(&[2, 1, 1], 2) },
        ),
        (
            "a reservoir that has to be full, views, two promises, and a replacement",
            Config {
                kind: Kind::Reservoir { watermark: 2 },
                capacity: 2,
                assembly: 2,
                sampling: Sampling::Views,
                redraws: 1,
                replacements: 1,
                ..pairs(3)
            },
        ),
        (
            "a reservoir, simulations of one rank alone, views, and a replacement",
            Config {
                kind: RESERVOIR,
                sampling: Sampling::Views,
                redraws: 1,
                replacements: 1,
                ..Config::new(&[1, 1, 1], 2)
            },
        ),
        ("two server ranks, three simulations", Config { servers: 2, ..Config::new(&[2, 2, 2], 3) }),
        (
            "two server ranks, three simulations, and a replacement",
            Config { servers: 2, replacements: 1, ..three() },
        ),
        (
            "two server ranks, four steps, and a replacement",
            Config { servers: 2, replacements: 1, ..pairs(4) },
        ),
        ("two server ranks, and two replacements", Config { servers: 2, replacements: 2, ..pairs(2) }),
        (
            "two server ranks, a replacement, drops and a stop",
            Config { servers: 2, replacements: 1, gives_up: true, stops: true, ..pairs(2) },
        ),
        (
            "two server ranks, simulations of one rank too, a sampler that pins, and a replacement",
            Config { servers: 2, replacements: 1, sampling: Sampling::Gathers, ..Config::new(&[2, 1], 2) },
        ),
        (
            "two server ranks, a reservoir, a sampler that pins, and a replacement",
            Config { servers: 2, replacements: 1, kind: RESERVOIR, sampling: Sampling::Gathers, ..pairs(2) },
        ),
        (
            "two server ranks, two replacements that may have new parameters, and drops",
            Config {
                servers: 2,
                parts: 1,
                replacements: 2,
                redrawn: true,
                gives_up: true,
                ..Config::new(&[2], 3)
            },
        ),
        (
            "two server ranks, a replacement that may have new parameters, and a stop",
            Config {
                servers: 2,
                parts: 1,
                replacements: 1,
                redrawn: true,
                stops: true,
                ..Config::new(&[2, 1], 2)
            },
        ),
        (
            "two server ranks, each with all steps of its simulations, a replacement and drops",
            Config {
                servers: 2,
                parts: 1,
                by_simulation: true,
                knows_steps: false,
                replacements: 1,
                gives_up: true,
                ..pairs(2)
            },
        ),
        (
            "three server ranks and a replacement",
            Config { servers: 3, parts: 1, replacements: 1, ..Config::new(&[2, 1], 2) },
        ),
        (
            "three server ranks, and a replacement that may have new parameters",
            Config { servers: 3, parts: 1, replacements: 1, redrawn: true, ..Config::new(&[2], 3) },
        ),
        (
            "two server ranks, simulations of one rank too, and a replacement that may have new parameters",
            Config { servers: 2, replacements: 1, redrawn: true, ..Config::new(&[2, 1], 2) },
        ),
        (
            "two server ranks, two promises, and connections that hold nothing",
            Config { servers: 2, assembly: 2, window: 0, ..pairs(4) },
        ),
    ]
}

/// Explores all states of a configuration; what has to occur somewhere, and did.
fn explore(name: &str, config: Config) -> BTreeSet<&'static str> {
    // One thread: with more of them the depth is not exact.
    let checker = Study(config).checker().spawn_bfs().join();
    println!("{name}: {} unique states, depth {}", checker.unique_state_count(), checker.max_depth());
    let found = checker.discoveries();
    for broken in RIGHT {
        if let Some(path) = found.get(broken) {
            panic!("{name}: not so: {broken}\n{}", tell(path.clone().into_vec()));
        }
    }
    assert!(checker.is_done());
    found.into_keys().collect()
}

/// A counterexample, action by action, and the state that it ends in.
fn tell(path: Vec<(State, Option<Action>)>) -> String {
    let end = path.last().map(|(state, _)| format!("{state:#?}")).unwrap_or_default();
    let actions: Vec<String> =
        path.into_iter().filter_map(|(_, action)| action.map(|action| format!("  {action:?}"))).collect();
    format!("{}\n{end}", actions.join("\n"))
}

fn explore_all(configs: Vec<(&'static str, Config)>) {
    let mut occurred = BTreeSet::new();
    for (name, config) in configs {
        occurred.extend(explore(name, config));
    }
    for wanted in OCCURS {
        assert!(occurred.contains(wanted), "the model is too small to show anything: never {wanted}");
    }
}

#[test]
fn every_schedule_of_a_small_study_ends_with_all_delivered() {
    explore_all(short());
}

#[test]
fn every_schedule_of_a_larger_study_ends_with_all_delivered() {
    if std::env::var_os("MELISSA_LONG").is_some() {
        explore_all(long());
    }
}

/// The first state to be reached in which a property does not hold, and how it was reached.
fn counterexample(config: Config, property: &'static str) -> Option<Vec<(State, Option<Action>)>> {
    let checker = Study(config).checker().spawn_bfs().join();
    checker.discovery(property).map(stateright::Path::into_vec)
}

#[test]
fn promises_in_no_order_let_two_simulations_wait_for_each_other() {
    for rule in [Rule::Unordered, Rule::UnorderedById] {
        let config = Config { servers: 2, rule, ..Config::new(&[2, 2], 2) };
        let path = counterexample(config.clone(), GOES_ON).expect("a deadlock");
        let (state, _) = path.last().unwrap();
        // Each has its promise of one server rank and stands in the row of the other.
        let promised = |server: usize, simulation: usize| {
            state.servers[server].simulations[simulation].run.as_ref().is_some_and(|run| run.promised)
        };
        let (first, second) = if promised(0, 0) { (0, 1) } else { (1, 0) };
        assert!(promised(0, first) && promised(1, second), "{state:#?}");
        assert_eq!(state.servers[0].room.promise_row, [second as u8]);
        assert_eq!(state.servers[1].room.promise_row, [first as u8]);
        assert_eq!(path.len(), 5, "four joins are all that it takes");
        // With a promise for each there is nothing to wait for, and in the order of server ranks nobody to wait for.
        assert!(counterexample(Config { assembly: 2, ..config.clone() }, GOES_ON).is_none());
        assert!(counterexample(Config { rule: Rule::ByServerRank, ..config }, GOES_ON).is_none());
    }
}

#[test]
fn samplers_in_step_starve_beside_a_full_rank_when_the_ranks_shares_differ() {
    // Each simulation has one time step: those with even ids send to server rank 0 alone, the others to rank 1.
    // Nobody has said how many they are, so that each is promised a slot on both.
    let in_step = Config { servers: 2, in_step: true, knows_steps: false, ..Config::new(&[2, 2], 2) };
    let uneven =
        Config { lent: 0, parts: 1, ..Config { sizes: &[2, 2, 2, 2, 2], steps: 1, ..in_step.clone() } };
    let path = counterexample(uneven, GOES_ON).expect("samplers that wait for ever");
    let (state, _) = path.last().unwrap();
    let empty =
        |server: usize| state.servers[server].buffer.population.is_empty() && !state.servers[server].over;
    let full = |server: usize| !state.servers[server].room.complete.is_empty();
    assert!((empty(0) && full(1)) || (empty(1) && full(0)), "{}", tell(path.clone()));
    // Where each simulation has as many steps for one as for the other, none of them waits for long.
    assert!(counterexample(in_step.clone(), GOES_ON).is_none());
    assert!(counterexample(Config { sizes: &[2, 1, 2], ..in_step }, GOES_ON).is_none());
}

/// Where a fault shows, and what it breaks there.
fn symptom(fault: Fault) -> (Config, &'static str) {
    let pairs = Config { replacements: 1, ..Config::new(&[2, 2], 2) };
    let mixed = Config::new(&[2, 1], 2);
    let gathers = Config { sampling: Sampling::Gathers, ..mixed.clone() };
    let (config, broken) = match fault {
        Fault::None => panic!("no fault has no symptom"),
        Fault::SinglesIgnorePromises => (Config::new(&[2, 1, 1, 1], 1), UNTIED),
        Fault::PromiseKeptAtEnd => (pairs, GOES_ON),
        Fault::FreedPromiseGoesToNobody => (pairs, GOES_ON),
        Fault::SlotLostAtEnd => (pairs, OWNED),
        Fault::AssemblyKeptAtEnd => (pairs, LAWS),
        Fault::AheadNotResumed => (mixed, GOES_ON),
        Fault::SlotResumesNobody => (mixed, GOES_ON),
        Fault::NoRequestAfterRoom => (mixed, GOES_ON),
        Fault::WaitingOutOfOrder => (mixed, LAWS),
        Fault::SecondSlotBesideWaiting => (mixed, ONE_SLOT),
        Fault::RefusedPublishWantsNothing => (mixed, GOES_ON),
        Fault::RefusedSlotWantsNothing => (gathers, SERVES),
        Fault::UnpinTellsNobody => (gathers, SERVES),
        Fault::EvictsUnseen => (Config { kind: RESERVOIR, ..mixed }, LAWS),
        Fault::ViewsWithoutLimit => (Config { sampling: Sampling::Hoards, ..mixed }, GOES_ON),
        Fault::AcknowledgedAtOnce => (mixed, LAWS),
        Fault::PromisesWithoutLimit => (Config::new(&[2, 2], 1), PROMISES),
        Fault::FinishedSamplesDropped => (mixed, COMPLETES),
        Fault::FinalUnconfirmed => (Config { servers: 2, ..pairs }, CONFIRMED),
        Fault::OverUnconfirmed | Fault::RedrawForgotten => {
            (Config { servers: 2, replacements: 1, redrawn: true, ..mixed }, COMPLETES)
        }
    };
    (Config { fault, ..config }, broken)
}

#[test]
fn the_checker_finds_every_fault_that_is_put_in() {
    for fault in Fault::ALL {
        let (config, broken) = symptom(fault);
        let sound = Config { fault: Fault::None, ..config.clone() };
        assert!(
            counterexample(sound, broken).is_none(),
            "{fault:?}: \"{broken}\" does not hold without it either"
        );
        let path = counterexample(config, broken);
        let path = path.unwrap_or_else(|| panic!("{fault:?} was not found: \"{broken}\" holds"));
        println!("{fault:?}: not so after {} steps: {broken}", path.len() - 1);
    }
}

fn fingerprint(state: &State) -> u64 {
    let mut hasher = DefaultHasher::new();
    state.hash(&mut hasher);
    hasher.finish()
}

/// Walks all states depth first; `Err` when a state can be reached from itself. Gives their number.
fn walk(study: &Study) -> Result<usize, String> {
    let mut on_the_way: HashMap<u64, bool> = HashMap::new();
    let mut path: Vec<(u64, Vec<State>)> = Vec::new();
    let mut next = study.init_states();
    loop {
        match next.pop() {
            Some(state) => {
                let id = fingerprint(&state);
                match on_the_way.insert(id, true) {
                    Some(true) => return Err(format!("{state:#?}")),
                    Some(false) => {
                        on_the_way.insert(id, false);
                    }
                    None => path.push((id, std::mem::replace(&mut next, study.next_states(&state)))),
                }
            }
            None => match path.pop() {
                Some((id, before)) => {
                    on_the_way.insert(id, false);
                    next = before;
                }
                None => return Ok(on_the_way.len()),
            },
        }
    }
}

#[test]
fn no_schedule_leads_back_to_where_it_was() {
    let everything = Config {
        kind: RESERVOIR,
        sampling: Sampling::Views,
        redraws: 1,
        replacements: 1,
        gives_up: true,
        stops: true,
        ..Config::new(&[2, 1], 1)
    };
    let two = Config { servers: 2, replacements: 1, ..Config::new(&[2, 1], 2) };
    for config in [everything, two] {
        let explored = Study(config.clone()).checker().spawn_bfs().join().unique_state_count();
        assert_eq!(walk(&Study(config)), Ok(explored), "two ways of counting the states");
    }
}
