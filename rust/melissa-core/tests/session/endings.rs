//! Finalize, giving up, stopping, failing and closing.

use crate::client::{Answer, Client, Identity, PATIENCE};
use crate::study::{FIELDS, Study, bytes_of, config, eventually, fifo, key, send_step};
use melissa_core::buffer::Buffer;
use melissa_core::error::BufferError;
use melissa_core::ledger::Reason;
use melissa_core::schema::Dtype;
use melissa_core::session::{Session, SessionConfig, SessionError, Status};
use std::sync::Arc;
use std::time::{Duration, Instant};

#[test]
fn a_finalize_is_acknowledged_when_all_that_the_rank_sent_is_in_memory() {
    let study = Study::start(config(1), fifo(1, 1));
    study.register(0, 1, 0);
    let mut client = study.joined(Identity::of(0));
    for step in 0..2 {
        assert!(send_step(&mut client, 0, step));
    }
    // One is in the population and one waits for room: both are in memory.
    client.finalize(2).unwrap();
    study.wait_status(0, Status::Finished);
    assert!(!study.session.reception_over(), "a sample waits for room");
    assert_eq!(study.get(), Some(key(0, 0, 0)));
    assert_eq!(study.get(), Some(key(0, 0, 1)));
    assert_eq!(study.get(), None);
    assert!(study.session.reception_over());
}

#[test]
fn a_rank_is_acknowledged_while_others_still_send() {
    let study = Study::start(config(1), fifo(10, 1));
    study.register(0, 1, 0);
    let mut ranks: Vec<_> = (0..2).map(|rank| study.connect(Identity::of(0).rank(rank, 2))).collect();
    for rank in &mut ranks {
        rank.send_join(&[("temperature", Dtype::F32, 5), ("flux", Dtype::F64, 3)]);
    }
    for rank in &mut ranks {
        rank.read_welcome().unwrap();
    }
    let send = |client: &mut Client, step: u64| {
        let index = u64::from(client.who.rank);
        assert!(client.send(0, step, &bytes_of(key(0, 0, step), 0, Dtype::F32, 5 * index, 5)));
        assert!(client.send(1, step, &bytes_of(key(0, 0, step), 1, Dtype::F64, 3 * index, 3)));
    };
    send(&mut ranks[0], 0);
    ranks[0].send_finalize(1);
    send(&mut ranks[1], 0);
    ranks[0].read_acknowledgement().unwrap();
    // It may go; the other one has sent one step more, which can never be whole.
    drop(ranks.remove(0));
    send(&mut ranks[0], 1);
    ranks[0].finalize(2).unwrap();
    let state = study.wait_status(0, Status::Finished);
    assert!(state.error.contains("its rank 1 has sent 2 time steps and its rank 0 1"), "{}", state.error);
    assert_eq!(study.drain(), [key(0, 0, 0)]);
    let sums = study.session.close_ledger(Reason::Untrained);
    assert_eq!((sums.declared, sums.trained, sums.dropped_client_failed), (2, 1, 1));
}

#[test]
fn another_number_of_steps_than_configured_is_reported_with_both() {
    let study = Study::start(SessionConfig { nb_time_steps: Some(5), ..config(2) }, fifo(100, 2));
    study.register(0, 1, 0);
    study.register(1, 1, 0);
    assert_eq!(study.session.expected_samples(), Some(10));
    let mut client = study.joined(Identity::of(0));
    for step in 0..3 {
        assert!(send_step(&mut client, 0, step));
    }
    client.finalize(3).unwrap();
    let state = study.wait_status(0, Status::Finished);
    assert!(
        state.error.contains("has sent 3 time steps, and study_options.nb_time_steps is 5"),
        "{}",
        state.error
    );
    assert_eq!(study.session.expected_samples(), Some(8));
    // A client that never sends.
    let mut client = study.connect(Identity::of(1));
    client.finalize(0).unwrap();
    assert!(study.wait_status(1, Status::Finished).error.contains("has sent 0 time steps"));
    assert_eq!(study.drain().len(), 3);
    assert_eq!(study.session.expected_samples(), Some(3));
}

#[test]
fn the_number_of_steps_is_learned_from_the_first_that_finalizes() {
    let study = Study::start(config(3), fifo(100, 3));
    for simulation in 0..3 {
        study.register(simulation, 1, 0);
    }
    assert_eq!(study.session.expected_samples(), None);
    for (simulation, steps, expected) in [(2, 4, 12), (0, 3, 11)] {
        let mut client = study.joined(Identity::of(simulation));
        for step in 0..steps {
            assert!(send_step(&mut client, 0, step));
        }
        client.finalize(steps).unwrap();
        assert_eq!(study.session.expected_samples(), Some(expected));
    }
    study.session.finish(1, Reason::ClientFailed).unwrap();
    assert_eq!(study.session.expected_samples(), Some(7));
}

#[test]
fn a_rank_that_finalizes_without_a_send_does_not_keep_the_others_waiting() {
    let study = Study::start(config(2), fifo(10, 1));
    for (simulation, join_first) in [(0, true), (1, false)] {
        study.register(simulation, 1, 0);
        let mut sends = study.connect(Identity::of(simulation).rank(0, 2));
        let mut silent = study.connect(Identity::of(simulation).rank(1, 2));
        if join_first {
            sends.send_join(&FIELDS);
        }
        silent.send_finalize(0);
        if !join_first {
            silent.read_acknowledgement().unwrap();
            sends.send_join(&FIELDS);
        }
        let (code, message) = sends.answer().refused();
        assert_eq!(code, "step");
        assert!(message.contains("rank 1 has finalized without sending"), "{message}");
        study.wait_status(simulation, Status::Disconnected);
    }
}

#[test]
fn a_simulation_that_is_given_up_closes_reception_when_it_was_the_last() {
    let study = Study::start(config(2), fifo(10, 2));
    study.register(0, 1, 0);
    study.register(1, 1, 0);
    let mut client = study.joined(Identity::of(0));
    assert!(send_step(&mut client, 0, 0));
    client.finalize(1).unwrap();
    let mut failing = study.joined(Identity::of(1));
    assert!(send_step(&mut failing, 0, 0));
    assert!(failing.send(0, 1, &bytes_of(key(1, 0, 1), 0, Dtype::F32, 0, 10)));
    eventually("the step has begun", || study.session.ledger_sums().declared == 3);
    study.session.finish(1, Reason::ClientFailed).unwrap();
    assert_eq!(failing.answer().refused().0, "finished");
    let state = study.wait_status(1, Status::Dropped);
    assert!(state.error.contains("client_failed"), "{}", state.error);
    assert_eq!(study.drain().len(), 2);
    assert!(study.session.reception_over());
    // Late ones are told so, and giving up again changes nothing.
    study.session.finish(1, Reason::StoppedEarly).unwrap();
    let late = Client::connect(study.session.address(), Identity::of(0)).err().unwrap().refused();
    assert_eq!(late.0, "finished");
    assert!(late.1.contains("is finished already"), "{}", late.1);
    let counters = study.session.counters();
    assert_eq!((counters.simulations_finished, counters.simulations_dropped), (1, 1));
    let sums = study.session.close_ledger(Reason::Untrained);
    assert_eq!((sums.declared, sums.trained, sums.dropped_client_failed), (3, 2, 1));
}

#[test]
fn a_study_that_stops_tells_its_clients_and_counts_what_they_still_send() {
    let study = Study::start(config(5), fifo(2, 2));
    for simulation in 0..4 {
        study.register(simulation, 1, 0);
    }
    let mut streaming = study.joined(Identity::of(0));
    let mut full = study.joined(Identity::of(1));
    let mut connected = study.connect(Identity::of(2));
    let mut waiting = study.connect(Identity::of(3).rank(0, 2));
    waiting.send_join(&FIELDS);
    for step in 0..4 {
        // Two in the population, one waits for room, one has no slot.
        assert!(send_step(&mut full, 0, step));
    }
    eventually("a sample waits", || study.session.counters().samples_waiting == 1);
    assert!(streaming.send(0, 0, &bytes_of(key(0, 0, 0), 0, Dtype::F32, 0, 10)));
    let header = streaming.header(1, 0, 6).encode();
    assert!(streaming.write(&[&header[..], &[1; 7]].concat()));
    eventually("the step has begun", || study.session.ledger_sums().declared == 5);
    study.session.stop().unwrap();
    assert!(study.session.reception_over());
    for client in [&mut streaming, &mut full, &mut connected, &mut waiting] {
        assert_eq!(client.answer(), Answer::Stop);
    }
    for simulation in 0..5 {
        let state = study.wait_status(simulation, Status::Dropped);
        assert!(state.error.contains("stopped early"), "{}", state.error);
    }
    // The rest of the body, more steps, a finalize; and a Join of one that had not noticed.
    assert!(streaming.write(&[1; 41]));
    for step in 1..3 {
        assert!(send_step(&mut streaming, 0, step));
    }
    streaming.finalize(3).unwrap();
    connected.send_join(&FIELDS);
    connected.finalize(0).unwrap();
    let late = Client::connect(study.session.address(), Identity::of(2)).err().unwrap().refused();
    assert_eq!(late.0, "stopped");
    full.finalize(4).unwrap();
    assert_eq!(study.drain().len(), 2, "what is in the population is drained");
    let sums = study.session.close_ledger(Reason::StoppedEarly);
    assert_eq!((sums.declared, sums.trained, sums.dropped_stopped_early), (7, 2, 5));
    assert_eq!(sums.declared, sums.trained + sums.dropped());
    study.session.stop().unwrap();
}

#[test]
fn a_step_that_a_rank_had_begun_ahead_of_the_others_is_counted_at_a_stop() {
    let study = Study::start(config(1), fifo(10, 1));
    study.register(0, 1, 0);
    let mut ranks: Vec<_> = (0..2).map(|rank| study.connect(Identity::of(0).rank(rank, 2))).collect();
    for rank in &mut ranks {
        rank.send_join(&[("temperature", Dtype::F32, 5), ("flux", Dtype::F64, 3)]);
    }
    for rank in &mut ranks {
        rank.read_welcome().unwrap();
    }
    // Rank 0 is through with step 0 and has begun step 1, of which nothing can be read before step 0 is complete.
    assert!(ranks[0].send(0, 0, &bytes_of(key(0, 0, 0), 0, Dtype::F32, 0, 5)));
    assert!(ranks[0].send(1, 0, &bytes_of(key(0, 0, 0), 1, Dtype::F64, 0, 3)));
    assert!(ranks[0].send(0, 1, &bytes_of(key(0, 0, 1), 0, Dtype::F32, 0, 5)));
    eventually("all of step 0 is there", || study.session.counters().bytes_received == 20 + 24);
    study.session.stop().unwrap();
    for rank in &mut ranks {
        assert_eq!(rank.answer(), Answer::Stop);
        rank.finalize(2).unwrap();
    }
    let sums = study.session.close_ledger(Reason::StoppedEarly);
    assert_eq!((sums.declared, sums.dropped_stopped_early), (2, 2));
}

#[test]
fn a_silent_rank_and_one_that_never_joins_are_told_apart() {
    let timeout = Duration::from_millis(200);
    let study = Study::start(SessionConfig { simulation_timeout: Some(timeout), ..config(2) }, fifo(10, 2));
    study.register(0, 1, 0);
    study.register(1, 1, 0);
    let mut joined = study.connect(Identity::of(0).rank(1, 3));
    joined.send_join(&FIELDS);
    let state = study.wait_status(0, Status::Silent);
    assert!(state.error.contains("ranks that have not joined for 0.2 s: 0, 2"), "{}", state.error);
    let _connected = study.connect(Identity::of(1));
    let state = study.wait_status(1, Status::Silent);
    assert!(state.error.contains("rank 0 of simulation 1"), "{}", state.error);
}

#[test]
fn a_simulation_that_falls_silent_again_is_reported_again() {
    let timeout = Duration::from_millis(100);
    let study = Study::start(SessionConfig { simulation_timeout: Some(timeout), ..config(1) }, fifo(10, 1));
    study.register(0, 1, 0);
    let mut client = study.joined(Identity::of(0));
    for step in 0..3 {
        study.wait_status(0, Status::Silent);
        assert!(send_step(&mut client, 0, step));
        study.wait_state(0, |state| state.status == Status::Running && state.error.is_empty());
    }
    let state = study.wait_status(0, Status::Silent);
    assert!(state.error.contains("nothing for 0.1 s, after 3 complete time steps"), "{}", state.error);
}

#[test]
fn a_simulation_that_sends_now_and_then_is_not_silent() {
    let timeout = Duration::from_millis(400);
    let study =
        Study::start(SessionConfig { simulation_timeout: Some(timeout), ..config(1) }, fifo(100_000, 1));
    study.register(0, 1, 0);
    let mut client = study.joined(Identity::of(0));
    let start = Instant::now();
    let mut step = 0;
    loop {
        study.session.changes(Duration::ZERO).unwrap();
        let (mut last, mut longest, mut silent) = (Instant::now(), Duration::ZERO, false);
        let round = Instant::now();
        while round.elapsed() < 2 * timeout {
            std::thread::sleep(timeout / 20);
            let changes = study.session.changes(Duration::ZERO).unwrap();
            silent |= changes.iter().any(|state| state.status == Status::Silent);
            assert!(send_step(&mut client, 0, step));
            step += 1;
            longest = longest.max(last.elapsed());
            last = Instant::now();
        }
        // On a machine that held this thread up for longer, it was silent indeed.
        if longest < timeout / 2 {
            assert!(!silent);
            break;
        }
        assert!(start.elapsed() < PATIENCE);
    }
}

#[test]
fn samples_for_validation_that_do_not_fit_end_the_study_before_the_first_comes() {
    let change = SessionConfig { validation: 2, nb_time_steps: Some(1 << 40), ..config(1) };
    let study = Study::start(change, fifo(10, 1));
    study.register(0, 1, 0);
    let mut client = study.connect(Identity::of(0));
    let (code, message) = client.join(&FIELDS).err().unwrap().refused();
    assert_eq!(code, "memory");
    let samples = 2u64 << 40;
    assert!(message.contains(&format!("{samples} samples for validation")), "{message}");
    assert!(message.contains("MiB of memory are available"), "{message}");
    assert!(message.contains("validation_sweep_size"), "{message}");
    eventually(
        "the session says so",
        || matches!(study.session.changes(Duration::ZERO), Err(SessionError::Failed(text)) if text.contains(&message)),
    );
}

#[test]
fn a_slab_that_does_not_fit_ends_the_study_with_both_figures() {
    let names = vec!["field".to_owned()];
    let study = Study::start(SessionConfig { field_names: names, ..config(1) }, fifo(1000, 1));
    study.register(0, 1, 0);
    let mut client = study.connect(Identity::of(0));
    let (code, message) = client.join(&[("field", Dtype::F64, 1 << 45)]).err().unwrap().refused();
    assert_eq!(code, "memory");
    assert!(message.contains("MiB"), "{message}");
    let start = Instant::now();
    let error = loop {
        match study.session.changes(Duration::from_millis(10)) {
            Err(error) => break error,
            Ok(_) => assert!(start.elapsed() < PATIENCE),
        }
    };
    assert!(
        matches!(&error, SessionError::Failed(text) if text.contains("MiB are available") || text.contains("MiB of memory are available")),
        "{error}"
    );
    match study.buffer.get(Some(Instant::now() + PATIENCE)) {
        Err(BufferError::Failed(text)) => assert_eq!(SessionError::Failed(text), error),
        other => panic!("{other:?}"),
    }
    assert_eq!(study.session.register(0, 2, 0, vec![0.0, 0.0]), Err(error));
    assert_eq!(study.session.counters().connections_accepted, 1, "the last figures stay");
}

#[test]
fn a_closed_session_fails_those_who_wait_for_data() {
    let study = Study::start(config(1), fifo(10, 1));
    study.register(0, 1, 0);
    let mut client = study.joined(Identity::of(0));
    let buffer = Arc::clone(&study.buffer);
    let waiting = std::thread::spawn(move || buffer.get(Some(Instant::now() + PATIENCE)).map(|_| ()));
    study.session.close();
    study.session.close();
    assert!(matches!(waiting.join().unwrap(), Err(BufferError::Failed(_))));
    assert_eq!(study.session.changes(PATIENCE), Err(SessionError::Closed));
    assert_eq!(study.session.stop(), Err(SessionError::Closed));
    assert_eq!(client.answer(), Answer::Closed);
}

#[test]
fn a_buffer_that_somebody_else_closes_stops_the_study() {
    let study = Study::start(config(1), fifo(1, 1));
    study.register(0, 1, 0);
    let mut client = study.joined(Identity::of(0));
    for step in 0..3 {
        assert!(send_step(&mut client, 0, step));
    }
    eventually("a sample waits", || study.session.counters().samples_waiting == 1);
    study.buffer.close();
    assert_eq!(study.get(), Some(key(0, 0, 0)));
    assert_eq!(client.answer(), Answer::Stop);
    study.wait_status(0, Status::Dropped);
}

#[test]
fn a_study_of_no_simulations_is_over_at_once() {
    let study = Study::start(config(0), fifo(10, 1));
    assert!(study.session.reception_over());
    assert_eq!(study.get(), None);
}

#[test]
fn a_configuration_that_makes_no_sense_starts_nothing() {
    let start = |config: SessionConfig| {
        Session::start(config, Arc::new(Buffer::new(fifo(1, 1)).unwrap())).err().unwrap().to_string()
    };
    let fields = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    assert!(start(SessionConfig { field_names: vec![], ..config(1) }).contains("field_names is empty"));
    assert!(
        start(SessionConfig { field_names: fields(&["a", "a"]), ..config(1) }).contains("\"a\" stands twice")
    );
    assert!(start(SessionConfig { rank: 2, nb_ranks: 2, ..config(1) }).contains("rank 2 of 2"));
    assert!(
        start(SessionConfig { host: "no.such.host.invalid".into(), ..config(1) })
            .contains("does not resolve")
    );
    assert!(start(SessionConfig { host: "0.0.0.0".into(), ..config(1) }).contains("every interface"));
}

#[test]
fn clients_are_told_the_advertised_name() {
    let config = SessionConfig { host: "0.0.0.0".into(), advertise: Some("localhost".into()), ..config(1) };
    let study = Study::start(config, fifo(10, 1));
    assert!(study.session.address().starts_with("localhost:"));
    study.register(0, 1, 0);
    let client = study.joined(Identity::of(0));
    assert_eq!(client.welcome.unwrap().servers, [study.session.address()]);
}
