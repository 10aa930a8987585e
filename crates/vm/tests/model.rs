//! Objects against a plain model: every byte, then every count, slot and charge, with the smallest budgets and eviction
//! after every operation (R6, R28, R40, R57, R58).

#![expect(clippy::cast_possible_truncation, reason = "fill bytes made of page numbers")]

use std::sync::Arc;

use overspill_store::MemStore;
use overspill_vm::testing::{block_on, check, evict_all, settle};
use overspill_vm::{Account, Allowance, CHUNK, Method, Object, PAGE, Pager, VmConfig};
use proptest::prelude::*;

/// Bytes that the models span: a few chunks and a part, not a whole number of pages.
const SPAN: usize = 5 * CHUNK + 1234;

#[derive(Debug, Clone)]
enum Op {
    Write { object: usize, at: usize, len: usize, fill: u8 },
    Read { object: usize, at: usize, len: usize },
    Zero { object: usize, at: usize, len: usize },
    Discard { object: usize, page: usize, pages: usize },
    Allocate { object: usize, page: usize, pages: usize },
    Fork { from: usize, to: usize },
    Evict,
}

fn range() -> impl Strategy<Value = (usize, usize)> {
    let len = prop_oneof![1..200usize, 1..9000usize, 1..100_000usize, Just(PAGE), Just(CHUNK)];
    (0..SPAN, len, any::<bool>()).prop_map(|(at, len, aligned)| {
        let at = if aligned { at / PAGE * PAGE } else { at };
        (at, len.min(SPAN - at))
    })
}

fn op() -> impl Strategy<Value = Op> {
    let object = || 0..3usize;
    let pages = || (0..SPAN / PAGE, 1..40usize);
    prop_oneof![
        5 => (object(), range(), any::<u8>()).prop_map(|(object, (at, len), fill)| Op::Write { object, at, len, fill }),
        3 => (object(), range()).prop_map(|(object, (at, len))| Op::Read { object, at, len }),
        1 => (object(), range()).prop_map(|(object, (at, len))| Op::Zero { object, at, len }),
        1 => (object(), pages()).prop_map(|(object, (page, pages))| Op::Discard { object, page, pages }),
        1 => (object(), pages()).prop_map(|(object, (page, pages))| Op::Allocate { object, page, pages }),
        1 => (object(), object()).prop_map(|(from, to)| Op::Fork { from, to }),
        1 => Just(Op::Evict),
    ]
}

struct World {
    vm: Pager,
    account: Arc<Account>,
    objects: Vec<(Object, Vec<u8>)>,
}

impl World {
    /// Room for some 60 pages beside the buffers: everything spills.
    fn new(method: Method) -> World {
        let mut config = VmConfig::new(4 << 20);
        (config.batch_bytes, config.batches, config.fetch_slots) = (2 * CHUNK, 2, 2);
        config.method = method;
        config.memory_bytes = config.buffers(true) + 60 * PAGE;
        let vm = Pager::new(&config, vec![Arc::new(MemStore::new(100_000))]).unwrap();
        let account = Account::new(1 << 20);
        let objects = (0..3).map(|_| (vm.object(&account), vec![0; SPAN])).collect();
        World { vm, account, objects }
    }

    fn apply(&mut self, op: &Op) {
        let vm = self.vm.clone();
        match *op {
            Op::Write { object, at, len, fill } => {
                let data: Vec<u8> = (0..len).map(|i| fill.wrapping_add((i / 7) as u8)).collect();
                let (object, model) = &mut self.objects[object];
                block_on(&vm, object.write(at as u64, &data, Allowance::Normal)).unwrap();
                model[at..at + len].copy_from_slice(&data);
            }
            Op::Read { object, at, len } => {
                let (object, model) = &self.objects[object];
                let mut buf = vec![0xee; len];
                block_on(&vm, object.read(at as u64, &mut buf)).unwrap();
                assert!(buf == model[at..at + len], "read {len} bytes at {at}");
            }
            Op::Zero { object, at, len } => {
                let (object, model) = &mut self.objects[object];
                block_on(&vm, object.zero(at as u64, (at + len) as u64)).unwrap();
                model[at..at + len].fill(0);
            }
            Op::Discard { object, page, pages } => {
                let (object, model) = &mut self.objects[object];
                let end = (page + pages) * PAGE;
                object
                    .discard(page as u64, if end > SPAN { u64::MAX } else { (page + pages) as u64 })
                    .unwrap();
                model[page * PAGE..end.min(SPAN)].fill(0);
            }
            Op::Allocate { object, page, pages } => {
                let (object, _) = &self.objects[object];
                block_on(&vm, object.allocate(page as u64, (page + pages) as u64)).unwrap();
                assert!(object.next_hole(page as u64) >= (page + pages) as u64);
            }
            Op::Fork { from, to } => {
                let (object, model) = &self.objects[from];
                self.objects[to] = (object.fork(), model.clone());
            }
            Op::Evict => evict_all(&vm),
        }
    }

    fn check(&self) {
        for (object, model) in &self.objects {
            let mut buf = vec![1; SPAN];
            block_on(&self.vm, object.read(0, &mut buf)).unwrap();
            assert!(&buf == model, "contents");
            for (page, bytes) in model.chunks_exact(PAGE).enumerate() {
                if bytes.iter().any(|&b| b != 0) {
                    assert_eq!(object.next_data(page as u64), Some(page as u64));
                }
            }
        }
        settle(&self.vm);
        check(&self.vm, &self.objects.iter().map(|(object, _)| object).collect::<Vec<_>>());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 80, ..ProptestConfig::default() })]

    #[test]
    fn objects_hold_what_was_written(
        ops in prop::collection::vec(op(), 1..60),
        evict in any::<bool>(),
        packed in any::<bool>(),
    ) {
        let mut world = World::new(if packed { Method::Lz4 } else { Method::None });
        for op in &ops {
            world.apply(op);
            if evict {
                evict_all(&world.vm);
            }
        }
        world.check();
        let World { vm, account, objects } = world;
        drop(objects);
        settle(&vm);
        check(&vm, &[]);
        prop_assert_eq!(vm.stats().charged_bytes, 0);
        prop_assert_eq!(account.used(), 0);
    }
}
