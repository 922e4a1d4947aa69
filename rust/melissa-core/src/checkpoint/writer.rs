//! Writes a cut to a file, in a thread of its own, beside training and reception.
//!
//! Samples are written in the order of the cut, straight from their slots, and each pin goes when its sample is written:
//! there is no second copy of the training buffer. A sample that has left the population keeps its slot from reception as
//! long as it is pinned. When reception asks for a slot in vain, a second thread copies some of those aside and lets go of
//! their slots, so that no client waits for a disk.

use super::layout::{Layout, Planned, Tensor};
use super::pending::Pending;
use super::state::{
    PARAMETERS, PENDING_PARAMETERS, field_array, integers, metadata, payload_arrays, pending_field_array,
};
use super::{CheckpointError, Cut};
use crate::bound::Bound;
use crate::memory;
use crate::sample::{Sample, SlotGuard};
use crate::schema::{Dtype, Schema};
use crate::snapshot::PinnedSamples;
use crate::sync::{Arc, AtomicBool, Mutex, Ordering, Waiters, lock};
use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Rows shorter than this are put together before they are written.
const WRITTEN_AT_ONCE: usize = 256 << 10;
/// Bytes that are copied aside at once, before somebody asks for a slot in vain again.
const ASIDE_AT_ONCE: usize = 16 << 20;
/// How often the thread that copies aside looks by itself.
const LOOK: Duration = Duration::from_millis(50);

/// What was written.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Written {
    pub bytes: u64,
    /// Of the whole file.
    pub crc32c: u32,
    pub seconds: f64,
    /// Samples that were copied because reception needed their slots.
    pub copied_aside: u64,
}

/// Where the bytes of a checkpoint go.
pub(super) trait Sink: Send {
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;
    /// Returns when everything is on the disk.
    fn sync(&self) -> io::Result<()>;
}

impl Sink for File {
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.write_all_at(bytes, offset)
    }

    fn sync(&self) -> io::Result<()> {
        self.sync_all()
    }
}

#[derive(Debug, Default)]
struct Done {
    result: Mutex<Option<Result<Written, Arc<CheckpointError>>>>,
    told: Waiters,
}

impl Done {
    fn is(&self) -> bool {
        lock(&self.result).is_some()
    }
}

/// A checkpoint that is being written. Dropped, it waits for nothing: the thread owns what it needs, and goes on.
#[derive(Debug)]
pub struct Writing {
    done: Arc<Done>,
}

impl Writing {
    /// Whether the file is not finished yet.
    pub fn is_busy(&self) -> bool {
        !self.done.is()
    }

    /// What was written, or why nothing was; `None` when that is not known by the deadline.
    pub fn wait(&self, deadline: Option<Instant>) -> Option<Result<Written, Arc<CheckpointError>>> {
        self.done.told.wait_until(deadline, || lock(&self.done.result).clone())
    }
}

impl Cut {
    /// Writes the cut to a new file, in a thread of its own.
    ///
    /// # Errors
    /// When there is such a file, when it cannot be made, when the system gives no thread. What happens later is the
    /// result of the [`Writing`].
    pub fn write(self, path: &Path) -> Result<Writing, CheckpointError> {
        let file = OpenOptions::new().write(true).create_new(true).open(path);
        self.write_to(file.map_err(CheckpointError::io(path))?, path.to_path_buf())
    }

    pub(super) fn write_to(
        self,
        sink: impl Sink + 'static,
        path: PathBuf,
    ) -> Result<Writing, CheckpointError> {
        struct Told(Arc<Done>, PathBuf);
        impl Drop for Told {
            fn drop(&mut self) {
                let lost =
                    io::Error::other("its writing thread ended unexpectedly; this is a defect of Melissa");
                let lost = CheckpointError::Io { path: self.1.clone(), source: lost };
                lock(&self.0.result).get_or_insert_with(|| Err(Arc::new(lost)));
                self.0.told.notify();
            }
        }
        let done = Arc::new(Done::default());
        let told = Told(Arc::clone(&done), path.clone());
        let run = move || {
            let result = save(self, &sink).map_err(|source| Arc::new(CheckpointError::Io { path, source }));
            *lock(&told.0.result) = Some(result);
            drop(told);
        };
        let thread = std::thread::Builder::new().name("melissa-checkpoint".into()).spawn(run);
        thread.map_err(CheckpointError::Thread)?;
        Ok(Writing { done })
    }
}

/// The samples of a cut that are not written yet.
struct Held {
    bound: Arc<Bound>,
    rest: Mutex<Rest>,
    /// Bytes that may be copied aside in all.
    limit: usize,
    is_over: AtomicBool,
}

struct Rest {
    /// Pinned but for those that are written or aside.
    slots: Vec<u32>,
    next: usize,
    /// The place in `slots` of each slot of the slab that is in it.
    places: Vec<Option<u32>>,
    /// Slots whose sample has left the population, as far as that is known, to be copied aside.
    retired: Vec<u32>,
    aside: HashMap<usize, Sample>,
    bytes: usize,
    copied: u64,
}

impl Held {
    fn new(samples: PinnedSamples, limit: usize) -> Self {
        let (bound, slots) = samples.into_slots();
        // What was asked for in vain before the cut says nothing of its pins.
        bound.room.has_starved();
        bound.room.set_saving(true);
        let mut places = vec![None; bound.slab.slots()];
        for (place, &slot) in (0..).zip(&slots) {
            places[slot as usize] = Some(place);
        }
        // From now on they are noted; those of since the cut are found here.
        let retired = slots.iter().copied().filter(|&slot| bound.slab.word(slot).is_retired()).collect();
        let rest = Rest { slots, next: 0, places, retired, aside: HashMap::new(), bytes: 0, copied: 0 };
        Self { bound, rest: Mutex::new(rest), limit, is_over: AtomicBool::new(false) }
    }

    /// The next sample to write, with its pin or as a copy.
    fn take(&self) -> Option<Sample> {
        let mut rest = lock(&self.rest);
        let index = rest.next;
        let slot = *rest.slots.get(index)?;
        rest.next += 1;
        if let Some(copy) = rest.aside.remove(&index) {
            rest.bytes -= self.bound.slab.schema().stride();
            return Some(copy);
        }
        Some(Sample::pinned(&self.bound, slot))
    }

    /// Takes over which samples have left the population since the last look: of those that are written nothing is
    /// kept, so that the list is never longer than the cut.
    fn look(&self) {
        let mut rest = lock(&self.rest);
        let noted = self.bound.room.take_retired();
        let Rest { next, places, retired, aside, .. } = &mut *rest;
        retired.extend(noted);
        retired.retain(|&slot| {
            places[slot as usize].is_some_and(|place| {
                let place = place as usize;
                place >= *next && !aside.contains_key(&place)
            })
        });
    }

    /// Copies samples that have left the population, and lets go of their slots.
    fn copy_aside(&self) {
        let stride = self.bound.slab.schema().stride();
        let mut rest = lock(&self.rest);
        let mut left = (ASIDE_AT_ONCE / stride).max(1);
        while left > 0 && rest.bytes + stride <= self.limit {
            let Some(slot) = rest.retired.pop() else { return };
            let Some(place) = rest.places[slot as usize].map(|place| place as usize) else { continue };
            let is_written = place < rest.next || rest.aside.contains_key(&place);
            if is_written || !self.bound.slab.word(slot).is_retired() {
                continue;
            }
            let guard = SlotGuard::new(&self.bound, slot);
            let copy = Sample::copy(&guard);
            rest.aside.insert(place, copy);
            rest.bytes += stride;
            rest.copied += 1;
            left -= 1;
        }
    }

    /// Copies aside whenever a slot was asked for in vain, until everything is written.
    fn keep_reception_going(&self) {
        let room = &self.bound.room;
        while !self.is_over.load(Ordering::Relaxed) {
            let starved = room.pin_holders.wait_until(Some(Instant::now() + LOOK), || {
                (room.has_starved() || self.is_over.load(Ordering::Relaxed)).then_some(())
            });
            self.look();
            if starved.is_some() || room.is_wanted() {
                self.copy_aside();
            }
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.bound.room.set_saving(false);
        // After an error: what is left is not written any more.
        while let Some(sample) = self.take() {
            drop(sample);
        }
    }
}

/// Dropped, also by a panic, it ends the thread that copies aside.
struct AsideEnd<'a>(&'a Held);

impl Drop for AsideEnd<'_> {
    fn drop(&mut self) {
        self.0.is_over.store(true, Ordering::Relaxed);
        self.0.bound.room.pin_holders.notify();
    }
}

/// An array that is being written, row after row.
struct Rows<'a> {
    sink: &'a dyn Sink,
    /// Where the next bytes belong that are not in `together`.
    offset: u64,
    end: u64,
    together: Vec<u8>,
    crc: u32,
}

impl<'a> Rows<'a> {
    fn new(sink: &'a dyn Sink, tensor: &Tensor) -> Self {
        let end = tensor.start + tensor.bytes;
        Self { sink, offset: tensor.start, end, together: Vec::new(), crc: 0 }
    }

    fn push(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.crc = crc32c::crc32c_append(self.crc, bytes);
        if bytes.len() >= WRITTEN_AT_ONCE && self.together.is_empty() {
            return self.write(bytes);
        }
        self.together.extend_from_slice(bytes);
        if self.together.len() < WRITTEN_AT_ONCE { Ok(()) } else { self.flush() }
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.sink.write_at(bytes, self.offset)?;
        self.offset += bytes.len() as u64;
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        let together = std::mem::take(&mut self.together);
        self.write(&together)?;
        self.together = together;
        self.together.clear();
        Ok(())
    }

    fn finish(mut self) -> io::Result<u32> {
        self.flush()?;
        if self.offset == self.end {
            return Ok(self.crc);
        }
        let text = format!("an array was to end at byte {}, and ends at {}", self.end, self.offset);
        Err(io::Error::other(text))
    }
}

fn save(mut cut: Cut, sink: &dyn Sink) -> io::Result<Written> {
    let begin = Instant::now();
    let schema = cut.buffer.samples.schema();
    let nb_samples = cut.buffer.samples.len();
    let integers = integers(&mut cut);
    let mut arrays = payload_arrays(&schema, nb_samples as u64, cut.pending.keys.len() as u64);
    arrays.extend(integers.iter().map(|integers| {
        Planned(integers.0.into(), Dtype::I64, integers.2.len() as u64 / integers.1, integers.1)
    }));
    let (layout, head) = Layout::plan(arrays, metadata(&cut)?).map_err(io::Error::other)?;
    let Cut { buffer, mut pending, .. } = cut;
    pending.fields.resize(schema.fields().len(), Vec::new());
    let half = memory::available().unwrap_or(u64::MAX) / 2;
    let held = Held::new(buffer.samples, usize::try_from(half).unwrap_or(usize::MAX));
    let mut checksums = std::thread::scope(|scope| {
        let _end = AsideEnd(&held);
        std::thread::Builder::new()
            .name("melissa-aside".into())
            .spawn_scoped(scope, || held.keep_reception_going())?;
        sink.write_at(&head, 0)?;
        samples(&held, &schema, &layout, sink)
    })?;
    let copied_aside = lock(&held.rest).copied;
    drop(held);
    write_pending(&pending, &schema, &layout, sink, &mut checksums)?;
    for integers in integers {
        let bytes: Vec<u8> = integers.2.iter().flat_map(|number| number.to_le_bytes()).collect();
        checksums.insert(integers.0.into(), whole(&layout, integers.0, &bytes, sink)?);
    }
    sink.sync()?;
    let mut crc32c = crc32c::crc32c(&head);
    for tensor in &layout.tensors {
        let part = checksums.get(&tensor.name).copied().unwrap_or_default();
        crc32c = crc32c::crc32c_combine(crc32c, part, tensor.bytes as usize);
    }
    Ok(Written { bytes: layout.bytes, crc32c, seconds: begin.elapsed().as_secs_f64(), copied_aside })
}

fn tensor<'a>(layout: &'a Layout, name: &str) -> io::Result<&'a Tensor> {
    let found = layout.tensors.iter().find(|tensor| tensor.name == name);
    found.ok_or_else(|| io::Error::other(format!("array \"{name}\" was not planned")))
}

/// Writes a whole array; returns its checksum.
fn whole(layout: &Layout, name: &str, bytes: &[u8], sink: &dyn Sink) -> io::Result<u32> {
    let mut rows = Rows::new(sink, tensor(layout, name)?);
    rows.push(bytes)?;
    rows.finish()
}

/// Writes the payloads of the population, sample by sample; returns the checksums by array.
fn samples(
    held: &Held,
    schema: &Schema,
    layout: &Layout,
    sink: &dyn Sink,
) -> io::Result<HashMap<String, u32>> {
    let names: Vec<String> = schema.fields().iter().map(|field| field_array(&field.name)).collect();
    let mut fields = Vec::with_capacity(names.len());
    for name in &names {
        fields.push(Rows::new(sink, tensor(layout, name)?));
    }
    let mut parameters = Rows::new(sink, tensor(layout, PARAMETERS)?);
    while let Some(sample) = held.take() {
        for (index, rows) in fields.iter_mut().enumerate() {
            rows.push(sample.field_bytes(index))?;
        }
        parameters.push(sample.parameters_bytes())?;
    }
    let mut checksums = HashMap::new();
    for (name, rows) in names.into_iter().zip(fields) {
        checksums.insert(name, rows.finish()?);
    }
    checksums.insert(PARAMETERS.into(), parameters.finish()?);
    Ok(checksums)
}

fn write_pending(
    pending: &Pending,
    schema: &Schema,
    layout: &Layout,
    sink: &dyn Sink,
    checksums: &mut HashMap<String, u32>,
) -> io::Result<()> {
    for (field, rows) in schema.fields().iter().zip(&pending.fields) {
        let name = pending_field_array(&field.name);
        let checksum = whole(layout, &name, rows, sink)?;
        checksums.insert(name, checksum);
    }
    let checksum = whole(layout, PENDING_PARAMETERS, &pending.parameters, sink)?;
    checksums.insert(PENDING_PARAMETERS.into(), checksum);
    Ok(())
}

#[cfg(all(test, not(any(loom, shuttle))))]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::CheckpointFile;
    use super::*;
    use crate::buffer::{Buffer, BufferConfig, Kind, SampleKey};
    use crate::ledger::LedgerState;
    use crate::schema::Field;
    use crate::session::SessionState;
    use std::sync::Condvar;

    const SAMPLES: usize = 64;
    const VALUES: usize = 100_000;

    /// A disk that takes nothing until it is told to.
    #[derive(Clone, Default)]
    struct SlowDisk(Arc<Disk>);

    #[derive(Default)]
    struct Disk {
        /// Whether it takes anything now, and what it has taken.
        content: Mutex<(bool, Vec<u8>)>,
        changed: Condvar,
    }

    impl SlowDisk {
        fn go_on(&self) {
            self.0.content.lock().unwrap().0 = true;
            self.0.changed.notify_all();
        }
    }

    impl Sink for SlowDisk {
        fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
            let Disk { content, changed } = &*self.0;
            let mut disk = changed.wait_while(content.lock().unwrap(), |disk| !disk.0).unwrap();
            let end = offset as usize + bytes.len();
            if disk.1.len() < end {
                disk.1.resize(end, 0);
            }
            disk.1[offset as usize..end].copy_from_slice(bytes);
            Ok(())
        }

        fn sync(&self) -> io::Result<()> {
            Ok(())
        }
    }

    fn config() -> BufferConfig {
        BufferConfig {
            kind: Kind::Fifo,
            capacity: SAMPLES,
            watermark: 0,
            pseudo_epochs: 1,
            batch_size: 1,
            seed: 0,
            assembly_slots: 2,
            lent_slots: Some(1),
        }
    }

    fn schema() -> Arc<Schema> {
        Arc::new(Schema::new(vec![Field { name: "u".into(), dtype: Dtype::F32, size: VALUES }], 1).unwrap())
    }

    fn put(buffer: &Buffer, number: usize) {
        let bytes: Vec<u8> = std::iter::repeat_n((number as f32).to_ne_bytes(), VALUES).flatten().collect();
        let key = SampleKey { simulation: 0, draw: 0, time_step: number as u64 };
        let deadline = Some(Instant::now() + Duration::from_secs(20));
        buffer.put(key, &[&bytes], &[number as f64], deadline).unwrap();
    }

    fn cut(buffer: &Buffer) -> Cut {
        Cut {
            buffer: buffer.snapshot().unwrap(),
            pending: Pending::default(),
            ledger: LedgerState::default(),
            session: SessionState::default(),
        }
    }

    #[test]
    fn reception_goes_on_beside_a_disk_that_takes_nothing_and_the_file_is_that_of_the_cut() {
        let buffer = Buffer::new(config()).unwrap();
        buffer.bind(schema()).unwrap();
        for number in 0..SAMPLES {
            put(&buffer, number);
        }
        let disk = SlowDisk::default();
        let writing = cut(&buffer).write_to(disk.clone(), "nowhere".into()).unwrap();
        // Each sample is drawn and another one takes its place; none of the old ones is written meanwhile.
        for number in SAMPLES..2 * SAMPLES {
            assert_eq!(buffer.get(None).unwrap().key().time_step, (number - SAMPLES) as u64);
            put(&buffer, number);
        }
        assert!(writing.is_busy());
        assert!(writing.wait(Some(Instant::now())).is_none());
        disk.go_on();
        let written = writing.wait(None).unwrap().unwrap();
        assert!(written.copied_aside as usize > SAMPLES / 2, "{written:?}");

        let path = std::env::temp_dir().join(format!("melissa-slow-disk-{}", std::process::id()));
        std::fs::write(&path, &disk.0.content.lock().unwrap().1).unwrap();
        let file = CheckpointFile::open(&path, Some((written.bytes, written.crc32c))).unwrap();
        std::fs::remove_file(&path).unwrap();
        let restored = file.restore_buffer(config()).unwrap();
        for number in 0..SAMPLES {
            let sample = restored.get(None).unwrap();
            assert_eq!(sample.key().time_step, number as u64);
            assert_eq!(sample.parameters(), [number as f64]);
            let values = sample.field_bytes(0).chunks_exact(4).map(|value| value.try_into().unwrap());
            assert!(values.map(f32::from_ne_bytes).all(|value| value == number as f32));
        }
    }

    #[test]
    fn what_leaves_the_population_during_a_long_write_is_forgotten_once_it_concerns_nobody() {
        let buffer = Buffer::new(config()).unwrap();
        buffer.bind(schema()).unwrap();
        put(&buffer, 0);
        let disk = SlowDisk::default();
        let writing = cut(&buffer).write_to(disk.clone(), "nowhere".into()).unwrap();
        for number in 1..=20 {
            put(&buffer, number);
            buffer.get(None).unwrap();
        }
        // Nobody asked for a slot in vain.
        let deadline = Instant::now() + Duration::from_secs(20);
        let room = &buffer.bound.get().unwrap().room;
        while room.nb_retired() > 0 && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(room.nb_retired(), 0);
        disk.go_on();
        assert_eq!(writing.wait(None).unwrap().unwrap().copied_aside, 0);
    }

    #[test]
    fn a_panic_while_a_checkpoint_is_written_is_its_result_and_ends_both_threads() {
        struct NoDisk;
        impl Sink for NoDisk {
            fn write_at(&self, _: &[u8], offset: u64) -> io::Result<()> {
                assert_eq!(offset, 0, "this disk breaks what is behind the head");
                Ok(())
            }

            fn sync(&self) -> io::Result<()> {
                Ok(())
            }
        }
        let buffer = Buffer::new(config()).unwrap();
        buffer.bind(schema()).unwrap();
        for number in 0..SAMPLES {
            put(&buffer, number);
        }
        let writing = cut(&buffer).write_to(NoDisk, "/some/where".into()).unwrap();
        let result = writing.wait(Some(Instant::now() + Duration::from_secs(20)));
        let error = result.unwrap().unwrap_err().to_string();
        assert!(error.contains("/some/where") && error.contains("defect"), "{error}");
        for number in SAMPLES..2 * SAMPLES {
            buffer.get(None).unwrap();
            put(&buffer, number);
        }
    }

    #[test]
    fn who_drops_a_checkpoint_that_is_being_written_does_not_wait_for_the_disk() {
        let buffer = Buffer::new(config()).unwrap();
        buffer.bind(schema()).unwrap();
        put(&buffer, 0);
        let disk = SlowDisk::default();
        let writing = cut(&buffer).write_to(disk.clone(), "nowhere".into()).unwrap();
        let dropped = std::thread::spawn(move || drop(writing));
        let deadline = Instant::now() + Duration::from_secs(20);
        while !dropped.is_finished() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
        assert!(dropped.is_finished());
        disk.go_on();
    }

    #[test]
    fn a_disk_that_fails_lets_go_of_every_pin_and_says_why() {
        struct FullDisk;
        impl Sink for FullDisk {
            fn write_at(&self, _: &[u8], offset: u64) -> io::Result<()> {
                if offset == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(libc::ENOSPC)) }
            }

            fn sync(&self) -> io::Result<()> {
                Ok(())
            }
        }
        let buffer = Buffer::new(config()).unwrap();
        buffer.bind(schema()).unwrap();
        for number in 0..SAMPLES {
            put(&buffer, number);
        }
        let writing = cut(&buffer).write_to(FullDisk, "/some/where".into()).unwrap();
        let error = writing.wait(None).unwrap().unwrap_err().to_string();
        assert!(error.contains("/some/where") && error.contains("No space left"), "{error}");
        drop(writing);
        for number in SAMPLES..2 * SAMPLES {
            buffer.get(None).unwrap();
            put(&buffer, number);
        }
    }
}
