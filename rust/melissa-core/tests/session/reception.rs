//! Data on its way: whole samples, several ranks, several fields, many connections.

use crate::client::Identity;
use crate::study::{FIELDS, Study, bytes_of, config, eventually, fifo, key, send_step};
use melissa_core::ledger::{Reason, Sums};
use melissa_core::schema::Dtype;
use melissa_core::session::{DataType, SessionConfig, Status};
use melissa_core::wire::header::FLAG_PAYLOAD_CRC;

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

#[test]
fn connections_that_always_have_data_take_turns() {
    const CLIENTS: u32 = 64;
    const STEPS: u64 = 20;
    let study = Study::start(SessionConfig { nb_time_steps: Some(STEPS), ..config(CLIENTS) }, fifo(100, 64));
    let mut clients: Vec<_> = (0..CLIENTS)
        .map(|simulation| {
            study.register(simulation, 1, 0);
            study.joined(Identity::of(simulation))
        })
        .collect();
    // Everything lies in the kernel's buffers before anything is published.
    study.buffer.pause();
    for client in &mut clients {
        for step in 0..STEPS {
            assert!(send_step(client, 0, step));
        }
        client.send_finalize(STEPS);
    }
    eventually("one sample of each waits", || study.session.counters().samples_waiting == u64::from(CLIENTS));
    study.buffer.resume();
    let mut counts = vec![0u64; CLIENTS as usize];
    while let Some(key) = study.get() {
        let count = &mut counts[key.simulation as usize];
        assert_eq!(key.time_step, *count, "simulation {} is out of order", key.simulation);
        *count += 1;
        let (least, most) = (counts.iter().min().unwrap(), counts.iter().max().unwrap());
        assert!(most - least <= 2, "one is {most} samples far where another is {least} far");
    }
    assert_eq!(counts, vec![STEPS; CLIENTS as usize]);
    for client in &mut clients {
        client.read_acknowledgement().unwrap();
    }
}

#[test]
fn a_sample_larger_than_a_turn_and_than_every_buffer_of_the_kernel_arrives_whole() {
    const ELEMENTS: u64 = 900_000;
    let names = vec!["field".to_owned()];
    let study = Study::start(
        SessionConfig { field_names: names, receive_buffer_size: 65536, ..config(1) },
        fifo(4, 1),
    );
    study.register(0, 1, 0);
    let mut client = study.connect(Identity::of(0));
    client.join(&[("field", Dtype::F64, ELEMENTS)]).unwrap();
    for step in 0..3 {
        assert!(client.send(0, step, &bytes_of(key(0, 0, step), 0, Dtype::F64, 0, ELEMENTS)));
    }
    client.finalize(3).unwrap();
    assert_eq!(study.drain().len(), 3);
}

#[test]
fn frames_that_come_byte_by_byte_are_put_together() {
    let study = Study::start(config(1), fifo(4, 1));
    study.register(0, 1, 0);
    let mut client = study.joined(Identity::of(0));
    for step in 0..2 {
        for (field, (_, dtype, size)) in FIELDS.into_iter().enumerate() {
            let header = client.header(field, step, size).encode();
            let bytes = bytes_of(key(0, 0, step), field, dtype, 0, size);
            for byte in header.iter().chain(&bytes) {
                assert!(client.write(&[*byte]));
            }
        }
    }
    client.finalize(2).unwrap();
    assert_eq!(study.drain().len(), 2);
}

#[test]
fn floats_are_asked_for_in_the_studys_data_type_and_integers_as_they_are() {
    let names = ["a", "b", "c"].map(str::to_owned).to_vec();
    let config = SessionConfig { data_type: DataType::F32, field_names: names, ..config(1) };
    let study = Study::start(config, fifo(4, 1));
    study.register(0, 1, 0);
    let mut client = study.connect(Identity::of(0));
    let welcome = client.join(&[("a", Dtype::F64, 1), ("b", Dtype::I64, 1), ("c", Dtype::F32, 1)]).unwrap();
    let wanted: Vec<Dtype> = welcome.fields.iter().map(|field| field.dtype).collect();
    assert_eq!(wanted, [Dtype::F32, Dtype::I64, Dtype::F32]);
}

#[test]
fn a_damaged_payload_is_refused_when_checksums_are_on() {
    let study = Study::start(SessionConfig { payload_crc: true, ..config(1) }, fifo(4, 1));
    study.register(0, 1, 0);
    let mut client = study.joined(Identity::of(0));
    assert!(client.welcome.as_ref().unwrap().payload_crc);
    assert!(send_step(&mut client, 0, 0));
    let mut header = client.header(0, 1, 10);
    header.flags = FLAG_PAYLOAD_CRC;
    header.payload_crc = 1;
    assert!(client.write(&[&header.encode()[..], &[0; 40]].concat()));
    let (code, message) = client.answer().refused();
    assert_eq!(code, "frame");
    assert!(message.contains("\"temperature\" of time step 1 was damaged"), "{message}");
    let state = study.wait_status(0, Status::Disconnected);
    assert!(state.error.contains("damaged") && state.steps_complete == 1, "{}", state.error);

    study.register(0, 2, 0);
    let mut client = study.joined(Identity::of(0).attempt(2));
    let header = client.header(0, 1, 10).encode();
    assert!(client.write(&[&header[..], &[0; 40]].concat()));
    let (code, message) = client.answer().refused();
    assert_eq!(code, "frame");
    assert!(message.contains("without the checksum"), "{message}");
}
