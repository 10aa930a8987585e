//! R35, R59: allocate and free take no heap memory, counted by an allocator that counts.

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use common::{disk_dir, settle};
use overspill_store::blist::{Blist, SEGMENT, Stock};
use overspill_store::{AllocError, FileStore, Run, Space};

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

struct Counting;

// SAFETY: everything is passed on to the system allocator unchanged; counting touches only a thread-local cell
// without a destructor, which allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.with(|n| n.set(n.get() + 1));
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        ALLOCATIONS.with(|n| n.set(n.get() + 1));
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// Counts heap calls of this thread, allocations and frees, while `f` runs.
fn heap_calls(f: impl FnOnce()) -> u64 {
    let before = ALLOCATIONS.get();
    f();
    ALLOCATIONS.get() - before
}

#[test]
fn the_counter_counts() {
    assert_eq!(heap_calls(|| drop(std::hint::black_box(Box::new(1)))), 2);
    assert_eq!(heap_calls(|| ()), 0);
}

#[test]
fn the_tree_allocates_nothing() {
    let mut tree = Blist::new(20 * SEGMENT);
    tree.prepare(20 * SEGMENT, &mut Stock::for_blocks(20 * SEGMENT));
    let mut held = [Run { start: 0, blocks: 1 }; 4000];
    let calls = heap_calls(|| {
        for round in 0..3u32 {
            let mut n = 0;
            while let Some(run) = tree.allocate(1, 1 + round * 40) {
                held[n % 4000] = run;
                n += 1;
                if n % 3 == 0 {
                    tree.free(held[n % 4000 / 2]);
                }
                if n == 30_000 {
                    break;
                }
            }
            tree.free(Run { start: 0, blocks: 20 * SEGMENT });
        }
        let groups = tree.last_free_groups(u64::from(20 * SEGMENT)).unwrap();
        assert!(tree.take(groups));
    });
    assert_eq!(calls, 0);
}

#[test]
fn a_file_store_allocates_nothing_for_a_run() {
    let dir = disk_dir();
    let store = FileStore::in_directory(dir.path(), 1 << 20).unwrap();
    settle(&store, true);
    let calls = heap_calls(|| {
        // More often than there is room for: a refusal allocates nothing either.
        for turn in 0..2000 {
            if let Ok(run) = store.allocate(0, 1, 64)
                && turn % 3 == 0
            {
                store.free(run);
            }
        }
        assert_eq!(store.allocate(0, 1, 64), Err(AllocError::NotReady));
    });
    assert_eq!(calls, 0);
}
