//! A client rank that speaks to each server rank when the test says so: for what a whole client does in one call.

use crate::server::key;
use melissa_core::schema::Dtype;
use melissa_core::wire::auth::{Side, Transcript, nonce, prove};
use melissa_core::wire::handshake::{
    self, Accepted, Challenge, FieldShare, Hello, Join, Message, Proof, Welcome, encode_frame,
};
use melissa_core::wire::header::{HEADER_SIZE, Header, Kind};
use melissa_core::wire::{PROTOCOL, ROLE_CLIENT};
use std::io::{Read, Write};
use std::net::TcpStream;

/// One rank, and its connection to each server rank.
pub struct Rank {
    hello: Hello,
    streams: Vec<TcpStream>,
}

fn read<T: Message>(stream: &mut TcpStream) -> T {
    let mut bytes = [0; HEADER_SIZE];
    stream.read_exact(&mut bytes).unwrap();
    let header = Header::parse(&bytes).unwrap();
    assert_eq!(header.kind, T::KIND);
    let mut payload = vec![0; header.payload_len()];
    stream.read_exact(&mut payload).unwrap();
    handshake::parse(&payload).unwrap()
}

impl Rank {
    /// A rank that has proved the key to every server rank.
    pub fn of(addresses: &str, simulation: u32, attempt: u32, rank: u32, size: u32) -> Self {
        let hello = Hello {
            protocol: PROTOCOL,
            software: "test".into(),
            role: ROLE_CLIENT.into(),
            nonce: nonce().unwrap(),
            study_epoch: 1,
            simulation,
            attempt,
            rank,
            size,
            host: "here".into(),
            pid: std::process::id(),
        };
        let greet = |address| {
            let mut stream = TcpStream::connect(address).unwrap();
            stream.set_read_timeout(Some(crate::server::PATIENCE)).unwrap();
            stream.write_all(&encode_frame(Kind::Hello, &hello)).unwrap();
            let challenge: Challenge = read(&mut stream);
            let transcript = Transcript {
                protocol: PROTOCOL,
                role: ROLE_CLIENT,
                client_nonce: hello.nonce,
                server_nonce: challenge.nonce,
                study_epoch: 1,
                simulation,
                attempt,
                rank,
                size,
            };
            let proof = Proof { proof: prove(&key(), Side::Client, &transcript) };
            stream.write_all(&encode_frame(Kind::Proof, &proof)).unwrap();
            let _: Accepted = read(&mut stream);
            stream
        };
        let streams = addresses.split(',').map(greet).collect();
        Self { hello, streams }
    }

    /// A solver of one rank, joined everywhere with one field `u` of twelve elements.
    pub fn join(addresses: &str, simulation: u32, attempt: u32) -> Self {
        let mut rank = Self::of(addresses, simulation, attempt, 0, 1);
        for server in 0..rank.streams.len() {
            rank.join_one(server, "u", 12);
            let _: Welcome = read(&mut rank.streams[server]);
        }
        rank
    }

    /// Declares one field to one server rank; the answer is left where it is.
    pub fn join_one(&mut self, server: usize, name: &str, size: u64) {
        let fields = vec![FieldShare { name: name.into(), dtype: Dtype::F64, size }];
        self.streams[server].write_all(&encode_frame(Kind::Join, &Join { fields })).unwrap();
    }

    /// Finalizes on one server rank, and waits for its answer.
    pub fn finalize(&mut self, server: usize, steps: u64) {
        let header = Header {
            simulation: self.hello.simulation,
            client_rank: self.hello.rank,
            time_step: steps,
            ..Header::control(Kind::Finalize, 0)
        };
        self.streams[server].write_all(&header.encode()).unwrap();
        let mut bytes = [0; HEADER_SIZE];
        self.streams[server].read_exact(&mut bytes).unwrap();
        assert_eq!(Header::parse(&bytes).unwrap().kind, Kind::FinalizeAck);
    }
}
