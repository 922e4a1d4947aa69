//! Clients that die, come again, and come with other parameters.

use crate::client::{Answer, Client, Identity};
use crate::study::{FIELDS, Study, bytes_of, config, fifo, key, parameters, send_step};
use melissa_core::ledger::Reason;
use melissa_core::schema::Dtype;
use melissa_core::session::{SessionConfig, SessionError, Status};

#[test]
fn a_client_that_died_within_a_body_runs_again_and_skips_what_is_complete() {
    let study = Study::start(SessionConfig { nb_time_steps: Some(10), ..config(1) }, fifo(100, 1));
    study.register(0, 1, 0);
    let mut client = study.joined(Identity::of(0));
    for step in 0..4 {
        assert!(send_step(&mut client, 0, step));
    }
    // One field of step 4, and half of the other.
    assert!(client.send(0, 4, &bytes_of(key(0, 0, 4), 0, Dtype::F32, 0, 10)));
    let header = client.header(1, 4, 6).encode();
    assert!(client.write(&[&header[..], &[0xff; 20]].concat()));
    drop(client);
    let state = study.wait_status(0, Status::Disconnected);
    for part in ["rank 0 of simulation 0", "host-0", "20 of 48 bytes of field 1 of time step 4"] {
        assert!(state.error.contains(part), "{}", state.error);
    }
    assert_eq!(state.steps_complete, 4);
    assert!(study.refusals()[0].contains("in the middle of a frame"));
    assert_eq!(study.session.ledger_sums().declared, 5);

    study.register(0, 2, 0);
    let mut client = study.connect(Identity::of(0).attempt(2));
    assert_eq!(client.join(&FIELDS).unwrap().complete, [(0, 3)]);
    for step in 4..10 {
        assert!(send_step(&mut client, 0, step));
    }
    client.finalize(10).unwrap();
    assert_eq!(study.wait_status(0, Status::Finished).error, "");
    assert_eq!(study.drain().len(), 10);
    let sums = study.session.close_ledger(Reason::Untrained);
    assert_eq!((sums.declared, sums.trained, sums.dropped()), (10, 10, 0));
}

#[test]
fn a_higher_attempt_takes_the_place_of_one_that_is_still_connected() {
    let study = Study::start(config(1), fifo(100, 1));
    study.register(0, 1, 0);
    let mut old = study.joined(Identity::of(0));
    assert!(send_step(&mut old, 0, 0));
    assert!(old.send(0, 1, &bytes_of(key(0, 0, 1), 0, Dtype::F32, 0, 10)));
    study.wait_state(0, |state| state.steps_complete == 1);
    study.register(0, 2, 0);
    let (code, message) = old.answer().refused();
    assert_eq!(code, "attempt");
    assert!(message.contains("attempt 2 of simulation 0 takes the place"), "{message}");
    let mut new = study.joined(Identity::of(0).attempt(2));
    assert!(send_step(&mut new, 0, 1));
    new.finalize(2).unwrap();
    assert_eq!(study.drain().len(), 2);
}

#[test]
fn only_the_registered_attempt_may_connect_and_each_rank_once() {
    let study = Study::start(config(2), fifo(100, 1));
    let connect = |who: Identity| Client::connect(study.session.address(), who).err().map(Answer::refused);
    let (code, message) = connect(Identity::of(0)).unwrap();
    assert_eq!(code, "simulation");
    assert!(message.contains("was not submitted"), "{message}");
    study.register(0, 3, 0);
    for attempt in [1, 2, 4] {
        let (code, message) = connect(Identity::of(0).attempt(attempt)).unwrap();
        assert_eq!(code, "attempt");
        assert!(
            message
                .contains(&format!("attempt 3 of simulation 0 is the one that runs, and attempt {attempt}"))
        );
    }
    let first = study.connect(Identity::of(0).attempt(3).rank(0, 2));
    let (code, message) = connect(Identity::of(0).attempt(3).rank(0, 2)).unwrap();
    assert_eq!(code, "attempt");
    assert!(message.contains("is connected already"), "{message}");
    let (code, message) = connect(Identity::of(0).attempt(3).rank(1, 3)).unwrap();
    assert_eq!(code, "size");
    assert!(message.contains("3 ranks") && message.contains("said 2"), "{message}");
    // Neither did the first any harm.
    let second = study.connect(Identity::of(0).attempt(3).rank(1, 2));
    drop((first, second));
}

#[test]
fn an_abandoned_attempt_is_closed_and_may_not_come_again() {
    let study = Study::start(config(1), fifo(100, 1));
    study.register(0, 1, 0);
    let mut client = study.joined(Identity::of(0));
    assert!(client.send(0, 0, &bytes_of(key(0, 0, 0), 0, Dtype::F32, 0, 10)));
    study.session.abandon_attempt(0).unwrap();
    assert_eq!(client.answer().refused().0, "attempt");
    study.wait_status(0, Status::Disconnected);
    let (code, message) = Client::connect(study.session.address(), Identity::of(0)).err().unwrap().refused();
    assert_eq!(code, "attempt");
    assert!(message.contains("only a new attempt"), "{message}");
    study.register(0, 2, 0);
    let mut client = study.joined(Identity::of(0).attempt(2));
    assert!(send_step(&mut client, 0, 0));
    client.finalize(1).unwrap();
    assert_eq!(study.drain(), [key(0, 0, 0)]);
}

#[test]
fn a_rank_that_dies_ends_the_attempt_of_all_ranks() {
    let study = Study::start(config(1), fifo(100, 1));
    study.register(0, 1, 0);
    let connect = |attempt| {
        let mut ranks: Vec<_> =
            (0..3).map(|rank| study.connect(Identity::of(0).attempt(attempt).rank(rank, 3))).collect();
        for rank in &mut ranks {
            rank.send_join(&[("temperature", Dtype::F32, 2), ("flux", Dtype::F64, 1)]);
        }
        for rank in &mut ranks {
            rank.read_welcome().unwrap();
        }
        ranks
    };
    let mut ranks = connect(1);
    assert!(ranks[0].send(0, 0, &[0; 8]));
    drop(ranks.remove(1));
    for rank in &mut ranks {
        let (code, message) = rank.answer().refused();
        assert_eq!(code, "attempt");
        assert!(message.contains("rank 1 of simulation 0"), "{message}");
    }
    study.wait_status(0, Status::Disconnected);
    assert_eq!(study.session.counters().connections, 0);
    study.register(0, 2, 0);
    let mut ranks = connect(2);
    for (index, rank) in ranks.iter_mut().enumerate() {
        let index = index as u64;
        assert!(rank.send(0, 0, &bytes_of(key(0, 0, 0), 0, Dtype::F32, 2 * index, 2)));
        assert!(rank.send(1, 0, &bytes_of(key(0, 0, 0), 1, Dtype::F64, index, 1)));
        rank.send_finalize(1);
    }
    for rank in &mut ranks {
        rank.read_acknowledgement().unwrap();
    }
    assert_eq!(study.drain(), [key(0, 0, 0)]);
}

#[test]
fn redrawn_parameters_start_from_the_first_step_and_the_old_draws_samples_stay() {
    let study = Study::start(SessionConfig { nb_time_steps: Some(3), ..config(1) }, fifo(100, 1));
    study.register(0, 1, 0);
    let mut client = study.joined(Identity::of(0));
    for step in 0..2 {
        assert!(send_step(&mut client, 0, step));
    }
    assert!(client.send(0, 2, &bytes_of(key(0, 0, 2), 0, Dtype::F32, 0, 10)));
    drop(client);
    study.wait_status(0, Status::Disconnected);
    study.register(0, 2, 1);
    assert_eq!(study.session.counters().expected_samples, Some(5));
    let mut client = study.connect(Identity::of(0).attempt(2));
    assert!(client.join(&FIELDS).unwrap().complete.is_empty());
    for step in 0..3 {
        assert!(send_step(&mut client, 1, step));
    }
    client.finalize(3).unwrap();
    let keys = study.drain();
    assert_eq!(keys, [key(0, 0, 0), key(0, 0, 1), key(0, 1, 0), key(0, 1, 1), key(0, 1, 2)]);
    let sums = study.session.close_ledger(Reason::Untrained);
    assert_eq!((sums.declared, sums.trained, sums.dropped_client_failed), (6, 5, 1));
}

#[test]
fn a_step_that_is_complete_already_is_counted_and_thrown_away() {
    let study = Study::start(config(1), fifo(100, 1));
    study.register(0, 1, 0);
    let mut client = study.joined(Identity::of(0));
    for step in [0, 1, 0, 1, 2] {
        assert!(send_step(&mut client, 0, step));
    }
    // A field of the step under assembly that came already.
    assert!(client.send(0, 3, &bytes_of(key(0, 0, 3), 0, Dtype::F32, 0, 10)));
    assert!(client.send(0, 3, &[0xee; 40]));
    assert!(client.send(1, 3, &bytes_of(key(0, 0, 3), 1, Dtype::F64, 0, 6)));
    client.finalize(4).unwrap();
    assert_eq!(study.drain().len(), 4);
    let sums = study.session.close_ledger(Reason::Untrained);
    assert_eq!((sums.declared, sums.trained, sums.duplicates_refused), (4, 4, 5));
    let counters = study.session.counters();
    assert_eq!((counters.duplicates_refused, counters.bytes_discarded), (5, 2 * 88 + 40));
    assert_eq!(study.refusals().len(), 1, "told once per connection");
}

#[test]
fn registrations_that_make_no_sense_are_errors_of_the_caller() {
    let study = Study::start(config(2), fifo(100, 1));
    let register = |simulation, attempt, draw, parameters| match study
        .session
        .register(simulation, attempt, draw, parameters)
    {
        Err(SessionError::Simulation(text)) => text,
        other => panic!("{other:?}"),
    };
    study.register(0, 2, 1);
    assert!(register(2, 1, 0, parameters(2, 0)).contains("0 to 1"));
    assert!(register(0, 2, 1, parameters(0, 1)).contains("attempts increase"));
    assert!(register(0, 3, 0, parameters(0, 0)).contains("draws do not decrease"));
    assert!(register(1, 1, 0, vec![1.0]).contains("nb_parameters is 2"));
    study.session.finish(1, Reason::ClientFailed).unwrap();
    assert!(register(1, 1, 0, parameters(1, 0)).contains("dropped already"));
    assert!(study.session.finish(0, Reason::Untrained).is_err());
    assert!(study.session.abandon_attempt(7).is_err());
}
