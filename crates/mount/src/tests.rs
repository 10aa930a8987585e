//! The server against a kernel of the tests' making: no mount, no root, any order of requests.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::time::{Duration, Instant};

use overspill_fuse::abi::{
    self, CreateIn, EntryOut, ForgetIn, GetattrIn, MkdirIn, ReadIn, WriteIn, WriteOut, opcode,
};
use overspill_fuse::fake::FakeKernel;
use overspill_tmpfs::{Clock, ROOT_INO, Timestamp, TmpFs, TmpFsConfig};
use overspill_vm::{Pager, Vm, VmConfig};
use proptest::prelude::*;
use zerocopy::{FromBytes, IntoBytes};

use crate::kernel::Kernel;
use crate::names::Front;
use crate::park::Parking;
use crate::prime::Prime;
use crate::server::{Server, Tuning};
use crate::space::Space;

struct Zero;

impl Clock for Zero {
    fn now(&self) -> Timestamp {
        Timestamp { sec: 0, nsec: 0 }
    }
}

/// Runs what must wait on a thread of its own.
struct Threads;

impl overspill_runtime::Spawn for Threads {
    fn spawn(&self, task: std::pin::Pin<Box<dyn Future<Output = ()> + Send>>) {
        std::thread::spawn(move || futures_lite::future::block_on(task));
    }
}

struct World {
    front: Front,
    kernel: FakeKernel,
    // The VM lives as long as its pages are looked at.
    _pager: Pager,
}

/// A server of a new file system.
pub(crate) fn server(vm: &Vm, spawn: Arc<dyn overspill_runtime::Spawn>, size_pages: u64) -> Server {
    let fs = TmpFs::new(TmpFsConfig {
        vm: vm.clone(),
        size_pages,
        nr_inodes: None,
        mode: 0o755,
        uid: 0,
        gid: 0,
        clock: Arc::new(Zero),
    });
    let fs = Arc::new(fs.unwrap());
    Server {
        fs: fs.clone(),
        tuning: Tuning { threads: 4, rings: None, max_write: 1 << 20, max_background: 8 },
        parking: Parking::new(spawn, 4, 8),
        kernel: Kernel::new().unwrap(),
        space: Arc::new(Space::new(&fs, 1 << 20, false, false)),
        writeback: false,
        xattrs: true,
        prime: Prime::new(),
        requests: AtomicU64::new(0),
        awaiting_forgets: AtomicBool::new(false),
        lasting_orphans: AtomicU64::new(0),
        evict: AtomicBool::new(false),
    }
}

fn world() -> World {
    let pager = Pager::new(&VmConfig::new(16 << 20), Vec::new()).unwrap();
    let front = Front(Arc::new(server(pager.vm(), Arc::new(Threads), 1024)));
    World { front, kernel: FakeKernel::default(), _pager: pager }
}

impl World {
    fn ask(&mut self, opcode: u32, node: u64, args: &[u8]) -> (i32, Vec<u8>) {
        let unique = self.kernel.send(&self.front, opcode, node, args);
        self.kernel.answers().take(unique, Duration::from_secs(10)).expect("an answer")
    }

    fn create(&mut self, name: &str) -> u64 {
        let args =
            [CreateIn { mode: 0o100_644, ..CreateIn::default() }.as_bytes(), name.as_bytes(), b"\0"].concat();
        let (error, bytes) = self.ask(opcode::CREATE, ROOT_INO, &args);
        assert_eq!(error, 0);
        EntryOut::read_from_prefix(&bytes).unwrap().0.nodeid
    }

    fn write(&mut self, node: u64, offset: u64, data: &[u8]) -> (i32, u32) {
        let size = u32::try_from(data.len()).unwrap();
        let args = [WriteIn { offset, size, ..WriteIn::default() }.as_bytes(), data].concat();
        let (error, bytes) = self.ask(opcode::WRITE, node, &args);
        (error, WriteOut::read_from_prefix(&bytes).map_or(0, |(out, _)| out.size))
    }

    fn read(&mut self, node: u64, offset: u64, size: u32) -> (i32, Vec<u8>) {
        let args = ReadIn { offset, size, ..ReadIn::default() };
        self.ask(opcode::READ, node, args.as_bytes())
    }
}

const ENOSYS: i32 = -38;
const ENOSPC: i32 = -28;

#[test]
fn a_file_is_made_written_read_and_forgotten() {
    let mut world = world();
    let node = world.create("file");
    assert_eq!(world.write(node, 3, b"bytes"), (0, 5));
    assert_eq!(world.read(node, 0, 100), (0, b"\0\0\0bytes".to_vec()));
    let (error, bytes) = world.ask(opcode::GETATTR, node, GetattrIn::default().as_bytes());
    let attr = abi::AttrOut::read_from_prefix(&bytes).unwrap().0.attr;
    assert_eq!((error, attr.size, attr.blocks, attr.mode), (0, 8, 8, 0o100_644));
    assert_eq!(world.ask(opcode::UNLINK, ROOT_INO, b"file\0").0, 0);
    assert_eq!(world.read(node, 0, 100).1, b"\0\0\0bytes", "the kernel still knows it");
    world.kernel.send(&world.front, opcode::FORGET, node, ForgetIn { nlookup: 1 }.as_bytes());
    assert_ne!(world.read(node, 0, 100).0, 0);
}

#[test]
fn a_name_that_is_not_there_is_remembered_as_such() {
    let mut world = world();
    let (error, bytes) = world.ask(opcode::LOOKUP, ROOT_INO, b"nothing\0");
    let entry = EntryOut::read_from_prefix(&bytes).unwrap().0;
    assert!(error == 0 && entry.nodeid == 0 && entry.entry_valid > 0);
}

#[test]
fn opening_closing_and_syncing_are_needless() {
    let mut world = world();
    let node = world.create("file");
    for needless in [opcode::OPEN, opcode::OPENDIR, opcode::FLUSH, opcode::FSYNC, opcode::FSYNCDIR] {
        assert_eq!(world.ask(needless, node, &[0; 24]).0, ENOSYS);
    }
    assert_eq!(world.ask(opcode::RELEASE, node, &[0; 24]).0, 0);
    assert_eq!(world.ask(9999, node, &[]).0, ENOSYS, "what nobody knows");
}

/// Written through, write(2) itself hears of a full file system.
#[test]
fn a_write_without_room_is_refused_or_short() {
    let mut world = world();
    let node = world.create("file");
    let page = vec![7; 1 << 20];
    let results: Vec<_> = (0..6).map(|i| world.write(node, i << 20, &page)).collect();
    assert_eq!(results[..4], [(0, 1 << 20); 4]);
    assert_eq!(results[4].0, ENOSPC, "{results:?}");
    assert_eq!(world.read(node, (4 << 20) - 1, 10), (0, vec![7]), "nothing beyond the end");
}

/// Whatever the kernel sends, it gets one answer, and nothing breaks.
#[test]
fn any_request_is_answered_once() {
    let mut config = proptest::test_runner::Config::with_cases(64);
    config.failure_persistence = None;
    let args = proptest::collection::vec(any::<u8>(), 0..120);
    let requests = proptest::collection::vec((0u32..60, 0u64..6, args), 1..40);
    proptest!(config, |(requests in requests)| {
        let mut world = world();
        world.create("a");
        let args = [MkdirIn { mode: 0o755, umask: 0 }.as_bytes(), b"d\0"].concat();
        world.ask(opcode::MKDIR, ROOT_INO, &args);
        for (kind, node, args) in requests {
            let unique = world.kernel.send(&world.front, kind, node, &args);
            let told = [opcode::FORGET, opcode::BATCH_FORGET, opcode::INTERRUPT].contains(&kind);
            let patience = if told { Duration::ZERO } else { Duration::from_secs(10) };
            let answer = world.kernel.answers().take(unique, patience);
            prop_assert!(answer.is_some() || told, "request {kind} has no answer");
        }
        let (error, _) = world.ask(opcode::LOOKUP, ROOT_INO, b"nothing\0");
        prop_assert_eq!(error, 0);
    });
}

/// A parked request's time ends by itself, and what it would have done is not done any more.
#[test]
fn parked_requests_end_when_late() {
    let parking: Parking<overspill_fuse::Reply> = Parking::new(Arc::new(Threads), 4, 8);
    let kernel = FakeKernel::default();
    parking.hold(1, crate::park::Kind::Write, kernel.reply(1));
    parking.expire(Instant::now());
    assert!(kernel.answers().take(1, Duration::ZERO).is_none(), "not yet");
    parking.expire(Instant::now() + Duration::from_secs(3600));
    assert_eq!(kernel.answers().take(1, Duration::ZERO).unwrap().0, -5, "EIO");
    assert!(parking.take(1).is_none());
    let mut done = false;
    let ended = futures_lite::future::block_on(parking.until_expired(1, async { done = true }));
    assert!(ended.is_none() && !done);
}
