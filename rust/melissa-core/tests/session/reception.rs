//! Data on its way: whole samples, several ranks, several fields, many connections.

use crate::client::Identity;
use crate::study::{FIELDS, Study, bytes_of, config, fifo, key, send_step};
use melissa_core::ledger::{Reason, Sums};
use melissa_core::schema::Dtype;
use melissa_core::session::{SessionConfig, Status};

#[test]
fn time_steps_of_two_fields_arrive_whole_and_in_order() {
    let study = Study::start(config(1), fifo(100, 1));
    study.register(0, 1, 0);
    let mut client = study.connect(Identity::of(0));
    assert_eq!(study.wait_status(0, Status::Connected).host, "host-0");
    let welcome = client.join(&FIELDS).unwrap();
    assert_eq!(welcome.servers, [study.session.address()]);
    assert_eq!((welcome.distribution.as_str(), welcome.complete.len()), ("round_robin", 0));
    let layout: Vec<_> =
        welcome.fields.iter().map(|f| (f.name.as_str(), f.dtype, f.size, f.offset)).collect();
    assert_eq!(layout, [("temperature", Dtype::F32, 10, 0), ("flux", Dtype::F64, 6, 0)]);
    study.wait_status(0, Status::Running);
    for step in 0..20 {
        assert!(send_step(&mut client, 0, step));
    }
    client.finalize(20).unwrap();
    let state = study.wait_status(0, Status::Finished);
    assert_eq!((state.steps_complete, state.error.as_str()), (20, ""));
    assert_eq!(study.drain(), (0..20).map(|step| key(0, 0, step)).collect::<Vec<_>>());
    assert!(study.session.reception_over());
    let counters = study.session.counters();
    assert_eq!((counters.samples_received, counters.bytes_received), (20, 20 * 88));
    assert_eq!(counters.expected_samples, Some(20));
    let sums = study.session.close_ledger(Reason::Untrained);
    assert_eq!(sums, Sums { declared: 20, complete: 20, trained: 20, ..Sums::default() });
    assert!(study.refusals().is_empty());
}

#[test]
fn the_shares_of_three_skewed_ranks_meet_in_one_sample() {
    let study = Study::start(SessionConfig { nb_time_steps: Some(8), ..config(1) }, fifo(100, 1));
    study.register(0, 1, 0);
    let shares = [(2, 3), (5, 0), (3, 3)];
    let mut clients: Vec<_> = (0..3).map(|rank| study.connect(Identity::of(0).rank(rank, 3))).collect();
    for (client, (a, b)) in clients.iter_mut().zip(shares) {
        client.send_join(&[("temperature", Dtype::F32, a), ("flux", Dtype::F64, b)]);
    }
    for client in &mut clients {
        client.read_welcome().unwrap();
    }
    let offsets = [(0, 0), (2, 3), (7, 3)];
    // Rank 2 runs ahead with everything, then rank 0, then rank 1 with its fields the other way round.
    for rank in [2, 0, 1] {
        for step in 0..8 {
            let key = key(0, 0, step);
            let mut frames = [
                (0, bytes_of(key, 0, Dtype::F32, offsets[rank].0, shares[rank].0)),
                (1, bytes_of(key, 1, Dtype::F64, offsets[rank].1, shares[rank].1)),
            ];
            if rank == 1 {
                frames.reverse();
            }
            for (field, bytes) in frames {
                assert!(clients[rank].send(field, step, &bytes));
            }
        }
        clients[rank].send_finalize(8);
    }
    for client in &mut clients {
        client.read_acknowledgement().unwrap();
    }
    assert_eq!(study.wait_status(0, Status::Finished).steps_complete, 8);
    assert_eq!(study.drain().len(), 8);
    assert_eq!(study.session.counters().bytes_received, 8 * 88);
}
