//! The listening socket and the options of its connections.

use super::SessionError;
use super::config::SessionConfig;
use mio::net::{TcpListener, TcpStream};
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::time::Duration;

/// Connections that the kernel completes before they are accepted.
const BACKLOG: i32 = 1024;
/// Descriptors of the process for everything but clients.
const OTHER_DESCRIPTORS: u64 = 128;

/// Binds a port of the kernel's choice; returns the socket and the address that clients are told.
pub(super) fn listen(config: &SessionConfig) -> Result<(TcpListener, String), SessionError> {
    let error = |reason: String| SessionError::Listen { host: config.host.clone(), reason };
    let addresses: Vec<SocketAddr> = (config.host.as_str(), 0)
        .to_socket_addrs()
        .map_err(|source| error(format!("the name does not resolve: {source}")))?
        .collect();
    let mut reason = "the name has no address".to_owned();
    for address in addresses {
        match bind(address, config.receive_buffer_size) {
            Ok(listener) => {
                let bound = listener.local_addr().map_err(|source| error(source.to_string()))?;
                let advertised = advertised(config, bound)?;
                return Ok((listener, advertised));
            }
            Err(source) => reason = format!("{address}: {source}"),
        }
    }
    Err(error(reason))
}

fn bind(address: SocketAddr, receive_buffer_size: usize) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    // Before listen: connections inherit it, and the window is negotiated from it.
    socket.set_recv_buffer_size(receive_buffer_size)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(TcpListener::from_std(socket.into()))
}

fn advertised(config: &SessionConfig, bound: SocketAddr) -> Result<String, SessionError> {
    let port = bound.port();
    match &config.advertise {
        Some(host) if host.contains(':') && !host.starts_with('[') => Ok(format!("[{host}]:{port}")),
        Some(host) => Ok(format!("{host}:{port}")),
        None if bound.ip().is_unspecified() => Err(SessionError::Listen {
            host: config.host.clone(),
            reason: "this means every interface, and clients need one address: say which they shall use"
                .into(),
        }),
        None => Ok(bound.to_string()),
    }
}

/// What every accepted connection gets; the kernel already made it close-on-exec and non-blocking.
pub(super) fn prepare(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    // A host that vanished without a word is noticed after two minutes even while nothing is read from it.
    let keepalive = TcpKeepalive::new()
        .with_time(Duration::from_secs(60))
        .with_interval(Duration::from_secs(15))
        .with_retries(4);
    SockRef::from(stream).set_tcp_keepalive(&keepalive)
}

/// Raises the soft limit of descriptors to the hard one, and says when the planned clients would not fit.
pub(super) fn check_descriptor_limit(planned: u32) {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the pointer is to a local structure of the type that the call fills.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) } != 0 {
        log::warn!("the limit of open descriptors cannot be read: {}", io::Error::last_os_error());
        return;
    }
    if limit.rlim_cur < limit.rlim_max {
        let raised = libc::rlimit { rlim_cur: limit.rlim_max, ..limit };
        // SAFETY: as above; the call only reads the structure.
        if unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raised) } == 0 {
            limit = raised;
        } else {
            log::warn!("the limit of open descriptors cannot be raised: {}", io::Error::last_os_error());
        }
    }
    let needed = u64::from(planned) + OTHER_DESCRIPTORS;
    if limit.rlim_cur < needed {
        log::warn!(
            "this process may open {} descriptors, and {planned} simulations need {needed} when all run at once \
             with one rank each: raise the hard limit (ulimit -Hn) or keep job_limit below it",
            limit.rlim_cur
        );
    }
}
