//! The tidy test of imports: no two files of a crate import each other in a circle.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use crate::run::root;

/// Files of a crate by the path of their module, `a::b`; the crate's root is the empty path.
type Modules = BTreeMap<String, String>;

fn modules(dir: &Path, prefix: &str, out: &mut Modules) {
    for entry in dir.read_dir().unwrap().map(Result::unwrap) {
        let (path, name) = (entry.path(), entry.file_name().into_string().unwrap());
        let join = |name: &str| if prefix.is_empty() { name.to_owned() } else { format!("{prefix}::{name}") };
        if path.is_dir() {
            modules(&path, &join(&name), out);
        } else if let Some(stem) = name.strip_suffix(".rs") {
            let module = match stem {
                "lib" | "main" | "mod" => prefix.to_owned(),
                stem => join(stem),
            };
            out.insert(module, std::fs::read_to_string(&path).unwrap());
        }
    }
}

/// Paths that a file names, from `crate::`, `super::` or `self::` on, without what follows a brace.
fn paths(text: &str) -> Vec<String> {
    let code: String = text
        .lines()
        .take_while(|line| !line.starts_with("#[cfg(test)]") && !line.starts_with("#[cfg(all(test"))
        .map(|line| line.split("//").next().unwrap_or(""))
        .collect::<Vec<_>>()
        .join("\n");
    let mut found = Vec::new();
    for start in ["crate::", "super::", "self::"] {
        for (at, _) in code.match_indices(start) {
            let before = code[..at].chars().next_back();
            if before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':' || c == '$') {
                continue;
            }
            found.extend(expand(&code[at..]));
        }
    }
    found
}

/// The paths that `text` begins with: one, or one for each entry of a brace.
fn expand(text: &str) -> Vec<String> {
    let end = text.find(|c: char| !(c.is_alphanumeric() || c == '_' || c == ':')).unwrap_or(text.len());
    let stem = &text[..end];
    if !text[end..].starts_with('{') {
        return vec![stem.to_owned()];
    }
    let mut depth = 0;
    let mut entries = vec![String::new()];
    for c in text[end..].chars() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 1 => entries.push(String::new()),
            c if depth == 1 && !c.is_whitespace() => entries.last_mut().unwrap().push(c),
            _ => {}
        }
        if depth == 0 {
            break;
        }
    }
    entries.iter().map(|entry| format!("{stem}{entry}")).collect()
}

/// The module that a path names, seen from `here`: as much of it as is a file.
fn resolve(path: &str, here: &str, modules: &Modules) -> Option<String> {
    let mut at: Vec<&str> = if here.is_empty() { Vec::new() } else { here.split("::").collect() };
    let mut rest = path.split("::").filter(|part| !part.is_empty()).peekable();
    match rest.next()? {
        "crate" => at.clear(),
        "self" => {}
        _ => {
            at.pop();
        }
    }
    while rest.next_if_eq(&"super").is_some() {
        at.pop();
    }
    for part in rest {
        at.push(part);
        if !modules.contains_key(&at.join("::")) {
            at.pop();
            break;
        }
    }
    Some(at.join("::")).filter(|module| modules.contains_key(module))
}

/// Imports of each file. A crate's root declares and re-exports what lies below: it is no import of one's own.
fn imports(modules: &Modules) -> BTreeMap<&str, BTreeSet<String>> {
    let mut graph = BTreeMap::new();
    for (here, text) in modules.iter().filter(|(here, _)| !here.is_empty()) {
        let targets = paths(text).into_iter().filter_map(|path| resolve(&path, here, modules));
        graph.insert(here.as_str(), targets.filter(|to| !to.is_empty() && to != here).collect());
    }
    graph
}

/// A file that can be reached from itself, and the way.
fn circle(graph: &BTreeMap<&str, BTreeSet<String>>) -> Option<Vec<String>> {
    for &start in graph.keys() {
        let mut way: BTreeMap<String, String> = BTreeMap::new();
        let mut open = vec![start.to_owned()];
        while let Some(at) = open.pop() {
            for next in graph.get(at.as_str()).into_iter().flatten() {
                if next == start {
                    let mut back = vec![start.to_owned()];
                    let mut step = at.clone();
                    while step != start {
                        back.push(step.clone());
                        step = way[&step].clone();
                    }
                    back.reverse();
                    return Some(back);
                }
                if !way.contains_key(next) {
                    way.insert(next.clone(), at.clone());
                    open.push(next.clone());
                }
            }
        }
    }
    None
}

#[test]
fn no_files_import_each_other_in_a_circle() {
    let mut crates: Vec<_> =
        root().join("crates").read_dir().unwrap().map(|entry| entry.unwrap().path()).collect();
    crates.extend([root().join("bench"), root().join("xtask")]);
    let mut circles = Vec::new();
    for dir in crates {
        let mut files = Modules::new();
        modules(&dir.join("src"), "", &mut files);
        let name = dir.strip_prefix(root()).unwrap().display().to_string();
        if let Some(circle) = circle(&imports(&files)) {
            circles.push(format!("{name}: {}", circle.join(" → ")));
        }
    }
    assert!(circles.is_empty(), "files import each other in a circle:\n{}", circles.join("\n"));
}

#[test]
fn a_circle_is_found() {
    let files = [
        ("a", "use crate::b::Thing;"),
        ("b", "use super::{c::X, d};"),
        ("c", "use crate::{a::Y, d};"),
        ("d", ""),
    ];
    let files: Modules = files.into_iter().map(|(name, text)| (name.to_owned(), text.to_owned())).collect();
    assert_eq!(circle(&imports(&files)), Some(["b", "c", "a"].map(str::to_owned).to_vec()));
    let files = files.into_iter().filter(|(name, _)| name != "a").collect();
    assert_eq!(circle(&imports(&files)), None);
}
