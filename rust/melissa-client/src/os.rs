//! What std does not offer of the operating system: poll(2) and the name of this machine.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::Duration;

/// What poll(2) saw.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Ready {
    /// Bytes, the end of the stream or an error wait to be read.
    pub readable: bool,
    pub writable: bool,
    /// A signal ended the wait.
    pub signal: bool,
}

/// Waits until the descriptor can be read (or written, when asked), or a signal, or the timeout.
pub fn poll(fd: BorrowedFd<'_>, for_writing: bool, timeout: Duration) -> io::Result<Ready> {
    let mut entries = [Entry::new(fd, for_writing)];
    let signal = poll_all(&mut entries, timeout)?;
    Ok(Ready { readable: entries[0].readable(), writable: entries[0].writable(), signal })
}

/// A descriptor that is waited for, and what was seen of it.
#[repr(transparent)]
pub struct Entry(libc::pollfd);

impl Entry {
    pub fn new(fd: BorrowedFd<'_>, for_writing: bool) -> Self {
        let events = libc::POLLIN | if for_writing { libc::POLLOUT } else { 0 };
        Self(libc::pollfd { fd: fd.as_raw_fd(), events, revents: 0 })
    }

    /// Bytes, the end of the stream or an error wait to be read.
    pub const fn readable(&self) -> bool {
        self.0.revents & (libc::POLLIN | FAILED) != 0
    }

    pub const fn writable(&self) -> bool {
        self.0.revents & (libc::POLLOUT | FAILED) != 0
    }
}

/// What reading or writing tells more of.
const FAILED: libc::c_short = libc::POLLERR | libc::POLLHUP | libc::POLLNVAL;

/// Waits until one of the descriptors is ready, or a signal (then true), or the timeout.
pub fn poll_all(entries: &mut [Entry], timeout: Duration) -> io::Result<bool> {
    // Rounded up: a wait of less than a millisecond would spin.
    let milliseconds = libc::c_int::try_from(timeout.as_micros().div_ceil(1000)).unwrap_or(libc::c_int::MAX);
    // SAFETY: an `Entry` is a pollfd, and the pointer and the count are those of one slice that lives over the call.
    let count =
        unsafe { libc::poll(entries.as_mut_ptr().cast(), entries.len() as libc::nfds_t, milliseconds) };
    if count >= 0 {
        return Ok(false);
    }
    let error = io::Error::last_os_error();
    if error.kind() == io::ErrorKind::Interrupted { Ok(true) } else { Err(error) }
}

/// The name of this machine, for the server's log.
pub fn host_name() -> String {
    let mut name = [0u8; 256];
    // SAFETY: the buffer has the length that is passed, and one byte less is offered, so that it ends with a zero.
    let status = unsafe { libc::gethostname(name.as_mut_ptr().cast(), name.len() - 1) };
    let length = name.iter().position(|&byte| byte == 0).unwrap_or(0);
    match std::str::from_utf8(&name[..length]) {
        Ok(text) if status == 0 && !text.is_empty() && !text.chars().any(char::is_control) => text.into(),
        _ => "unknown".into(),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    #[test]
    fn poll_tells_readable_from_writable_and_times_out() {
        let (here, mut there) = UnixStream::pair().unwrap();
        let short = Duration::from_millis(5);
        assert_eq!(poll(here.as_fd(), false, short).unwrap(), Ready::default());
        assert_eq!(poll(here.as_fd(), true, short).unwrap(), Ready { writable: true, ..Ready::default() });
        there.write_all(b"a").unwrap();
        assert_eq!(poll(here.as_fd(), false, short).unwrap(), Ready { readable: true, ..Ready::default() });
    }

    #[test]
    fn this_machine_has_a_name_of_one_line() {
        let name = host_name();
        assert!(!name.is_empty() && !name.contains('\n'));
    }
}
