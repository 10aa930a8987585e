//! The tidy test: rules about the source itself.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use crate::run::root;

/// Crates by layer, low to high: each may use those before it only, and not those named as its peers.
const LAYERS: [(&str, &[&str]); 11] = [
    ("sys", &[]),
    ("slab", &[]),
    ("codec", &[]),
    ("store", &["sys"]),
    ("vm", &["sys", "slab", "codec", "store"]),
    ("runtime", &["sys", "slab", "store", "vm"]),
    ("tmpfs", &["slab", "vm"]),
    ("fuse", &["sys"]),
    ("mount", &["sys", "vm", "runtime", "tmpfs", "fuse"]),
    ("overspill", &["sys", "slab", "store", "vm", "runtime", "tmpfs", "mount"]),
    ("cli", &["overspill"]),
];

/// Crates that may contain `unsafe`.
const UNSAFE: [&str; 2] = ["sys", "slab"];

const LONGEST_FILE: usize = 600;

fn files(dir: &Path, ending: &str, out: &mut Vec<PathBuf>) {
    for entry in dir.read_dir().unwrap().map(Result::unwrap) {
        let path = entry.path();
        let name = entry.file_name();
        if path.is_dir() && name != "target" && name != ".git" {
            files(&path, ending, out);
        } else if name.to_string_lossy().ends_with(ending) {
            out.push(path);
        }
    }
}

fn sources() -> Vec<(String, String)> {
    let mut paths = Vec::new();
    files(&root(), ".rs", &mut paths);
    paths
        .into_iter()
        .map(|path| {
            let text = std::fs::read_to_string(&path).unwrap();
            (path.strip_prefix(root()).unwrap().display().to_string(), text)
        })
        .collect()
}

#[test]
fn crate_arrows_point_down() {
    for (name, may_use) in LAYERS {
        let manifest = std::fs::read_to_string(root().join("crates").join(name).join("Cargo.toml")).unwrap();
        let dependencies = manifest.split("[dependencies]").nth(1).unwrap().split("\n[").next().unwrap();
        for line in dependencies.lines() {
            let Some(used) = line.split(['.', ' ', '=']).next().filter(|word| word.starts_with("overspill"))
            else {
                continue;
            };
            let used = used.strip_prefix("overspill-").unwrap_or(used);
            assert!(may_use.contains(&used), "crates/{name} uses {used}: arrows point down only");
        }
    }
    let found: BTreeSet<String> = root()
        .join("crates")
        .read_dir()
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    assert_eq!(
        found,
        LAYERS.iter().map(|(name, _)| (*name).to_owned()).collect(),
        "every crate has its layer"
    );
}

#[test]
fn unsafe_is_confined() {
    for (path, text) in sources() {
        let Some(name) = path.strip_prefix("crates/").and_then(|rest| rest.split('/').next()) else {
            continue;
        };
        if UNSAFE.contains(&name) {
            continue;
        }
        if path.ends_with("src/lib.rs") || path.ends_with("src/main.rs") {
            assert!(text.contains("#![forbid(unsafe_code)]"), "{path} must forbid unsafe code");
        }
    }
}

#[test]
fn files_are_not_huge() {
    for (path, text) in sources() {
        let lines = text.lines().count();
        assert!(lines <= LONGEST_FILE, "{path} has {lines} lines; {LONGEST_FILE} are enough for one subject");
    }
}

/// Functions with more lines than a large screen.
const LONGEST_FUNCTION: usize = 80;

#[test]
fn functions_fit_a_screen() {
    for (path, text) in sources() {
        let lines: Vec<&str> = text.lines().collect();
        for (start, line) in lines.iter().enumerate() {
            let code = line.trim_start();
            let is_function =
                ["fn ", "pub fn ", "pub(crate) fn ", "pub(super) fn ", "async fn ", "unsafe fn "]
                    .iter()
                    .any(|word| code.starts_with(word))
                    || code.starts_with("pub")
                        && (code.contains(" async fn ") || code.contains(" unsafe fn "));
            if !is_function || code.ends_with(';') {
                continue;
            }
            // rustfmt puts the end of a function below its beginning.
            let end = format!("{}}}", &line[..line.len() - code.len()]);
            let len = lines[start..].iter().position(|line| *line == end).map_or(1, |len| len + 1);
            assert!(len <= LONGEST_FUNCTION, "{path}:{}: a function of {len} lines", start + 1);
        }
    }
}

#[test]
fn nothing_is_left_for_later_in_code() {
    let words = ["FIX", "XX", "TO"].map(|start| {
        format!(
            "{start}{}",
            if start == "FIX" {
                "ME"
            } else if start == "XX" {
                "X"
            } else {
                "DO"
            }
        )
    });
    for (path, text) in sources() {
        for (number, line) in text.lines().enumerate() {
            for word in &words {
                let left = line.split(|c: char| !c.is_ascii_alphanumeric()).any(|found| found == word);
                assert!(!left, "{path}:{}: {word}: do it, or file an issue", number + 1);
            }
        }
    }
}

#[test]
fn cited_requirements_exist() {
    let mut paths = Vec::new();
    files(&root(), ".rs", &mut paths);
    files(&root(), ".md", &mut paths);
    let mut cited: BTreeMap<u32, PathBuf> = BTreeMap::new();
    for path in paths {
        let text = std::fs::read_to_string(&path).unwrap();
        for word in text.split(|c: char| !c.is_ascii_alphanumeric()) {
            let number = word.strip_prefix('R').filter(|rest| (1..=3).contains(&rest.len()));
            if let Some(number) = number.and_then(|digits| digits.parse().ok()) {
                cited.insert(number, path.clone());
            }
        }
    }
    for (number, path) in &cited {
        assert!((1..=75).contains(number), "{}: there is no R{number}", path.display());
    }
    assert!(cited.len() > 20, "the requirements are cited where they are met");
}
