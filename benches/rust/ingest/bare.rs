//! The bound: a loop that does nothing but receive, into one buffer that it uses again and again; or into several in
//! turn, as whoever keeps what has come for a while must.

use super::support::buffers::Memory;
use super::{Cost, Transport, thread_seconds};
use melissa_core::session::RECEIVE_BUFFER_SIZE;
use socket2::{Domain, SockAddr, Socket, Type};
use std::io::{self, Read};
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::Instant;

/// Accepts its connections, then receives as often as it is asked to.
pub struct Bare {
    pub address: String,
    orders: Option<Sender<u64>>,
    costs: Receiver<Cost>,
    thread: Option<JoinHandle<()>>,
}

impl Bare {
    pub fn start(transport: Transport, connections: usize, frame: usize, buffers: usize) -> Self {
        let (domain, at) = match transport {
            Transport::Tcp => (Domain::IPV4, SocketAddr::from(([127, 0, 0, 1], 0)).into()),
            Transport::Unix => (Domain::UNIX, SockAddr::unix(path()).expect("a short path")),
        };
        let listener = Socket::new(domain, Type::STREAM, None).expect("a socket");
        listener.set_recv_buffer_size(RECEIVE_BUFFER_SIZE).expect("the option is known");
        listener.bind(&at).expect("a free address");
        listener.listen(1024).expect("it listens");
        let bound = listener.local_addr().expect("it is bound");
        let address = bound.as_socket().map_or_else(path, |address| address.to_string());
        let (orders, ordered) = channel::<u64>();
        let (told, costs) = channel();
        let receive = move || {
            let sockets: Vec<Socket> =
                (0..connections).map(|_| listener.accept().expect("the sender connects").0).collect();
            if transport == Transport::Unix {
                std::fs::remove_file(path()).expect("it was bound");
            }
            let mut receiver = Loop::new(sockets, frame, buffers);
            for samples in ordered {
                let cpu = thread_seconds(None);
                receiver.receive(samples * connections as u64 * frame as u64);
                let cost = Cost { end: Instant::now(), cpu: thread_seconds(None) - cpu };
                if told.send(cost).is_err() {
                    return;
                }
            }
        };
        let thread = std::thread::Builder::new().name("bare-loop".into()).spawn(receive).expect("a thread");
        Self { address, orders: Some(orders), costs, thread: Some(thread) }
    }

    /// Has so many samples received from each connection.
    pub fn order(&self, samples: u64) {
        self.orders.as_ref().expect("it was not dropped").send(samples).expect("the loop lives");
    }

    pub fn cost(&self) -> Cost {
        self.costs.recv().expect("the loop lives")
    }
}

impl Drop for Bare {
    fn drop(&mut self) {
        self.orders = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Where the bare loop's Unix socket is until the sender has connected.
fn path() -> String {
    std::env::temp_dir().join(format!("melissa-bench-{}", std::process::id())).to_string_lossy().into_owned()
}

struct Loop {
    sockets: Vec<Socket>,
    /// Bytes of the frame that is being received, per socket: a read never goes beyond one, as a receiver that puts each sample
    /// in a place of its own cannot.
    have: Vec<usize>,
    /// On huge pages, as the session's slots are.
    memory: Memory,
    frame: usize,
    buffers: usize,
    /// The buffer of the frame that is being received.
    current: usize,
    epoll: i32,
}

impl Loop {
    fn new(sockets: Vec<Socket>, frame: usize, buffers: usize) -> Self {
        // SAFETY: the call takes no pointer.
        let epoll = unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) };
        assert!(epoll >= 0, "{}", io::Error::last_os_error());
        if sockets.len() > 1 {
            for (index, socket) in sockets.iter().enumerate() {
                socket.set_nonblocking(true).expect("the option is known");
                let mut event = libc::epoll_event { events: libc::EPOLLIN as u32, u64: index as u64 };
                // SAFETY: the event is read during the call only.
                let result =
                    unsafe { libc::epoll_ctl(epoll, libc::EPOLL_CTL_ADD, socket.as_raw_fd(), &mut event) };
                assert_eq!(result, 0, "{}", io::Error::last_os_error());
            }
        }
        let have = vec![0; sockets.len()];
        Self { sockets, have, memory: Memory::new(buffers * frame), frame, buffers, current: 0, epoll }
    }

    fn receive(&mut self, bytes: u64) {
        let mut left = bytes;
        if self.sockets.len() == 1 {
            while left > 0 {
                left -= self.read(0) as u64;
            }
            return;
        }
        let mut events = vec![libc::epoll_event { events: 0, u64: 0 }; 1024];
        while left > 0 {
            // SAFETY: the kernel writes no more events than the vector holds.
            let count = unsafe { libc::epoll_wait(self.epoll, events.as_mut_ptr(), events.len() as i32, -1) };
            for event in &events[..usize::try_from(count).unwrap_or(0)] {
                let index = event.u64 as usize;
                left -= self.read(index) as u64;
            }
        }
    }

    fn read(&mut self, index: usize) -> usize {
        let have = self.have[index];
        let buffer = self.memory.part(self.current * self.frame, self.frame);
        // SAFETY: this thread alone knows the memory, and the slice ends before the next is made.
        let rest = &mut unsafe { std::slice::from_raw_parts_mut(buffer, self.frame) }[have..];
        match self.sockets[index].read(rest) {
            Ok(0) => panic!("the sender has closed a connection"),
            Ok(bytes) => {
                let end = have + bytes;
                if end == self.frame {
                    self.have[index] = 0;
                    self.current = (self.current + 1) % self.buffers;
                } else {
                    self.have[index] = end;
                }
                bytes
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
            Err(error) => panic!("the sender is gone: {error}"),
        }
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        // SAFETY: the descriptor is this loop's own.
        unsafe { libc::close(self.epoll) };
    }
}
