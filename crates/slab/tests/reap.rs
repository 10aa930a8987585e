//! Reap, in a process of its own: an allocation without memory reaps every cache of the process.

use std::alloc::Layout;
use std::ptr::NonNull;
use std::sync::Arc;

use overspill_slab::source::System;
use overspill_slab::{ObjectCache, Options, PAGE, PageSource};

/// A source that counts the pages it has handed out.
#[derive(Default)]
struct Counting(std::sync::atomic::AtomicUsize);

// SAFETY: System keeps the contract.
unsafe impl PageSource for Counting {
    fn grow(&self, layout: Layout) -> Option<NonNull<u8>> {
        self.0.fetch_add(layout.size() / PAGE, std::sync::atomic::Ordering::SeqCst);
        System.grow(layout)
    }

    unsafe fn release(&self, at: NonNull<u8>, layout: Layout) {
        self.0.fetch_sub(layout.size() / PAGE, std::sync::atomic::Ordering::SeqCst);
        // SAFETY: by the caller's contract.
        unsafe { System.release(at, layout) };
    }
}

#[test]
fn a_reap_flushes_only_what_pins_empty_slabs_and_not_too_often() {
    let source = Arc::new(Counting::default());
    let cache = ObjectCache::new(Options::new("reaped", 1024).source(source.clone())).unwrap();
    let objects: Vec<_> = (0..400).map(|_| cache.alloc().unwrap()).collect();
    // One object of each fourth slab stays allocated: objects of those slabs stay in magazines.
    let kept: Vec<_> = objects.iter().step_by(16).copied().collect();
    for object in objects.iter().filter(|o| !kept.contains(o)) {
        // SAFETY: allocated above, freed once.
        unsafe { cache.free(*object) };
    }
    assert!(cache.reap(true) > 0);
    let info = cache.info().unwrap();
    assert_eq!(info.active, kept.len());
    let slabs = kept.iter().map(|o| o.addr().get() / PAGE).collect::<std::collections::BTreeSet<_>>();
    assert_eq!(info.slabs, slabs.len(), "a slab without an object in use was kept");
    assert_eq!(source.0.load(std::sync::atomic::Ordering::SeqCst), info.slabs);
    assert!(info.cached > 0, "magazines were emptied where that gains nothing");
    assert_eq!((cache.reap(false), cache.info().unwrap().reaps), (0, 1), "reaped again within 15 s");
    cache.set_reap_interval(std::time::Duration::ZERO);
    cache.reap(false);
    assert_eq!(cache.info().unwrap().reaps, 2);
    for object in kept {
        // SAFETY: allocated above, freed once.
        unsafe { cache.free(object) };
    }
}
