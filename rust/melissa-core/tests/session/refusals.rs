//! Peers that should not be here, and clients that say what they should not.

use crate::client::{Answer, Client, Identity, PATIENCE, expect, open, read_frame, write_message};
use crate::study::{FIELDS, Study, bytes_of, config, eventually, fifo, key, send_step};
use melissa_core::schema::Dtype;
use melissa_core::session::{SessionConfig, Status};
use melissa_core::wire::auth::StudyKey;
use melissa_core::wire::handshake::{Hello, Proof};
use melissa_core::wire::header::{Header, Kind};
use std::io::{Read, Write};
use std::time::{Duration, Instant};

/// Nothing more comes on a connection.
fn closed(stream: &mut std::net::TcpStream) -> bool {
    let mut rest = Vec::new();
    match stream.read_to_end(&mut rest) {
        Ok(_) => rest.is_empty(),
        Err(error) => error.kind() == std::io::ErrorKind::ConnectionReset,
    }
}

fn refused_at_connect(study: &Study, who: Identity) -> (String, String) {
    Client::connect(study.session.address(), who).err().expect("it was accepted").refused()
}

#[test]
fn garbage_on_the_port_is_counted_and_harms_no_client() {
    let study = Study::start(config(1), fifo(1000, 1));
    study.register(0, 1, 0);
    let mut client = study.joined(Identity::of(0));
    let wrong_version = {
        let mut header = Header::control(Kind::Hello, 10).encode();
        header[4] = 9;
        header.to_vec()
    };
    let damaged = {
        let mut header = Header::control(Kind::Hello, 10).encode();
        header[30] ^= 1;
        header.to_vec()
    };
    let garbage: [(&[u8], Option<&str>); 7] = [
        (b"GET / HTTP/1.1\r\n\r\n", None),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", None),
        (&[0; 300], None),
        (&[0xff; 64], None),
        (&wrong_version, Some("frame")),
        (&damaged, Some("frame")),
        (&Header::control(Kind::Finalize, 0).encode(), Some("protocol")),
    ];
    for (round, (bytes, code)) in garbage.iter().enumerate() {
        assert!(send_step(&mut client, 0, round as u64));
        let mut stream = open(study.session.address());
        stream.write_all(bytes).unwrap();
        match code {
            None => assert!(closed(&mut stream), "{bytes:?}"),
            Some(code) => {
                let answer = read_frame(&mut stream).err().unwrap().refused();
                assert_eq!(answer.0, *code, "{}", answer.1);
                assert!(closed(&mut stream));
            }
        }
    }
    // Nothing at all, and the beginning of something.
    drop(open(study.session.address()));
    open(study.session.address()).write_all(b"MLS").unwrap();
    eventually("all are counted", || study.session.counters().connections_refused == 9);
    let refusals = study.refusals();
    assert_eq!(refusals.len(), 9);
    assert!(refusals[0].contains("127.0.0.1") && refusals[0].contains("GET / HTTP/1.1"), "{}", refusals[0]);
    client.finalize(7).unwrap();
    assert_eq!(study.drain().len(), 7);
}

#[test]
fn handshakes_that_take_too_long_are_closed_and_those_who_send_go_on() {
    let timeout = Duration::from_millis(300);
    let config = SessionConfig { handshake_timeout: timeout, max_pending_handshakes: 4, ..config(2) };
    let study = Study::start(config, fifo(1000, 1));
    study.register(0, 1, 0);
    study.register(1, 1, 0);
    let mut client = study.joined(Identity::of(0));
    let start = Instant::now();
    // More than may pend: the others wait in the kernel, and are let in when those before them are closed.
    let hello = melissa_core::wire::handshake::encode_frame(Kind::Hello, &Identity::of(1).hello());
    let mut slow: Vec<_> = (0..12)
        .map(|index| {
            let mut stream = open(study.session.address());
            stream.write_all(&hello[..index * 8]).unwrap();
            stream
        })
        .collect();
    for step in 0..50 {
        assert!(send_step(&mut client, 0, step));
        assert!(study.session.counters().handshakes_pending <= 4);
        assert_eq!(study.get(), Some(key(0, 0, step)));
    }
    for stream in &mut slow {
        assert!(closed(stream));
    }
    assert!(start.elapsed() >= 3 * timeout, "four at a time");
    let refusals = study.refusals();
    assert_eq!(refusals.len(), 12);
    assert!(refusals[0].contains("within 0.3 s"), "{}", refusals[0]);
    // The next one finds an open door.
    let mut other = study.joined(Identity::of(1));
    assert!(send_step(&mut other, 0, 0));
}

#[test]
fn a_wrong_key_is_refused_before_anything_about_the_study_is_said() {
    let study = Study::start(config(1), fifo(10, 1));
    let stranger = Identity {
        key: StudyKey::from_bytes(&[8; 32]).unwrap(),
        study_epoch: 99,
        ..Identity::of(77).rank(3, 9)
    };
    let (code, message) = refused_at_connect(&study, stranger);
    assert_eq!(code, "key");
    assert!(!message.contains("epoch") && !message.contains("77"), "{message}");
    assert!(study.refusals()[0].contains("rank 3 of simulation 77"), "who called stands in the log");
}

#[test]
fn a_proof_of_another_connection_does_not_hold() {
    let study = Study::start(config(1), fifo(10, 1));
    study.register(0, 1, 0);
    let mut stream = open(study.session.address());
    write_message(&mut stream, &Identity::of(0).hello());
    expect(&mut stream, Kind::Challenge).unwrap();
    write_message(&mut stream, &Proof { proof: [0x5a; 32] });
    assert_eq!(read_frame(&mut stream).err().unwrap().refused().0, "key");
}

#[test]
fn another_epoch_or_simulation_is_refused_with_what_is_known() {
    let study = Study::start(config(3), fifo(10, 1));
    study.register(0, 1, 0);
    let (code, message) = refused_at_connect(&study, Identity { study_epoch: 7, ..Identity::of(0) });
    assert_eq!(code, "epoch");
    assert!(message.contains("epoch 1") && message.contains("epoch 7"), "{message}");
    let (code, message) = refused_at_connect(&study, Identity::of(3));
    assert_eq!(code, "simulation");
    assert!(message.contains("0 to 2"), "{message}");
}

#[test]
fn a_hello_of_another_version_or_role_is_refused() {
    let study = Study::start(config(1), fifo(10, 1));
    study.register(0, 1, 0);
    let refused = |hello: Hello| {
        let mut stream = open(study.session.address());
        write_message(&mut stream, &hello);
        read_frame(&mut stream).err().unwrap().refused()
    };
    let (code, message) = refused(Hello { protocol: 2, ..Identity::of(0).hello() });
    assert_eq!(code, "protocol");
    assert!(message.contains("version 1") && message.contains("version 2"), "{message}");
    assert_eq!(refused(Hello { role: "monitor".into(), ..Identity::of(0).hello() }).0, "protocol");
    // A frame that announces more than a stranger may send.
    let mut stream = open(study.session.address());
    stream.write_all(&Header::control(Kind::Hello, 5000).encode()).unwrap();
    assert_eq!(read_frame(&mut stream).err().unwrap().refused().0, "frame");
}

#[test]
fn what_a_simulation_declares_must_be_the_studys_fields() {
    let study = Study::start(config(4), fifo(10, 4));
    let refused = |simulation: u32, fields: &[(&str, Dtype, u64)]| {
        study.register(simulation, 1, 0);
        let mut client = study.connect(Identity::of(simulation));
        let answer = client.join(fields).expect_err("it was welcomed").refused();
        let state = study.wait_status(simulation, Status::Disconnected);
        assert!(state.error.contains(&answer.1), "{} / {}", state.error, answer.1);
        answer
    };
    let (code, message) = refused(0, &[("temperatur", Dtype::F32, 10), ("flux", Dtype::F64, 6)]);
    assert_eq!(code, "field");
    assert!(
        message.contains("\"temperatur\"") && message.contains("nearest is \"temperature\""),
        "{message}"
    );
    let (code, message) = refused(1, &[("temperature", Dtype::F32, 10)]);
    assert_eq!(code, "field");
    assert!(message.contains("\"flux\""), "{message}");
    // The schema is fixed by the first that joins.
    study.register(2, 1, 0);
    let mut good = study.joined(Identity::of(2));
    let (code, message) = refused(3, &[("temperature", Dtype::F32, 11), ("flux", Dtype::F64, 6)]);
    assert_eq!(code, "size");
    assert!(message.contains("10 elements") && message.contains("declares 11"), "{message}");
    study.register(3, 2, 0);
    let mut other = study.connect(Identity::of(3).attempt(2));
    let answer = other.join(&[("temperature", Dtype::F32, 10), ("flux", Dtype::F32, 6)]);
    assert_eq!(answer.err().unwrap().refused().0, "dtype");
    assert!(send_step(&mut good, 0, 0));
    assert_eq!(study.get(), Some(key(2, 0, 0)));
}

#[test]
fn each_wrong_data_frame_ends_its_own_connection_only() {
    let config = SessionConfig { nb_time_steps: Some(20), ..config(2) };
    let study = Study::start(config, fifo(1000, 2));
    study.register(1, 1, 0);
    let mut good = study.joined(Identity::of(1));
    let mut attempt = 0;
    let mut refused = |wrong: &dyn Fn(Header) -> Header| {
        attempt += 1;
        study.register(0, attempt, 0);
        let mut client = study.joined(Identity::of(0).attempt(attempt));
        let header = wrong(client.header(0, 0, 10));
        client.write(&header.encode());
        client.write(&vec![0; header.payload_length.min(4096) as usize]);
        let answer = client.answer().refused();
        assert_eq!(client.answer(), Answer::Closed);
        study.wait_status(0, Status::Disconnected);
        assert!(send_step(&mut good, 0, u64::from(attempt) - 1), "the other goes on");
        answer
    };
    let (code, message) = refused(&|header| Header { time_step: 20, ..header });
    assert_eq!(code, "step");
    assert!(message.contains("time step 20 came") && message.contains("the last one is 19"), "{message}");
    let (code, message) = refused(&|header| Header { time_step: 2, ..header });
    assert_eq!(code, "step");
    assert!(message.contains("\"temperature\" of time step 0 was expected"), "{message}");
    assert_eq!(refused(&|header| Header { time_step: u64::MAX, ..header }).0, "step");
    assert_eq!(refused(&|header| Header { field: 2, ..header }).0, "field");
    let (code, message) = refused(&|header| Header { element_offset: 1, ..header });
    assert_eq!(code, "size");
    assert!(
        message.contains("10 elements from element 0") && message.contains("from element 1"),
        "{message}"
    );
    assert_eq!(refused(&|header| Header { element_count: 9, payload_length: 36, ..header }).0, "size");
    // A length that nobody has memory for allocates nothing.
    let huge = 1 << 60;
    assert_eq!(
        refused(&|header| Header { element_count: huge, payload_length: huge * 4, ..header }).0,
        "size"
    );
    let wrong_dtype = |header| Header { dtype: Some(Dtype::F64), payload_length: 80, ..header };
    assert_eq!(refused(&wrong_dtype).0, "dtype");
    assert_eq!(refused(&|header| Header { payload_length: 41, ..header }).0, "frame");
    assert_eq!(refused(&|header| Header { simulation: 1, ..header }).0, "protocol");
    assert_eq!(refused(&|header| Header { client_rank: 1, ..header }).0, "protocol");
    assert_eq!(refused(&|header| Header::control(Kind::Welcome, 0).encode_as(header)).0, "protocol");
    eventually("every step of the other is there", || {
        study.session.counters().samples_received == u64::from(attempt)
    });
    let counters = study.session.counters();
    assert_eq!((counters.connections_refused, counters.connections), (u64::from(attempt), 1));
}

/// A control header where a data header was expected.
trait EncodeAs {
    fn encode_as(self, data: Header) -> Header;
}

impl EncodeAs for Header {
    fn encode_as(self, data: Header) -> Header {
        Header { simulation: data.simulation, client_rank: data.client_rank, ..self }
    }
}

#[test]
fn a_field_of_the_next_step_before_all_of_this_one_is_refused() {
    let study = Study::start(config(1), fifo(10, 1));
    study.register(0, 1, 0);
    let mut client = study.joined(Identity::of(0));
    for step in 0..2 {
        assert!(client.send(0, step, &bytes_of(key(0, 0, step), 0, Dtype::F32, 0, 10)));
    }
    let (code, message) = client.answer().refused();
    assert_eq!(code, "step");
    assert!(
        message.contains(
            "field \"flux\" of time step 0 was expected, and field \"temperature\" of time step 1 came"
        ),
        "{message}"
    );
}

#[test]
fn messages_out_of_order_are_refused() {
    let study = Study::start(config(4), fifo(10, 1));
    for simulation in 0..4 {
        study.register(simulation, 1, 0);
    }
    // Data before Join.
    let mut client = study.connect(Identity::of(0));
    let welcome = study.joined(Identity::of(1)).welcome;
    client.welcome = welcome;
    client.send(0, 0, &[0; 40]);
    let (code, message) = client.answer().refused();
    assert_eq!(code, "protocol");
    assert!(message.contains("Join was expected, and Data came"), "{message}");
    // A second Join.
    let mut client = study.joined(Identity::of(2));
    client.send_join(&FIELDS);
    assert_eq!(client.answer().refused().0, "protocol");
    // Something while the other ranks are waited for.
    let mut client = study.connect(Identity::of(3).rank(0, 2));
    client.send_join(&FIELDS);
    client.send_finalize(0);
    let (code, message) = client.answer().refused();
    assert_eq!(code, "protocol");
    assert!(message.contains("until Welcome"), "{message}");
}

#[test]
fn a_refused_client_can_read_why_although_it_is_still_sending() {
    let study = Study::start(SessionConfig { nb_time_steps: Some(1), ..config(1) }, fifo(10, 1));
    study.register(0, 1, 0);
    let mut client = study.joined(Identity::of(0));
    let frame = {
        let header = client.header(0, 1, 10).encode();
        [&header[..], &[0; 40]].concat()
    };
    // More than the kernel's buffers hold, until the server has hung up.
    let start = Instant::now();
    let frames = frame.repeat(1000);
    for _ in 0..100 {
        assert!(start.elapsed() < PATIENCE);
        if !client.write(&frames) {
            break;
        }
    }
    assert_eq!(client.answer().refused().0, "step");
}
