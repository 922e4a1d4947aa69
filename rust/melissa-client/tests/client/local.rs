//! A client on the server's own host comes by a Unix socket, and by TCP where there is none.

use crate::server::{config, connect_with, key, other_key, serve};
use melissa_client::{Client, ClientConfig, ClientError, Values};
use melissa_core::buffer::{Buffer, BufferConfig, Kind};
use melissa_core::schema::Dtype;
use melissa_core::session::{Session, SessionConfig};
use melissa_core::wire::local;
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::time::{Duration, Instant};

const ELEMENTS: usize = 100_000;
/// Of the addresses that are kept for documentation: nothing is there.
const NOWHERE: &str = "192.0.2.1";

fn fifo(capacity: usize) -> Arc<Buffer> {
    let config = BufferConfig {
        kind: Kind::Fifo,
        capacity,
        watermark: 0,
        pseudo_epochs: 1,
        batch_size: 1,
        seed: 0,
        assembly_slots: 1,
        lent_slots: Some(1),
    };
    Arc::new(Buffer::new(config).unwrap())
}

fn study(advertise: Option<&str>) -> SessionConfig {
    SessionConfig {
        advertise: advertise.map(str::to_owned),
        ..SessionConfig::new(key(), 1, vec!["u".into()], 0, 1)
    }
}

fn start(config: SessionConfig, capacity: usize) -> (Session, Arc<Buffer>) {
    let buffer = fifo(capacity);
    let session = Session::start(config, Arc::clone(&buffer)).unwrap();
    session.register(0, 1, 0, Vec::new()).unwrap();
    (session, buffer)
}

fn client_of(address: &str) -> ClientConfig {
    ClientConfig { simulation: 0, attempt: 1, rank: 0, size: 1, ..config(address) }
}

/// Values that no other step has.
fn values(step: u64) -> Vec<f32> {
    (0..ELEMENTS).map(|element| (step * 1000 + element as u64 % 997) as f32).collect()
}

#[test]
fn a_client_on_the_servers_host_comes_by_its_unix_socket_and_waits_when_the_buffer_is_full() {
    // Its TCP address leads nowhere: what arrives has come by the Unix socket.
    let (session, buffer) = start(study(Some(NOWHERE)), 2);
    let address = session.address().to_owned();
    let solver = std::thread::spawn(move || {
        let mut client = Client::connect(client_of(&address), None).unwrap();
        client.init("u", ELEMENTS, Dtype::F32).unwrap();
        for step in 0..20 {
            client.send("u", Values::F32(&values(step)), None).unwrap();
        }
        client.finalize(None).unwrap();
    });
    for step in 0..20 {
        let sample = buffer.get(Some(Instant::now() + crate::server::PATIENCE)).unwrap();
        assert_eq!(sample.key().time_step, step);
        let bytes: Vec<u8> = values(step).iter().flat_map(|value| value.to_ne_bytes()).collect();
        assert!(sample.field_bytes(0) == bytes, "the values of step {step}");
    }
    solver.join().unwrap();
    assert_eq!(session.refusals().texts, Vec::<String>::new());
}

#[test]
fn a_server_without_a_unix_socket_is_reached_by_tcp() {
    let (session, _buffer) = start(SessionConfig { local_socket: false, ..study(None) }, 2);
    assert!(!local::folder(&key(), 1, session.address()).exists());
    drop(Client::connect(client_of(session.address()), None).unwrap());
}

#[test]
fn a_client_that_is_told_not_to_take_the_unix_socket_comes_by_tcp() {
    let (session, _buffer) = start(study(Some(NOWHERE)), 2);
    let config = ClientConfig {
        local_socket: false,
        timeout: Duration::from_millis(200),
        ..client_of(session.address())
    };
    assert!(matches!(Client::connect(config, None), Err(ClientError::Connect { .. })));
}

#[test]
fn a_unix_socket_that_a_dead_server_left_behind_is_passed_over() {
    let (address, server) = serve(|listener| {
        listener.accept_client();
    });
    let folder = local::folder(&key(), 1, &address);
    std::fs::create_dir(&folder).unwrap();
    drop(UnixListener::bind(local::socket(&key(), 1, &address)).unwrap());
    drop(connect_with(&address, "u", 1, Dtype::F32));
    server.join().unwrap();
    std::fs::remove_dir_all(&folder).unwrap();
}

#[test]
fn the_unix_socket_is_there_as_long_as_its_session_and_proves_the_key_like_any_other() {
    let (session, _buffer) = start(study(None), 2);
    let address = session.address().to_owned();
    let socket = local::socket(&key(), 1, &address);
    // Whoever got to know the path still has to hold the key. The name depends on it, so that the impostor is given a link.
    let folder = local::folder(&other_key(), 1, &address);
    std::fs::create_dir(&folder).unwrap();
    std::os::unix::fs::symlink(&socket, local::socket(&other_key(), 1, &address)).unwrap();
    let config = ClientConfig { key: other_key(), ..client_of(&address) };
    let error = Client::connect(config, None).unwrap_err();
    std::fs::remove_dir_all(&folder).unwrap();
    assert!(matches!(error, ClientError::WrongServer { .. }), "{error}");
    let start = Instant::now();
    let refusal = loop {
        if let Some(text) = session.refusals().texts.pop() {
            break text;
        }
        assert!(start.elapsed() < crate::server::PATIENCE);
        std::thread::sleep(Duration::from_millis(1));
    };
    let peer = format!("process {} of this host", std::process::id());
    assert!(refusal.contains(&peer), "{refusal}");
    session.close();
    assert!(!socket.exists() && !local::folder(&key(), 1, &address).exists());
}
