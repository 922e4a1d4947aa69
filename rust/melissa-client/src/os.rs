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
    let events = libc::POLLIN | if for_writing { libc::POLLOUT } else { 0 };
    let mut entry = libc::pollfd { fd: fd.as_raw_fd(), events, revents: 0 };
    // Rounded up: a wait of less than a millisecond would spin.
    let milliseconds = libc::c_int::try_from(timeout.as_micros().div_ceil(1000)).unwrap_or(libc::c_int::MAX);
    // SAFETY: `entry` is one initialised pollfd that lives over the call, and the count says one.
    let count = unsafe { libc::poll(&raw mut entry, 1, milliseconds) };
    if count < 0 {
        let error = io::Error::last_os_error();
        if error.kind() == io::ErrorKind::Interrupted {
            return Ok(Ready { signal: true, ..Ready::default() });
        }
        return Err(error);
    }
    let failed = libc::POLLERR | libc::POLLHUP | libc::POLLNVAL;
    Ok(Ready {
        readable: entry.revents & (libc::POLLIN | failed) != 0,
        writable: entry.revents & (libc::POLLOUT | failed) != 0,
        signal: false,
    })
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
