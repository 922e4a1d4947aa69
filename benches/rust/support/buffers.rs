//! Training buffers as the benches want them, plain memory for the bounds, and threads beside each other.

use melissa_core::batch::{Batch, BatchLayout, BatchPool};
use melissa_core::buffer::{Buffer, BufferConfig, Kind, SampleKey};
use melissa_core::schema::{Dtype, Field, Schema};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

/// Parameters of each sample.
pub const PARAMETERS: [f64; 2] = [1.0, 2.0];
const HUGE_PAGE: usize = 2 << 20;

/// A schema of one float32 field of that many bytes.
pub fn schema(bytes: usize) -> Arc<Schema> {
    let field = Field { name: "u".into(), dtype: Dtype::F32, size: bytes / 4 };
    Arc::new(Schema::new(vec![field], PARAMETERS.len()).expect("one field of some elements"))
}

/// A bound, empty buffer without a watermark of samples of that many bytes.
pub fn buffer(kind: Kind, capacity: usize, bytes: usize, batch_size: usize) -> Buffer {
    let config = BufferConfig {
        kind,
        capacity,
        watermark: 0,
        pseudo_epochs: 1,
        batch_size,
        seed: 5,
        assembly_slots: 8,
        lent_slots: None,
    };
    let buffer = Buffer::new(config).expect("a valid configuration");
    buffer.bind(schema(bytes)).expect("memory for the slab");
    buffer
}

pub fn key(time_step: u64) -> SampleKey {
    SampleKey { simulation: 0, draw: 0, time_step }
}

/// Samples until the population is as large as it gets.
pub fn fill(buffer: &Buffer) {
    let mut receiver = Receiver::new(buffer);
    while buffer.population() < buffer.config().capacity {
        assert!(receiver.receive(), "a buffer that is not full has a slot");
    }
}

/// An empty batch of the buffer's samples.
pub fn batch(buffer: &Buffer, rows: usize) -> Batch {
    let schema = buffer.schema().expect("the buffer is bound");
    Batch::new(&Arc::new(BatchPool::default()), BatchLayout::new(schema, rows)).expect("memory for a batch")
}

/// Fills slots as a session does: from bytes that it just read.
pub struct Receiver<'a> {
    buffer: &'a Buffer,
    source: Vec<u8>,
    complete: Option<melissa_core::buffer::SlotWriter>,
    received: u64,
}

impl<'a> Receiver<'a> {
    pub fn new(buffer: &'a Buffer) -> Self {
        let bytes = buffer.schema().expect("the buffer is bound").field_bytes(0);
        Self { buffer, source: vec![7; bytes], complete: None, received: 0 }
    }

    /// Fills a slot and publishes it; false when there is no slot or no room, and then it goes on there next time.
    pub fn receive(&mut self) -> bool {
        let complete = self.complete.take().or_else(|| {
            let mut slot = self.buffer.take_slot()?;
            slot.field_bytes_mut(0).copy_from_slice(&self.source);
            Some(slot)
        });
        let Some(slot) = complete else { return false };
        match self.buffer.publish(slot, key(self.received), &PARAMETERS) {
            Ok(()) => {
                self.received += 1;
                true
            }
            Err(slot) => {
                self.complete = Some(slot);
                false
            }
        }
    }
}

/// Zeroed and touched memory from the kernel, on huge pages where it gives them, as the slab's.
pub struct Memory {
    map: *mut u8,
    map_bytes: usize,
    base: *mut u8,
    bytes: usize,
}

// SAFETY: plain memory; the benches give each thread parts of its own.
unsafe impl Send for Memory {}
// SAFETY: as above.
unsafe impl Sync for Memory {}

impl Memory {
    pub fn new(bytes: usize) -> Self {
        let map_bytes = bytes + HUGE_PAGE;
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: a fresh anonymous mapping touches no existing memory.
        let map = unsafe { libc::mmap(std::ptr::null_mut(), map_bytes, protection, flags, -1, 0) };
        assert!(map != libc::MAP_FAILED, "no memory for the bound: {}", std::io::Error::last_os_error());
        let map = map.cast::<u8>();
        // SAFETY: the shift is less than the spare huge page at the end.
        let base = unsafe { map.add(map.align_offset(HUGE_PAGE)) };
        // SAFETY: the range lies in the mapping, which nobody else knows yet.
        unsafe {
            libc::madvise(base.cast(), bytes, libc::MADV_HUGEPAGE);
            base.write_bytes(7, bytes);
        }
        Self { map, map_bytes, base, bytes }
    }

    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Address of the part of `length` bytes at `offset`.
    pub fn part(&self, offset: usize, length: usize) -> *mut u8 {
        assert!(offset + length <= self.bytes);
        // SAFETY: checked above.
        unsafe { self.base.add(offset) }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's own and nobody refers to it any more.
        unsafe { libc::munmap(self.map.cast(), self.map_bytes) };
    }
}

/// Walks memory in sequence, part by part, and begins anew at its end.
pub struct Walk<'a> {
    memory: &'a Memory,
    step: usize,
    offset: usize,
}

impl<'a> Walk<'a> {
    pub fn new(memory: &'a Memory, step: usize) -> Self {
        Self { memory, step, offset: 0 }
    }

    pub fn next(&mut self) -> *mut u8 {
        if self.offset + self.step > self.memory.bytes() {
            self.offset = 0;
        }
        let part = self.memory.part(self.offset, self.step);
        self.offset += self.step;
        part
    }
}

/// Calls `work` that many times a second, a millisecond's worth at a time and asleep in between, until `stop`.
pub fn pace(per_second: f64, stop: &AtomicBool, mut work: impl FnMut()) {
    let begin = Instant::now();
    let mut done = 0u64;
    while !stop.load(Ordering::Relaxed) {
        let due = (begin.elapsed().as_secs_f64() * per_second) as u64;
        while done < due && !stop.load(Ordering::Relaxed) {
            work();
            done += 1;
        }
        thread::sleep(Duration::from_millis(1));
    }
}

/// Runs `run` while another thread calls `work` that many times a second.
pub fn beside<R>(per_second: f64, work: impl FnMut() + Send, run: impl FnOnce() -> R) -> R {
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| pace(per_second, &stop, work));
        let result = run();
        stop.store(true, Ordering::Relaxed);
        result
    })
}

/// Seconds on the clock of the benches: the wall's, or with `MELISSA_BENCH_CLOCK=cpu` the calling thread's time on a
/// core, which still says something on a machine whose cores others use, too (waits are not in it).
pub fn now() -> f64 {
    static CLOCK: OnceLock<libc::clockid_t> = OnceLock::new();
    let clock = *CLOCK.get_or_init(|| match std::env::var("MELISSA_BENCH_CLOCK").as_deref() {
        Ok("cpu") => libc::CLOCK_THREAD_CPUTIME_ID,
        Ok(other) if other != "wall" => panic!("MELISSA_BENCH_CLOCK is wall or cpu; {other:?} came"),
        _ => libc::CLOCK_MONOTONIC,
    });
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the clock exists, and the time is written to a place that is ours.
    let result = unsafe { libc::clock_gettime(clock, &raw mut time) };
    assert_eq!(result, 0, "a clock that every Linux has");
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}
