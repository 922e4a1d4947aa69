//! A full training buffer, a paused one, and the promises to simulations of several ranks.

use crate::client::{Answer, Identity};
use crate::study::{FIELDS, Study, bytes_of, config, eventually, fifo, key, send_step};
use melissa_core::buffer::{BufferConfig, Kind};
use melissa_core::ledger::Reason;
use melissa_core::schema::Dtype;
use melissa_core::session::{SessionConfig, Status};
use std::time::{Duration, Instant};

#[test]
fn a_full_buffer_holds_clients_back_and_loses_nothing() {
    const CLIENTS: u32 = 8;
    const STEPS: u64 = 50;
    let study = Study::start(SessionConfig { nb_time_steps: Some(STEPS), ..config(CLIENTS) }, fifo(5, 3));
    std::thread::scope(|scope| {
        for simulation in 0..CLIENTS {
            study.register(simulation, 1, 0);
            let mut client = study.joined(Identity::of(simulation));
            scope.spawn(move || {
                for step in 0..STEPS {
                    assert!(send_step(&mut client, 0, step));
                }
                client.finalize(STEPS).unwrap();
            });
        }
        eventually("the buffer is full, samples wait for room and simulations for slots", || {
            let counters = study.session.counters();
            study.buffer.population() == 5 && counters.samples_waiting > 0 && counters.slot_waiters > 0
        });
        // 5 + 3 assembly + 1 lent slots: that is all that can be in memory.
        assert!(study.session.counters().samples_received <= 9);
        let mut keys = study.drain();
        assert_eq!(keys.len(), (u64::from(CLIENTS) * STEPS) as usize);
        keys.sort_by_key(|key| (key.simulation, key.time_step));
        keys.dedup();
        assert_eq!(keys.len(), (u64::from(CLIENTS) * STEPS) as usize);
    });
    let counters = study.session.counters();
    assert!(counters.room_wait_seconds > 0.0);
    assert_eq!((counters.samples_waiting, counters.slot_waiters), (0, 0));
    let sums = study.session.close_ledger(Reason::Untrained);
    assert_eq!((sums.declared, sums.trained), (u64::from(CLIENTS) * STEPS, u64::from(CLIENTS) * STEPS));
}

#[test]
fn silence_counts_only_while_the_session_would_read() {
    let timeout = Duration::from_millis(500);
    let config = SessionConfig { simulation_timeout: Some(timeout), ..config(1) };
    let study = Study::start(config, fifo(2, 1));
    study.register(0, 1, 0);
    let mut client = study.joined(Identity::of(0));
    for step in 0..8 {
        assert!(send_step(&mut client, 0, step));
    }
    eventually("the simulation waits for room", || study.session.counters().samples_waiting == 1);
    while !study.session.changes(Duration::ZERO).unwrap().is_empty() {}
    std::thread::sleep(3 * timeout);
    let changes = study.session.changes(Duration::ZERO).unwrap();
    assert!(changes.is_empty(), "{changes:?}");
    // With room again, and nothing more from the client, it is silent.
    for step in 0..8 {
        assert_eq!(study.get(), Some(key(0, 0, step)));
    }
    let state = study.wait_status(0, Status::Silent);
    assert!(
        state.error.contains("has sent nothing for 0.5 s, after 8 complete time steps"),
        "{}",
        state.error
    );
    // It is reported once, and forgotten when data come.
    assert!(send_step(&mut client, 0, 8));
    let state = study.wait_status(0, Status::Running);
    assert_eq!(state.error, "");
}

#[test]
fn a_paused_buffer_takes_nothing_and_goes_on_where_it_was() {
    let study = Study::start(config(1), fifo(10, 1));
    study.register(0, 1, 0);
    let mut client = study.joined(Identity::of(0));
    study.buffer.pause();
    for step in 0..4 {
        assert!(send_step(&mut client, 0, step));
    }
    eventually("a complete sample waits", || study.session.counters().samples_waiting == 1);
    assert_eq!(study.buffer.population(), 0);
    study.buffer.resume();
    client.finalize(4).unwrap();
    assert_eq!(study.drain().len(), 4);
}

#[test]
fn simulations_of_several_ranks_join_one_after_another_when_the_promises_are_given() {
    let study = Study::start(config(2), fifo(10, 1));
    study.register(0, 1, 0);
    study.register(1, 1, 0);
    let halves = [("temperature", Dtype::F32, 5), ("flux", Dtype::F64, 3)];
    let mut ranks: Vec<_> = (0..4u32).map(|i| study.connect(Identity::of(i / 2).rank(i % 2, 2))).collect();
    for rank in &mut ranks {
        rank.send_join(&halves);
    }
    study.wait_status(0, Status::Running);
    // The other one has to wait, whichever was first.
    let (first, second) = ranks.split_at_mut(2);
    for rank in first.iter_mut() {
        rank.read_welcome().unwrap();
    }
    let send = |ranks: &mut [crate::client::Client], step| {
        for (index, rank) in ranks.iter_mut().enumerate() {
            let key = key(rank.who.simulation, 0, step);
            let index = index as u64;
            assert!(rank.send(0, step, &bytes_of(key, 0, Dtype::F32, 5 * index, 5)));
            assert!(rank.send(1, step, &bytes_of(key, 1, Dtype::F64, 3 * index, 3)));
        }
    };
    send(first, 0);
    assert_eq!(study.get(), Some(key(0, 0, 0)));
    assert_eq!(study.wait_state(1, |_| true).status, Status::Connected);
    for rank in first.iter_mut() {
        rank.send_finalize(1);
    }
    for rank in second.iter_mut() {
        rank.read_welcome().unwrap();
    }
    send(second, 0);
    assert_eq!(study.get(), Some(key(1, 0, 0)));
}

#[test]
fn a_simulation_that_dies_while_it_waits_for_a_promise_leaves_the_row() {
    let study = Study::start(config(3), fifo(10, 1));
    let halves = [("temperature", Dtype::F32, 5), ("flux", Dtype::F64, 3)];
    let join = |simulation: u32| {
        study.register(simulation, 1, 0);
        let mut ranks: Vec<_> =
            (0..2).map(|rank| study.connect(Identity::of(simulation).rank(rank, 2))).collect();
        for rank in &mut ranks {
            rank.send_join(&halves);
        }
        ranks
    };
    let mut first = join(0);
    study.wait_status(0, Status::Running);
    let second = join(1);
    let mut third = join(2);
    drop(second);
    study.wait_status(1, Status::Disconnected);
    first[0].send_finalize(0);
    first[1].send_finalize(0);
    for rank in &mut third {
        rank.read_welcome().unwrap();
    }
    study.wait_status(2, Status::Running);
}

#[test]
fn a_simulation_that_waits_for_a_promise_when_the_study_stops_hears_of_the_stop_alone() {
    let study = Study::start(config(3), fifo(10, 1));
    let join = |simulation: u32| {
        study.register(simulation, 1, 0);
        let who = |rank| Identity::of(simulation).rank(rank, 2);
        let mut ranks = [0, 1].map(|rank| study.connect(who(rank)));
        for rank in &mut ranks {
            rank.send_join(&[("temperature", Dtype::F32, 5), ("flux", Dtype::F64, 3)]);
        }
        ranks
    };
    let first = join(0);
    study.wait_status(0, Status::Running);
    let second = join(1);
    // Whoever connects after its Joins is answered after them.
    study.register(2, 1, 0);
    drop(study.joined(Identity::of(2)));
    study.session.stop().unwrap();
    for (mut rank, welcomed) in
        first.into_iter().map(|rank| (rank, true)).chain(second.map(|rank| (rank, false)))
    {
        if welcomed {
            rank.read_welcome().unwrap();
        }
        assert_eq!(rank.answer(), Answer::Stop);
        // It goes on until its finalize without a look at what it is told.
        rank.finalize(3).unwrap();
    }
}

#[test]
fn a_rank_that_runs_ahead_does_not_keep_another_simulation_from_completing_a_step() {
    let study = Study::start(config(2), fifo(10, 2));
    study.register(0, 1, 0);
    study.register(1, 1, 0);
    let halves = [("temperature", Dtype::F32, 5), ("flux", Dtype::F64, 3)];
    let mut ranks: Vec<_> = (0..2).map(|rank| study.connect(Identity::of(0).rank(rank, 2))).collect();
    for rank in &mut ranks {
        rank.send_join(&halves);
    }
    for rank in &mut ranks {
        rank.read_welcome().unwrap();
    }
    // Rank 0 sends four steps of which rank 1 has none: one slot is all that they take.
    for step in 0..4 {
        assert!(ranks[0].send(0, step, &bytes_of(key(0, 0, step), 0, Dtype::F32, 0, 5)));
        assert!(ranks[0].send(1, step, &bytes_of(key(0, 0, step), 1, Dtype::F64, 0, 3)));
    }
    let mut single = study.joined(Identity::of(1));
    for step in 0..9 {
        assert!(send_step(&mut single, 0, step));
        assert_eq!(study.get(), Some(key(1, 0, step)));
    }
    for step in 0..4 {
        assert!(ranks[1].send(0, step, &bytes_of(key(0, 0, step), 0, Dtype::F32, 5, 5)));
        assert!(ranks[1].send(1, step, &bytes_of(key(0, 0, step), 1, Dtype::F64, 3, 3)));
        assert_eq!(study.get(), Some(key(0, 0, step)));
    }
}

#[test]
fn progress_comes_with_the_next_answer_and_wakes_nobody() {
    let study = Study::start(config(1), fifo(100, 1));
    study.register(0, 1, 0);
    let mut client = study.connect(Identity::of(0));
    client.join(&FIELDS).unwrap();
    study.wait_status(0, Status::Running);
    for step in 0..30 {
        assert!(send_step(&mut client, 0, step));
    }
    eventually("all steps are there", || study.session.counters().samples_received == 30);
    let wait = Duration::from_millis(50);
    let start = Instant::now();
    let changes = study.session.changes(wait).unwrap();
    assert!(start.elapsed() >= wait, "nobody had to be woken for progress");
    assert_eq!((changes.len(), changes[0].steps_complete), (1, 30), "thirty steps are one change");
    assert!(study.session.changes(Duration::ZERO).unwrap().is_empty());
}

#[test]
fn the_slot_of_an_evicted_sample_goes_to_who_waits_for_one() {
    let reservoir = BufferConfig { kind: Kind::Reservoir, ..fifo(2, 1) };
    let study = Study::start(config(4), reservoir);
    for simulation in 0..4 {
        study.register(simulation, 1, 0);
    }
    let mut first = study.joined(Identity::of(0));
    for step in 0..2 {
        assert!(send_step(&mut first, 0, step));
    }
    eventually("both places are taken", || study.buffer.population() == 2);
    // Both samples have been seen, so that either may go; no sampler touches the buffer from here on.
    while study.buffer.deliveries().contains(&0) {
        study.get();
    }
    // Two simulations hold the two slots that are left; the third has none.
    let [mut a, mut b, mut c] = [1, 2, 3].map(|simulation| study.joined(Identity::of(simulation)));
    for client in [&mut a, &mut b] {
        let key = key(client.who.simulation, 0, 0);
        assert!(client.send(0, 0, &bytes_of(key, 0, Dtype::F32, 0, 10)));
    }
    eventually("both steps have begun", || study.session.counters().bytes_received == 2 * 88 + 2 * 40);
    assert!(send_step(&mut c, 0, 0));
    eventually("one simulation lacks a slot", || study.session.counters().slot_waiters == 1);
    // One of the others completes its step, which evicts a sample.
    assert!(a.send(1, 0, &bytes_of(key(1, 0, 0), 1, Dtype::F64, 0, 6)));
    study.wait_state(3, |state| state.steps_complete == 1);
}
