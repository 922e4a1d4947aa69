//! A server of a few lines: it speaks the protocol as a script says, and counts on nothing of the real one.

use melissa_client::{Client, ClientConfig, ClientError};
use melissa_core::schema::Dtype;
use melissa_core::wire::auth::{self, Side, StudyKey, Transcript};
use melissa_core::wire::handshake::{
    self, Accepted, Challenge, FieldLayout, Hello, Join, Message, Proof, Refused, Welcome, encode_frame,
};
use melissa_core::wire::header::{HEADER_SIZE, Header, Kind};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread::JoinHandle;
use std::time::Duration;

/// Nothing in these tests takes as long: what does hangs.
pub const PATIENCE: Duration = Duration::from_secs(20);

pub fn key() -> StudyKey {
    StudyKey::from_bytes(&[42; 32]).unwrap()
}

pub fn other_key() -> StudyKey {
    StudyKey::from_bytes(&[43; 32]).unwrap()
}

/// Listens on a free port and runs the script on the connections that come.
pub fn serve<T: Send + 'static>(
    script: impl FnOnce(Listener) -> T + Send + 'static,
) -> (String, JoinHandle<T>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    (address, std::thread::spawn(move || script(Listener(listener))))
}

pub fn config(address: &str) -> ClientConfig {
    ClientConfig {
        simulation: 7,
        attempt: 2,
        rank: 1,
        size: 4,
        timeout: PATIENCE,
        ..ClientConfig::new(address, key())
    }
}

pub fn connect(address: &str) -> Client {
    Client::connect(config(address), None).unwrap()
}

/// A client with one declared field.
pub fn connect_with(address: &str, name: &str, size: usize, dtype: Dtype) -> Client {
    let mut client = connect(address);
    client.init(name, size, dtype).unwrap();
    client
}

pub struct Listener(TcpListener);

impl Listener {
    pub fn accept(&self) -> Peer {
        let (stream, _) = self.0.accept().unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        Peer(stream)
    }

    /// A connection that has proved the key.
    pub fn accept_client(&self) -> Peer {
        let mut peer = self.accept();
        peer.greet(&key());
        peer
    }
}

/// The server's side of one connection.
pub struct Peer(pub TcpStream);

impl Peer {
    pub fn frame(&mut self) -> (Header, Vec<u8>) {
        let mut bytes = [0; HEADER_SIZE];
        self.0.read_exact(&mut bytes).unwrap();
        let header = Header::parse(&bytes).unwrap();
        let mut payload = vec![0; header.payload_len()];
        self.0.read_exact(&mut payload).unwrap();
        (header, payload)
    }

    pub fn message<T: Message>(&mut self) -> T {
        let (header, payload) = self.frame();
        assert_eq!(header.kind, T::KIND);
        handshake::parse(&payload).unwrap()
    }

    pub fn say<T: Message>(&mut self, message: &T) {
        self.raw(&encode_frame(T::KIND, message));
    }

    pub fn raw(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).unwrap();
    }

    pub fn control(&mut self, kind: Kind) {
        self.raw(&Header::control(kind, 0).encode());
    }

    pub fn refuse(&mut self, code: &str, message: &str) {
        self.say(&Refused { code: code.into(), message: message.into() });
    }

    /// Whether the client has closed, and sent nothing before it.
    pub fn is_closed(&mut self) -> bool {
        let mut rest = Vec::new();
        match self.0.read_to_end(&mut rest) {
            Ok(_) => rest.is_empty(),
            Err(error) => error.kind() == std::io::ErrorKind::ConnectionReset,
        }
    }

    pub fn transcript(hello: &Hello, server_nonce: [u8; 32]) -> Transcript<'_> {
        Transcript {
            protocol: hello.protocol,
            role: &hello.role,
            client_nonce: hello.nonce,
            server_nonce,
            study_epoch: hello.study_epoch,
            simulation: hello.simulation,
            attempt: hello.attempt,
            rank: hello.rank,
            size: hello.size,
        }
    }

    /// Reads Hello and answers with the proof that this key makes.
    pub fn challenge(&mut self, key: &StudyKey) -> (Hello, [u8; 32]) {
        let hello: Hello = self.message();
        let nonce = auth::nonce().unwrap();
        let proof = auth::prove(key, Side::Server, &Self::transcript(&hello, nonce));
        self.say(&Challenge { protocol: hello.protocol, software: "test server".into(), nonce, proof });
        (hello, nonce)
    }

    /// The whole handshake.
    pub fn greet(&mut self, key: &StudyKey) -> Hello {
        let (hello, nonce) = self.challenge(key);
        let Proof { proof } = self.message();
        assert!(auth::verify(key, Side::Client, &Self::transcript(&hello, nonce), &proof));
        self.say(&Accepted {});
        hello
    }

    /// Reads Join and welcomes with float32 for every field, this rank's share first and alone.
    pub fn welcome(&mut self) -> Join {
        self.welcome_with(|_| {})
    }

    pub fn welcome_with(&mut self, change: impl FnOnce(&mut Welcome)) -> Join {
        let join: Join = self.message();
        let mut welcome = Welcome {
            fields: join
                .fields
                .iter()
                .zip(0..)
                .map(|(field, index)| FieldLayout {
                    name: field.name.clone(),
                    index,
                    dtype: Dtype::F32,
                    size: field.size,
                    offset: 0,
                })
                .collect(),
            servers: vec!["127.0.0.1:1".into()],
            distribution: "round_robin".into(),
            complete: vec![],
            payload_crc: false,
        };
        change(&mut welcome);
        self.say(&welcome);
        join
    }

    /// Reads the data frames until Finalize, acknowledges it, and gives them all.
    pub fn until_finalized(&mut self) -> (Vec<(Header, Vec<u8>)>, Header) {
        let mut frames = Vec::new();
        loop {
            let (header, payload) = self.frame();
            if header.kind == Kind::Finalize {
                self.control(Kind::FinalizeAck);
                return (frames, header);
            }
            assert_eq!(header.kind, Kind::Data);
            frames.push((header, payload));
        }
    }
}

pub fn floats(payload: &[u8]) -> Vec<f32> {
    payload.chunks_exact(4).map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap())).collect()
}

/// Every text says whose connection it is about.
pub fn assert_names_the_place(error: &ClientError, address: &str) {
    let text = error.to_string();
    assert!(text.starts_with("simulation 7, attempt 2, rank 1 of 4, server "), "{text}");
    assert!(text.contains(address), "{text}");
}
