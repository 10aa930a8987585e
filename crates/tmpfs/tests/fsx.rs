//! Random operations on one file, compared with a vector of bytes: every read, size, block count, hole.
//!
//! With a few frames of memory and everything paged out after every operation, no page is read where the write put it.
//! A failure prints its seed, run and step: repeat it with the printed call of `run`.

mod common;

use std::collections::BTreeSet;

use common::{Fs, ME, ROOT, fs_on, read, truncate, vm, write};
use overspill_tmpfs::{FallocateMode, FsError, SeekTo};
use overspill_vm::{PAGE, testing};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

const P: u64 = PAGE as u64;
/// Longer than the largest memory used here.
const FILE_MAX: u64 = 150 * P;

/// The expected file: its bytes, and the pages that exist.
#[derive(Default)]
struct Model {
    bytes: Vec<u8>,
    exists: BTreeSet<u64>,
}

impl Model {
    fn size(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn resize(&mut self, size: u64) {
        self.bytes.resize(at(size), 0);
        self.exists.retain(|&page| page < size.div_ceil(P));
    }

    fn grow(&mut self, end: u64) {
        self.bytes.resize(self.bytes.len().max(at(end)), 0);
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        self.grow(offset + data.len() as u64);
        self.bytes[at(offset)..at(offset) + data.len()].copy_from_slice(data);
        self.exists.extend(offset / P..(offset + data.len() as u64).div_ceil(P));
    }

    fn zero(&mut self, offset: u64, end: u64) {
        let inside = at(offset).min(self.bytes.len())..at(end).min(self.bytes.len());
        self.bytes[inside].fill(0);
        self.exists.retain(|page| !(offset.div_ceil(P)..end / P).contains(page));
    }

    fn allocate(&mut self, offset: u64, end: u64) {
        self.exists.extend(offset / P..end.div_ceil(P));
    }

    fn seek(&self, offset: u64, to: SeekTo) -> Result<u64, FsError> {
        if offset >= self.size() {
            return Err(FsError::NoSuchOffset);
        }
        let wanted = |page: &u64| self.exists.contains(page) == (to == SeekTo::Data);
        let found = (offset / P..self.size().div_ceil(P)).find(wanted).map(|page| (page * P).max(offset));
        match to {
            SeekTo::Data => found.ok_or(FsError::NoSuchOffset),
            SeekTo::Hole => Ok(found.unwrap_or(self.size())),
        }
    }
}

fn at(offset: u64) -> usize {
    usize::try_from(offset).unwrap()
}

/// Prints the place if the test fails.
struct Place {
    seed: u64,
    frames: usize,
    evict: bool,
    step: usize,
    operation: String,
}

impl Drop for Place {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let Place { seed, frames, evict, step, operation } = self;
            eprintln!("fsx failed: run({seed}, {frames}, {evict}, ..) at step {step}: {operation}");
        }
    }
}

/// Bytes as files have them: noise, runs, zeros.
fn some_bytes(rng: &mut StdRng, len: usize) -> Vec<u8> {
    let fill: u8 = rng.random();
    match rng.random_range(0..4) {
        0 => vec![0; len],
        1 => vec![fill; len],
        2 => (0..len).map(|i| fill.wrapping_add(u8::try_from(i / 50 % 256).unwrap())).collect(),
        _ => (0..len).map(|_| rng.random()).collect(),
    }
}

/// An offset, often on or beside a page or chunk.
fn some_offset(rng: &mut StdRng, below: u64) -> u64 {
    let offset = rng.random_range(0..below.max(1));
    match rng.random_range(0..4) {
        0 => offset / P * P,
        1 => offset / (16 * P) * (16 * P),
        2 => (offset / P * P).saturating_sub(1),
        _ => offset,
    }
}

fn run(seed: u64, frames: usize, evict: bool, steps: usize) {
    let vm = vm(frames);
    let fs = fs_on(&vm, 4096);
    let start = vm.stats().charged_bytes;
    let ino = fs.create(ROOT, b"file", 0o600, ME).unwrap().ino;
    let mut rng = StdRng::seed_from_u64(seed);
    let mut model = Model::default();
    let mut place = Place { seed, frames, evict, step: 0, operation: String::new() };
    for step in 0..steps {
        place.step = step;
        // A reservation is for one chunk and may take half of the memory.
        let longest = ((frames as u64 / 2).saturating_sub(1) * P).min(40 * P);
        step_once(&fs, ino, &mut rng, &mut model, longest, &mut place.operation);
        if evict {
            testing::evict_all(&vm);
        }
        let attr = fs.getattr(ino).unwrap();
        assert_eq!(attr.size, model.size(), "size");
        assert_eq!(attr.blocks, model.exists.len() as u64 * 8, "blocks");
        if step % 16 == 0 || step + 1 == steps {
            assert!(read(&fs, ino, 0, at(FILE_MAX) + 1).unwrap() == model.bytes, "the whole file");
        }
    }
    assert_eq!(fs.account().used(), model.exists.len() as u64);
    let stats = vm.stats();
    // Where memory is short, pages are packed in memory or paged out.
    assert_eq!(
        stats.compressed + stats.page_outs > 0,
        evict || frames < 100,
        "pages left memory only where they should (R4)"
    );
    fs.unlink(ROOT, b"file").unwrap();
    assert_eq!(fs.account().used(), 0, "what is removed is returned");
    testing::settle(&vm);
    assert_eq!(vm.stats().charged_bytes, start, "what is removed is memory returned");
    testing::check(&vm, &[]);
}

fn step_once(fs: &Fs, ino: u64, rng: &mut StdRng, model: &mut Model, longest: u64, operation: &mut String) {
    let offset = some_offset(rng, FILE_MAX - longest);
    let most = if rng.random() { longest } else { 3 * P / 2 };
    let len = rng.random_range(1..=most);
    let end = offset + len;
    let falloc = |mode| testing::block_on(&fs.pager, fs.fallocate(ino, offset, len, mode, ME)).unwrap();
    let choice = rng.random_range(0..100);
    *operation = format!("choice {choice}, {offset}+{len}, size {}", model.size());
    match choice {
        0..35 => {
            let data = some_bytes(rng, at(len));
            assert_eq!(write(fs, ino, offset, &data), Ok(data.len()));
            model.write(offset, &data);
        }
        35..60 => {
            let from = at(offset).min(model.bytes.len());
            let to = at(end).min(model.bytes.len());
            assert!(read(fs, ino, offset, at(len)).unwrap() == model.bytes[from..to], "bytes read");
        }
        60..72 => {
            let size = if rng.random() { some_offset(rng, model.size() + 1) } else { offset };
            *operation += &format!(", truncate to {size}");
            truncate(fs, ino, size).unwrap();
            model.resize(size);
        }
        72..80 => {
            falloc(FallocateMode::PunchHole);
            model.zero(offset, end);
        }
        80..86 => {
            let keep_size = rng.random();
            falloc(FallocateMode::ZeroRange { keep_size });
            model.zero(offset, end);
            model.allocate(offset, end);
            model.grow(if keep_size { 0 } else { end });
        }
        86..92 => {
            let keep_size = rng.random();
            falloc(FallocateMode::Allocate { keep_size });
            model.allocate(offset, end);
            model.grow(if keep_size { 0 } else { end });
        }
        _ => {
            let to = if rng.random() { SeekTo::Data } else { SeekTo::Hole };
            let offset = some_offset(rng, model.size() + P);
            *operation += &format!(", seek {to:?} from {offset}");
            let found = testing::block_on(&fs.pager, fs.seek(ino, offset, to));
            assert_eq!(found, model.seek(offset, to));
        }
    }
}

#[test]
fn every_page_leaves_memory_after_every_operation() {
    for (seed, frames) in (0..24).zip([8, 16, 40, 64].into_iter().cycle()) {
        run(seed, frames, true, 300);
    }
}

#[test]
fn memory_shorter_than_the_file_pages_by_itself() {
    for (seed, frames) in (100..124).zip([8, 16, 40, 64].into_iter().cycle()) {
        run(seed, frames, false, 400);
    }
}

#[test]
fn memory_enough_for_all() {
    for seed in 200..204 {
        run(seed, 1024, false, 600);
    }
}
