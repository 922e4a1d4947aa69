//! One connection: frames out, frames in, and neither direction ever waits without watching the other, and the
//! connections to the other server ranks.

use crate::config::ClientConfig;
use crate::error::{ClientError, Doing, Endpoint};
use crate::os::{self, Entry};
use crate::wait::{Interrupt, Over, Wait};
use melissa_core::wire::handshake::{self, Message, Refused};
use melissa_core::wire::header::{HEADER_SIZE, Header, HeaderError, Kind};
use melissa_core::wire::local;
use socket2::{Domain, Protocol, SockAddr, SockRef, Socket, TcpKeepalive, Type};
use std::io::{self, IoSlice, Read};
use std::net::{Shutdown, SocketAddr, ToSocketAddrs};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Probes of an idle connection before the kernel gives it up.
const KEEPALIVE_PROBES: u32 = 5;

pub struct Connection {
    /// Non-blocking; closed on exec.
    socket: Socket,
    at: Arc<Endpoint>,
    /// Bytes of the server that are not a whole frame yet.
    incoming: Vec<u8>,
    /// The header at the start of `incoming`, once it is there and was checked.
    header: Option<Header>,
    /// Both sides have proved the key. Before that nobody may tell the solver to stop.
    authenticated: bool,
    /// `Finalize` is out: its answer may come at any time.
    finalized: bool,
    /// The answer has come: nothing more is wanted of the server.
    acknowledged: bool,
}

/// The connections to other server ranks, which are listened to while one waits for one.
pub struct Others<'a> {
    before: &'a mut [Connection],
    after: &'a mut [Connection],
}

impl<'a> Others<'a> {
    /// Those beside a connection that is still to be made.
    pub fn of(connections: &'a mut [Connection]) -> Self {
        Self { before: connections, after: &mut [] }
    }

    /// The connection to a server rank, and those to the others.
    pub fn beside(connections: &'a mut [Connection], rank: usize) -> Option<(&'a mut Connection, Self)> {
        let (before, rest) = connections.split_at_mut_checked(rank)?;
        let (connection, after) = rest.split_first_mut()?;
        Some((connection, Self { before, after }))
    }

    /// All from which something may come.
    fn watched(&mut self) -> impl Iterator<Item = &mut Connection> {
        self.before.iter_mut().chain(self.after.iter_mut()).filter(|connection| !connection.acknowledged)
    }

    /// Waits until the descriptor is ready, and listens meanwhile.
    ///
    /// # Errors
    /// What one of the other server ranks says; what the system says of the wait.
    fn poll(
        &mut self,
        fd: BorrowedFd<'_>,
        for_writing: bool,
        doing: &Doing,
        timeout: Duration,
    ) -> Result<io::Result<os::Ready>, ClientError> {
        if self.before.is_empty() && self.after.is_empty() {
            return Ok(os::poll(fd, for_writing, timeout));
        }
        let mut entries = vec![Entry::new(fd, for_writing)];
        entries.extend(self.watched().map(|other| Entry::new(other.socket.as_fd(), false)));
        let signal = match os::poll_all(&mut entries, timeout) {
            Ok(signal) => signal,
            Err(error) => return Ok(Err(error)),
        };
        for (other, entry) in self.watched().zip(&entries[1..]) {
            if entry.readable() {
                other.listen(doing)?;
            }
        }
        Ok(Ok(os::Ready { readable: entries[0].readable(), writable: entries[0].writable(), signal }))
    }

    /// Why the study or this client ends, if one of the other server ranks has said it.
    fn last_words(&mut self, doing: &Doing) -> Option<ClientError> {
        self.watched().find_map(|other| match other.listen(doing) {
            Err(said @ (ClientError::Refused { .. } | ClientError::Stopped { .. })) => Some(said),
            _ => None,
        })
    }
}

/// Reads what is there on any of the connections without waiting.
pub fn listen_to_all(connections: &mut [Connection], doing: &Doing) -> Result<(), ClientError> {
    if let [only] = connections {
        return only.listen(doing);
    }
    let mut entries: Vec<Entry> =
        connections.iter().map(|connection| Entry::new(connection.socket.as_fd(), false)).collect();
    let polled = os::poll_all(&mut entries, Duration::ZERO);
    for (connection, entry) in connections.iter_mut().zip(&entries) {
        // A wait that failed says nothing of any of them: each is read then.
        if polled.is_err() || entry.readable() {
            connection.listen(doing)?;
        }
    }
    Ok(())
}

/// What reading gave.
enum Received {
    Bytes,
    Nothing,
    End,
}

impl Connection {
    fn new(socket: Socket, at: &Arc<Endpoint>) -> Self {
        Self {
            socket,
            at: Arc::clone(at),
            incoming: Vec::new(),
            header: None,
            authenticated: false,
            finalized: false,
            acknowledged: false,
        }
    }

    /// Connects to the Unix socket of the server rank on its own host, else to the first of its addresses that answers.
    pub fn open(
        config: &ClientConfig,
        at: &Arc<Endpoint>,
        deadline: Instant,
        interrupt: Interrupt<'_>,
        others: &mut Others<'_>,
    ) -> Result<Self, ClientError> {
        let local = || local::socket(&config.key, config.study_epoch, &at.address);
        if let Some(socket) = config.local_socket.then(|| connect_here(&local())).flatten() {
            return Ok(Self::new(socket, at));
        }
        let unresolved = |source| ClientError::Address { at: Arc::clone(at), source: Arc::new(source) };
        let addresses = at.address.to_socket_addrs().map_err(unresolved)?;
        let mut wait = Wait::new(interrupt, Some(deadline));
        let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
        for address in addresses {
            match connect(address, &mut wait, others)? {
                Ok(Ok(socket)) => {
                    let connection = Self::new(socket, at);
                    return match connection.set_options(config.peer_silence) {
                        Ok(()) => Ok(connection),
                        Err(source) => Err(connection.lost(&Doing::Connecting, Some(source))),
                    };
                }
                Ok(Err(error)) => last = error,
                Err(Over::Interrupted) => {
                    return Err(ClientError::Interrupted { at: Arc::clone(at), doing: Doing::Connecting });
                }
                Err(Over::TimedOut) => {
                    last = io::ErrorKind::TimedOut.into();
                    break;
                }
            }
        }
        Err(ClientError::Connect { at: Arc::clone(at), waited: wait.waited(), source: Arc::new(last) })
    }

    fn set_options(&self, peer_silence: Duration) -> io::Result<()> {
        // A header waits for no acknowledgement of the body before it.
        self.socket.set_tcp_nodelay(true)?;
        // Not TCP_USER_TIMEOUT: that one also ends a connection whose server is well and merely does not read,
        // which is how a full training buffer holds a solver back.
        let interval = (peer_silence / (2 * KEEPALIVE_PROBES)).max(Duration::from_secs(1));
        let idle = peer_silence.saturating_sub(interval * KEEPALIVE_PROBES).max(Duration::from_secs(1));
        self.socket.set_tcp_keepalive(
            &TcpKeepalive::new().with_time(idle).with_interval(interval).with_retries(KEEPALIVE_PROBES),
        )
    }

    /// From now on the server is who it should be, and may say `Stop`.
    pub fn set_authenticated(&mut self) {
        self.authenticated = true;
    }

    /// `Finalize` was written.
    pub fn set_finalized(&mut self) {
        self.finalized = true;
    }

    /// Writes all bytes of these pieces; ends early when a server rank says that it is over.
    pub fn write(
        &mut self,
        mut pieces: &mut [IoSlice<'_>],
        doing: &Doing,
        wait: &mut Wait<'_>,
        others: &mut Others<'_>,
    ) -> Result<(), ClientError> {
        while !pieces.is_empty() {
            // MSG_NOSIGNAL: a C or Fortran solver would die of SIGPIPE.
            match self.socket.send_vectored_with_flags(pieces, libc::MSG_NOSIGNAL) {
                Ok(written) => IoSlice::advance_slices(&mut pieces, written),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    let ready = self.poll(true, doing, wait, others)?;
                    if ready.readable {
                        self.listen(doing)?;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => self.look(true, doing, wait)?,
                Err(error) => return Err(self.last_words(doing, error, others)),
            }
        }
        Ok(())
    }

    /// Reads what is there without waiting: nothing but `Refused` and `Stop` may come while a client sends, and the answer to
    /// `Finalize` while another server rank's is waited for.
    pub fn listen(&mut self, doing: &Doing) -> Result<(), ClientError> {
        loop {
            let received = self.receive();
            if let Some((kind, _)) = self.take_frame(doing)? {
                if kind == Kind::FinalizeAck && self.finalized {
                    self.acknowledged = true;
                    return Ok(());
                }
                return Err(self.unexpected(kind, "nothing but Refused or Stop", doing));
            }
            match received {
                Ok(Received::Bytes) => {}
                Ok(Received::Nothing) => return Ok(()),
                Ok(Received::End) => return Err(self.lost(doing, None)),
                Err(source) => return Err(self.lost(doing, Some(source))),
            }
        }
    }

    /// Waits for the answer to `Finalize`, which may have come already.
    pub fn expect_acknowledgement(
        &mut self,
        wait: &mut Wait<'_>,
        others: &mut Others<'_>,
    ) -> Result<(), ClientError> {
        if !self.acknowledged {
            self.expect(Kind::FinalizeAck, &Doing::Finalizing, wait, others)?;
            self.acknowledged = true;
        }
        Ok(())
    }

    /// Waits for the frame of this kind; its payload.
    fn expect(
        &mut self,
        kind: Kind,
        doing: &Doing,
        wait: &mut Wait<'_>,
        others: &mut Others<'_>,
    ) -> Result<Vec<u8>, ClientError> {
        loop {
            if let Some((came, payload)) = self.take_frame(doing)? {
                if came == kind {
                    return Ok(payload);
                }
                return Err(self.unexpected(came, kind.name(), doing));
            }
            match self.receive() {
                Ok(Received::Bytes) => {}
                Ok(Received::Nothing) => {
                    self.poll(false, doing, wait, others)?;
                }
                Ok(Received::End) => return Err(self.lost(doing, None)),
                Err(source) => return Err(self.lost(doing, Some(source))),
            }
        }
    }

    /// Waits for a message.
    pub fn expect_message<T: Message>(
        &mut self,
        doing: &Doing,
        wait: &mut Wait<'_>,
        others: &mut Others<'_>,
    ) -> Result<T, ClientError> {
        let payload = self.expect(T::KIND, doing, wait, others)?;
        handshake::parse(&payload).map_err(|source| self.bad_message(source))
    }

    /// Tells the server that nothing more comes. What it would still say is not waited for.
    pub fn close(&self) {
        if let Err(error) = self.socket.shutdown(Shutdown::Both) {
            log::debug!("{}: shutdown: {error}", self.at);
        }
    }

    /// One sleep until the socket is ready, with a look at interrupt, deadline and log, and at the other server ranks.
    fn poll(
        &self,
        for_writing: bool,
        doing: &Doing,
        wait: &mut Wait<'_>,
        others: &mut Others<'_>,
    ) -> Result<os::Ready, ClientError> {
        let ready = others
            .poll(self.socket.as_fd(), for_writing, doing, wait.slice())?
            .map_err(|source| self.lost(doing, Some(source)))?;
        self.look(ready.signal, doing, wait)?;
        Ok(ready)
    }

    fn look(&self, signal: bool, doing: &Doing, wait: &mut Wait<'_>) -> Result<(), ClientError> {
        if let Some(waited) = wait.report_due() {
            report(&self.at, doing, waited);
        }
        match (wait.over(signal), doing) {
            (None, _) => Ok(()),
            (Some(Over::TimedOut), Doing::Greeting(expected)) => Err(ClientError::HandshakeTimeout {
                at: Arc::clone(&self.at),
                expected: *expected,
                waited: wait.waited(),
            }),
            (Some(Over::TimedOut), _) => Err(self.lost(doing, Some(io::ErrorKind::TimedOut.into()))),
            (Some(Over::Interrupted), _) => {
                Err(ClientError::Interrupted { at: Arc::clone(&self.at), doing: doing.clone() })
            }
        }
    }

    /// Appends what the socket has to `incoming`.
    fn receive(&mut self) -> io::Result<Received> {
        let mut chunk = [0; 4096];
        loop {
            return match (&self.socket).read(&mut chunk) {
                Ok(0) => Ok(Received::End),
                Ok(count) => {
                    self.incoming.extend_from_slice(&chunk[..count]);
                    Ok(Received::Bytes)
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(Received::Nothing),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => Err(error),
            };
        }
    }

    /// The next whole frame of `incoming`. `Refused` and `Stop` are errors here, wherever they come.
    fn take_frame(&mut self, doing: &Doing) -> Result<Option<(Kind, Vec<u8>)>, ClientError> {
        let bad = |source: HeaderError| ClientError::Header { at: Arc::clone(&self.at), source };
        let header = match self.header {
            Some(header) => header,
            None => {
                let Some((bytes, _)) = self.incoming.split_first_chunk::<HEADER_SIZE>() else {
                    return self.check_start();
                };
                let header = Header::parse(bytes).map_err(bad)?;
                if header.kind == Kind::Data || (header.kind == Kind::Stop && !self.authenticated) {
                    return Err(self.unexpected(header.kind, "a message of a server", doing));
                }
                self.header = Some(header);
                header
            }
        };
        let end = HEADER_SIZE.saturating_add(header.payload_len());
        if self.incoming.len() < end {
            return Ok(None);
        }
        let payload = self.incoming[HEADER_SIZE..end].to_vec();
        self.incoming.drain(..end);
        self.header = None;
        match header.kind {
            Kind::Stop => Err(ClientError::Stopped { at: Arc::clone(&self.at) }),
            Kind::Refused => {
                let Refused { code, message } =
                    handshake::parse(&payload).map_err(|source| self.bad_message(source))?;
                Err(ClientError::Refused { at: Arc::clone(&self.at), code, message })
            }
            kind => Ok(Some((kind, payload))),
        }
    }

    /// Something else than a Melissa server may never send 64 bytes: its first four tell it.
    fn check_start(&self) -> Result<Option<(Kind, Vec<u8>)>, ClientError> {
        match self.incoming.first_chunk() {
            Some(&came) if came != melissa_core::wire::header::MAGIC => {
                Err(ClientError::Header { at: Arc::clone(&self.at), source: HeaderError::Magic { came } })
            }
            _ => Ok(None),
        }
    }

    /// A server that refuses a client closes the connection after it: what it said is waiting to be read, and is the
    /// reason; the broken pipe is not.
    fn last_words(&mut self, doing: &Doing, source: io::Error, others: &mut Others<'_>) -> ClientError {
        loop {
            let received = self.receive();
            match self.take_frame(doing) {
                Err(said @ (ClientError::Refused { .. } | ClientError::Stopped { .. })) => return said,
                // Whatever else it said explains a broken connection less than the error of the system does.
                Err(_) => break,
                Ok(Some(_)) => continue,
                Ok(None) => {}
            }
            if !matches!(received, Ok(Received::Bytes)) {
                break;
            }
        }
        // A study that stops may end its ranks one after another: one of them has said so.
        others.last_words(doing).unwrap_or_else(|| self.lost(doing, Some(source)))
    }

    fn lost(&self, doing: &Doing, source: Option<io::Error>) -> ClientError {
        ClientError::ServerLost {
            at: Arc::clone(&self.at),
            doing: doing.clone(),
            source: source.map(Arc::new),
        }
    }

    fn unexpected(&self, came: Kind, expected: &'static str, doing: &Doing) -> ClientError {
        ClientError::UnexpectedFrame { at: Arc::clone(&self.at), came, expected, doing: doing.clone() }
    }

    fn bad_message(&self, source: handshake::HandshakeError) -> ClientError {
        ClientError::Message { at: Arc::clone(&self.at), source: Arc::new(source) }
    }
}

/// The server's Unix socket, if it has one that this process can see and enter.
fn connect_here(path: &Path) -> Option<Socket> {
    let connected = Socket::new(Domain::UNIX, Type::STREAM, None).and_then(|socket| {
        socket.set_nonblocking(true)?;
        // It is there at once or not at all: the kernel waits for nobody but the row of those who connect to be shorter.
        socket.connect(&SockAddr::unix(path)?)?;
        Ok(socket)
    });
    connected.inspect_err(|error| log::debug!("TCP is used, {} cannot be: {error}", path.display())).ok()
}

/// One attempt at one address.
///
/// # Errors
/// What another server rank says meanwhile.
fn connect(
    address: SocketAddr,
    wait: &mut Wait<'_>,
    others: &mut Others<'_>,
) -> Result<Result<io::Result<Socket>, Over>, ClientError> {
    let started =
        Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP)).and_then(|socket| {
            socket.set_nonblocking(true)?;
            match socket.connect(&address.into()) {
                Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => Err(error),
                _ => Ok(socket),
            }
        });
    let socket = match started {
        Ok(socket) => socket,
        Err(error) => return Ok(Ok(Err(error))),
    };
    loop {
        let ready = match others.poll(socket.as_fd(), true, &Doing::Connecting, wait.slice())? {
            Ok(ready) => ready,
            Err(error) => return Ok(Ok(Err(error))),
        };
        if ready.writable {
            return Ok(Ok(match SockRef::from(&socket).take_error() {
                Ok(None) => Ok(socket),
                Ok(Some(error)) | Err(error) => Err(error),
            }));
        }
        if let Some(over) = wait.over(ready.signal) {
            return Ok(Err(over));
        }
    }
}

/// Says in the log what a long wait waits for.
fn report(at: &Endpoint, doing: &Doing, waited: Duration) {
    let seconds = waited.as_secs();
    match doing {
        Doing::Joining if at.size > 1 => log::warn!(
            "{at}: has waited {seconds} s for the server's Welcome. It comes when all {} ranks of this simulation \
             have called melissa_send once and the server can promise them a slot: see which of them have started",
            at.size
        ),
        Doing::Joining => log::warn!(
            "{at}: has waited {seconds} s for the server's Welcome. It comes when the server can promise this \
             simulation a slot: see the server's log"
        ),
        Doing::Finalizing => log::warn!(
            "{at}: has waited {seconds} s in melissa_finalize. The server has not got every step of this simulation \
             into its training buffer yet: {}the buffer is full and training has to take samples out of it",
            if at.size > 1 { "other ranks have not sent theirs, or " } else { "" }
        ),
        // Back-pressure is how a study runs, so that this is no warning.
        Doing::Sending { .. } => log::info!(
            "{at}: has waited {seconds} s while {doing}: the server does not read, most likely because its training \
             buffer is full"
        ),
        Doing::Connecting | Doing::Greeting(_) => log::info!("{at}: has waited {seconds} s while {doing}"),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use melissa_core::wire::auth::StudyKey;
    use melissa_core::wire::handshake::{code, encode_frame};
    use std::io::Write;
    use std::net::{TcpListener, TcpStream};

    fn pair() -> (Connection, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let at = Endpoint { address: address.clone(), simulation: 0, attempt: 1, rank: 0, size: 1 };
        let config = ClientConfig::new(address, StudyKey::from_bytes(&[1; 32]).unwrap());
        let deadline = Instant::now() + Duration::from_secs(20);
        let none = &mut Others::of(&mut []);
        let connection = Connection::open(&config, &Arc::new(at), deadline, None, none).unwrap();
        (connection, listener.accept().unwrap().0)
    }

    /// Writes without having looked at what the server says, as when it says it between look and write.
    fn error_of_a_write(connection: &mut Connection) -> ClientError {
        let bytes = [0; 1000];
        loop {
            let mut wait = Wait::new(None, None);
            let none = &mut Others::of(&mut []);
            let written = connection.write(&mut [IoSlice::new(&bytes)], &Doing::Finalizing, &mut wait, none);
            if let Err(error) = written {
                return error;
            }
        }
    }

    #[test]
    fn a_write_that_fails_reports_the_refusal_that_came_before_the_reset() {
        let (mut connection, mut server) = pair();
        let mut wait = Wait::new(None, None);
        let none = &mut Others::of(&mut []);
        connection.write(&mut [IoSlice::new(b"unread")], &Doing::Finalizing, &mut wait, none).unwrap();
        let refused = Refused { code: code::STEP.into(), message: "step 3 came twice".into() };
        server.write_all(&encode_frame(Kind::Refused, &refused)).unwrap();
        drop(server);
        let error = error_of_a_write(&mut connection);
        assert!(matches!(&error, ClientError::Refused { code, .. } if code == code::STEP), "{error}");
    }

    #[test]
    fn a_write_that_fails_without_a_word_of_the_server_reports_the_error_of_the_system() {
        let (mut connection, mut server) = pair();
        server.write_all(&Header::control(Kind::FinalizeAck, 0).encode()[..40]).unwrap();
        drop(server);
        let error = error_of_a_write(&mut connection);
        let ClientError::ServerLost { source: Some(source), .. } = error else { unreachable!("{error}") };
        assert!(matches!(source.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset));
    }

    #[test]
    fn a_connection_probes_its_peer_and_never_delays_a_header() {
        let (connection, _server) = pair();
        assert!(connection.socket.tcp_nodelay().unwrap());
        assert!(connection.socket.keepalive().unwrap());
        assert_eq!(connection.socket.tcp_keepalive_time().unwrap(), Duration::from_secs(60));
        assert_eq!(connection.socket.tcp_keepalive_interval().unwrap(), Duration::from_secs(12));
        assert_eq!(connection.socket.tcp_user_timeout().unwrap(), None);
    }
}
