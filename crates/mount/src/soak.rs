//! A soak of the server: clients of a fake kernel do all kinds of requests at once, on a VM whose data does not fit into
//! memory, each beside a plain model of its own files.
//!
//! `cargo xtask soak` runs it for long; the tests run it for a second.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use overspill_fuse::abi::{
    CreateIn, Dirent, EntryOut, FallocateIn, ForgetIn, GetattrIn, InterruptIn, ReadIn, Rename2In, SetattrIn,
    WriteIn, fattr, opcode,
};
use overspill_fuse::fake::FakeKernel;
use overspill_runtime::{Driver, DriverOptions};
use overspill_store::MemStore;
use overspill_tmpfs::ROOT_INO;
use overspill_vm::{Pager, VmConfig};
use zerocopy::{FromBytes, IntoBytes};

use crate::names::Front;
use crate::tests::server;

/// Files of a client, and their greatest length.
const FILES: u64 = 40;
const LONGEST: u64 = 300 << 10;

/// A generator of random numbers that needs no crate: xorshift.
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % end
    }
}

/// A file as it should be.
struct File {
    node: u64,
    bytes: Vec<u8>,
    /// References that the kernel has.
    lookups: u64,
}

/// A client, in a directory of its own.
struct Client<'f> {
    front: &'f Front,
    kernel: FakeKernel,
    dir: u64,
    random: Random,
    files: BTreeMap<String, File>,
}

impl Client<'_> {
    fn ask(&mut self, kind: u32, node: u64, args: &[u8]) -> (i32, Vec<u8>) {
        let unique = self.kernel.send(self.front, kind, node, args);
        if self.random.below(50) == 0 {
            // Of another request, which is over.
            self.kernel.send(
                self.front,
                opcode::INTERRUPT,
                0,
                InterruptIn { unique: unique + 1000 }.as_bytes(),
            );
        }
        self.kernel.answers().take(unique, Duration::from_secs(60)).expect("an answer within a minute")
    }

    fn name(&mut self) -> String {
        format!("f{}", self.random.below(FILES))
    }

    fn bytes(&mut self, most: u64) -> Vec<u8> {
        let len = usize::try_from(1 + self.random.below(most)).unwrap();
        let (seed, packs) = (self.random.below(1 << 20), self.random.below(2) == 0);
        let mut noise = Random(seed + 1);
        let byte = |n: u64| n.to_le_bytes()[0];
        (0..len as u64).map(|i| byte(if packs { seed + i / 64 } else { noise.below(256) })).collect()
    }

    fn step(&mut self) {
        match self.random.below(40) {
            0..8 => self.create(),
            8..20 => self.write(),
            20..32 => self.read(),
            32 => self.truncate(),
            33 => self.rename(),
            34 => self.unlink(),
            35..38 => self.look(),
            _ => self.punch_or_list(),
        }
    }

    fn create(&mut self) {
        let name = self.name();
        let args = CreateIn { mode: 0o100_600, ..CreateIn::default() };
        let (error, bytes) =
            self.ask(opcode::CREATE, self.dir, &[args.as_bytes(), name.as_bytes(), b"\0"].concat());
        if self.files.contains_key(&name) {
            assert_eq!(error, -17, "EEXIST");
            return;
        }
        assert_eq!(error, 0, "create");
        let node = EntryOut::read_from_prefix(&bytes).unwrap().0.nodeid;
        self.files.insert(name, File { node, bytes: Vec::new(), lookups: 1 });
    }

    fn some(&mut self) -> Option<String> {
        let count = self.files.len() as u64;
        (count > 0)
            .then(|| self.random.below(count))
            .map(|n| self.files.keys().nth(usize::try_from(n).unwrap()).unwrap().clone())
    }

    fn write(&mut self) {
        let Some(name) = self.some() else { return };
        let (offset, data) = (self.random.below(LONGEST - (64 << 10)), self.bytes(64 << 10));
        let offset = if self.random.below(2) == 0 { offset / 4096 * 4096 } else { offset };
        let node = self.files[&name].node;
        let args = WriteIn { offset, size: u32::try_from(data.len()).unwrap(), ..WriteIn::default() };
        let (error, _) = self.ask(opcode::WRITE, node, &[args.as_bytes(), &data].concat());
        assert_eq!(error, 0, "write");
        let (start, end) = (usize::try_from(offset).unwrap(), usize::try_from(offset).unwrap() + data.len());
        let file = &mut self.files.get_mut(&name).unwrap().bytes;
        file.resize(file.len().max(end), 0);
        file[start..end].copy_from_slice(&data);
    }

    fn read(&mut self) {
        let Some(name) = self.some() else { return };
        let (offset, size) = (self.random.below(LONGEST), 1 + self.random.below(128 << 10));
        let args = ReadIn { offset, size: u32::try_from(size).unwrap(), ..ReadIn::default() };
        let (error, bytes) = self.ask(opcode::READ, self.files[&name].node, args.as_bytes());
        let file = &self.files[&name].bytes;
        let at = usize::try_from(offset).unwrap().min(file.len());
        let end = (at + usize::try_from(size).unwrap()).min(file.len());
        assert!(error == 0 && bytes == file[at..end], "{name}: {size} bytes at {offset} of {}", file.len());
    }

    fn truncate(&mut self) {
        let Some(name) = self.some() else { return };
        let size = self.random.below(LONGEST);
        let args = SetattrIn { valid: fattr::SIZE, size, ..SetattrIn::default() };
        assert_eq!(self.ask(opcode::SETATTR, self.files[&name].node, args.as_bytes()).0, 0, "truncate");
        self.files.get_mut(&name).unwrap().bytes.resize(usize::try_from(size).unwrap(), 0);
    }

    fn rename(&mut self) {
        let (Some(from), to) = (self.some(), self.name()) else { return };
        if from == to {
            return;
        }
        let args = Rename2In { newdir: self.dir, ..Rename2In::default() };
        let args = [args.as_bytes(), from.as_bytes(), b"\0", to.as_bytes(), b"\0"].concat();
        assert_eq!(self.ask(opcode::RENAME2, self.dir, &args).0, 0, "rename");
        let moved = self.files.remove(&from).unwrap();
        if let Some(gone) = self.files.insert(to, moved) {
            self.forget(&gone);
        }
    }

    fn unlink(&mut self) {
        let Some(name) = self.some() else { return };
        assert_eq!(self.ask(opcode::UNLINK, self.dir, format!("{name}\0").as_bytes()).0, 0, "unlink");
        let gone = self.files.remove(&name).unwrap();
        let args = ReadIn { offset: 0, size: 4096, ..ReadIn::default() };
        let (error, bytes) = self.ask(opcode::READ, gone.node, args.as_bytes());
        assert!(error == 0 && bytes == gone.bytes[..gone.bytes.len().min(4096)], "open though unlinked");
        self.forget(&gone);
    }

    fn forget(&mut self, gone: &File) {
        let args = ForgetIn { nlookup: gone.lookups };
        self.kernel.send(self.front, opcode::FORGET, gone.node, args.as_bytes());
    }

    fn look(&mut self) {
        let name = self.name();
        let (error, bytes) = self.ask(opcode::LOOKUP, self.dir, format!("{name}\0").as_bytes());
        let entry = EntryOut::read_from_prefix(&bytes).unwrap().0;
        match self.files.get_mut(&name) {
            None => assert_eq!((error, entry.nodeid), (0, 0)),
            Some(file) => {
                file.lookups += 1;
                assert_eq!((error, entry.nodeid, entry.attr.size), (0, file.node, file.bytes.len() as u64));
                let (node, size) = (file.node, file.bytes.len() as u64);
                let (_, bytes) = self.ask(opcode::GETATTR, node, GetattrIn::default().as_bytes());
                let attr = overspill_fuse::abi::AttrOut::read_from_prefix(&bytes).unwrap().0.attr;
                assert_eq!(attr.size, size);
            }
        }
    }

    fn punch_or_list(&mut self) {
        if self.random.below(2) == 0 {
            return self.list();
        }
        let Some(name) = self.some() else { return };
        let (offset, length) = (self.random.below(LONGEST), 1 + self.random.below(LONGEST));
        let args = FallocateIn { offset, length, mode: 3, ..FallocateIn::default() };
        assert_eq!(self.ask(opcode::FALLOCATE, self.files[&name].node, args.as_bytes()).0, 0, "punch");
        let file = &mut self.files.get_mut(&name).unwrap().bytes;
        let (at, end) = (usize::try_from(offset).unwrap(), usize::try_from(offset + length).unwrap());
        let (at, end) = (at.min(file.len()), end.min(file.len()));
        file[at..end].fill(0);
    }

    fn list(&mut self) {
        let (mut names, mut offset) = (Vec::new(), 0);
        loop {
            let args = ReadIn { offset, size: 256, ..ReadIn::default() };
            let (error, bytes) = self.ask(opcode::READDIR, self.dir, args.as_bytes());
            assert_eq!(error, 0, "readdir");
            let mut rest = &bytes[..];
            if rest.is_empty() {
                break;
            }
            while let Ok((entry, after)) = Dirent::read_from_prefix(rest) {
                let name = &after[..entry.namelen as usize];
                names.push(String::from_utf8(name.to_vec()).unwrap());
                offset = entry.off;
                let whole = (size_of::<Dirent>() + name.len()).next_multiple_of(8);
                rest = rest.get(whole..).unwrap_or(&[]);
            }
        }
        names.retain(|name| !name.starts_with('.'));
        names.sort_unstable();
        assert_eq!(names, self.files.keys().cloned().collect::<Vec<_>>());
    }
}

/// Time to run: a second, or what the environment says.
fn patience() -> Duration {
    let seconds = std::env::var("OVERSPILL_SOAK_SECONDS").ok().and_then(|text| text.parse().ok());
    Duration::from_secs(seconds.unwrap_or(1))
}

#[test]
fn all_kinds_of_requests_at_once_do_as_the_model() {
    let store: Arc<dyn overspill_store::Store> = Arc::new(MemStore::new(1 << 16));
    let pager = Pager::new(&VmConfig::new(4 << 20), vec![store]).unwrap();
    let options = DriverOptions { memory: None, uring: false, source_threads: 0 };
    let driver = Driver::start(&pager, options).unwrap();
    let front = Front(Arc::new(server(pager.vm(), driver.spawner(&pager), 1 << 15)));
    let end = Instant::now() + patience();
    let steps: u64 = std::thread::scope(|scope| {
        let clients: Vec<_> = (1..=4u64)
            .map(|number| {
                let front = &front;
                scope.spawn(move || {
                    let (kernel, files) = (FakeKernel::numbered_from(number << 40), BTreeMap::new());
                    let random =
                        Random(number.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ u64::from(std::process::id()));
                    let mut client = Client { front, kernel, dir: ROOT_INO, random, files };
                    let args =
                        [&[0xed, 1, 0, 0, 0, 0, 0, 0][..], format!("client{number}\0").as_bytes()].concat();
                    let (error, bytes) = client.ask(opcode::MKDIR, ROOT_INO, &args);
                    assert_eq!(error, 0);
                    client.dir = EntryOut::read_from_prefix(&bytes).unwrap().0.nodeid;
                    let mut steps = 0;
                    while Instant::now() < end {
                        client.step();
                        steps += 1;
                    }
                    steps
                })
            })
            .collect();
        clients.into_iter().map(|client| client.join().unwrap()).sum()
    });
    println!("{steps} requests");
    assert!(steps > 100 && pager.vm().stats().page_outs > 0, "{steps} requests, {:?}", pager.vm().stats());
    assert_eq!(driver.lost_signals()(), 0);
}
