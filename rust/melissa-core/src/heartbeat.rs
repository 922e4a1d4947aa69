//! A sign of life on a socket, every so often, from a thread that no interpreter's lock can hold up.

use std::io::{self, Write};
use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

/// Writes the same message to a socket until it is stopped or dropped, or until the peer is gone.
#[derive(Debug)]
pub struct Heartbeat {
    /// Dropped, it ends the thread.
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Heartbeat {
    /// Writes `beat` every `period`, the first time at once. The socket becomes non-blocking, and nobody else may write
    /// to it: a beat that the kernel takes a part of goes on with the next one.
    ///
    /// # Errors
    /// When the socket cannot be used so, or no thread can be started.
    pub fn start(socket: OwnedFd, beat: Vec<u8>, period: Duration) -> io::Result<Self> {
        let socket = TcpStream::from(socket);
        socket.set_nonblocking(true)?;
        let (stop, stopped) = channel();
        let thread = Builder::new()
            .name("melissa-heartbeat".into())
            .spawn(move || beat_until(&stopped, &socket, &beat, period))?;
        Ok(Self { stop: Some(stop), thread: Some(thread) })
    }

    /// False once it was stopped, or the peer is gone.
    pub fn is_beating(&self) -> bool {
        self.thread.as_ref().is_some_and(|thread| !thread.is_finished())
    }

    /// Ends the thread and waits for that: no beat comes after it.
    pub fn stop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            log::error!("the thread that tells the launcher of the server's life has panicked");
        }
    }
}

impl Drop for Heartbeat {
    fn drop(&mut self) {
        self.stop();
    }
}

fn beat_until(stopped: &Receiver<()>, mut socket: &TcpStream, beat: &[u8], period: Duration) {
    let mut rest: &[u8] = &[];
    loop {
        if rest.is_empty() {
            rest = beat;
        }
        while !rest.is_empty() {
            match socket.write(rest) {
                Ok(written) => rest = &rest[written..],
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // The peer does not read: nothing piles up beyond what the kernel holds.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                // It is gone, which the channel beside this one tells those who have to know.
                Err(_) => return,
            }
        }
        if stopped.recv_timeout(period) != Err(RecvTimeoutError::Timeout) {
            return;
        }
    }
}
