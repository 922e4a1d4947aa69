//! The sockets of a session: TCP from everywhere, and a Unix socket for clients on this host.

use super::listen::prepare;
use crate::wire::auth::StudyKey;
use crate::wire::local;
use mio::event::Source;
use mio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use mio::{Interest, Registry, Token};
use std::fs::{self, DirBuilder};
use std::io::{self, IoSliceMut, Read, Write};
use std::net::{Shutdown, SocketAddr};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

/// The socket of one connection.
#[derive(Debug)]
pub(super) enum Socket {
    Tcp(TcpStream),
    Local(UnixStream),
}

/// Who is at the other end, for errors and the log.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Peer {
    Tcp(SocketAddr),
    /// The process that connected, where the kernel can name it.
    Local(i32),
}

impl std::fmt::Display for Peer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Local(0) => f.write_str("a process of this host"),
            Self::Local(process) => write!(f, "process {process} of this host"),
        }
    }
}

impl Socket {
    /// Sets the options of a socket that was just accepted.
    pub(super) fn prepare(&self) -> io::Result<()> {
        match self {
            Self::Tcp(socket) => prepare(socket),
            Self::Local(_) => Ok(()),
        }
    }

    pub(super) fn read_vectored(&mut self, parts: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        match self {
            Self::Tcp(socket) => socket.read_vectored(parts),
            Self::Local(socket) => socket.read_vectored(parts),
        }
    }

    pub(super) fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(socket) => socket.read(bytes),
            Self::Local(socket) => socket.read(bytes),
        }
    }

    pub(super) fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(socket) => socket.write(bytes),
            Self::Local(socket) => socket.write(bytes),
        }
    }

    pub(super) fn shutdown(&self, how: Shutdown) -> io::Result<()> {
        match self {
            Self::Tcp(socket) => socket.shutdown(how),
            Self::Local(socket) => socket.shutdown(how),
        }
    }

    const fn source(&mut self) -> &mut dyn Source {
        match self {
            Self::Tcp(socket) => socket,
            Self::Local(socket) => socket,
        }
    }

    pub(super) fn register(&mut self, registry: &Registry, token: Token) -> io::Result<()> {
        self.source().register(registry, token, Interest::READABLE | Interest::WRITABLE)
    }

    pub(super) fn deregister(&mut self, registry: &Registry) -> io::Result<()> {
        self.source().deregister(registry)
    }
}

/// What a session listens at.
#[derive(Debug)]
pub(super) struct Listeners {
    tcp: TcpListener,
    tcp_ready: bool,
    local: Option<Local>,
    local_ready: bool,
}

impl Listeners {
    pub(super) const fn new(tcp: TcpListener, local: Option<Local>) -> Self {
        Self { tcp, tcp_ready: true, local, local_ready: true }
    }

    pub(super) fn register(&mut self, registry: &Registry, tcp: Token, local: Token) -> io::Result<()> {
        registry.register(&mut self.tcp, tcp, Interest::READABLE)?;
        match &mut self.local {
            Some(listener) => registry.register(&mut listener.listener, local, Interest::READABLE),
            None => Ok(()),
        }
    }

    /// The kernel says that somebody has connected.
    pub(super) const fn tcp_became_ready(&mut self) {
        self.tcp_ready = true;
    }

    pub(super) const fn local_became_ready(&mut self) {
        self.local_ready = true;
    }

    /// Whether there may be somebody to accept.
    pub(super) const fn are_ready(&self) -> bool {
        self.tcp_ready || (self.local_ready && self.local.is_some())
    }

    /// The next who has connected; `None`: nobody more at one of the listeners.
    pub(super) fn accept(&mut self) -> io::Result<Option<(Socket, Peer)>> {
        let accepted = match &self.local {
            Some(local) if self.local_ready => local.listener.accept().map(|(socket, _)| {
                let peer = Peer::Local(process_behind(&socket));
                (Socket::Local(socket), peer)
            }),
            _ => self.tcp.accept().map(|(socket, peer)| (Socket::Tcp(socket), Peer::Tcp(peer))),
        };
        match accepted {
            Ok(accepted) => Ok(Some(accepted)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                if self.local_ready && self.local.is_some() {
                    self.local_ready = false;
                } else {
                    self.tcp_ready = false;
                }
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }
}

/// The process that connected; 0 where the kernel does not say.
fn process_behind(socket: &UnixStream) -> i32 {
    let mut credentials = libc::ucred { pid: 0, uid: 0, gid: 0 };
    let mut length = size_of::<libc::ucred>() as libc::socklen_t;
    // SAFETY: both pointers are to local variables, of the type and with the length that this option fills.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut credentials).cast(),
            &raw mut length,
        )
    };
    if result == 0 { credentials.pid } else { 0 }
}

/// The Unix socket, in a folder that nobody but this user can enter. Dropped, both are gone.
#[derive(Debug)]
pub(super) struct Local {
    listener: UnixListener,
    folder: PathBuf,
}

impl Local {
    /// Listens where clients of this server look; `None`, and a line in the log, where that cannot be: they take TCP.
    pub(super) fn listen(key: &StudyKey, study_epoch: u64, address: &str) -> Option<Self> {
        let folder = local::folder(key, study_epoch, address);
        let socket = local::socket(key, study_epoch, address);
        match make_private(&folder).and_then(|()| {
            // Of a server that was killed, had the same port and was of the same epoch.
            match fs::remove_file(&socket) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
                _ => UnixListener::bind(&socket),
            }
        }) {
            Ok(listener) => {
                sweep(&folder);
                Some(Self { listener, folder })
            }
            Err(error) => {
                log::info!("no Unix socket at {}, clients on this host use TCP: {error}", socket.display());
                None
            }
        }
    }
}

/// Makes the folder; one that is there already has to be this user's own and nobody else's.
fn make_private(folder: &Path) -> io::Result<()> {
    match DirBuilder::new().mode(0o700).create(folder) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        made => return made,
    }
    if is_private(folder)? {
        return Ok(());
    }
    Err(io::Error::new(
        io::ErrorKind::PermissionDenied,
        "what is there is no folder that only this user can enter",
    ))
}

fn is_private(folder: &Path) -> io::Result<bool> {
    let found = fs::symlink_metadata(folder)?;
    // SAFETY: the call has no arguments and cannot fail.
    let user = unsafe { libc::geteuid() };
    Ok(found.is_dir() && found.uid() == user && found.mode() & 0o077 == 0)
}

/// Removes what this user's servers that were killed have left beside `folder`: sockets that nobody listens at.
fn sweep(folder: &Path) {
    let others = folder.parent().map(fs::read_dir).into_iter().flatten().flatten().flatten();
    // First the sockets, then who is alive: a server that comes up meanwhile is in no danger. A folder without a socket is
    // just being made.
    let sockets: Vec<PathBuf> = others
        .filter(|other| other.file_name().to_string_lossy().starts_with(local::FOLDER_PREFIX))
        .map(|other| other.path().join(local::SOCKET))
        .filter(|socket| fs::symlink_metadata(socket).is_ok())
        .collect();
    let Ok(alive) = fs::read("/proc/net/unix") else { return };
    let alive = String::from_utf8_lossy(&alive);
    for socket in sockets.iter().filter(|socket| !alive.contains(&*socket.to_string_lossy())) {
        let Some(other) = socket.parent() else { continue };
        // It may be that of a server in another network namespace: only a refusal says that nobody is there.
        let dead = is_private(other).unwrap_or(false)
            && UnixStream::connect(socket)
                .is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused);
        if dead && let Err(error) = fs::remove_file(socket).and_then(|()| fs::remove_dir(other)) {
            log::debug!("{}, which nobody uses, could not be removed: {error}", other.display());
        }
    }
}

impl Drop for Local {
    fn drop(&mut self) {
        let socket = self.folder.join(local::SOCKET);
        if let Err(error) = fs::remove_file(&socket).and_then(|()| fs::remove_dir(&self.folder)) {
            log::warn!("the Unix socket {} could not be removed: {error}", socket.display());
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::fs::Permissions;
    use std::os::unix::fs::{PermissionsExt, symlink};

    fn key() -> StudyKey {
        StudyKey::from_bytes(&crate::wire::auth::nonce().unwrap()).unwrap()
    }

    #[test]
    fn the_unix_socket_is_in_a_folder_of_this_user_alone_and_goes_with_its_listener() {
        let key = key();
        let folder = local::folder(&key, 1, "here:1");
        let listening = Local::listen(&key, 1, "here:1").unwrap();
        assert_eq!(fs::metadata(&folder).unwrap().mode() & 0o777, 0o700);
        std::os::unix::net::UnixStream::connect(local::socket(&key, 1, "here:1")).unwrap();
        drop(listening);
        assert!(!folder.exists());
    }

    #[test]
    fn what_a_killed_server_left_behind_is_used_again() {
        let key = key();
        std::mem::forget(Local::listen(&key, 1, "here:1").unwrap());
        let listening = Local::listen(&key, 1, "here:1").unwrap();
        std::os::unix::net::UnixStream::connect(local::socket(&key, 1, "here:1")).unwrap();
        drop(listening);
        assert!(!local::folder(&key, 1, "here:1").exists());
    }

    #[test]
    fn a_server_removes_what_killed_ones_left_and_nothing_that_is_in_use() {
        let key = key();
        let (dead, alive) = (local::folder(&key, 1, "here:1"), local::folder(&key, 1, "here:2"));
        make_private(&dead).unwrap();
        drop(std::os::unix::net::UnixListener::bind(dead.join(local::SOCKET)).unwrap());
        assert!(dead.join(local::SOCKET).exists());
        let in_use = Local::listen(&key, 1, "here:2").unwrap();
        let being_made = local::folder(&key, 1, "here:3");
        make_private(&being_made).unwrap();
        drop(Local::listen(&key, 1, "here:4").unwrap());
        assert!(!dead.exists());
        assert!(alive.join(local::SOCKET).exists() && being_made.exists());
        fs::remove_dir(being_made).unwrap();
        drop(in_use);
    }

    #[test]
    fn no_unix_socket_is_made_where_others_could_reach_it() {
        let key = key();
        let folder = local::folder(&key, 1, "here:1");
        fs::create_dir(&folder).unwrap();
        fs::set_permissions(&folder, Permissions::from_mode(0o755)).unwrap();
        assert!(Local::listen(&key, 1, "here:1").is_none());
        fs::remove_dir(&folder).unwrap();
        let elsewhere = local::folder(&key, 2, "here:1");
        fs::create_dir(&elsewhere).unwrap();
        fs::set_permissions(&elsewhere, Permissions::from_mode(0o700)).unwrap();
        symlink(&elsewhere, &folder).unwrap();
        assert!(Local::listen(&key, 1, "here:1").is_none());
        fs::remove_file(&folder).unwrap();
        fs::remove_dir(&elsewhere).unwrap();
    }
}
