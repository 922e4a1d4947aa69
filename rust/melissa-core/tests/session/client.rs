//! A small blocking client made of the wire functions alone: it can do what a real client does, and what none should.

use melissa_core::schema::Dtype;
use melissa_core::wire::auth::{Side, StudyKey, Transcript, nonce, prove, verify};
use melissa_core::wire::handshake::{
    Accepted, Challenge, FieldShare, Hello, Join, Message, Proof, Refused, Welcome, encode_frame, parse,
};
use melissa_core::wire::header::{FLAG_PAYLOAD_CRC, HEADER_SIZE, Header, Kind};
use melissa_core::wire::{PROTOCOL, ROLE_CLIENT};
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

/// Far longer than anything here takes; a test that meets it has failed.
pub const PATIENCE: Duration = Duration::from_secs(60);

pub const KEY: [u8; 32] = [7; 32];

/// Who a client says that it is.
#[derive(Clone)]
pub struct Identity {
    pub key: StudyKey,
    pub study_epoch: u64,
    pub simulation: u32,
    pub attempt: u32,
    pub rank: u32,
    pub size: u32,
}

impl Identity {
    pub fn of(simulation: u32) -> Self {
        Self {
            key: StudyKey::from_bytes(&KEY).unwrap(),
            study_epoch: 1,
            simulation,
            attempt: 1,
            rank: 0,
            size: 1,
        }
    }

    pub fn attempt(self, attempt: u32) -> Self {
        Self { attempt, ..self }
    }

    pub fn rank(self, rank: u32, size: u32) -> Self {
        Self { rank, size, ..self }
    }

    pub fn hello(&self) -> Hello {
        Hello {
            protocol: PROTOCOL,
            software: "test".into(),
            role: ROLE_CLIENT.into(),
            nonce: nonce().unwrap(),
            study_epoch: self.study_epoch,
            simulation: self.simulation,
            attempt: self.attempt,
            rank: self.rank,
            size: self.size,
            host: format!("host-{}", self.simulation),
            pid: std::process::id(),
        }
    }
}

/// What a server said instead of what was expected.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Answer {
    Refused(Refused),
    Stop,
    Closed,
    Frame(Kind),
}

impl Answer {
    /// Code and text of a refusal.
    pub fn refused(self) -> (String, String) {
        match self {
            Self::Refused(refused) => (refused.code, refused.message),
            other => panic!("a refusal was expected, and {other:?} came"),
        }
    }
}

pub struct Client {
    pub stream: TcpStream,
    pub who: Identity,
    pub welcome: Option<Welcome>,
}

/// A plain connection.
pub fn open(address: &str) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

/// The next frame, or how the connection ended.
pub fn read_frame(stream: &mut TcpStream) -> Result<(Header, Vec<u8>), Answer> {
    let mut bytes = [0; HEADER_SIZE];
    let mut read = |bytes: &mut [u8]| match stream.read_exact(bytes) {
        Ok(()) => Ok(()),
        Err(error) if matches!(error.kind(), ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset) => {
            Err(Answer::Closed)
        }
        Err(error) => panic!("reading failed: {error}"),
    };
    read(&mut bytes)?;
    let header = Header::parse(&bytes).unwrap();
    let mut payload = vec![0; header.payload_len()];
    read(&mut payload)?;
    match header.kind {
        Kind::Refused => Err(Answer::Refused(parse(&payload).unwrap())),
        Kind::Stop => Err(Answer::Stop),
        _ => Ok((header, payload)),
    }
}

pub fn expect(stream: &mut TcpStream, kind: Kind) -> Result<Vec<u8>, Answer> {
    let (header, payload) = read_frame(stream)?;
    if header.kind == kind { Ok(payload) } else { Err(Answer::Frame(header.kind)) }
}

pub fn write_message<T: Message>(stream: &mut TcpStream, message: &T) {
    // A server that refuses closes its side: the answer is what counts then.
    let _ = stream.write_all(&encode_frame(T::KIND, message));
}

impl Client {
    /// Connects and proves the key.
    pub fn connect(address: &str, who: Identity) -> Result<Self, Answer> {
        let mut stream = open(address);
        let hello = who.hello();
        write_message(&mut stream, &hello);
        let challenge: Challenge = parse(&expect(&mut stream, Kind::Challenge)?).unwrap();
        let transcript = Transcript {
            protocol: hello.protocol,
            role: &hello.role,
            client_nonce: hello.nonce,
            server_nonce: challenge.nonce,
            study_epoch: hello.study_epoch,
            simulation: hello.simulation,
            attempt: hello.attempt,
            rank: hello.rank,
            size: hello.size,
        };
        let server_proved = verify(&who.key, Side::Server, &transcript, &challenge.proof);
        let proof = prove(&who.key, Side::Client, &transcript);
        write_message(&mut stream, &Proof { proof });
        let _: Accepted = parse(&expect(&mut stream, Kind::Accepted)?).unwrap();
        assert!(server_proved);
        Ok(Self { stream, who, welcome: None })
    }

    pub fn send_join(&mut self, fields: &[(&str, Dtype, u64)]) {
        let share = |&(name, dtype, size): &(&str, Dtype, u64)| FieldShare { name: name.into(), dtype, size };
        write_message(&mut self.stream, &Join { fields: fields.iter().map(share).collect() });
    }

    pub fn read_welcome(&mut self) -> Result<Welcome, Answer> {
        let welcome: Welcome = parse(&expect(&mut self.stream, Kind::Welcome)?).unwrap();
        self.welcome = Some(welcome.clone());
        Ok(welcome)
    }

    pub fn join(&mut self, fields: &[(&str, Dtype, u64)]) -> Result<Welcome, Answer> {
        self.send_join(fields);
        self.read_welcome()
    }

    /// The header of this rank's share of a field of `count` local elements.
    pub fn header(&self, field: usize, time_step: u64, count: u64) -> Header {
        let layout = &self.welcome.as_ref().unwrap().fields[field];
        Header {
            kind: Kind::Data,
            dtype: Some(layout.dtype),
            simulation: self.who.simulation,
            client_rank: self.who.rank,
            field: layout.index,
            flags: 0,
            time_step,
            element_offset: layout.offset,
            element_count: count,
            payload_length: count * layout.dtype.size() as u64,
            payload_crc: 0,
        }
    }

    /// One share of one field, with its checksum when the server asked for it. False when the connection is over.
    pub fn send(&mut self, field: usize, time_step: u64, bytes: &[u8]) -> bool {
        let welcome = self.welcome.as_ref().unwrap();
        let count = (bytes.len() / welcome.fields[field].dtype.size()) as u64;
        let mut header = self.header(field, time_step, count);
        if welcome.payload_crc {
            header.flags = FLAG_PAYLOAD_CRC;
            header.payload_crc = crc32c::crc32c(bytes);
        }
        self.write(&[&header.encode()[..], bytes].concat())
    }

    /// False when the connection is over.
    pub fn write(&mut self, bytes: &[u8]) -> bool {
        match self.stream.write_all(bytes) {
            Ok(()) => true,
            Err(error)
                if matches!(
                    error.kind(),
                    ErrorKind::BrokenPipe | ErrorKind::ConnectionReset | ErrorKind::ConnectionAborted
                ) =>
            {
                false
            }
            Err(error) => panic!("writing failed: {error}"),
        }
    }

    pub fn send_finalize(&mut self, steps: u64) {
        let header = Header {
            simulation: self.who.simulation,
            client_rank: self.who.rank,
            time_step: steps,
            ..Header::control(Kind::Finalize, 0)
        };
        self.write(&header.encode());
    }

    pub fn read_acknowledgement(&mut self) -> Result<(), Answer> {
        expect(&mut self.stream, Kind::FinalizeAck).map(|_| ())
    }

    pub fn finalize(&mut self, steps: u64) -> Result<(), Answer> {
        self.send_finalize(steps);
        self.read_acknowledgement()
    }

    /// Whether the server has said something that was not read yet, or the connection is over.
    pub fn has_answer(&self) -> bool {
        self.stream.set_nonblocking(true).unwrap();
        let peeked = self.stream.peek(&mut [0]);
        self.stream.set_nonblocking(false).unwrap();
        !matches!(peeked, Err(error) if error.kind() == ErrorKind::WouldBlock)
    }

    /// What the server says next.
    pub fn answer(&mut self) -> Answer {
        match read_frame(&mut self.stream) {
            Ok((header, _)) => Answer::Frame(header.kind),
            Err(answer) => answer,
        }
    }
}
