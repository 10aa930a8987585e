//! Runs one allocator through all rows, in a process of its own: `slab-rivals NAME [ROW…]`. Prints
//! `row<TAB>unit<TAB>value`. `cargo xtask bench slab` runs every allocator in turn and compares them.

mod rivals;
mod rows;
mod zone;

use rivals::{Allocator, Glibc, Jemalloc, Mimalloc, Ours, OursColoured, OursPlain, Snmalloc};
use zone::Zone;

fn main() {
    let mut args = std::env::args().skip(1);
    let name = args.next().unwrap_or_default();
    let wanted: Vec<String> = args.collect();
    match name.as_str() {
        "ours" => run::<Ours>(&wanted),
        "ours-plain" => run::<OursPlain>(&wanted),
        "ours-coloured" => run::<OursColoured>(&wanted),
        "glibc" => run::<Glibc>(&wanted),
        "jemalloc" => run::<Jemalloc>(&wanted),
        "mimalloc" => run::<Mimalloc>(&wanted),
        "snmalloc" => run::<Snmalloc>(&wanted),
        "zone" => run::<Zone>(&wanted),
        _ => {
            eprintln!(
                "usage: slab-rivals ours|ours-plain|ours-coloured|glibc|jemalloc|mimalloc|snmalloc|zone [ROW…]"
            );
            std::process::exit(2);
        }
    }
}

fn run<A: Allocator>(wanted: &[String]) {
    let wants = |row: &str| wanted.is_empty() || wanted.iter().any(|w| row.contains(w.as_str()));
    rows::all::<A>(&wants, &mut |row, unit, value| println!("{row}\t{unit}\t{value}"));
}
