//! Handles: the last strong handle drops the value, once; the last handle of any kind frees the memory.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use overspill_slab::{Kept, Own, Ref, RefCounted, WeakRef, kept};

static DROPPED: AtomicUsize = AtomicUsize::new(0);

#[derive(Clone, Debug)]
struct Thing(u64, Arc<AtomicUsize>);

impl Drop for Thing {
    fn drop(&mut self) {
        self.1.fetch_add(1, Ordering::SeqCst);
    }
}

kept!(counted Thing, "shared thing");

#[test]
fn a_value_goes_with_its_last_handle_and_its_memory_with_the_last_of_all() {
    /// Its cache is used by no other test of this file.
    struct Lone(u64, Arc<AtomicUsize>);
    impl Drop for Lone {
        fn drop(&mut self) {
            self.1.fetch_add(1, Ordering::SeqCst);
        }
    }
    kept!(counted Lone, "lone");
    let dropped = Arc::new(AtomicUsize::new(0));
    let first = Ref::new(Lone(7, dropped.clone())).unwrap();
    let second = first.clone();
    let weak = Ref::downgrade(&first);
    assert_eq!((Ref::handles(&first), first.0, weak.as_ptr()), (2, 7, Ref::as_ptr(&second)));
    drop(first);
    assert!(Ref::ptr_eq(&weak.upgrade().unwrap(), &second));
    assert_eq!(dropped.load(Ordering::SeqCst), 0);
    drop(second);
    assert_eq!(dropped.load(Ordering::SeqCst), 1);
    assert!(weak.upgrade().is_none());
    let live = || <Lone as RefCounted>::CACHE.info().unwrap().active;
    let with_weak = live();
    drop((weak.clone(), weak));
    assert_eq!(live(), with_weak - 1, "the memory went with the last weak handle");
}

#[test]
fn a_shared_value_is_copied_before_it_is_changed() {
    let dropped = Arc::new(AtomicUsize::new(0));
    let mut one = Ref::new(Thing(1, dropped.clone())).unwrap();
    assert!(Ref::get_mut(&mut one).is_some());
    let other = one.clone();
    assert!(Ref::get_mut(&mut one).is_none());
    Ref::make_mut(&mut one).unwrap().0 = 2;
    assert_eq!((one.0, other.0), (2, 1));
    let weak = Ref::downgrade(&one);
    assert!(Ref::get_mut(&mut one).is_none(), "a weak handle could become one");
    drop(weak);
    assert!(Ref::get_mut(&mut one).is_some());
    drop((one, other));
    assert_eq!(dropped.load(Ordering::SeqCst), 2);
}

#[test]
fn threads_share_and_let_go() {
    for _ in 0..200 {
        let dropped = Arc::new(AtomicUsize::new(0));
        let shared = Ref::new(Thing(3, dropped.clone())).unwrap();
        let weak: WeakRef<Thing> = Ref::downgrade(&shared);
        std::thread::scope(|scope| {
            for _ in 0..2 {
                let (mut shared, weak) = (shared.clone(), weak.clone());
                scope.spawn(move || {
                    if let Some(again) = weak.upgrade() {
                        assert_eq!(again.0, 3);
                    }
                    drop(weak);
                    if let Some(alone) = Ref::get_mut(&mut shared) {
                        alone.0 += 1;
                    }
                });
            }
            drop((shared, weak));
        });
        assert_eq!(dropped.load(Ordering::SeqCst), 1);
    }
}

struct Owned([u64; 4]);

kept!(Owned, "owned thing");

impl Drop for Owned {
    fn drop(&mut self) {
        DROPPED.fetch_add(1, Ordering::SeqCst);
    }
}

#[test]
fn an_owned_object_is_given_back() {
    let mut own = Own::new(Owned([5; 4])).unwrap();
    own.0[0] = 6;
    assert_eq!((own.0, size_of_val(&own)), ([6, 5, 5, 5], 8));
    drop(own);
    assert_eq!((DROPPED.load(Ordering::SeqCst), Owned::CACHE.info().unwrap().active), (1, 0));
}
