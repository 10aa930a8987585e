//! Random namespace operations, compared with a plain tree.

mod common;

use std::collections::{BTreeMap, HashMap};

use common::{Fs, ME, ROOT, fs_on, list, vm};
use overspill_tmpfs::{FileKind, FsError, RenameMode};
use proptest::prelude::*;

/// The expected file system: inodes by number.
struct Model(HashMap<u64, Node>);

struct Node {
    kind: FileKind,
    nlink: u32,
    parent: u64,
    children: BTreeMap<Vec<u8>, u64>,
}

#[derive(Debug, Clone)]
enum Op {
    Make(FileKind, usize, u8),
    Link((usize, u8), (usize, u8)),
    Unlink(usize, u8),
    Rmdir(usize, u8),
    Rename((usize, u8), (usize, u8), RenameMode),
}

impl Model {
    fn new() -> Model {
        Model(HashMap::from([(ROOT, Node::new(FileKind::Directory, ROOT))]))
    }

    fn get(&self, dir: u64, name: &[u8]) -> Option<u64> {
        self.0[&dir].children.get(name).copied()
    }

    fn is_dir(&self, ino: u64) -> bool {
        self.0[&ino].kind == FileKind::Directory
    }

    fn may_make(&self, dir: u64, name: &[u8]) -> Result<(), FsError> {
        match self.get(dir, name) {
            _ if self.0[&dir].nlink == 0 => Err(FsError::NotFound),
            Some(_) => Err(FsError::Exists),
            None => Ok(()),
        }
    }

    fn put(&mut self, dir: u64, name: &[u8], ino: u64) {
        self.node(dir).children.insert(name.to_vec(), ino);
        if self.is_dir(ino) {
            self.node(ino).parent = dir;
        }
    }

    fn node(&mut self, ino: u64) -> &mut Node {
        self.0.get_mut(&ino).unwrap()
    }

    /// Of a directory: two plus its subdirectories.
    fn expected_nlink(&self, ino: u64) -> u32 {
        let node = &self.0[&ino];
        let subdirs = node.children.values().filter(|&&child| self.is_dir(child)).count();
        if node.nlink == 0 { 0 } else { node.nlink + u32::try_from(subdirs).unwrap() }
    }

    fn drop_name(&mut self, dir: u64, name: &[u8]) {
        let ino = self.node(dir).children.remove(name).unwrap();
        let gone = if self.is_dir(ino) { 2 } else { 1 };
        self.node(ino).nlink -= gone;
    }

    fn unlink(&mut self, dir: u64, name: &[u8]) -> Result<(), FsError> {
        let ino = self.get(dir, name).ok_or(FsError::NotFound)?;
        if self.is_dir(ino) {
            return Err(FsError::IsDirectory);
        }
        self.drop_name(dir, name);
        Ok(())
    }

    fn rmdir(&mut self, dir: u64, name: &[u8]) -> Result<(), FsError> {
        let ino = self.get(dir, name).ok_or(FsError::NotFound)?;
        if !self.is_dir(ino) {
            return Err(FsError::NotDirectory);
        }
        if !self.0[&ino].children.is_empty() {
            return Err(FsError::NotEmpty);
        }
        self.drop_name(dir, name);
        Ok(())
    }

    fn is_within(&self, mut dir: u64, ancestor: u64) -> bool {
        while dir != ancestor && dir != ROOT {
            dir = self.0[&dir].parent;
        }
        dir == ancestor
    }

    fn rename(
        &mut self,
        (dir, name): (u64, &[u8]),
        (new_dir, new_name): (u64, &[u8]),
        mode: RenameMode,
    ) -> Result<(), FsError> {
        let source = self.get(dir, name).ok_or(FsError::NotFound)?;
        let target = self.get(new_dir, new_name);
        if self.0[&new_dir].nlink == 0 {
            return Err(FsError::NotFound);
        }
        if mode == RenameMode::NoReplace && target.is_some() {
            return Err(FsError::Exists);
        }
        if mode == RenameMode::Exchange && target.is_none() {
            return Err(FsError::NotFound);
        }
        if self.is_dir(source) && self.is_within(new_dir, source) {
            return Err(FsError::Invalid);
        }
        match target {
            Some(target) if mode == RenameMode::Exchange => {
                if self.is_dir(target) && self.is_within(dir, target) {
                    return Err(FsError::Invalid);
                }
                self.put(dir, name, target);
            }
            Some(target) if target == source => return Ok(()),
            Some(target) => {
                match (self.is_dir(source), self.is_dir(target)) {
                    (true, false) => return Err(FsError::NotDirectory),
                    (false, true) => return Err(FsError::IsDirectory),
                    (true, true) if !self.0[&target].children.is_empty() => return Err(FsError::NotEmpty),
                    _ => {}
                }
                self.drop_name(new_dir, new_name);
                self.node(dir).children.remove(name);
            }
            None => {
                self.node(dir).children.remove(name);
            }
        }
        self.put(new_dir, new_name, source);
        Ok(())
    }
}

impl Node {
    fn new(kind: FileKind, parent: u64) -> Node {
        let nlink = if kind == FileKind::Directory { 2 } else { 1 };
        Node { kind, nlink, parent, children: BTreeMap::new() }
    }
}

/// File system and model side by side, with every directory ever made: removed ones are still referenced.
struct Pair {
    fs: Fs,
    model: Model,
    dirs: Vec<u64>,
}

fn name(n: u8) -> Vec<u8> {
    // One name is too long for the entry itself.
    if n == 0 { vec![b'x'; 100] } else { vec![b'a' + n] }
}

impl Pair {
    fn dir(&self, pick: usize) -> u64 {
        self.dirs[pick % self.dirs.len()]
    }

    fn make(&mut self, kind: FileKind, dir: u64, name: &[u8]) {
        let expected = self.model.may_make(dir, name);
        let made = match kind {
            FileKind::Directory => self.fs.mkdir(dir, name, 0o755, ME),
            FileKind::Symlink => self.fs.symlink(dir, name, b"to", ME),
            kind => self.fs.mknod(dir, name, kind, 0o644, 5, ME),
        };
        assert_eq!(made.map(|_| ()), expected);
        if let Ok(attr) = made {
            assert!(!self.model.0.contains_key(&attr.ino), "an inode number used again");
            self.model.0.insert(attr.ino, Node::new(kind, dir));
            self.model.put(dir, name, attr.ino);
            if kind == FileKind::Directory {
                assert!(self.fs.grab(attr.ino));
                self.dirs.push(attr.ino);
            }
        }
    }

    fn apply(&mut self, op: &Op) {
        match *op {
            Op::Make(kind, dir, n) => self.make(kind, self.dir(dir), &name(n)),
            Op::Unlink(dir, n) => {
                let dir = self.dir(dir);
                assert_eq!(self.fs.unlink(dir, &name(n)), self.model.unlink(dir, &name(n)));
            }
            Op::Rmdir(dir, n) => {
                let dir = self.dir(dir);
                assert_eq!(self.fs.rmdir(dir, &name(n)), self.model.rmdir(dir, &name(n)));
            }
            Op::Link((dir, n), (to, m)) => {
                let (dir, to) = (self.dir(dir), self.dir(to));
                let Some(ino) = self.model.get(dir, &name(n)) else { return };
                let expected = match self.model.is_dir(ino) {
                    true => Err(FsError::NotPermitted),
                    false => self.model.may_make(to, &name(m)),
                };
                assert_eq!(self.fs.link(ino, to, &name(m)).map(|_| ()), expected);
                if expected.is_ok() {
                    self.model.put(to, &name(m), ino);
                    self.model.node(ino).nlink += 1;
                }
            }
            Op::Rename((dir, n), (to, m), mode) => {
                let (dir, to) = (self.dir(dir), self.dir(to));
                let expected = self.model.rename((dir, &name(n)), (to, &name(m)), mode);
                assert_eq!(self.fs.rename(dir, &name(n), to, &name(m), mode), expected);
            }
        }
    }

    /// Compares every directory, also those that the root no longer leads to.
    fn compare(&self) {
        for &dir in &self.dirs {
            let node = &self.model.0[&dir];
            let listed = list(&self.fs, dir);
            assert_eq!(listed.len(), node.children.len());
            for (name, attr) in listed {
                let ino = node.children[&name];
                let expected = &self.model.0[&ino];
                assert_eq!((attr.ino, attr.kind), (ino, expected.kind));
                assert_eq!(attr.nlink, self.model.expected_nlink(ino), "links of {ino}");
                assert_eq!(self.fs.lookup(dir, &name).unwrap(), attr);
            }
            assert_eq!(self.fs.getattr(dir).unwrap().nlink, self.model.expected_nlink(dir));
            if node.nlink > 0 {
                assert_eq!(self.fs.lookup(dir, b"..").unwrap().ino, node.parent, "parent of {dir}");
            }
        }
        // Inodes without a name are gone, except directories, which are referenced.
        let named = self.model.0.values().filter(|node| node.nlink > 0).count();
        let orphans = self.dirs.iter().filter(|dir| self.model.0[dir].nlink == 0).count();
        assert_eq!(self.fs.stats().inodes, (named + orphans) as u64);
        assert_eq!(self.fs.orphans().inodes, orphans as u64);
    }
}

fn remove_all(fs: &Fs, dir: u64) {
    for (name, attr) in list(fs, dir) {
        if attr.kind == FileKind::Directory {
            remove_all(fs, attr.ino);
            fs.rmdir(dir, &name).unwrap();
        } else {
            fs.unlink(dir, &name).unwrap();
        }
    }
}

fn an_op() -> impl Strategy<Value = Op> {
    let place = || (0..6_usize, 0..5_u8);
    let kind = prop_oneof![
        3 => Just(FileKind::Regular),
        4 => Just(FileKind::Directory),
        1 => Just(FileKind::Symlink),
        1 => Just(FileKind::Fifo),
        1 => Just(FileKind::BlockDevice),
    ];
    let mode = prop_oneof![
        3 => Just(RenameMode::Replace),
        1 => Just(RenameMode::NoReplace),
        2 => Just(RenameMode::Exchange),
    ];
    prop_oneof![
        4 => (kind, place()).prop_map(|(kind, (dir, n))| Op::Make(kind, dir, n)),
        1 => (place(), place()).prop_map(|(from, to)| Op::Link(from, to)),
        1 => place().prop_map(|(dir, n)| Op::Unlink(dir, n)),
        1 => place().prop_map(|(dir, n)| Op::Rmdir(dir, n)),
        4 => (place(), place(), mode).prop_map(|(from, to, mode)| Op::Rename(from, to, mode)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn agrees_with_a_plain_tree(ops in prop::collection::vec(an_op(), 1..80)) {
        let vm = vm(512);
        let fs = fs_on(&vm, 64);
        let start = vm.stats().charged_bytes;
        let mut pair = Pair { fs, model: Model::new(), dirs: vec![ROOT] };
        for op in &ops {
            pair.apply(op);
            pair.compare();
        }
        // Removing everything returns all memory.
        remove_all(&pair.fs, ROOT);
        for &dir in &pair.dirs[1..] {
            pair.fs.forget(dir, 1);
        }
        prop_assert_eq!(pair.fs.stats().inodes, 1);
        prop_assert_eq!(vm.stats().charged_bytes, start);
    }
}
