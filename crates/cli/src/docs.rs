//! Tests that the documents made from the program's own tables are up to date: `docs/OPTIONS.md` and the man pages.

use clap::CommandFactory as _;

/// Checks a document below `docs/`, or writes it if `OVERSPILL_WRITE_DOCS` is set.
pub(crate) fn check(name: &str, text: &str) {
    let path = format!("{}/../../docs/{name}", env!("CARGO_MANIFEST_DIR"));
    if std::env::var_os("OVERSPILL_WRITE_DOCS").is_some() {
        std::fs::create_dir_all(std::path::Path::new(&path).parent().unwrap()).unwrap();
        std::fs::write(&path, text).unwrap();
    }
    let found = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(found == text, "docs/{name} is old: OVERSPILL_WRITE_DOCS=1 cargo test -p overspill-cli");
}

#[test]
fn the_man_pages_are_up_to_date() {
    let mut command = crate::Command::command();
    command.build();
    let page = |command: &clap::Command| {
        let name = command.get_display_name().unwrap_or(command.get_name()).to_owned();
        let mut text = Vec::new();
        // A fixed date: the page changes when the program does.
        let man = clap_mangen::Man::new(command.clone()).title(name.clone()).manual("overspill");
        man.render(&mut text).unwrap();
        check(&format!("man/{name}.1"), &String::from_utf8(text).unwrap());
    };
    page(&command);
    for command in command.get_subcommands().filter(|command| command.get_name() != "help") {
        page(command);
    }
}
