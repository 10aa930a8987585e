//! The options of `overspill mount`: one table, from which the parser of flags, that of `-o`, the help, the man page and
//! docs/OPTIONS.md come.
//!
//! `-o` takes kernel tmpfs's names, so that a line of fstab for tmpfs works here. Of repeated `-o` options the last
//! counts; a flag of its own (`--size`) counts before any of them.

use std::path::PathBuf;

use clap::{Arg, ArgAction, ArgMatches};
use overspill::engine::{Debugging, Layout, Method};
use overspill::mount::MountFlags;

use crate::caller::Caller;
use crate::error::Error;
use crate::size::{Amount, count};

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
    pub(crate) flags: MountFlags,
    pub(crate) writeback: bool,
    pub(crate) noxattr: bool,
    pub(crate) force: bool,
    pub(crate) debug: Debugging,
}

/// An option: its name, its ways to be given, its meaning, its effect.
pub(crate) struct MountOption {
    pub(crate) name: &'static str,
    pub(crate) form: Form,
    /// A sentence. A value's default follows it in brackets.
    pub(crate) help: &'static str,
    pub(crate) default: &'static str,
}

/// The ways in which an option is given.
pub(crate) enum Form {
    /// `--name VALUE` and `-o name=VALUE`.
    Value(&'static str, fn(&mut Requested, &str) -> Result<(), Error>),
    /// `-o name=VALUE` only.
    Hidden(fn(&mut Requested, &str) -> Result<(), Error>),
    /// `-o name` and `-o opposite`; the function is told which. With a flag `--name` too, if there is `true`.
    Word(bool, Option<&'static str>, fn(&mut Requested, bool)),
    /// `--name` only.
    Flag(fn(&mut Requested)),
}

impl MountOption {
    const fn value(
        name: &'static str,
        value: &'static str,
        set: fn(&mut Requested, &str) -> Result<(), Error>,
        help: &'static str,
        default: &'static str,
    ) -> MountOption {
        MountOption { name, form: Form::Value(value, set), help, default }
    }

    const fn word(
        name: &'static str,
        opposite: &'static str,
        set: fn(&mut Requested, bool),
        help: &'static str,
        default: &'static str,
    ) -> MountOption {
        MountOption { name, form: Form::Word(false, Some(opposite), set), help, default }
    }

    /// The flag, without its dashes.
    fn flag(&self) -> String {
        self.name.replace('_', "-")
    }
}

/// Every option, in the order of the help.
pub(crate) const OPTIONS: &[MountOption] = &[
    MountOption::value(
        "size",
        "SIZE",
        |r, v| put(&mut r.size, Some(amount("size", v)?)),
        "How much the mount can hold: bytes, or k, m, g, t, or % of RAM",
        "4 x memory",
    ),
    MountOption::value(
        "memory",
        "SIZE",
        |r, v| put(&mut r.memory, Some(amount("memory", v)?)),
        "How much RAM it may use for that, at least 4m",
        "10% of RAM, or of the cgroup's limit if that is less",
    ),
    MountOption::value(
        "store",
        "PATH",
        |r, v| put(&mut r.store, Some(store(v)?)),
        "Where data goes that memory cannot hold: a directory (an unnamed file in it), a file to be made and unlinked at \
         once, or 'none'",
        "/var/tmp",
    ),
    MountOption::value(
        "compress",
        "METHOD",
        |r, v| put(&mut r.compress, Method::named(v).ok_or_else(|| bad("compress", v, Method::WORDS))?),
        "How pages are compressed that were not used for a while: lz4, zstd (smaller, slower) or none",
        "lz4",
    ),
    MountOption::value(
        "layout",
        "LAYOUT",
        |r, v| put(&mut r.layout, Layout::named(v).ok_or_else(|| bad("layout", v, Layout::WORDS))?),
        "How the store lies on its disk: shared (one file) or per-object (a file for each of ours)",
        "shared",
    ),
    MountOption::value(
        "nr_inodes",
        "N",
        |r, v| put(&mut r.nr_inodes, Some(inodes(v)?)),
        "How many files it can hold: a number, or with k, m, g; 0 is no limit",
        "no limit but memory",
    ),
    MountOption::value(
        "mode",
        "OCTAL",
        |r, v| put(&mut r.mode, Some(mode(v)?)),
        "Mode of the mount's root directory, octal",
        "1777 if you are root, else 0700",
    ),
    MountOption::value(
        "uid",
        "UID",
        |r, v| put(&mut r.uid, Some(id("uid", v)?)),
        "Owner of the mount's root directory, a number",
        "you",
    ),
    MountOption::value(
        "gid",
        "GID",
        |r, v| put(&mut r.gid, Some(id("gid", v)?)),
        "Group of the mount's root directory, a number",
        "yours",
    ),
    MountOption {
        name: "ro",
        form: Form::Word(true, Some("rw"), |r, on| r.flags.read_only = on),
        help: "Mount read-only",
        default: "rw",
    },
    MountOption::word("noexec", "exec", |r, on| r.flags.noexec = on, "Run no programs from it", "exec"),
    MountOption::word(
        "nosuid",
        "suid",
        |r, on| r.flags.nosuid = on,
        "Honour no set-id bits; only root may give suid",
        "suid if you are root, else nosuid",
    ),
    MountOption::word(
        "nodev",
        "dev",
        |r, on| r.flags.nodev = on,
        "Open no devices; only root may give dev",
        "dev if you are root, else nodev",
    ),
    MountOption::word("noatime", "atime", |r, on| r.flags.noatime = on, "Keep no access times", "relatime"),
    MountOption {
        name: "relatime",
        form: Form::Word(false, None, |r, _| r.flags.noatime = false),
        help: "Keep access times as other file systems do by default",
        default: "",
    },
    MountOption {
        name: "allow_other",
        form: Form::Word(true, None, |r, _| r.flags.allow_other = true),
        help: "Let other users in (as a user: needs user_allow_other in /etc/fuse.conf)",
        default: "on if you are root",
    },
    MountOption {
        name: "writeback",
        form: Form::Word(true, None, |r, _| r.writeback = true),
        help: "Let the kernel keep what is written and write it back later: faster for small changes of large files, but \
               write(2) no longer reports a full disk",
        default: "written through",
    },
    MountOption::word(
        "noxattr",
        "xattr",
        |r, on| r.noxattr = on,
        "Have no extended attributes: saves a question of the kernel before the first write to each file",
        "xattr",
    ),
    MountOption {
        name: "defaults",
        form: Form::Word(false, None, |_, _| {}),
        help: "Nothing: a word that fstab needs",
        default: "",
    },
    MountOption {
        name: "debug",
        form: Form::Hidden(debug),
        help: "For tests: show more of itself, or fail on purpose",
        default: "",
    },
    MountOption {
        name: "force",
        form: Form::Flag(|r| r.force = true),
        help: "Accept a store on a tmpfs, and a store file that exists (it is overwritten and unlinked)",
        default: "",
    },
];

/// The `-o` lists of a command line, and the values of its flags, by their options' names.
#[derive(Debug, Clone, Default)]
pub(crate) struct MountSettings {
    lists: Vec<String>,
    flags: Vec<(&'static str, String)>,
}

impl clap::Args for MountSettings {
    fn augment_args(command: clap::Command) -> clap::Command {
        let flags = OPTIONS.iter().filter_map(|option| {
            let help = match option.default {
                "" => option.help.to_owned(),
                default => format!("{} [default: {default}]", option.help),
            };
            let arg = Arg::new(option.name).long(option.flag()).help(help);
            match option.form {
                Form::Value(value, _) => Some(arg.value_name(value).action(ArgAction::Set)),
                Form::Word(true, ..) | Form::Flag(_) => Some(arg.action(ArgAction::SetTrue)),
                Form::Word(false, ..) | Form::Hidden(..) => None,
            }
        });
        let lists = Arg::new("options")
            .short('o')
            .value_name("OPTIONS")
            .action(ArgAction::Append)
            .help(format!("Options as for tmpfs, separated by commas: {}", words_of_o().join(" ")));
        command.args(flags).arg(lists)
    }

    fn augment_args_for_update(command: clap::Command) -> clap::Command {
        Self::augment_args(command)
    }
}

/// The words that `-o` takes: `size=`, `noexec`, `exec` ….
pub(crate) fn words_of_o() -> Vec<String> {
    let words = |option: &MountOption| match option.form {
        Form::Value(..) | Form::Hidden(..) => vec![format!("{}=", option.name)],
        Form::Word(_, Some(opposite), _) => vec![option.name.to_owned(), opposite.to_owned()],
        Form::Word(_, None, _) => vec![option.name.to_owned()],
        Form::Flag(_) => Vec::new(),
    };
    OPTIONS.iter().flat_map(words).collect()
}

impl clap::FromArgMatches for MountSettings {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut settings = MountSettings::default();
        settings.update_from_arg_matches(matches)?;
        Ok(settings)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        self.lists = matches.get_many::<String>("options").into_iter().flatten().cloned().collect();
        for option in OPTIONS {
            let given = match option.form {
                Form::Value(..) => matches.get_one::<String>(option.name).cloned(),
                Form::Word(true, ..) | Form::Flag(_) => matches.get_flag(option.name).then(String::new),
                Form::Word(false, ..) | Form::Hidden(..) => None,
            };
            self.flags.extend(given.map(|value| (option.name, value)));
        }
        Ok(())
    }
}

impl MountSettings {
    /// Adds flags and `-o` options up.
    pub(crate) fn requested(&self, caller: Caller) -> Result<Requested, Error> {
        let mut r = Requested::of(caller);
        for option in self.lists.iter().flat_map(|list| list.split(',')) {
            r.apply(option)?;
        }
        for (name, value) in &self.flags {
            match OPTIONS.iter().find(|option| option.name == *name).map(|option| &option.form) {
                Some(Form::Value(_, set) | Form::Hidden(set)) => set(&mut r, value)?,
                Some(Form::Word(_, _, set)) => set(&mut r, true),
                Some(Form::Flag(set)) => set(&mut r),
                None => {}
            }
        }
        Ok(r)
    }
}

impl Requested {
    /// The request of this caller who gives no option.
    pub(crate) fn of(caller: Caller) -> Requested {
        let flags = MountFlags {
            nosuid: !caller.is_root(),
            nodev: !caller.is_root(),
            allow_other: caller.is_root(),
            ..MountFlags::default()
        };
        Requested { flags, ..Requested::default() }
    }

    /// One option of an `-o` list. An empty one (`a,,b`) is nothing.
    fn apply(&mut self, given: &str) -> Result<(), Error> {
        if given.is_empty() {
            return Ok(());
        }
        for option in OPTIONS {
            match (&option.form, given.split_once('=')) {
                (Form::Value(_, set) | Form::Hidden(set), Some((name, value))) if name == option.name => {
                    return set(self, value);
                }
                (Form::Word(_, opposite, set), None) if given == option.name || Some(given) == *opposite => {
                    set(self, given == option.name);
                    return Ok(());
                }
                _ => {}
            }
        }
        Err(Error::UnknownOption(given.to_owned()))
    }
}

fn put<T>(field: &mut T, value: T) -> Result<(), Error> {
    *field = value;
    Ok(())
}

fn store(value: &str) -> Result<PathBuf, Error> {
    if value.is_empty() { Err(bad("store", value, "a path, or none")) } else { Ok(value.into()) }
}

fn inodes(value: &str) -> Result<u64, Error> {
    count(value).map_err(|_| bad("nr_inodes", value, "a number, with k, m, g or without"))
}

fn debug(requested: &mut Requested, word: &str) -> Result<(), Error> {
    if requested.debug.turn_on(word) { Ok(()) } else { Err(bad("debug", word, Debugging::WORDS)) }
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
        settings: MountSettings,
        mountpoint: PathBuf,
    }

    fn ask(line: &str) -> Result<Requested, String> {
        let line = Line::try_parse_from(format!("x {line} /m").split(' ')).map_err(|e| e.to_string())?;
        line.settings.requested(Caller { uid: 1000, gid: 1000 }).map_err(|e| format!("{} [{}]", e, e.code()))
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
            flags: MountFlags {
                read_only: true,
                noexec: true,
                nosuid: true,
                nodev: true,
                noatime: true,
                allow_other: false,
            },
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
        assert!(r.debug.evict && r.flags.allow_other && r.force);
        assert_eq!(ask("-o store=none").unwrap().store, Some("none".into()));
    }

    #[test]
    fn the_last_option_counts_and_a_flag_before_all() {
        let r = ask("-o size=1g,ro,noexec,nosuid -o size=2g,rw,exec,suid").unwrap();
        assert_eq!(r.size, Some(Amount::Bytes(2 << 30)));
        assert!(!r.flags.read_only && !r.flags.noexec && !r.flags.nosuid);
        let r = ask("--size 3g --mode 700 --ro -o size=1g,mode=777,rw").unwrap();
        assert_eq!((r.size, r.mode, r.flags.read_only), (Some(Amount::Bytes(3 << 30)), Some(0o700), true));
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
    fn every_option_is_in_the_document() {
        let mut table = String::from(
            "# Options of `overspill mount`\n\nMade from the table that the program itself uses \
             (`crates/cli/src/options.rs`).\n\n| flag | -o | meaning | default |\n|---|---|---|---|\n",
        );
        for option in OPTIONS {
            let (flag, word) = match option.form {
                Form::Value(value, _) => {
                    (format!("`--{} {value}`", option.flag()), format!("`{}={value}`", option.name))
                }
                Form::Hidden(_) => (String::new(), format!("`{}=…`", option.name)),
                Form::Word(flag, opposite, _) => (
                    if flag { format!("`--{}`", option.flag()) } else { String::new() },
                    opposite.map_or_else(
                        || format!("`{}`", option.name),
                        |opposite| format!("`{}`, `{opposite}`", option.name),
                    ),
                ),
                Form::Flag(_) => (format!("`--{}`", option.flag()), String::new()),
            };
            table += &format!("| {flag} | {word} | {} | {} |\n", option.help, option.default);
        }
        crate::docs::check("OPTIONS.md", &table);
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
