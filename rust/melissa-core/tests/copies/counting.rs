//! What threads copy, read and allocate, counted by what they call.
//!
//! `memcpy`, `memmove`, the reads of sockets and `mmap` are defined here, and take the place of those of the C library
//! in this one executable: whatever the compiler and the standard library call by these names comes here first. The
//! global allocator counts as well. A copy that calls nothing (a loop over vector registers) is not seen as a copy: that the
//! session makes none is seen by the addresses that it reads into, and that a sampler makes no other by its one large copy.
//!
//! Counting neither allocates nor copies: roles are constants in thread-local storage, counters are static.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::ffi::{c_int, c_void};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};

/// Copies from this size on are payload; smaller ones are headers, handles and the like.
pub const LARGE: usize = 1024;

/// What a thread is there for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Role {
    Unknown,
    Session,
    Prefetch,
    Sampler,
    Client,
}

const ROLES: usize = 5;

/// What the threads of one role have done so far.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Count {
    /// Allocations, growths of allocations, and mappings of memory.
    pub allocations: u64,
    /// Bytes that were asked for by them.
    pub allocated: u64,
    /// Bytes of copies of [`LARGE`] bytes and more.
    pub large_copies: u64,
    /// Bytes of smaller copies.
    pub small_copies: u64,
    /// Bytes that came from descriptors.
    pub read: u64,
}

impl std::ops::Sub for Count {
    type Output = Self;

    fn sub(self, before: Self) -> Self {
        Self {
            allocations: self.allocations - before.allocations,
            allocated: self.allocated - before.allocated,
            large_copies: self.large_copies - before.large_copies,
            small_copies: self.small_copies - before.small_copies,
            read: self.read - before.read,
        }
    }
}

struct Counters {
    allocations: AtomicU64,
    allocated: AtomicU64,
    large_copies: AtomicU64,
    small_copies: AtomicU64,
    read: AtomicU64,
}

static COUNTERS: [Counters; ROLES] = [const {
    Counters {
        allocations: AtomicU64::new(0),
        allocated: AtomicU64::new(0),
        large_copies: AtomicU64::new(0),
        small_copies: AtomicU64::new(0),
        read: AtomicU64::new(0),
    }
}; ROLES];

/// Where the session has put what it read in large pieces: the lowest address, and the end of the highest.
static LOWEST_TARGET: AtomicUsize = AtomicUsize::new(usize::MAX);
static TARGETS_END: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    static ROLE: Cell<Role> = const { Cell::new(Role::Unknown) };
}

/// Says what the calling thread is there for.
pub fn set_role(role: Role) {
    ROLE.set(role);
}

/// The role of the calling thread. Threads of the core are known by the names that they give themselves.
fn role() -> Role {
    let known = ROLE.get();
    if known != Role::Unknown {
        return known;
    }
    let mut name = [0u8; 16];
    // SAFETY: the call writes at most 16 bytes, which are there.
    unsafe { libc::syscall(libc::SYS_prctl, libc::PR_GET_NAME, name.as_mut_ptr()) };
    // The kernel keeps fifteen bytes of a name.
    let role = match &name {
        b"melissa-session\0" => Role::Session,
        b"melissa-prefetc\0" => Role::Prefetch,
        _ => Role::Unknown,
    };
    ROLE.set(role);
    role
}

fn counters() -> &'static Counters {
    &COUNTERS[role() as usize]
}

pub fn count(role: Role) -> Count {
    let counters = &COUNTERS[role as usize];
    Count {
        allocations: counters.allocations.load(Relaxed),
        allocated: counters.allocated.load(Relaxed),
        large_copies: counters.large_copies.load(Relaxed),
        small_copies: counters.small_copies.load(Relaxed),
        read: counters.read.load(Relaxed),
    }
}

/// Forgets the addresses of [`targets`].
pub fn forget_targets() {
    LOWEST_TARGET.store(usize::MAX, Relaxed);
    TARGETS_END.store(0, Relaxed);
}

/// The addresses between which the session has put what it read in large pieces.
pub fn targets() -> std::ops::Range<usize> {
    LOWEST_TARGET.load(Relaxed)..TARGETS_END.load(Relaxed)
}

struct CountingAllocator;

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

fn allocates(bytes: usize) {
    let counters = counters();
    counters.allocations.fetch_add(1, Relaxed);
    counters.allocated.fetch_add(bytes as u64, Relaxed);
}

// SAFETY: every call is the system allocator's, with the same arguments.
unsafe impl GlobalAlloc for CountingAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        allocates(layout.size());
        // SAFETY: the caller keeps the rules of this call.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        allocates(layout.size());
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        allocates(size);
        // SAFETY: as above.
        unsafe { System.realloc(memory, layout, size) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(memory, layout) }
    }
}

fn copies(bytes: usize) {
    // The smallest copies also come before a thread has its thread-local storage, and are not worth a look.
    if bytes < 16 {
        return;
    }
    let counters = counters();
    let counter = if bytes < LARGE { &counters.small_copies } else { &counters.large_copies };
    counter.fetch_add(bytes as u64, Relaxed);
}

/// Copies upwards, by an instruction: a loop would be compiled into a call of the function that it stands in.
unsafe fn copy_up(to: *mut u8, from: *const u8, bytes: usize) {
    // SAFETY: the caller's; the direction flag is clear by the calling convention.
    unsafe {
        std::arch::asm!(
            "rep movsb",
            inout("rcx") bytes => _, inout("rdi") to => _, inout("rsi") from => _,
            options(nostack, preserves_flags)
        );
    }
}

/// Copies downwards, from the last byte to the first.
unsafe fn copy_down(to: *mut u8, from: *const u8, bytes: usize) {
    let last = bytes.wrapping_sub(1);
    // SAFETY: the caller's; the direction flag is cleared again, and nothing is touched when there are no bytes.
    unsafe {
        std::arch::asm!(
            "std", "rep movsb", "cld",
            inout("rcx") bytes => _,
            inout("rdi") to.wrapping_add(last) => _, inout("rsi") from.wrapping_add(last) => _,
            options(nostack)
        );
    }
}

// SAFETY: the C library's function of this name, as far as a caller can tell.
#[unsafe(no_mangle)]
unsafe extern "C" fn memcpy(to: *mut c_void, from: *const c_void, bytes: usize) -> *mut c_void {
    copies(bytes);
    // SAFETY: the caller keeps the rules of memcpy.
    unsafe { copy_up(to.cast(), from.cast(), bytes) };
    to
}

// SAFETY: as above.
#[unsafe(no_mangle)]
unsafe extern "C" fn memmove(to: *mut c_void, from: *const c_void, bytes: usize) -> *mut c_void {
    copies(bytes);
    // SAFETY: the caller keeps the rules of memmove; the direction is the one in which no byte is overwritten before
    // it is read.
    unsafe {
        if (to as usize).wrapping_sub(from as usize) >= bytes {
            copy_up(to.cast(), from.cast(), bytes);
        } else {
            copy_down(to.cast(), from.cast(), bytes);
        }
    }
    to
}

/// Counts what a read brought, and where the session put it.
fn reads(result: libc::c_long, pieces: &[libc::iovec]) -> isize {
    if let Ok(bytes) = u64::try_from(result) {
        let role = role();
        COUNTERS[role as usize].read.fetch_add(bytes, Relaxed);
        let mut left = bytes as usize;
        for piece in pieces {
            let here = left.min(piece.iov_len);
            if role == Role::Session && here >= LARGE {
                LOWEST_TARGET.fetch_min(piece.iov_base as usize, Relaxed);
                TARGETS_END.fetch_max(piece.iov_base as usize + here, Relaxed);
            }
            left -= here;
        }
    }
    result as isize
}

// SAFETY: the C library's function of this name, as far as a caller can tell, but for cancellation, which Rust has not.
#[unsafe(no_mangle)]
unsafe extern "C" fn read(descriptor: c_int, to: *mut c_void, bytes: usize) -> isize {
    // SAFETY: the caller's.
    let result = unsafe { libc::syscall(libc::SYS_read, descriptor, to, bytes) };
    reads(result, &[libc::iovec { iov_base: to, iov_len: bytes }])
}

// SAFETY: as above.
#[unsafe(no_mangle)]
unsafe extern "C" fn readv(descriptor: c_int, pieces: *const libc::iovec, count: c_int) -> isize {
    // SAFETY: the caller's.
    let result = unsafe { libc::syscall(libc::SYS_readv, descriptor, pieces, count) };
    // SAFETY: the kernel has read as many of them.
    reads(result, unsafe { std::slice::from_raw_parts(pieces, count as usize) })
}

// SAFETY: as above.
#[unsafe(no_mangle)]
unsafe extern "C" fn recv(descriptor: c_int, to: *mut c_void, bytes: usize, flags: c_int) -> isize {
    let nobody = std::ptr::null_mut::<c_void>();
    // SAFETY: the caller's; nobody wants to know the peer's address.
    let result = unsafe { libc::syscall(libc::SYS_recvfrom, descriptor, to, bytes, flags, nobody, nobody) };
    reads(result, &[libc::iovec { iov_base: to, iov_len: bytes }])
}

// SAFETY: as above.
#[unsafe(no_mangle)]
unsafe extern "C" fn recvfrom(
    descriptor: c_int,
    to: *mut c_void,
    bytes: usize,
    flags: c_int,
    peer: *mut libc::sockaddr,
    peer_bytes: *mut libc::socklen_t,
) -> isize {
    // SAFETY: the caller's.
    let result = unsafe { libc::syscall(libc::SYS_recvfrom, descriptor, to, bytes, flags, peer, peer_bytes) };
    reads(result, &[libc::iovec { iov_base: to, iov_len: bytes }])
}

// SAFETY: as above.
#[unsafe(no_mangle)]
unsafe extern "C" fn recvmsg(descriptor: c_int, message: *mut libc::msghdr, flags: c_int) -> isize {
    // SAFETY: the caller's.
    let result = unsafe { libc::syscall(libc::SYS_recvmsg, descriptor, message, flags) };
    // SAFETY: the kernel has read the message and as many pieces.
    reads(result, unsafe { std::slice::from_raw_parts((*message).msg_iov, (*message).msg_iovlen) })
}

// SAFETY: as above.
#[unsafe(no_mangle)]
unsafe extern "C" fn mmap(
    address: *mut c_void,
    bytes: usize,
    protection: c_int,
    flags: c_int,
    descriptor: c_int,
    offset: libc::off_t,
) -> *mut c_void {
    allocates(bytes);
    // SAFETY: the caller's.
    let result =
        unsafe { libc::syscall(libc::SYS_mmap, address, bytes, protection, flags, descriptor, offset) };
    std::ptr::with_exposed_provenance_mut(result as usize)
}
