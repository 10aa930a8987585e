//! The command line of `overspill mount`, its `-o` options, and what they add up to.
//!
//! `-o` takes kernel tmpfs's names, so that a line of fstab for tmpfs works here. Of repeated `-o` options the last
//! counts; a flag of its own (`--size`) counts before any of them.

use std::path::PathBuf;

use overspill::mount::{Debugging, Layout, Method};

use crate::error::Error;
use crate::size::{Amount, count};

/// `overspill mount`
#[derive(Debug, clap::Args)]
pub(crate) struct MountArgs {
    /// The directory to mount on.
    pub(crate) mountpoint: PathBuf,

    /// How much the mount can hold: bytes, or k, m, g, t, or % of RAM [default: 4 x memory]
    #[arg(long, value_name = "SIZE")]
    size: Option<String>,

    /// How much RAM it may use for that, at least 4m [default: 10% of RAM, or of the cgroup's limit if that is less]
    #[arg(long, value_name = "SIZE")]
    memory: Option<String>,

    /// Where that goes which memory cannot hold: a directory (an unnamed file in it), a file to be made and unlinked
    /// at once, or 'none' [default: /var/tmp]
    #[arg(long, value_name = "PATH")]
    store: Option<PathBuf>,

    /// How pages are compressed that were not used for a while: lz4, zstd (smaller, slower) or none [default: lz4]
    #[arg(long, value_name = "METHOD")]
    compress: Option<String>,

    /// How the store lies on its disk: shared (one file) or per-object (a file for each of ours) [default: shared]
    #[arg(long, value_name = "LAYOUT")]
    layout: Option<String>,

    /// How many files it can hold: a number, or with k, m, g; 0 is no limit [default: no limit but memory]
    #[arg(long, value_name = "N")]
    nr_inodes: Option<String>,

    /// Mode of the mount's root directory, octal [default: 1777 if you are root, else 0700]
    #[arg(long, value_name = "OCTAL")]
    mode: Option<String>,

    /// Owner of the mount's root directory, a number [default: you]
    #[arg(long)]
    uid: Option<String>,

    /// Group of the mount's root directory, a number [default: yours]
    #[arg(long)]
    gid: Option<String>,

    /// Mount read-only.
    #[arg(long)]
    ro: bool,

    /// Let other users in (as a user: needs user_allow_other in /etc/fuse.conf) [default: on if you are root]
    #[arg(long)]
    allow_other: bool,

    /// Options as for tmpfs, separated by commas: size= nr_inodes= mode= uid= gid= ro rw noexec exec nosuid suid nodev
    /// dev noatime relatime atime defaults allow_other, and memory= store= layout= compress=, and for tests debug=
    #[arg(short = 'o', value_name = "OPTIONS")]
    options: Vec<String>,

    /// Accept a store on a tmpfs, and a store file that exists (it is overwritten and unlinked).
    #[arg(long)]
    force: bool,

    /// Stay in the foreground; log to stderr.
    #[arg(short, long)]
    pub(crate) foreground: bool,

    /// Where the daemon logs [default: /var/log/overspill.log for root, else overspill.log in $XDG_STATE_HOME or
    /// ~/.local/state]
    #[arg(long, value_name = "FILE", conflicts_with = "foreground")]
    pub(crate) log: Option<PathBuf>,

    /// This process is the daemon: say on stdout when the mount is ready, then be silent.
    #[arg(long, hide = true)]
    pub(crate) daemon_child: bool,
}

/// What was asked for; `None` is "the default".
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Requested {
    pub(crate) size: Option<Amount>,
    pub(crate) memory: Option<Amount>,
    pub(crate) store: Option<PathBuf>,
    pub(crate) layout: Layout,
    pub(crate) compress: Method,
    /// `Some(0)` is "no limit", said aloud.
    pub(crate) nr_inodes: Option<u64>,
    pub(crate) mode: Option<u32>,
    pub(crate) uid: Option<u32>,
    pub(crate) gid: Option<u32>,
    pub(crate) read_only: bool,
    pub(crate) noexec: bool,
    pub(crate) nosuid: Option<bool>,
    pub(crate) nodev: Option<bool>,
    pub(crate) noatime: bool,
    pub(crate) allow_other: bool,
    pub(crate) force: bool,
    pub(crate) debug: Debugging,
}

impl MountArgs {
    /// Adds flags and `-o` options up.
    pub(crate) fn requested(&self) -> Result<Requested, Error> {
        let mut r = Requested::default();
        for option in self.options.iter().flat_map(|list| list.split(',')) {
            r.apply(option)?;
        }
        for (name, value) in [
            ("size", &self.size),
            ("memory", &self.memory),
            ("layout", &self.layout),
            ("compress", &self.compress),
            ("nr_inodes", &self.nr_inodes),
            ("mode", &self.mode),
            ("uid", &self.uid),
            ("gid", &self.gid),
        ] {
            if let Some(value) = value {
                r.set(name, value)?;
            }
        }
        if let Some(store) = &self.store {
            r.store = Some(store.clone());
        }
        r.read_only |= self.ro;
        r.allow_other |= self.allow_other;
        r.force = self.force;
        Ok(r)
    }
}

impl Requested {
    /// One option of an `-o` list. An empty one (`a,,b`) is nothing.
    fn apply(&mut self, option: &str) -> Result<(), Error> {
        if let Some((name, value)) = option.split_once('=') {
            return self.set(name, value);
        }
        match option {
            "" | "defaults" => {}
            "ro" => self.read_only = true,
            "rw" => self.read_only = false,
            "noexec" => self.noexec = true,
            "exec" => self.noexec = false,
            "nosuid" => self.nosuid = Some(true),
            "suid" => self.nosuid = Some(false),
            "nodev" => self.nodev = Some(true),
            "dev" => self.nodev = Some(false),
            "noatime" => self.noatime = true,
            "atime" | "relatime" => self.noatime = false,
            "allow_other" => self.allow_other = true,
            unknown => return Err(Error::UnknownOption(unknown.to_owned())),
        }
        Ok(())
    }

    /// An option with a value, from `-o` or from a flag of its own.
    fn set(&mut self, name: &str, value: &str) -> Result<(), Error> {
        match name {
            "size" => self.size = Some(amount("size", value)?),
            "memory" => self.memory = Some(amount("memory", value)?),
            "nr_inodes" => {
                let n =
                    count(value).map_err(|_| bad("nr_inodes", value, "a number, with k, m, g or without"))?;
                self.nr_inodes = Some(n);
            }
            "mode" => self.mode = Some(mode(value)?),
            "uid" => self.uid = Some(id("uid", value)?),
            "gid" => self.gid = Some(id("gid", value)?),
            "store" if value.is_empty() => return Err(bad("store", value, "a path, or none")),
            "store" => self.store = Some(value.into()),
            "layout" => {
                self.layout = Layout::named(value).ok_or_else(|| bad("layout", value, Layout::WORDS))?;
            }
            "compress" => {
                self.compress = Method::named(value).ok_or_else(|| bad("compress", value, Method::WORDS))?;
            }
            "debug" if self.debug.turn_on(value) => {}
            "debug" => return Err(bad("debug", value, Debugging::WORDS)),
            _ => return Err(Error::UnknownOption(format!("{name}={value}"))),
        }
        Ok(())
    }
}

fn amount(name: &'static str, value: &str) -> Result<Amount, Error> {
    Amount::parse(value).map_err(|error| Error::BadSize { name, value: value.to_owned(), error })
}

fn mode(value: &str) -> Result<u32, Error> {
    let digits = !value.is_empty() && value.bytes().all(|b| (b'0'..=b'7').contains(&b));
    let mode = digits.then(|| u32::from_str_radix(value, 8).ok()).flatten().filter(|m| *m <= 0o7777);
    mode.ok_or_else(|| bad("mode", value, "an octal number up to 7777"))
}

fn id(name: &'static str, value: &str) -> Result<u32, Error> {
    let digits = !value.is_empty() && value.bytes().all(|b| b.is_ascii_digit());
    // The highest number is the kernel's "no such id".
    let id = digits.then(|| value.parse().ok()).flatten().filter(|id| *id != u32::MAX);
    id.ok_or_else(|| bad(name, value, "a number, not a name"))
}

fn bad(name: &'static str, value: &str, wants: &'static str) -> Error {
    Error::BadValue { name, value: value.to_owned(), wants }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        mount: MountArgs,
    }

    fn ask(line: &str) -> Result<Requested, String> {
        let line = Line::try_parse_from(format!("x {line} /m").split(' ')).map_err(|e| e.to_string())?;
        line.mount.requested().map_err(|e| format!("{} [{}]", e, e.code()))
    }

    #[test]
    fn tmpfs_options_are_understood() {
        let r =
            ask("-o size=50%,nr_inodes=10k,mode=0750,uid=7,gid=8,ro,noexec,nosuid,nodev,noatime,defaults,");
        let wanted = Requested {
            size: Some(Amount::Percent(50)),
            nr_inodes: Some(10 << 10),
            mode: Some(0o750),
            uid: Some(7),
            gid: Some(8),
            read_only: true,
            noexec: true,
            nosuid: Some(true),
            nodev: Some(true),
            noatime: true,
            ..Requested::default()
        };
        assert_eq!(r, Ok(wanted));
    }

    #[test]
    fn ours_are_understood() {
        assert_eq!(ask("--layout per-object").unwrap().layout, Layout::PerObject);
        let r = ask("-o memory=16m,store=/x/y,compress=zstd,debug=evict,allow_other --force").unwrap();
        assert_eq!((r.compress, ask("--compress none").unwrap().compress), (Method::Zstd, Method::None));
        assert_eq!(r.memory, Some(Amount::Bytes(16 << 20)));
        assert_eq!(r.store, Some("/x/y".into()));
        assert!(r.debug.evict && r.allow_other && r.force);
        assert_eq!(ask("-o store=none").unwrap().store, Some("none".into()));
    }

    #[test]
    fn the_last_option_counts_and_a_flag_before_all() {
        let r = ask("-o size=1g,ro,noexec,nosuid -o size=2g,rw,exec,suid").unwrap();
        assert_eq!(r.size, Some(Amount::Bytes(2 << 30)));
        assert!(!r.read_only && !r.noexec);
        assert_eq!(r.nosuid, Some(false));
        let r = ask("--size 3g --mode 700 --ro -o size=1g,mode=777,rw").unwrap();
        assert_eq!((r.size, r.mode, r.read_only), (Some(Amount::Bytes(3 << 30)), Some(0o700), true));
    }

    proptest::proptest! {
        #[test]
        fn any_option_is_taken_or_refused_with_its_name(
            option in "[ -~]{0,20}|(size|memory|mode|uid|gid|nr_inodes|debug|store|layout|compress)=\\PC{0,12}"
        ) {
            let mut requested = Requested::default();
            if let Err(error) = requested.apply(&option) {
                let name = option.split('=').next().unwrap_or_default();
                proptest::prop_assert!(error.to_string().contains(name), "{error}");
            }
        }
    }

    #[test]
    fn bad_options_name_themselves() {
        for (line, part, code) in [
            ("-o sise=1g", "'sise=1g'", 2),
            ("-o ro,sync", "'sync'", 2),
            ("-o size", "'size'", 2),
            ("-o ro=1", "'ro=1'", 2),
            ("-o mode=8", "mode does not take '8'", 2),
            ("-o mode=17777", "mode does not take '17777'", 2),
            ("-o mode=+7", "mode does not take '+7'", 2),
            ("-o uid=nobody", "uid does not take 'nobody'", 2),
            ("-o uid=4294967295", "uid does not take '4294967295'", 2),
            ("-o gid=-1", "gid does not take '-1'", 2),
            ("-o nr_inodes=many", "nr_inodes does not take 'many'", 2),
            ("-o nr_inodes=99999999t", "nr_inodes does not take '99999999t'", 2),
            ("-o debug=all", "debug does not take 'all'", 2),
            ("--layout raid", "layout does not take 'raid'", 2),
            ("--compress gzip", "compress does not take 'gzip'", 2),
            ("-o store=", "store does not take ''", 2),
            ("-o size=lots", "size 'lots' is not a size", 7),
            ("--memory 99999999t", "memory '99999999t' is too large", 7),
        ] {
            let error = ask(line).unwrap_err();
            assert!(error.contains(part) && error.ends_with(&format!("[{code}]")), "{line}: {error}");
        }
    }
}
