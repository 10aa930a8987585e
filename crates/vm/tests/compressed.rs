//! Compressed memory: the clusters it keeps, and recompression (R37).

use std::sync::Arc;

use overspill_store::MemStore;
use overspill_vm::testing::{block_on, check, evict_all, settle};
use overspill_vm::{Account, Allowance, Object, PAGE, Pager, Step, VmConfig};

/// Bytes that no method compresses.
fn noise(seed: u64) -> [u8; PAGE] {
    let mut word = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut page = [0; PAGE];
    for bytes in page.chunks_exact_mut(8) {
        word ^= word << 13;
        word ^= word >> 7;
        word ^= word << 17;
        bytes.copy_from_slice(&word.to_le_bytes());
    }
    page
}

/// Words in random order: lz4 finds the words, zstd codes the letters too.
fn prose(seed: u64) -> [u8; PAGE] {
    const WORDS: [&[u8]; 8] =
        [b"pageout ", b"frame ", b"cluster ", b"store ", b"of the ", b"memory ", b"budget\n", b"segment "];
    let choice = noise(seed);
    let text = choice.iter().flat_map(|&byte| WORDS[usize::from(byte % 8)].iter().copied());
    let mut page = [0; PAGE];
    page.iter_mut().zip(text).for_each(|(to, from)| *to = from);
    page
}

fn vm(memory: usize, repack: bool) -> (Pager, Arc<Account>) {
    let mut config = VmConfig::new(memory);
    config.recompress = repack;
    let vm = Pager::new(&config, vec![Arc::new(MemStore::new(100_000))]).unwrap();
    (vm, Account::new(1 << 20))
}

fn write(vm: &Pager, object: &Object, page: u64, bytes: &[u8]) {
    block_on(vm, object.write(page * PAGE as u64, bytes, Allowance::Normal)).unwrap();
}

fn assert_holds(vm: &Pager, object: &Object, page: u64, bytes: &[u8; PAGE]) {
    let mut buf = [0; PAGE];
    block_on(vm, object.read(page * PAGE as u64, &mut buf)).unwrap();
    assert!(&buf == bytes, "page {page}");
}

/// Incompressible clusters stay as long as compression makes room for them (R4): the store is not touched.
#[test]
fn what_does_not_pack_stays_while_other_pages_pack() {
    let (vm, account) = vm(8 << 20, false);
    let object = vm.object(&account);
    let room = vm.stats().limit_bytes / PAGE;
    // Chunks alternate: a third of noise, the rest nearly empty.
    let of = |page: u64| {
        if (page / 16).is_multiple_of(3) { noise(page + 1) } else { [page.to_le_bytes()[0] | 1; PAGE] }
    };
    let pages = (room + room / 2) as u64;
    for page in 0..pages {
        write(&vm, &object, page, &of(page));
        vm.pageout();
    }
    settle(&vm);
    let stats = vm.stats();
    assert!(stats.compressed > 0, "{stats:?}");
    assert_eq!(stats.store_writes, 0, "{stats:?}");
    (0..pages).for_each(|page| assert_holds(&vm, &object, page, &of(page)));
    check(&vm, &[&object]);
}

/// If nothing compresses, the store is written at once, and everything goes there.
#[test]
fn noise_goes_to_the_store() {
    let (vm, account) = vm(8 << 20, false);
    let object = vm.object(&account);
    for page in 0..4096 {
        write(&vm, &object, page, &noise(page + 1));
    }
    settle(&vm);
    let stats = vm.stats();
    assert!(stats.page_outs >= 2048 && stats.charged_bytes <= stats.limit_bytes, "{stats:?}");
    (0..4096).for_each(|page| assert_holds(&vm, &object, page, &noise(page + 1)));
    check(&vm, &[&object]);
}

/// An idle core makes cold clusters smaller; their contents stay the same, in memory and in the store.
#[test]
fn repacking_makes_cold_clusters_smaller() {
    const PAGES: u64 = 3000;
    let (vm, account) = vm(6 << 20, true);
    let object = vm.object(&account);
    for page in 0..PAGES {
        write(&vm, &object, page, &prose(page + 1));
        while vm.pageout() == Step::Worked {}
    }
    let before = vm.stats();
    assert!(before.compressed_bytes > 2 << 20, "{before:?}");
    let mut tries = 0;
    while vm.recompress() {
        tries += 1;
        assert!(tries <= PAGES / 8, "it begins anew and anew");
    }
    let after = vm.stats();
    assert!(after.recompressed > 0 && !vm.recompress(), "{after:?}");
    let [was, is] = [before, after].map(|s| s.compressed_bytes as f64 / s.compressed_page_bytes as f64);
    assert!(is < was * 0.95, "{was:.3} of a page's bytes, then {is:.3}");
    (0..PAGES).for_each(|page| assert_holds(&vm, &object, page, &prose(page + 1)));
    settle(&vm);
    check(&vm, &[&object]);
    evict_all(&vm);
    (0..PAGES).for_each(|page| assert_holds(&vm, &object, page, &prose(page + 1)));
    check(&vm, &[&object]);
    drop(object);
    settle(&vm);
    assert_eq!(vm.stats().charged_bytes, 0);
}

/// Bytes copied per byte served are counted (R30): one for one in memory.
#[test]
fn copies_are_counted() {
    let (vm, account) = vm(8 << 20, false);
    let object = vm.object(&account);
    (0..100).for_each(|page| write(&vm, &object, page, &prose(page)));
    (0..100).for_each(|page| assert_holds(&vm, &object, page, &prose(page)));
    let stats = vm.stats();
    assert_eq!((stats.served_bytes, stats.copied_bytes), (200 * PAGE as u64, 200 * PAGE as u64));
    evict_all(&vm);
    (0..100).for_each(|page| assert_holds(&vm, &object, page, &prose(page)));
    let stats = vm.stats();
    // Encoded, gathered for the store, decoded (four pages for each page read alone), read.
    let copied = stats.copied_bytes as f64 / (100 * PAGE) as f64;
    assert_eq!(stats.served_bytes, 300 * PAGE as u64);
    assert!((5.0..9.5).contains(&copied), "{copied} of a page's bytes for each page");
}
