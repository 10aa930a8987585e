//! R35, R59: allocate and free take no heap memory, counted by an allocator that counts.

mod common;
#[path = "../../codec/tests/counting/mod.rs"]
mod counting;

use common::{disk_dir, settle};
use counting::heap_calls;
use overspill_store::blist::{Blist, SEGMENT, Stock};
use overspill_store::{AllocError, FileStore, Run, Space};

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
