//! Sessions that go on from lists that nobody has looked at.

use crate::study::{Study, config, fifo, parameters};
use melissa_core::buffer::Buffer;
use melissa_core::ledger::{DrawSteps, LedgerState};
use melissa_core::schema::{Dtype, Field, Schema};
use melissa_core::session::{
    RestoredSession, RestoredSimulation, Session, SessionConfig, SessionError, Status,
};
use melissa_core::wire::distribution::Distribution;
use std::sync::Arc;
use std::time::{Duration, Instant};

const fn known(simulation: u32, attempt: u32, draw: u32, status: Status) -> RestoredSimulation {
    RestoredSimulation { simulation, attempt, draw, status }
}

fn resumed(planned: u32, restored: &RestoredSession) -> Study {
    let buffer = Arc::new(Buffer::new(fifo(10, 1)).unwrap());
    let session = Session::resume(config(planned), Arc::clone(&buffer), Some(restored)).unwrap();
    Study::of(Arc::new(session), buffer)
}

#[test]
fn a_simulation_that_a_checkpoint_lists_twice_is_settled_once() {
    let simulations = vec![known(0, 1, 0, Status::Finished), known(0, 2, 0, Status::Dropped)];
    let study = resumed(2, &RestoredSession { simulations, ..RestoredSession::default() });
    let counters = study.session.counters();
    assert_eq!((counters.simulations_finished, counters.simulations_dropped), (1, 0));
    assert!(!study.session.reception_over());
    study.session.register(1, 1, 0, parameters(1, 0)).unwrap();
    study.session.finish(1, melissa_core::ledger::Reason::ClientFailed).unwrap();
    assert!(study.session.reception_over());
}

#[test]
fn the_time_steps_of_another_rule_or_rank_are_refused_with_both() {
    let on = |rank, nb_ranks, distribution| {
        let config = SessionConfig { rank, nb_ranks, distribution, ..config(1) };
        (config, Arc::new(Buffer::new(fifo(10, 1)).unwrap()))
    };
    let cut = |(config, buffer): (SessionConfig, Arc<Buffer>)| {
        buffer
            .bind(Arc::new(
                Schema::new(vec![Field { name: "u".into(), dtype: Dtype::F32, size: 1 }], 2).unwrap(),
            ))
            .unwrap();
        let session = Session::start(config, buffer).unwrap().cut().unwrap().session;
        RestoredSession { session, ..RestoredSession::default() }
    };
    let resume =
        |(config, buffer), restored: &RestoredSession| Session::resume(config, buffer, Some(restored));
    let (dealt, whole) = (Distribution::RoundRobin, Distribution::Simulation);

    let restored = cut(on(1, 2, dealt));
    resume(on(1, 2, dealt), &restored).unwrap();
    for other in [on(1, 2, whole), on(0, 2, dealt), on(1, 3, dealt)] {
        let error = resume(other, &restored).unwrap_err();
        assert!(matches!(error, SessionError::Configuration(_)), "{error:?}");
        let text = error.to_string();
        assert!(text.contains("of server rank 1 of 2 under distribution round_robin"), "{text}");
        assert!(text.contains("dl_config.distribution that it was written with"), "{text}");
    }
    // Alone, a rank has all time steps by either rule.
    resume(on(0, 1, whole), &cut(on(0, 1, dealt))).unwrap();
}

#[test]
fn what_came_of_earlier_draws_is_counted_at_once_whatever_the_number_of_the_draw() {
    let steps = |draw, complete| DrawSteps {
        simulation: 0,
        draw,
        declared: vec![0b1111],
        complete: vec![complete],
        trained: vec![0],
        given_up: None,
    };
    let ledger = LedgerState {
        draws: vec![steps(0, 0b111), steps(7, 0b1), steps(u32::MAX, 0b1111)],
        ..LedgerState::default()
    };
    let simulations = vec![known(0, 9, u32::MAX, Status::Planned)];
    let start = Instant::now();
    let study = resumed(1, &RestoredSession { simulations, ledger, ..RestoredSession::default() });
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    study.session.finish(0, melissa_core::ledger::Reason::ClientFailed).unwrap();
    assert_eq!(study.session.expected_samples(), Some(3 + 1 + 4));
}
