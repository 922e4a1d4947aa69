//! Memory from the kernel: how much there is, and regions of it.

use std::io;
use std::path::Path;
use std::ptr::NonNull;

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
