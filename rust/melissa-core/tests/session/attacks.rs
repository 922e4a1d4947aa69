//! The folder of attack frames, each thrown at a session that has better things to do.

use crate::client::Identity;
use crate::study::{Study, config, eventually, fifo, key, send_step};
use melissa_core::session::Status;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::path::PathBuf;

fn attacks() -> Vec<(String, Vec<u8>)> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/wire/attacks");
    let index: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(folder.join("index.json")).unwrap()).unwrap();
    let files: Vec<_> = index
        .as_array()
        .unwrap()
        .iter()
        .map(|entry| {
            let file = entry["file"].as_str().unwrap().to_owned();
            let bytes = std::fs::read(folder.join(&file)).unwrap();
            (file, bytes)
        })
        .collect();
    assert!(files.len() > 50, "the folder of attacks is there");
    files
}

/// Sends the bytes, says that nothing more comes, and waits until the server has hung up.
fn attack(stream: &mut TcpStream, bytes: &[u8]) {
    // A server that has seen enough may close before it has read all.
    let gone = |error: &std::io::Error| {
        matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset | ErrorKind::NotConnected)
    };
    for result in [stream.write_all(bytes), stream.shutdown(Shutdown::Write)] {
        assert!(result.as_ref().err().is_none_or(gone), "{result:?}");
    }
    let mut answer = Vec::new();
    let end = stream.read_to_end(&mut answer);
    assert!(end.as_ref().err().is_none_or(gone), "{end:?}");
}

#[test]
fn an_attack_of_a_stranger_ends_its_own_connection() {
    let study = Study::start(config(1), fifo(1000, 1));
    study.register(0, 1, 0);
    let mut client = study.joined(Identity::of(0));
    let attacks = attacks();
    for (step, (file, bytes)) in attacks.iter().enumerate() {
        attack(&mut crate::client::open(study.session.address()), bytes);
        assert!(send_step(&mut client, 0, step as u64));
        assert_eq!(study.get(), Some(key(0, 0, step as u64)), "after {file}");
        let refused = study.session.counters().connections_refused;
        assert_eq!(refused, step as u64 + 1, "{file} was not refused once: {:?}", study.refusals());
    }
    client.finalize(attacks.len() as u64).unwrap();
}

#[test]
fn an_attack_behind_a_proved_key_ends_its_own_attempt() {
    let study = Study::start(config(2), fifo(1000, 2));
    study.register(0, 1, 0);
    let mut client = study.joined(Identity::of(0));
    let attacks = attacks();
    for (step, (file, bytes)) in attacks.iter().enumerate() {
        let step = step as u64;
        let attempt = step as u32 + 1;
        study.register(1, attempt, 0);
        let mut attacker = study.joined(Identity::of(1).attempt(attempt));
        assert!(send_step(&mut attacker, 0, step));
        assert_eq!(study.get(), Some(key(1, 0, step)));
        attack(&mut attacker.stream, bytes);
        let state = study.wait_status(1, Status::Disconnected);
        assert_eq!(state.steps_complete, step + 1, "after {file}: {}", state.error);
        assert!(send_step(&mut client, 0, step));
        assert_eq!(study.get(), Some(key(0, 0, step)), "after {file}");
        eventually("it is counted", || study.session.counters().connections_refused == step + 1);
    }
    client.finalize(attacks.len() as u64).unwrap();
    assert_eq!(study.session.ledger_sums().declared, 2 * attacks.len() as u64, "attacks declare nothing");
}
