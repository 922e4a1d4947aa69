//! Sessions that go on from lists that nobody has looked at.

use crate::study::{Study, config, fifo, parameters};
use melissa_core::buffer::Buffer;
use melissa_core::ledger::{DrawSteps, LedgerState};
use melissa_core::session::{RestoredSession, RestoredSimulation, Session, Status};
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
