//! Signs of life: that they come whole and in time, that they end, and that a peer who does not read costs nothing.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use melissa_core::heartbeat::Heartbeat;
use std::io::Read;
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

const PERIOD: Duration = Duration::from_millis(5);
const SOON: Duration = Duration::from_secs(20);

fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let ours = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let peers = listener.accept().unwrap().0;
    peers.set_read_timeout(Some(SOON)).unwrap();
    (ours, peers)
}

fn until(condition: impl Fn() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < SOON);
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn beats_come_whole_one_after_the_other_until_it_is_stopped() {
    let (ours, mut peers) = pair();
    let start = Instant::now();
    let mut heartbeat = Heartbeat::start(ours.into(), b"alive!".to_vec(), PERIOD).unwrap();
    let mut beats = [0; 6 * 10];
    peers.read_exact(&mut beats).unwrap();
    assert!(start.elapsed() >= 9 * PERIOD);
    assert!(beats.chunks(6).all(|beat| beat == b"alive!"));
    assert!(heartbeat.is_beating());
    heartbeat.stop();
    assert!(!heartbeat.is_beating());
    let mut rest = Vec::new();
    peers.read_to_end(&mut rest).unwrap();
    assert!(rest.chunks(6).all(|beat| beat == b"alive!"));
}

#[test]
fn stopping_does_not_wait_for_the_next_beat() {
    let (ours, _peers) = pair();
    let start = Instant::now();
    drop(Heartbeat::start(ours.into(), vec![1], Duration::from_secs(3600)).unwrap());
    assert!(start.elapsed() < SOON);
}

#[test]
fn it_ends_when_the_peer_is_gone() {
    let (ours, peers) = pair();
    let heartbeat = Heartbeat::start(ours.into(), vec![1], PERIOD).unwrap();
    drop(peers);
    until(|| !heartbeat.is_beating());
}

#[test]
fn a_peer_who_reads_late_gets_whole_beats_all_the_same() {
    let (ours, mut peers) = pair();
    let beat: Vec<u8> = (0..=255).cycle().take(1 << 20).collect();
    // The kernel holds a few of them: the last one is cut.
    let heartbeat = Heartbeat::start(ours.into(), beat.clone(), Duration::from_micros(100)).unwrap();
    std::thread::sleep(Duration::from_millis(100));
    let mut received = vec![0; beat.len()];
    for _ in 0..20 {
        peers.read_exact(&mut received).unwrap();
        assert!(received == beat);
    }
    assert!(heartbeat.is_beating());
}
