//! Concurrent requests on one file (R67).

mod common;

use std::future::Future;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Waker};

use common::{Fs, ME, MemStore, ROOT, fs_on, noise, read, truncate, vm, vm_on, write};
use futures_lite::future::block_on;
use overspill_tmpfs::{FallocateMode, SetAttr, WriteFlags};
use overspill_vm::{PAGE, testing};

const P: u64 = PAGE as u64;

fn poll<F: Future>(future: &mut std::pin::Pin<&mut F>) -> Poll<F::Output> {
    future.as_mut().poll(&mut Context::from_waker(Waker::noop()))
}

/// A file system whose memory is full of pages that only pageout can move.
fn full() -> (Fs, u64) {
    let fs = fs_on(&vm(32), 4096);
    let filler = fs.create(ROOT, b"filler", 0o644, ME).unwrap().ino;
    let noise = noise(8 * PAGE);
    let mut offset = 0;
    loop {
        let mut write = pin!(fs.write(filler, offset, &noise, WriteFlags::default()));
        if poll(&mut write).is_pending() {
            testing::block_on(&fs.pager, write).unwrap();
            break;
        }
        offset += noise.len() as u64;
    }
    let ino = fs.create(ROOT, b"file", 0o644, ME).unwrap().ino;
    (fs, ino)
}

/// Begins a write that waits for memory.
macro_rules! parked_write {
    ($fs:expr, $ino:expr, $offset:expr, $data:expr) => {{
        let mut offset = 1 << 30;
        loop {
            // Fill memory that pageout has freed since.
            let filler = $fs.lookup(ROOT, b"filler").unwrap().ino;
            let noise = noise(PAGE);
            let mut fill = pin!($fs.write(filler, offset, &noise, WriteFlags::default()));
            if poll(&mut fill).is_pending() {
                break;
            }
            offset += P;
        }
        $fs.write($ino, $offset, $data, WriteFlags::default())
    }};
}

#[test]
fn a_truncation_waits_for_a_parked_write_and_goes_before_what_comes_after_it() {
    let (fs, ino) = full();
    let data = [5; 8 * PAGE];
    let mut writing = pin!(parked_write!(fs, ino, 0, &data));
    assert!(poll(&mut writing).is_pending(), "memory is full");
    assert_eq!(fs.getattr(ino).unwrap().size, 0, "a size grows only after the bytes are in");
    let mut cutting = pin!(fs.setattr(ino, SetAttr { size: Some(3 * P + 9), ..SetAttr::default() }, ME));
    assert!(poll(&mut cutting).is_pending(), "a write is under way");
    let mut buf = vec![0; 8 * PAGE];
    let mut reading = Box::pin(fs.read(ino, 0, &mut buf));
    assert!(poll(&mut reading.as_mut()).is_pending(), "a truncation was asked for before");

    assert_eq!(testing::block_on(&fs.pager, writing), Ok(data.len()));
    assert_eq!(fs.getattr(ino).unwrap().size, 8 * P);
    assert_eq!(testing::block_on(&fs.pager, cutting).unwrap().size, 3 * P + 9);
    assert_eq!(testing::block_on(&fs.pager, reading), Ok(3 * PAGE + 9));
    assert!(buf[..3 * PAGE + 9].iter().all(|&byte| byte == 5));
    // The write left nothing behind the new end.
    truncate(&fs, ino, 8 * P).unwrap();
    assert!(read(&fs, ino, 3 * P + 9, 8 * PAGE).unwrap().iter().all(|&byte| byte == 0));
}

#[test]
fn a_punch_waits_for_a_parked_write() {
    let (fs, ino) = full();
    let data = [5; 8 * PAGE];
    let mut writing = pin!(parked_write!(fs, ino, 0, &data));
    assert!(poll(&mut writing).is_pending(), "memory is full");
    let mut punching = pin!(fs.fallocate(ino, P, P, FallocateMode::PunchHole, ME));
    assert!(poll(&mut punching).is_pending(), "a write is under way");
    assert_eq!(testing::block_on(&fs.pager, writing), Ok(data.len()));
    assert_eq!(testing::block_on(&fs.pager, punching), Ok(()));
    assert_eq!(read(&fs, ino, 0, 3 * PAGE).unwrap(), [[5; PAGE], [0; PAGE], [5; PAGE]].concat());
}

#[test]
fn a_parked_write_stops_no_other_file_and_no_attribute() {
    let (fs, ino) = full();
    let other = fs.create(ROOT, b"other", 0o644, ME).unwrap().ino;
    truncate(&fs, other, 100).unwrap();
    let data = [5; 8 * PAGE];
    let mut writing = pin!(parked_write!(fs, ino, 0, &data));
    assert!(poll(&mut writing).is_pending());
    let mut buf = [1; 100];
    {
        let mut reading = pin!(fs.read(other, 0, &mut buf));
        assert_eq!(poll(&mut reading), Poll::Ready(Ok(100)));
    }
    let mut chmod = pin!(fs.setattr(ino, SetAttr { mode: Some(0o600), ..SetAttr::default() }, ME));
    assert!(poll(&mut chmod).is_ready());
    // The file is removed under a waiting write: the write completes, then everything is returned.
    let before = fs.account().used();
    fs.unlink(ROOT, b"file").unwrap();
    assert_eq!(testing::block_on(&fs.pager, writing), Ok(data.len()));
    assert_eq!(fs.account().used(), before);
}

/// Stops the driver, also when a test fails: the thread scope would wait for it.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Writers of whole pages, a truncater and readers share one file while it is paged out and in: each page that is
/// read is all of one write or all zeros.
#[test]
fn pages_are_whole_under_concurrent_writes_truncations_and_pageout() {
    // Four times the memory; truncations leave at least half of it.
    const PAGES: u64 = 160;
    let vm = vm(40);
    let fs = fs_on(&vm, 4096);
    let ino = fs.create(ROOT, b"file", 0o644, ME).unwrap().ino;
    for chunk in 0..PAGES / 8 {
        write(&fs, ino, chunk * 8 * P, &[u8::try_from(chunk).unwrap(); 8 * PAGE]).unwrap();
    }
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let stopping = Stop(&stop);
        let driver = scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                if !testing::run_once(&vm) {
                    std::thread::yield_now();
                }
            }
        });
        let writers: Vec<_> = (1..3_u8)
            .map(|writer| {
                let fs = &fs;
                scope.spawn(move || {
                    for round in 0..600_u64 {
                        let page = round * 7 % PAGES;
                        let data = vec![writer * 100 + u8::try_from(round % 50).unwrap(); 2 * PAGE];
                        assert_eq!(
                            block_on(fs.write(ino, page * P, &data, WriteFlags::default())),
                            Ok(data.len())
                        );
                    }
                })
            })
            .collect();
        let cutter = scope.spawn(|| {
            for round in 0..150_u64 {
                let size = Some((PAGES / 2 + round * 5 % (PAGES / 2)) * P);
                let cut = fs.setattr(ino, SetAttr { size, ..SetAttr::default() }, ME);
                block_on(cut).unwrap();
            }
        });
        for round in 0..600 {
            let mut buf = vec![0; 3 * PAGE];
            let n = block_on(fs.read(ino, round * 3 % PAGES * P, &mut buf)).unwrap();
            for page in buf[..n].chunks(PAGE) {
                assert!(page.iter().all(|byte| *byte == page[0]), "a page of two writes");
            }
        }
        for thread in writers {
            thread.join().unwrap();
        }
        cutter.join().unwrap();
        drop(stopping);
        driver.join().unwrap();
    });
    let attr = fs.getattr(ino).unwrap();
    assert!(attr.size <= (PAGES + 1) * P && attr.blocks * 512 <= attr.size);
    assert!(vm.stats().compressed > 0, "memory was short");
    write(&fs, ino, 0, b"still here").unwrap();
    fs.unlink(ROOT, b"file").unwrap();
    assert_eq!(fs.account().used(), 0);
}

/// A write that waits is dropped, begun anew and refused, as by a transport that parks requests. The bytes of the first
/// try lie beyond the end of the file, and must neither show when it grows nor stay charged.
#[test]
fn a_write_given_up_and_refused_leaves_nothing_beyond_the_end() {
    // No page can leave memory.
    let fs = fs_on(&vm_on(32, MemStore::new(0)), 4096);
    let ino = fs.create(ROOT, b"file", 0o644, ME).unwrap().ino;
    write(&fs, ino, 0, &[1; 100]).unwrap();
    let (used, data) = (fs.account().used(), noise(64 * PAGE));
    let try_once = |keep: usize| {
        let mut writing = Box::pin(fs.write(ino, 100, &data[..keep], WriteFlags::default()));
        assert!(writing.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
        drop(writing);
        assert!(fs.account().used() > used, "the first try wrote nothing");
    };
    let refuse = |keep: usize| {
        let refused = testing::block_on(&fs.pager, fs.write(ino, 100, &data[..keep], WriteFlags::default()));
        assert!(refused.as_ref().map_or(true, |&n| n < keep), "{refused:?}");
        refused.unwrap_or(0) as u64
    };
    // After a refusal only the bytes that it reports are left.
    try_once(data.len());
    let end = 100 + refuse(data.len());
    assert_eq!(fs.getattr(ino).unwrap().size, end);
    assert_eq!(fs.account().used(), end.div_ceil(P));
    let is_zero_from = |from: u64| {
        truncate(&fs, ino, 60 * P).unwrap();
        let tail = read(&fs, ino, from, 60 * PAGE).unwrap();
        assert!(tail.len() as u64 == 60 * P - from && tail.iter().all(|&b| b == 0), "old bytes show");
    };
    is_zero_from(end);
    // The write is dropped for good, then the file grows: by truncation, a write behind a hole, or a mark of lost data.
    for grow in 0..3 {
        truncate(&fs, ino, 100).unwrap();
        try_once(data.len());
        match grow {
            0 => drop(truncate(&fs, ino, 50 * P).unwrap()),
            1 => drop(write(&fs, ino, 50 * P, b"x").unwrap()),
            _ => testing::block_on(&fs.pager, fs.mark_lost(ino, 50 * P, 1)).unwrap(),
        }
        let hole = read(&fs, ino, 100, 49 * PAGE).unwrap();
        assert!(hole.len() == 49 * PAGE && hole.iter().all(|&b| b == 0), "old bytes show, way {grow}");
    }
}
