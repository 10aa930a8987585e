//! Reading a directory while it changes.

mod common;

use std::collections::{BTreeSet, HashMap, HashSet};

use common::{Fs, ME, ROOT, fs};
use overspill_tmpfs::{FileKind, FsError, RenameMode};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

/// Up to `most` entries after a cookie.
fn some(fs: &Fs, dir: u64, after: u64, most: usize) -> Vec<(u64, u64, Vec<u8>)> {
    let mut found = Vec::new();
    fs.readdir(dir, after, &mut |entry| {
        if found.len() == most {
            return false;
        }
        found.push((entry.cookie, entry.ino, entry.name.to_vec()));
        true
    })
    .unwrap();
    found
}

#[test]
fn the_dots_come_first_and_a_refused_entry_comes_again() {
    let fs = fs();
    let dir = fs.mkdir(ROOT, b"dir", 0o755, ME).unwrap().ino;
    let file = fs.create(dir, b"file", 0o644, ME).unwrap().ino;
    let all = some(&fs, dir, 0, 9);
    assert_eq!(all[0], (1, dir, b".".to_vec()));
    assert_eq!(all[1], (2, ROOT, b"..".to_vec()));
    assert_eq!((all[2].1, &all[2].2[..]), (file, &b"file"[..]));
    assert_eq!(all.len(), 3);
    for (n, entry) in all.iter().enumerate() {
        assert_eq!(some(&fs, dir, 0, n), all[..n]);
        assert_eq!(some(&fs, dir, entry.0, 9), all[n + 1..]);
    }
    assert_eq!(some(&fs, dir, u64::MAX, 9), []);
    assert_eq!(fs.readdir(file, 0, &mut |_| true), Err(FsError::NotDirectory));
    let mut kinds = Vec::new();
    fs.readdir_plus(dir, 0, &mut |entry, attr| {
        assert_eq!(attr.ino, entry.ino);
        kinds.push(entry.kind);
        assert!(fs.grab(entry.ino), "what is listed can be referenced");
        true
    })
    .unwrap();
    assert_eq!(kinds, [FileKind::Directory, FileKind::Directory, FileKind::Regular]);
}

#[test]
fn what_stays_is_seen_once_whatever_comes_and_goes() {
    for seed in 0..40 {
        read_while_changing(seed);
    }
}

/// Reads in pieces of random length, with random changes between them.
fn read_while_changing(seed: u64) {
    let mut rng = StdRng::seed_from_u64(seed);
    let fs = fs();
    let mut names: Vec<Vec<u8>> = (0..200).map(|n| format!("name {n}").into_bytes()).collect();
    for name in &names {
        fs.create(ROOT, name, 0o644, ME).unwrap();
    }
    // Names that exist from beginning to end, whichever inode they lead to.
    let mut stayed: BTreeSet<Vec<u8>> = names.iter().cloned().collect();
    let mut gone: HashSet<Vec<u8>> = HashSet::new();
    let mut seen: HashMap<Vec<u8>, usize> = HashMap::new();
    let mut cookies = HashSet::new();
    let (mut after, mut made) = (0, 1000);
    loop {
        let most = rng.random_range(1..20);
        let piece = some(&fs, ROOT, after, most);
        let Some(last) = piece.last() else { break };
        after = last.0;
        for (cookie, _, name) in piece {
            assert!(cookies.insert(cookie), "seed {seed}: cookie {cookie} twice");
            assert!(!gone.contains(&name), "seed {seed}: a removed name was listed");
            *seen.entry(name).or_default() += 1;
        }
        for _ in 0..rng.random_range(0..6) {
            let from = names.choose(&mut rng).unwrap().clone();
            let to = names.choose(&mut rng).unwrap().clone();
            match rng.random_range(0..4) {
                0 if made < 1040 => {
                    made += 1;
                    let name = format!("name {made}").into_bytes();
                    fs.create(ROOT, &name, 0o644, ME).unwrap();
                    names.push(name);
                }
                1 => {
                    fs.unlink(ROOT, &from).unwrap();
                    names.retain(|name| *name != from);
                    stayed.remove(&from);
                    gone.insert(from);
                }
                2 if from != to => {
                    // The replaced name exists before and after.
                    fs.rename(ROOT, &from, ROOT, &to, RenameMode::Replace).unwrap();
                    names.retain(|name| *name != from);
                    stayed.remove(&from);
                    gone.insert(from);
                }
                3 => fs.rename(ROOT, &from, ROOT, &to, RenameMode::Exchange).unwrap(),
                _ => {}
            }
        }
    }
    for name in &stayed {
        assert_eq!(seen.get(name), Some(&1), "seed {seed}: {:?}", String::from_utf8_lossy(name));
    }
    assert!(seen.values().all(|&times| times == 1), "seed {seed}: a name twice");
}
