//! What a solver's calls put on the wire when all goes well.

use crate::server::{config, connect, connect_with, floats, serve};
use melissa_client::{Client, ClientConfig, InitOutcome, Values};
use melissa_core::schema::Dtype;
use melissa_core::wire::handshake::FieldShare;
use melissa_core::wire::header::{FLAG_PAYLOAD_CRC, Header, Kind};
use std::time::{Duration, Instant};

#[test]
fn a_study_of_two_fields_arrives_converted_in_order_and_is_acknowledged() {
    let (address, server) = serve(|listener| {
        let mut peer = listener.accept();
        let hello = peer.greet(&crate::server::key());
        let join = peer.welcome_with(|welcome| {
            welcome.fields[0].size = 30;
            welcome.fields[0].offset = 10;
            welcome.fields[1].index = 5;
        });
        (hello, join, peer.until_finalized())
    });
    let mut client = connect(&address);
    assert_eq!(client.init("temperature", 10, Dtype::F64).unwrap(), InitOutcome::New);
    assert_eq!(client.init("pressure", 2, Dtype::F32).unwrap(), InitOutcome::New);
    for step in 0..3u8 {
        let step = f64::from(step);
        let values: Vec<f64> = (0..10).map(|i| f64::from(i) * 0.1 + step).collect();
        client.send("temperature", Values::F64(&values), None).unwrap();
        client.send("pressure", Values::F32(&[step as f32, -1.0]), None).unwrap();
    }
    assert_eq!(client.steps("pressure"), Some(3));
    client.finalize(None).unwrap();

    let (hello, join, (frames, finalize)) = server.join().unwrap();
    assert_eq!((hello.protocol, hello.role.as_str(), hello.study_epoch), (1, "client", 1));
    assert_eq!((hello.simulation, hello.attempt, hello.rank, hello.size), (7, 2, 1, 4));
    assert_eq!(hello.pid, std::process::id());
    assert!(!hello.host.is_empty() && hello.software.starts_with("melissa-client "));
    assert_eq!(
        join.fields,
        [
            FieldShare { name: "temperature".into(), dtype: Dtype::F64, size: 10 },
            FieldShare { name: "pressure".into(), dtype: Dtype::F32, size: 2 },
        ]
    );
    assert_eq!(frames.len(), 6);
    for (i, (header, payload)) in frames.iter().enumerate() {
        let temperature = i % 2 == 0;
        let step = i / 2;
        let expected = Header {
            kind: Kind::Data,
            dtype: Some(Dtype::F32),
            simulation: 7,
            client_rank: 1,
            field: if temperature { 0 } else { 5 },
            flags: 0,
            time_step: step as u64,
            element_offset: if temperature { 10 } else { 0 },
            element_count: if temperature { 10 } else { 2 },
            payload_length: if temperature { 40 } else { 8 },
            payload_crc: 0,
        };
        assert_eq!(*header, expected);
        let values: Vec<f32> = if temperature {
            (0..10).map(|i| (f64::from(i) * 0.1 + step as f64) as f32).collect()
        } else {
            vec![step as f32, -1.0]
        };
        assert_eq!(floats(payload), values);
    }
    assert_eq!((finalize.simulation, finalize.client_rank, finalize.time_step), (7, 1, 3));
}

/// One step of a field that is much larger than the client's scratch and the socket's buffers.
fn large_field_arrives(wanted: Dtype, payload_crc: bool) {
    let values: Vec<f64> = (0..1_000_003).map(|i| f64::from(i) * 0.001).collect();
    let (address, server) = serve(move |listener| {
        let mut peer = listener.accept_client();
        peer.welcome_with(|welcome| {
            welcome.fields[0].dtype = wanted;
            welcome.payload_crc = payload_crc;
        });
        peer.until_finalized()
    });
    let mut client = connect_with(&address, "a", values.len(), Dtype::F64);
    client.send("a", Values::F64(&values), None).unwrap();
    client.finalize(None).unwrap();
    let (frames, _) = server.join().unwrap();
    let [(header, payload)] = &frames[..] else { panic!("{} frames came", frames.len()) };
    let expected: Vec<u8> = match wanted {
        Dtype::F32 => values.iter().flat_map(|&x| (x as f32).to_le_bytes()).collect(),
        _ => values.iter().flat_map(|&x| x.to_le_bytes()).collect(),
    };
    assert!(*payload == expected, "the payload differs");
    if payload_crc {
        assert_eq!((header.flags, header.payload_crc), (FLAG_PAYLOAD_CRC, crc32c::crc32c(&expected)));
    } else {
        assert_eq!((header.flags, header.payload_crc), (0, 0));
    }
}

#[test]
fn a_large_field_arrives_as_it_is() {
    large_field_arrives(Dtype::F64, false);
    large_field_arrives(Dtype::F64, true);
}

#[test]
fn a_large_field_arrives_converted_piece_by_piece() {
    large_field_arrives(Dtype::F32, false);
    large_field_arrives(Dtype::F32, true);
}

#[test]
fn steps_that_the_server_has_are_counted_and_not_sent() {
    let (address, server) = serve(|listener| {
        let mut peer = listener.accept_client();
        peer.welcome_with(|welcome| welcome.complete = vec![(0, 1), (3, 3)]);
        peer.until_finalized()
    });
    let mut client = connect_with(&address, "a", 1, Dtype::F64);
    for step in 0..6u8 {
        client.send("a", Values::F64(&[f64::from(step)]), None).unwrap();
    }
    client.finalize(None).unwrap();
    let (frames, finalize) = server.join().unwrap();
    let came: Vec<_> =
        frames.iter().map(|(header, payload)| (header.time_step, floats(payload)[0])).collect();
    assert_eq!(came, [(2, 2.0), (4, 4.0), (5, 5.0)]);
    assert_eq!(finalize.time_step, 6);
}

#[test]
fn a_rank_without_a_share_sends_frames_without_elements() {
    let (address, server) = serve(|listener| {
        let mut peer = listener.accept_client();
        peer.welcome_with(|welcome| (welcome.fields[0].size, welcome.fields[0].offset) = (8, 8));
        peer.until_finalized()
    });
    let mut client = connect_with(&address, "a", 0, Dtype::F64);
    client.send("a", Values::F64(&[]), None).unwrap();
    client.finalize(None).unwrap();
    let (frames, _) = server.join().unwrap();
    assert_eq!((frames[0].0.element_offset, frames[0].0.element_count, frames[0].1.len()), (8, 0, 0));
}

#[test]
fn a_slow_server_holds_the_solver_back_and_gets_everything() {
    let (address, server) = serve(|listener| {
        let mut peer = listener.accept_client();
        peer.welcome();
        std::thread::sleep(Duration::from_millis(500));
        peer.until_finalized()
    });
    let size = 2_000_000;
    let mut client = connect_with(&address, "a", size, Dtype::F32);
    let begun = Instant::now();
    for step in 0..4u8 {
        client.send("a", Values::F32(&vec![f32::from(step); size]), None).unwrap();
    }
    assert!(begun.elapsed() >= Duration::from_millis(400), "32 MB fit into the socket's buffers");
    client.finalize(None).unwrap();
    let (frames, _) = server.join().unwrap();
    for (step, (header, payload)) in frames.iter().enumerate() {
        assert_eq!(header.time_step, step as u64);
        assert!(floats(payload).iter().all(|&value| value == step as f32));
    }
    assert_eq!(frames.len(), 4);
}

#[test]
fn finalize_waits_until_the_server_has_everything() {
    let (address, server) = serve(|listener| {
        let mut peer = listener.accept_client();
        let (header, _) = peer.frame();
        assert_eq!((header.kind, header.time_step), (Kind::Finalize, 0));
        std::thread::sleep(Duration::from_millis(400));
        peer.control(Kind::FinalizeAck);
        assert!(peer.is_closed());
    });
    let mut client = connect(&address);
    let begun = Instant::now();
    client.finalize(None).unwrap();
    assert!(begun.elapsed() >= Duration::from_millis(400));
    server.join().unwrap();
}

#[test]
fn a_busy_server_is_asked_again() {
    let (address, server) = serve(|listener| {
        for _ in 0..2 {
            let mut peer = listener.accept();
            peer.message::<melissa_core::wire::handshake::Hello>();
            peer.refuse("busy", "64 handshakes are pending");
        }
        listener.accept_client();
    });
    connect(&address);
    server.join().unwrap();
}

#[test]
fn a_name_with_several_addresses_is_tried_until_one_answers() {
    // "localhost" is ::1 first on many machines, where nothing listens.
    let (address, server) = serve(|listener| drop(listener.accept_client()));
    let port = address.rsplit(':').next().unwrap();
    Client::connect(ClientConfig { address: format!("localhost:{port}"), ..config(&address) }, None).unwrap();
    server.join().unwrap();
}
