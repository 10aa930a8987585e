//! `overspill doctor`: reports the features of this machine, one line each: name, state, effect, cure.
//!
//! It reads everything through a [`View`], so that tests can show it any machine. It changes nothing, unless `--fix` is
//! given.

use std::fmt;
use std::io::Write;
use std::path::{Path, PathBuf};

use rustix::fs::{Access, Mode, OFlags};
use rustix::process::{Resource, getrlimit};

use crate::caller::Caller;
use crate::error::Error;
use crate::machine::{self, Cgroup, meminfo};
use crate::size::human;

/// Bit numbers in the mask of effective capabilities.
const CAP_SYS_ADMIN: u32 = 21;
const CAP_SYS_RESOURCE: u32 = 24;

/// `overspill doctor`
#[derive(Debug, clap::Args)]
pub(crate) struct DoctorArgs {
    /// Turn on FUSE over io_uring until the next boot (root), and show how to keep it on.
    #[arg(long)]
    fix: bool,
}

/// The switch of FUSE over io_uring.
const ENABLE_URING: &str = "/sys/module/fuse/parameters/enable_uring";

const KEEP_URING: &str = "\
FUSE over io_uring is on until the next boot. To keep it on:
  fuse as a module:       echo 'options fuse enable_uring=1' >/etc/modprobe.d/overspill.conf
  fuse in the kernel:     fuse.enable_uring=1 on the kernel's command line
  by systemd:             echo 'w /sys/module/fuse/parameters/enable_uring - - - - Y' >/etc/tmpfiles.d/overspill.conf
Mounts that exist keep the way they have.";

/// Turns on what root can turn on without harm.
fn fix() -> Result<(), Error> {
    // Not created where it is missing: sysfs would call that a lack of permission.
    match std::fs::OpenOptions::new().write(true).open(ENABLE_URING).and_then(|mut file| file.write_all(b"Y"))
    {
        Ok(()) => {
            crate::say::say(KEEP_URING);
            Ok(())
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Err(Error::NoSwitch),
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => Err(Error::RootFixes),
        Err(error) => Err(Error::Io(ENABLE_URING, error)),
    }
}

/// How much a finding matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mark {
    /// Fully available.
    Ok,
    /// Mounts work, but less well.
    Less,
    /// No mount can work.
    Stop,
}

/// One line of the report.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Finding {
    mark: Mark,
    name: &'static str,
    state: String,
    effect: &'static str,
    /// The way to get the feature; empty if there is none.
    cure: &'static str,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mark = match self.mark {
            Mark::Ok => "ok",
            Mark::Less => "less",
            Mark::Stop => "STOP",
        };
        write!(f, "{mark:<4}  {:<18}  {} - {}", self.name, self.state, self.effect)?;
        if !self.cure.is_empty() && self.mark != Mark::Ok {
            write!(f, "; to get it: {}", self.cure)?;
        }
        Ok(())
    }
}

/// The machine, as the checks see it.
struct View {
    /// "/" except in tests.
    base: PathBuf,
    caller: Caller,
    path: Vec<PathBuf>,
    cgroup: Option<Cgroup>,
    memlock: Option<u64>,
    /// Result of setting up an io_uring.
    ring: Result<(), String>,
}

/// Runs the command.
pub(crate) fn run(args: &DoctorArgs) -> Result<(), Error> {
    if args.fix {
        fix()?;
    }
    let view = View {
        base: "/".into(),
        caller: Caller::current(),
        path: overspill::fusermount::search_path(),
        cgroup: machine::cgroup(),
        memlock: getrlimit(Resource::Memlock).current,
        ring: overspill::runtime::try_ring().map_err(|error| error.to_string()),
    };
    let findings = view.findings();
    let mut out = std::io::stdout();
    for finding in &findings {
        match writeln!(out, "{finding}") {
            Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => break,
            written => written.map_err(|e| Error::Io("stdout", e))?,
        }
    }
    verdict(&findings)
}

/// Returns an error that names the findings that prevent a mount, if there are any.
fn verdict(findings: &[Finding]) -> Result<(), Error> {
    let stops: Vec<String> =
        findings.iter().filter(|f| f.mark == Mark::Stop).map(|f| format!("{} {}", f.name, f.state)).collect();
    if stops.is_empty() { Ok(()) } else { Err(Error::CannotMount(stops.join(", "))) }
}

impl View {
    fn findings(&self) -> Vec<Finding> {
        vec![
            self.dev_fuse(),
            self.mounting(),
            self.user_allow_other(),
            self.max_pages(),
            self.bdi(),
            self.fuse_uring(),
            self.io_uring(),
            self.memlock(),
            self.sys_resource(),
            self.userfaultfd(),
            self.cgroup(),
            self.swap(),
            self.direct_io(),
            self.free_space(),
        ]
    }

    fn at(&self, path: &str) -> PathBuf {
        self.base.join(path.trim_start_matches('/'))
    }

    fn read(&self, path: &str) -> Option<String> {
        std::fs::read_to_string(self.at(path)).ok().map(|t| t.trim().to_owned())
    }

    fn may_write(&self, path: &str) -> bool {
        rustix::fs::access(self.at(path), Access::WRITE_OK).is_ok()
    }

    fn has_capability(&self, bit: u32) -> bool {
        let status = self.read("/proc/self/status").unwrap_or_default();
        let mask = status.lines().find_map(|l| l.strip_prefix("CapEff:"));
        mask.and_then(|m| u64::from_str_radix(m.trim(), 16).ok()).is_some_and(|m| m & (1 << bit) != 0)
    }

    fn dev_fuse(&self) -> Finding {
        let path = self.at("/dev/fuse");
        let opened = rustix::fs::open(&path, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty());
        // fusermount3 opens it with root's rights and hands it to us. The check is stricter: it fails on any error.
        let (mark, state) = match opened {
            Ok(_) => (Mark::Ok, "can be opened".to_owned()),
            Err(rustix::io::Errno::NOENT) => (Mark::Stop, "is missing".to_owned()),
            Err(errno) => (Mark::Stop, format!("cannot be opened ({errno})")),
        };
        Finding {
            mark,
            name: "/dev/fuse",
            state,
            effect: "every mount goes through it",
            cure: "modprobe fuse, chmod 666 /dev/fuse; in a container: --device /dev/fuse",
        }
    }

    fn mounting(&self) -> Finding {
        let effect = "who makes the mount";
        if self.caller.is_root() {
            let may = self.has_capability(CAP_SYS_ADMIN);
            return Finding {
                mark: if may { Mark::Ok } else { Mark::Stop },
                name: "mounting",
                state: if may { "root with CAP_SYS_ADMIN" } else { "root without CAP_SYS_ADMIN" }.to_owned(),
                effect,
                cure: "in a container: --cap-add SYS_ADMIN",
            };
        }
        let found = overspill::fusermount::find(&self.path, &self.base);
        let (mark, state) = match found.map(|p| (setuid_root(&p), p)) {
            None => (Mark::Stop, "fusermount3 is missing".to_owned()),
            Some((true, p)) => (Mark::Ok, format!("{} is setuid root", p.display())),
            Some((false, p)) => (Mark::Stop, format!("{} is not setuid root", p.display())),
        };
        Finding { mark, name: "mounting", state, effect, cure: "install the package fuse3" }
    }

    fn user_allow_other(&self) -> Finding {
        let conf = self.read("/etc/fuse.conf").unwrap_or_default();
        let set = conf.lines().any(|l| l.trim() == "user_allow_other");
        Finding {
            mark: if set || self.caller.is_root() { Mark::Ok } else { Mark::Less },
            name: "user_allow_other",
            state: if set { "set" } else { "not set" }.to_owned(),
            effect: "lets a user give --allow-other (root always may)",
            cure: "the line user_allow_other in /etc/fuse.conf",
        }
    }

    fn max_pages(&self) -> Finding {
        let limit = self.read("/proc/sys/fs/fuse/max_pages_limit").and_then(|t| t.parse::<u64>().ok());
        Finding {
            mark: if limit.is_some_and(|l| l >= 256) { Mark::Ok } else { Mark::Less },
            name: "max_pages_limit",
            state: limit.map_or("unknown (old kernel: 256)".to_owned(), |l| {
                format!("{l} ({})", human(l.saturating_mul(4096)))
            }),
            effect: "the largest read or write in one request",
            cure: "sysctl fs.fuse.max_pages_limit=256 or more",
        }
    }

    fn bdi(&self) -> Finding {
        let may =
            self.caller.is_root() && self.at("/sys/class/bdi").is_dir() && self.may_write("/sys/class/bdi");
        Finding {
            mark: if may { Mark::Ok } else { Mark::Less },
            name: "bdi limits",
            state: if may { "can be set" } else { "cannot be set" }.to_owned(),
            effect: "how much the kernel may hold dirty: sets the speed of long writes",
            cure: "mount as root, with /sys writable",
        }
    }

    fn fuse_uring(&self) -> Finding {
        let state = self.read(ENABLE_URING);
        let on = state.as_deref() == Some("Y");
        Finding {
            mark: if on { Mark::Ok } else { Mark::Less },
            name: "FUSE over io_uring",
            state: match state {
                Some(_) => if on { "on" } else { "off" }.to_owned(),
                None => "not in this kernel".to_owned(),
            },
            effect: "a faster way to the kernel, 1.5 to 4 times for names",
            cure: "as root: overspill doctor --fix (Linux 6.14)",
        }
    }

    fn io_uring(&self) -> Finding {
        let value = self.read("/proc/sys/kernel/io_uring_disabled");
        let (mark, state) = match (&self.ring, value.as_deref(), self.caller.is_root()) {
            (Ok(()), ..) => (Mark::Ok, "works".to_owned()),
            (Err(_), Some("1"), false) => (Mark::Less, "is allowed to root only".to_owned()),
            (Err(_), Some("1" | "2"), _) => (Mark::Less, "is forbidden".to_owned()),
            (Err(why), ..) => (Mark::Less, format!("is refused ({why})")),
        };
        Finding {
            mark,
            name: "io_uring",
            state,
            effect: "more of the store's I/O at once, and fewer threads",
            cure: "sysctl kernel.io_uring_disabled=0; in a container: a seccomp profile that allows it",
        }
    }

    fn memlock(&self) -> Finding {
        let enough = self.memlock.is_none_or(|l| l >= 64 << 20) || self.has_capability(CAP_SYS_RESOURCE);
        Finding {
            mark: if enough { Mark::Ok } else { Mark::Less },
            name: "RLIMIT_MEMLOCK",
            state: self.memlock.map_or("no limit".to_owned(), human),
            effect: "how much of our memory the system's swap cannot take",
            cure: "ulimit -l, or memlock in /etc/security/limits.conf",
        }
    }

    fn sys_resource(&self) -> Finding {
        let has = self.has_capability(CAP_SYS_RESOURCE);
        Finding {
            mark: if has { Mark::Ok } else { Mark::Less },
            name: "CAP_SYS_RESOURCE",
            state: if has { "held" } else { "not held" }.to_owned(),
            effect: "IO_FLUSHER and oom_score_adj: the daemon goes on when memory is short",
            cure: "mount as root",
        }
    }

    fn userfaultfd(&self) -> Finding {
        let sysctl = self.read("/proc/sys/vm/unprivileged_userfaultfd");
        let device =
            rustix::fs::access(self.at("/dev/userfaultfd"), Access::READ_OK | Access::WRITE_OK).is_ok();
        let all = device || self.caller.is_root() || sysctl.as_deref() == Some("1");
        Finding {
            mark: if all { Mark::Ok } else { Mark::Less },
            name: "userfaultfd",
            state: match (all, sysctl) {
                (true, _) => "full",
                (false, Some(_)) => "faults of user mode only",
                (false, None) => "not in this kernel",
            }
            .to_owned(),
            effect: "paged memory for programs; mounts do not need it",
            cure: "sysctl vm.unprivileged_userfaultfd=1, or access to /dev/userfaultfd",
        }
    }

    fn cgroup(&self) -> Finding {
        let (mark, state) = match &self.cgroup {
            None => (Mark::Ok, "none".to_owned()),
            Some(Cgroup { version, memory_limit: None }) => {
                (Mark::Ok, format!("version {version}, no memory limit"))
            }
            Some(Cgroup { version, memory_limit: Some(limit) }) => {
                // Version 1 expresses "none" by a number above any machine's memory.
                let limit =
                    if *limit > 1 << 60 { "no limit".into() } else { format!("limit {}", human(*limit)) };
                let mark = if *version == 1 { Mark::Less } else { Mark::Ok };
                (mark, format!("version {version}, {limit}"))
            }
        };
        Finding {
            mark,
            name: "memory cgroup",
            state,
            effect: "its limit caps the default memory; version 1 does not slow writers down before it is full",
            cure: "cgroup version 2 (boot with systemd.unified_cgroup_hierarchy=1)",
        }
    }

    fn swap(&self) -> Finding {
        let total = self.read("/proc/meminfo").and_then(|t| meminfo(&t, "SwapTotal")).unwrap_or(0);
        Finding {
            mark: Mark::Ok,
            name: "swap",
            state: if total == 0 { "none".to_owned() } else { human(total) },
            effect: "not needed; what we do not lock it may take",
            cure: "",
        }
    }

    fn direct_io(&self) -> Finding {
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        let open = |more| rustix::fs::open(self.at("/var/tmp"), flags | more, Mode::RUSR | Mode::WUSR);
        let (mark, state) = match (open(OFlags::DIRECT), open(OFlags::empty())) {
            (Ok(_), _) => (Mark::Ok, "has O_DIRECT".to_owned()),
            (Err(_), Ok(_)) => (Mark::Less, "has no O_DIRECT".to_owned()),
            (_, Err(errno)) => (Mark::Less, format!("takes no unnamed file ({errno})")),
        };
        Finding {
            mark,
            name: "/var/tmp",
            state,
            effect: "the default store; without O_DIRECT it passes through the page cache",
            cure: "another file system, with --store",
        }
    }

    fn free_space(&self) -> Finding {
        let free = rustix::fs::statvfs(self.at("/var/tmp")).map(|s| s.f_bavail.saturating_mul(s.f_frsize));
        Finding {
            mark: if free.is_ok_and(|f| f >= 1 << 30) { Mark::Ok } else { Mark::Less },
            name: "free in /var/tmp",
            state: free.map_or_else(|e| e.to_string(), human),
            effect: "what can spill there by default",
            cure: "--store on a larger disk",
        }
    }
}

fn setuid_root(path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata(path).is_ok_and(|m| m.mode() & 0o4000 != 0 && m.uid() == 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    const USER: Caller = Caller { uid: 1000, gid: 1000 };

    struct Fake {
        dir: tempfile::TempDir,
        view: View,
    }

    /// A machine without any feature.
    fn bare(caller: Caller) -> Fake {
        let dir = tempfile::tempdir().unwrap();
        let view = View {
            base: dir.path().to_owned(),
            caller,
            path: vec![dir.path().join("bin")],
            cgroup: None,
            memlock: Some(8 << 20),
            ring: Err("no".to_owned()),
        };
        Fake { dir, view }
    }

    impl Fake {
        fn put(&self, path: &str, text: &str) {
            let path = self.dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }

        fn mark(&self, name: &str) -> Mark {
            self.view.findings().into_iter().find(|f| f.name == name).unwrap().mark
        }
    }

    #[test]
    fn a_bare_machine_stops_a_user_for_two_reasons() {
        let fake = bare(USER);
        let error = verdict(&fake.view.findings()).unwrap_err();
        assert_eq!(error.code(), 1);
        let text = error.to_string();
        assert!(text.contains("/dev/fuse is missing") && text.contains("fusermount3 is missing"), "{text}");
        for finding in fake.view.findings() {
            assert_eq!(finding.to_string().lines().count(), 1);
        }
    }

    #[test]
    fn a_plain_fusermount_stops_a_user() {
        let fake = bare(USER);
        fake.put("dev/fuse", "");
        fake.put("bin/fusermount3", "");
        assert_eq!(fake.mark("/dev/fuse"), Mark::Ok);
        let text = verdict(&fake.view.findings()).unwrap_err().to_string();
        assert!(text.contains("not setuid root"), "{text}");
    }

    #[test]
    fn root_needs_the_capability() {
        let fake = bare(Caller { uid: 0, gid: 0 });
        fake.put("proc/self/status", "Name:\tx\nCapEff:\t000001ffffdfffff\n");
        assert_eq!(fake.mark("mounting"), Mark::Stop);
        assert_eq!(fake.mark("CAP_SYS_RESOURCE"), Mark::Ok);
        fake.put("proc/self/status", "Name:\tx\nCapEff:\t0000000000200000\n");
        assert_eq!(fake.mark("mounting"), Mark::Ok);
        assert_eq!(fake.mark("CAP_SYS_RESOURCE"), Mark::Less);
    }

    #[test]
    fn switches_are_read() {
        let mut fake = bare(USER);
        assert_eq!(fake.mark("FUSE over io_uring"), Mark::Less);
        fake.put("sys/module/fuse/parameters/enable_uring", "Y\n");
        assert_eq!(fake.mark("FUSE over io_uring"), Mark::Ok);
        fake.put("etc/fuse.conf", "# user_allow_other\n");
        assert_eq!(fake.mark("user_allow_other"), Mark::Less);
        fake.put("etc/fuse.conf", "# x\nuser_allow_other\n");
        assert_eq!(fake.mark("user_allow_other"), Mark::Ok);
        for (value, state) in
            [("0", "is refused (no)"), ("1", "is allowed to root only"), ("2", "is forbidden")]
        {
            fake.put("proc/sys/kernel/io_uring_disabled", value);
            let finding = fake.view.io_uring();
            assert_eq!((finding.mark, &*finding.state), (Mark::Less, state), "{value}");
        }
        fake.view.ring = Ok(());
        assert_eq!(fake.mark("io_uring"), Mark::Ok);
        fake.put("proc/sys/fs/fuse/max_pages_limit", "256\n");
        assert_eq!(fake.mark("max_pages_limit"), Mark::Ok);
        assert_eq!(fake.mark("RLIMIT_MEMLOCK"), Mark::Less);
    }
}
