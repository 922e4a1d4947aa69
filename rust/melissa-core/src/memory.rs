//! Memory from the kernel: how much there is, and regions of it.

use std::io;
use std::ops::Deref;
use std::path::Path;
use std::ptr::NonNull;
// A figure of the process and no part of a protocol: not through `sync`.
use std::sync::atomic::{AtomicU64, Ordering};

pub(crate) const MIB: u64 = 1 << 20;
const HUGE_PAGE: usize = 2 << 20;

/// Bytes that this process can still take: what the kernel calls available, or less where a control group limits it.
/// `None` when neither can be read.
pub(crate) fn available() -> Option<u64> {
    let system = std::fs::read_to_string("/proc/meminfo").ok().and_then(|text| {
        let line = text.lines().find(|line| line.starts_with("MemAvailable:"))?;
        line.split_ascii_whitespace().nth(1)?.parse::<u64>().ok().map(|kib| kib * 1024)
    });
    let groups = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    groups.lines().filter_map(available_in_group).chain(system).min()
}

/// What is left in the control group of one line of /proc/self/cgroup and in those above it.
fn available_in_group(line: &str) -> Option<u64> {
    let mut parts = line.splitn(3, ':');
    let (controllers, path) = (parts.nth(1)?, parts.next()?);
    let (root, limit, usage) = if controllers.is_empty() {
        ("/sys/fs/cgroup", "memory.max", "memory.current")
    } else if controllers.split(',').any(|name| name == "memory") {
        ("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes")
    } else {
        return None;
    };
    let number = |folder: &Path, file: &str| -> Option<u64> {
        std::fs::read_to_string(folder.join(file)).ok()?.trim().parse().ok()
    };
    Path::new(path.trim_start_matches('/'))
        .ancestors()
        .filter_map(|group| {
            let folder = Path::new(root).join(group);
            let (limit, used) = (number(&folder, limit)?, number(&folder, usage)?);
            // The page cache of files counts as used, and is given back when asked for.
            let cache = std::fs::read_to_string(folder.join("memory.stat"))
                .ok()
                .and_then(|text| {
                    let line = text.lines().find(|line| line.starts_with("inactive_file "))?;
                    line.split_ascii_whitespace().nth(1)?.parse::<u64>().ok()
                })
                .unwrap_or(0);
            Some(limit.saturating_sub(used.saturating_sub(cache)))
        })
        .min()
}

/// Asks for the cache line of an address, to be read soon; a hint that does nothing where there is none such, and is
/// allowed for any address.
#[inline]
pub(crate) fn prefetch<T>(address: *const T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch reads nothing that the program could see, and does not fault.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(address.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}

/// From this size on a copy goes through several streams.
const STREAMED: usize = 16 << 10;
/// Bytes that all streams copy together before they go on behind them.
const BLOCK: usize = 256 << 10;
/// Streams of a copy.
const STREAMS: usize = 4;

/// Bytes that were copied through streams, which a test that counts copies by the calls of `memcpy` cannot see.
static STREAMED_BYTES: AtomicU64 = AtomicU64::new(0);

/// Bytes that this process has copied through streams.
pub(crate) fn streamed_bytes() -> u64 {
    STREAMED_BYTES.load(Ordering::Relaxed)
}

/// Copies bytes, the source of which is most likely not in the caches.
///
/// # Safety
/// As for `std::ptr::copy_nonoverlapping`.
pub(crate) unsafe fn copy(from: *const u8, to: *mut u8, length: usize) {
    #[cfg(target_arch = "x86_64")]
    if length >= STREAMED && std::arch::is_x86_feature_detected!("avx") {
        // SAFETY: the processor has these registers; the rest is the caller's.
        return unsafe { copy_in_streams(from, to, length) };
    }
    // SAFETY: the caller's.
    unsafe { std::ptr::copy_nonoverlapping(from, to, length) };
}

/// Copies a quarter of each block beside the three others.
///
/// A core that copies waits for memory, and its prefetchers follow a stream only so far ahead: several streams at once keep
/// more cache lines under way than the one of `memcpy`. Blocks keep the streams near to each other, and so within few pages.
///
/// # Safety
/// As for `std::ptr::copy_nonoverlapping`; the processor has AVX.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx")]
unsafe fn copy_in_streams(from: *const u8, to: *mut u8, length: usize) {
    use std::arch::x86_64::{__m256i, _mm256_loadu_si256, _mm256_storeu_si256};
    const REGISTER: usize = size_of::<__m256i>();
    /// Bytes of a stream that are copied in a turn.
    const PIECE: usize = 8 * REGISTER;
    let mut done = 0;
    while length - done >= STREAMED {
        let part = (length - done).min(BLOCK) / (STREAMS * PIECE) * PIECE;
        for piece in (0..part).step_by(PIECE) {
            for stream in 0..STREAMS {
                for register in 0..PIECE / REGISTER {
                    let offset = done + stream * part + piece + register * REGISTER;
                    // SAFETY: the parts of the streams lie one behind another within `length`, and a register's bytes
                    // within a part: the caller may read and write them.
                    unsafe {
                        let bytes = _mm256_loadu_si256(from.add(offset).cast());
                        _mm256_storeu_si256(to.add(offset).cast(), bytes);
                    }
                }
            }
        }
        done += STREAMS * part;
    }
    STREAMED_BYTES.fetch_add(done as u64, Ordering::Relaxed);
    // SAFETY: what is left of `length`; the rest is the caller's.
    unsafe { std::ptr::copy_nonoverlapping(from.add(done), to.add(done), length - done) };
}

/// A value on cache lines of its own (two, as processors fetch them in pairs), so that threads that write it do not slow
/// down those that read its neighbours.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(crate) struct Apart<T>(pub(crate) T);

impl<T> Deref for Apart<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

/// A slice on huge pages if it is large enough and the kernel gives them: an index that is read at random places
/// otherwise costs a walk through the page tables each time.
pub(crate) fn boxed_slice<T>(length: usize, item: impl FnMut() -> T) -> Box<[T]> {
    let mut items = Vec::with_capacity(length);
    prefer_huge_pages(&items);
    items.resize_with(length, item);
    items.into_boxed_slice()
}

/// To be called before the memory of the vector is touched.
pub(crate) fn prefer_huge_pages<T>(items: &Vec<T>) {
    let start = items.as_ptr().addr();
    // Whole huge pages only: what lies before and behind them may share a page with others.
    let first = start.next_multiple_of(HUGE_PAGE);
    let end = (start + items.capacity() * size_of::<T>()) / HUGE_PAGE * HUGE_PAGE;
    if size_of::<T>() > 0 && first + HUGE_PAGE <= end {
        // SAFETY: the range lies in the vector's own allocation; the advice changes no byte of it.
        unsafe {
            let address = items.as_ptr().cast::<u8>().add(first - start);
            libc::madvise(address.cast_mut().cast(), end - first, libc::MADV_HUGEPAGE);
        }
    }
}

/// Zeroed private memory, aligned to huge pages when it is as large as one, and unmapped when dropped.
#[derive(Debug)]
pub(crate) struct Region {
    map: NonNull<u8>,
    map_bytes: usize,
    base: NonNull<u8>,
    bytes: usize,
    huge_pages: bool,
}

// SAFETY: a region is plain memory; whoever shares it across threads keeps readers and writers of its bytes apart.
unsafe impl Send for Region {}
// SAFETY: as above; the methods of a shared region give out addresses only.
unsafe impl Sync for Region {}

impl Region {
    pub(crate) fn new(bytes: usize) -> io::Result<Self> {
        let spare = if bytes >= HUGE_PAGE { HUGE_PAGE } else { 0 };
        let map_bytes = bytes.max(1).checked_add(spare).ok_or(io::ErrorKind::OutOfMemory)?;
        // SAFETY: a fresh anonymous mapping at an address of the kernel's choice touches no existing memory.
        let address = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                map_bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let map = NonNull::new(address.cast::<u8>()).ok_or_else(io::Error::last_os_error)?;
        let shift = if spare == 0 { 0 } else { map.as_ptr().align_offset(HUGE_PAGE) };
        // SAFETY: the shift is less than the spare bytes at the end of the mapping.
        let base = unsafe { map.add(shift) };
        // Advice only: without huge pages the region works as well, and a little slower.
        let huge_pages =
            // SAFETY: the range lies in the mapping made above.
            spare > 0 && unsafe { libc::madvise(base.as_ptr().cast(), bytes, libc::MADV_HUGEPAGE) } == 0;
        Ok(Self { map, map_bytes, base, bytes, huge_pages })
    }

    /// A forked child does not get this memory: it could not be kept whole there, and costs twice.
    pub(crate) fn keep_from_children(&self) -> io::Result<()> {
        // SAFETY: the range is this region's own mapping.
        let result = unsafe { libc::madvise(self.map.as_ptr().cast(), self.map_bytes, libc::MADV_DONTFORK) };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    pub(crate) const fn as_ptr(&self) -> *mut u8 {
        self.base.as_ptr()
    }

    pub(crate) const fn len(&self) -> usize {
        self.bytes
    }

    /// Whether the kernel was asked for huge pages and agreed.
    pub(crate) const fn huge_pages(&self) -> bool {
        self.huge_pages
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: the mapping is this region's own and nobody refers to it any more.
        unsafe { libc::munmap(self.map.as_ptr().cast(), self.map_bytes) };
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_is_whole_and_stays_within_its_bounds() {
        for length in [
            0,
            1,
            64,
            STREAMED - 1,
            STREAMED,
            STREAMED + 1,
            STREAMED + 255,
            40_000,
            BLOCK + 1,
            3 * BLOCK + STREAMED + 7,
        ] {
            let from: Vec<u8> = (0..length + 2).map(|index| (index * 31 % 251) as u8).collect();
            let mut to = vec![255u8; length + 2];
            // SAFETY: both vectors hold two bytes more than are copied.
            unsafe { copy(from.as_ptr().add(1), to.as_mut_ptr().add(1), length) };
            assert!(to[1..=length] == from[1..=length], "{length} bytes");
            assert_eq!((to[0], to[length + 1]), (255, 255), "{length} bytes");
        }
    }

    #[test]
    fn memory_is_found_and_given() {
        assert!(available().unwrap() > 1 << 20);
        for bytes in [1, 4096, HUGE_PAGE, 3 * HUGE_PAGE + 17] {
            let region = Region::new(bytes).unwrap();
            region.keep_from_children().unwrap();
            assert!(region.len() == bytes && region.as_ptr().align_offset(64) == 0);
            // SAFETY: both addresses lie in the region, which nobody else has.
            unsafe {
                assert_eq!(*region.as_ptr().add(bytes - 1), 0);
                *region.as_ptr().add(bytes - 1) = 1;
            }
        }
    }
}
