//! Turns a request into the options of an engine and its mount: defaults, checks, absolute paths. It changes nothing.

use std::path::{Path, PathBuf};

use overspill::engine::{EngineOptions, Layout, StoreChoice};
use overspill::mount::MountOptions;
use rustix::fs::Access;

use crate::caller::Caller;
use crate::error::Error;
use crate::machine::Memory;
use crate::options::Requested;
use crate::size::Amount;
use overspill::mountinfo::{Entry, Mounts};

/// With less memory there is no room for the buffers of a store and of the kernel.
const LEAST_MEMORY: u64 = 4 << 20;
const LEAST_SIZE: u64 = 4096;

/// The checked options of an engine and of the one mount on it.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) engine: EngineOptions,
    pub(crate) mount: MountOptions,
}

impl Plan {
    pub(crate) fn of(
        asked: &Requested,
        mountpoint: &Path,
        machine: Memory,
        caller: Caller,
    ) -> Result<Plan, Error> {
        let (memory, size) = memory_and_size(asked, machine)?;
        let mountpoint = check_mountpoint(mountpoint, caller)?;
        if !caller.is_root() {
            // fusermount3 would drop these two, with a warning that nobody reads.
            for (safe, name) in [(asked.flags.nosuid, "suid"), (asked.flags.nodev, "dev")] {
                if !safe {
                    return Err(Error::RootOnly(name));
                }
            }
        }
        let store = store(asked.store.as_deref())?;
        if asked.layout == Layout::PerObject && !matches!(store, StoreChoice::Directory(_)) {
            let (name, value, wants) =
                ("layout", "per-object".to_owned(), "that only with a directory as --store");
            return Err(Error::BadValue { name, value, wants });
        }
        let engine = EngineOptions {
            memory,
            capacity: size,
            store,
            layout: asked.layout,
            compress: asked.compress,
            force: asked.force,
            control: true,
            debug: asked.debug,
        };
        let mount = MountOptions {
            mountpoint,
            size,
            nr_inodes: asked.nr_inodes.filter(|n| *n != 0),
            mode: asked.mode.unwrap_or(if caller.is_root() { 0o1777 } else { 0o700 }),
            uid: asked.uid.unwrap_or(caller.uid),
            gid: asked.gid.unwrap_or(caller.gid),
            flags: asked.flags,
            writeback: asked.writeback,
            xattrs: !asked.noxattr,
        };
        Ok(Plan { engine, mount })
    }
}

fn memory_and_size(asked: &Requested, machine: Memory) -> Result<(u64, u64), Error> {
    let bytes = |name, amount: Amount| {
        let value = amount.to_string();
        amount.bytes(machine.ram).map_err(|error| Error::BadSize { name, value, error })
    };
    let size = asked.size.map(|s| bytes("size", s)).transpose()?;
    if let Some(size) = size.filter(|s| *s < LEAST_SIZE) {
        return Err(Error::SizeTooSmall(size));
    }
    let memory = match asked.memory.map(|m| bytes("memory", m)).transpose()? {
        Some(memory) if memory < LEAST_MEMORY => {
            return Err(Error::MemoryTooSmall { memory, least: LEAST_MEMORY });
        }
        Some(memory) if memory > machine.usable() => {
            return Err(Error::MemoryTooLarge { memory, usable: machine.usable() });
        }
        Some(memory) if machine.limit.is_some_and(|limit| memory + kernels_share(memory) > limit) => {
            let limit = machine.usable();
            return Err(Error::NoRoomForKernel { memory, limit, most: most_within(limit) });
        }
        Some(memory) => match size {
            Some(size) if size < memory => return Err(Error::SizeBelowMemory { size, memory }),
            _ => memory,
        },
        // More memory than the mount can hold would be useless.
        None => (machine.usable() / 10).min(size.unwrap_or(u64::MAX)).max(LEAST_MEMORY),
    };
    Ok((memory, size.unwrap_or(memory.saturating_mul(4))))
}

/// Bytes that the kernel charges to our cgroup beside the daemon's own: dirty pages of ours that it cannot drop before
/// we have taken them, inodes and names, stacks and page tables. Measured with daemon and work in one group of version
/// 1: 64 MiB of memory were killed in 72, lived in 76 and were never short in 96; 256 MiB stood still in 270.
fn kernels_share(memory: u64) -> u64 {
    memory / 4 + KERNELS_LEAST
}

const KERNELS_LEAST: u64 = 16 << 20;

/// The most memory that leaves the kernel its share of `limit`, in whole MiB.
fn most_within(limit: u64) -> u64 {
    (limit.saturating_sub(KERNELS_LEAST) / 5 * 4) >> 20 << 20
}

fn check_mountpoint(path: &Path, caller: Caller) -> Result<PathBuf, Error> {
    let unreachable = |e| Error::Unreachable(path.to_owned(), e);
    let mounts = Mounts::read().map_err(unreachable)?;
    let absolute = mounts.resolve(path).map_err(unreachable)?;
    if mounts.at(&absolute).is_some_and(Entry::is_overspill) {
        return Err(Error::AlreadyMounted(absolute));
    }
    let metadata = match std::fs::metadata(&absolute) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Err(Error::NoSuchDirectory(absolute)),
        Err(e) if e.kind() == std::io::ErrorKind::NotADirectory => {
            return Err(Error::NotADirectory(absolute));
        }
        other => other.map_err(unreachable)?,
    };
    if !metadata.is_dir() {
        return Err(Error::NotADirectory(absolute));
    }
    if !caller.is_root() && rustix::fs::access(&absolute, Access::WRITE_OK).is_err() {
        return Err(Error::MountpointNotWritable(absolute));
    }
    Ok(absolute)
}

/// An existing directory holds an unnamed file; any other path is a file to be created.
fn store(asked: Option<&Path>) -> Result<StoreChoice, Error> {
    let path = match asked {
        None => return Ok(StoreChoice::Directory("/var/tmp".into())),
        Some(path) if path == "none" => return Ok(StoreChoice::None),
        Some(path) => std::path::absolute(path).map_err(|e| Error::Io("the store's path", e))?,
    };
    Ok(if path.is_dir() { StoreChoice::Directory(path) } else { StoreChoice::File(path) })
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;
    const ROOT: Caller = Caller { uid: 0, gid: 0 };
    const USER: Caller = Caller { uid: 1000, gid: 100 };
    const MACHINE: Memory = Memory { ram: 100 * GIB, limit: None };

    fn sizes(memory: Option<&str>, size: Option<&str>, machine: Memory) -> Result<(u64, u64), String> {
        let parse = |t: &str| Amount::parse(t).unwrap();
        let asked = Requested { memory: memory.map(parse), size: size.map(parse), ..Requested::default() };
        memory_and_size(&asked, machine).map_err(|e| {
            assert_eq!(e.code(), 7);
            e.to_string()
        })
    }

    #[test]
    fn defaults_are_a_tenth_of_ram_and_four_times_that() {
        assert_eq!(sizes(None, None, MACHINE), Ok((10 * GIB, 40 * GIB)));
        let contained = Memory { limit: Some(2 * GIB), ..MACHINE };
        assert_eq!(sizes(None, None, contained), Ok((2 * GIB / 10, 2 * GIB / 10 * 4)));
        let tiny = Memory { ram: 8 << 20, limit: None };
        assert_eq!(sizes(None, None, tiny), Ok((4 << 20, 16 << 20)));
    }

    #[test]
    fn default_memory_bows_to_size() {
        assert_eq!(sizes(None, Some("1g"), MACHINE), Ok((GIB, GIB)));
        assert_eq!(sizes(None, Some("64k"), MACHINE), Ok((4 << 20, 64 << 10)));
        assert_eq!(sizes(None, Some("50%"), MACHINE), Ok((10 * GIB, 50 * GIB)));
    }

    #[test]
    fn percent_is_of_ram_even_in_a_container() {
        let contained = Memory { limit: Some(2 * GIB), ..MACHINE };
        assert_eq!(sizes(Some("1%"), Some("200%"), contained), Ok((GIB, 200 * GIB)));
    }

    /// A budget just below the cgroup's limit would get the daemon killed: the kernel charges more than the budget.
    #[test]
    fn a_cgroup_has_room_for_what_the_kernel_charges() {
        let contained = |mib: u64| Memory { limit: Some(mib << 20), ..MACHINE };
        let error = sizes(Some("64m"), None, contained(80)).unwrap_err();
        assert!(
            error.contains("64.0 MiB") && error.contains("80.0 MiB") && error.contains("51.0 MiB"),
            "{error}"
        );
        for mib in [24, 80, 96, 512, 4096] {
            let most = most_within(mib << 20);
            assert!(most + kernels_share(most) <= mib << 20, "{most} in {mib} MiB");
            assert!(sizes(Some(&most.to_string()), None, contained(mib)).is_ok(), "{most} in {mib} MiB");
            assert!(sizes(Some(&(most + (2 << 20)).to_string()), None, contained(mib)).is_err());
        }
        assert_eq!(sizes(Some("384m"), None, contained(512)), Ok((384 << 20, 1536 << 20)));
    }

    #[test]
    fn senseless_sizes_are_refused_with_the_figures() {
        assert_eq!(sizes(Some("4m"), None, MACHINE), Ok((4 << 20, 16 << 20)));
        let error = sizes(Some("4095k"), None, MACHINE).unwrap_err();
        assert!(error.contains("4.00 MiB"), "{error}");
        let error = sizes(Some("2g"), Some("1g"), MACHINE).unwrap_err();
        assert!(error.contains("1.00 GiB") && error.contains("2.00 GiB"), "{error}");
        assert!(sizes(Some("101%"), None, MACHINE).unwrap_err().contains("100 GiB"));
        assert!(sizes(None, Some("0"), MACHINE).unwrap_err().contains("0 B"));
        assert!(sizes(None, Some("18446744073709551615%"), MACHINE).is_err());
    }

    #[test]
    fn root_and_users_get_different_defaults() {
        let dir = tempfile::tempdir().unwrap();
        let plan = |asked: &Requested, caller| Plan::of(asked, dir.path(), MACHINE, caller);
        let root = plan(&Requested::of(ROOT), ROOT).unwrap().mount;
        assert_eq!((root.mode, root.uid, root.gid), (0o1777, 0, 0));
        assert!(!root.flags.nosuid && !root.flags.nodev && root.flags.allow_other);
        let user = plan(&Requested::of(USER), USER).unwrap().mount;
        assert_eq!((user.mode, user.uid, user.gid), (0o700, 1000, 100));
        assert!(user.flags.nosuid && user.flags.nodev && !user.flags.allow_other);
        assert_eq!(plan(&Requested::default(), USER).unwrap_err().code(), 4, "suid and dev");
        let all = Requested { nr_inodes: Some(0), ..Requested::of(ROOT) };
        assert_eq!(plan(&all, ROOT).unwrap().mount.nr_inodes, None);
    }

    #[test]
    fn bad_mountpoints_are_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("file"), "").unwrap();
        let code = |name: &str| {
            let e = check_mountpoint(&dir.path().join(name), ROOT).unwrap_err();
            (e.to_string(), e.code())
        };
        assert!(matches!(code("absent"), (text, 3) if text.contains("does not exist")));
        assert!(matches!(code("file"), (text, 3) if text.contains("not a directory")));
        assert!(matches!(code("file/below"), (text, 3) if text.contains("not a directory")));
    }

    #[test]
    fn a_store_is_a_directory_a_file_or_none() {
        let dir = tempfile::tempdir().unwrap();
        let choose = |p: Option<&Path>| store(p).unwrap();
        assert!(matches!(choose(None), StoreChoice::Directory(p) if p == Path::new("/var/tmp")));
        assert!(matches!(choose(Some(Path::new("none"))), StoreChoice::None));
        assert!(matches!(choose(Some(dir.path())), StoreChoice::Directory(p) if p == dir.path()));
        assert!(matches!(choose(Some(Path::new("a/b"))), StoreChoice::File(p) if p.is_absolute()));
    }
}
