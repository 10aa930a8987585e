//! Random operations against a plain model: no two objects overlap, constructed state and contents are kept, counts are
//! right, and all memory is returned (R42, R46, R47).

use std::collections::BTreeMap;
use std::ptr::NonNull;
use std::sync::Arc;

use overspill_slab::source::{Faulty, System};
use overspill_slab::{Arena, ObjectCache, Options, OutOfMemory};
use proptest::prelude::*;

#[derive(Debug, Clone, Copy)]
enum Op {
    Alloc,
    Free(prop::sample::Index),
    FreeMany(u8),
    Reserve(u8),
    Reap,
    Refuse(u8),
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let op = prop_oneof![
        12 => Just(Op::Alloc),
        6 => any::<prop::sample::Index>().prop_map(Op::Free),
        1 => any::<u8>().prop_map(Op::FreeMany),
        1 => (0..100u8).prop_map(Op::Reserve),
        1 => Just(Op::Reap),
        1 => (0..4u8).prop_map(Op::Refuse),
    ];
    prop::collection::vec(op, 1..400)
}

/// The first byte of a free object.
const MADE: u8 = 0x5c;

unsafe fn make(object: NonNull<u8>) {
    // SAFETY: objects of these tests have at least one byte.
    unsafe { object.write(MADE) };
}

/// Allocated objects, each with the byte that fills it.
struct Model {
    live: BTreeMap<usize, (NonNull<u8>, u8)>,
    size: usize,
}

impl Model {
    fn add(&mut self, object: NonNull<u8>, align: usize, byte: u8) {
        let at = object.addr().get();
        assert_eq!(at % align, 0, "alignment");
        let before = self.live.range(..=at).next_back();
        assert!(before.is_none_or(|(start, _)| start + self.size <= at), "overlaps the one before");
        let after = self.live.range(at..).next();
        assert!(after.is_none_or(|(start, _)| at + self.size <= *start), "overlaps the one after");
        // SAFETY: allocated with this size.
        unsafe {
            assert_eq!(object.read(), MADE, "not as it was made");
            object.write_bytes(byte, self.size);
        }
        self.live.insert(at, (object, byte));
    }

    /// Takes an object out, checks its contents and puts it back into its constructed state.
    fn remove(&mut self, at: usize) -> NonNull<u8> {
        let (object, byte) = self.live.remove(&at).unwrap();
        // SAFETY: allocated with this size.
        unsafe {
            let bytes = std::slice::from_raw_parts(object.as_ptr(), self.size);
            assert!(bytes.iter().all(|b| *b == byte), "contents");
            object.write(MADE);
        }
        object
    }
}

fn run(size: usize, align: usize, options: Options, ops: &[Op]) {
    let source = Arc::new(Faulty::new(System));
    let arena = Arc::new(Arena::new(source.clone()));
    // SAFETY: `make` writes one byte, and objects have at least one.
    let options = unsafe { options.align(align).source(arena.clone()).constructor(make) };
    let cache = ObjectCache::new(options).unwrap();
    let mut model = Model { live: BTreeMap::new(), size };
    let mut byte = 0u8;
    for op in ops {
        match *op {
            Op::Alloc => match cache.alloc() {
                Ok(object) => {
                    byte = byte.wrapping_add(1);
                    model.add(object, align.max(8), byte);
                }
                Err(OutOfMemory) => assert!(source.grows() > 0),
            },
            Op::Free(which) if !model.live.is_empty() => {
                let at = *which.get(&model.live.keys().copied().collect::<Vec<_>>());
                // SAFETY: allocated here, and no longer in the model.
                unsafe { cache.free(model.remove(at)) };
            }
            Op::Free(_) => {}
            Op::FreeMany(keep) => {
                for at in model.live.keys().copied().skip(usize::from(keep)).collect::<Vec<_>>() {
                    // SAFETY: allocated here, and no longer in the model.
                    unsafe { cache.free(model.remove(at)) };
                }
            }
            Op::Reserve(n) => {
                if let Ok(mut reserve) = cache.reserve(usize::from(n)) {
                    source.refuse(0, u64::MAX);
                    for _ in 0..n / 2 {
                        byte = byte.wrapping_add(1);
                        model.add(reserve.take().expect("reserved"), align.max(8), byte);
                    }
                    source.refuse(0, 0);
                }
            }
            Op::Reap => {
                cache.reap(true);
                arena.trim();
            }
            Op::Refuse(n) => source.refuse(0, u64::from(n)),
        }
        let info = cache.info().unwrap();
        assert_eq!(info.active, model.live.len());
        assert!(info.cached <= info.objects);
    }
    for at in model.live.keys().copied().collect::<Vec<_>>() {
        // SAFETY: allocated here, and no longer in the model.
        unsafe { cache.free(model.remove(at)) };
    }
    cache.reap(true);
    let info = cache.info().unwrap();
    assert_eq!((info.active, info.slabs, info.cached), (0, 0, 0), "everything goes back");
    drop(cache);
    arena.trim();
    assert_eq!((arena.info().used, arena.info().resident, arena.info().imported), (0, 0, 0));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn objects_of_any_size_as_the_model_says(
        ops in ops(), size in prop_oneof![1..300usize, 300..5000usize, 5000..70_000usize], align in 0..8u32
    ) {
        run(size, 1 << align, Options::new("model", size), &ops);
    }

    #[test]
    fn without_magazines_the_same(ops in ops(), size in 1..3000usize) {
        run(size, 8, Options::new("model, plain", size).magazines(false).colour(true), &ops);
    }

    #[test]
    fn verified_the_same(ops in ops(), size in 1..3000usize) {
        run(size, 16, Options::new("model, verified", size).verify(true), &ops);
    }

    #[test]
    fn guarded_the_same(ops in ops(), size in 1..5000usize) {
        run(size, 16, Options::new("model, guarded", size).guard(2), &ops);
    }
}

#[test]
fn every_failure_of_the_source_is_an_error_that_harms_nothing() {
    for refused in 0..30 {
        let source = Arc::new(Faulty::new(System));
        source.refuse(refused, 3);
        // No arena between: every new slab asks the source.
        let cache = ObjectCache::new(Options::new("refused", 1000).source(source.clone())).unwrap();
        let mut objects = Vec::new();
        let mut failed = 0;
        while objects.len() < 70 {
            match cache.alloc() {
                Ok(object) => objects.push(object),
                Err(OutOfMemory) => failed += 1,
            }
            assert!(failed < 10);
        }
        if refused < 10 {
            assert!(failed > 0 || cache.info().unwrap().fills > 0, "nothing was refused");
        }
        for object in objects {
            // SAFETY: allocated above, freed once.
            unsafe { cache.free(object) };
        }
        cache.reap(true);
        assert_eq!(cache.info().unwrap().slabs, 0);
    }
}

#[test]
fn a_constructor_runs_when_a_slab_grows_and_not_when_an_object_is_allocated() {
    use std::sync::atomic::{AtomicUsize, Ordering};
    static MADE_SO_MANY: AtomicUsize = AtomicUsize::new(0);
    static CACHE: overspill_slab::Cache<[u64; 20]> =
        overspill_slab::Cache::constructed("constructed", || {
            MADE_SO_MANY.fetch_add(1, Ordering::SeqCst);
            [7; 20]
        });
    for round in 0..1000 {
        let objects: Vec<_> = (0..20).map(|_| CACHE.get().unwrap()).collect();
        assert!(objects.iter().all(|object| **object == [7; 20]), "round {round}");
    }
    let info = CACHE.info().unwrap();
    assert_eq!(MADE_SO_MANY.load(Ordering::SeqCst), info.grown * info.slab_objects);
    assert!(info.objects < 200, "twenty objects at a time need no more slabs");
}
