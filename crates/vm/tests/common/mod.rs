//! Helpers that the tests of pageout share.

#![allow(dead_code, reason = "each test file uses a part of it")]

use std::sync::Arc;

use overspill_store::{MemStore, Store};
use overspill_vm::testing::{Io, block_on, next_io};
use overspill_vm::{Account, Allowance, Method, Object, PAGE, Pager, Step, VmConfig, VmError};

pub(crate) fn vm_on(store: Option<Arc<dyn Store>>) -> (Pager, Arc<Account>) {
    let vm = Pager::new(&VmConfig::new(8 << 20), store.into_iter().collect()).unwrap();
    (vm, Account::new(1 << 20))
}

/// A VM that compresses nothing: a page takes slightly more than a block.
pub(crate) fn uncompressed_vm_on(store: Option<Arc<dyn Store>>) -> (Pager, Arc<Account>) {
    let mut config = VmConfig::new(8 << 20);
    config.method = Method::None;
    (Pager::new(&config, store.into_iter().collect()).unwrap(), Account::new(1 << 20))
}

pub(crate) fn mem() -> Option<Arc<dyn Store>> {
    Some(Arc::new(MemStore::new(10_000)))
}

pub(crate) fn write(vm: &Pager, object: &Object, page: u64, fill: u8) {
    block_on(vm, object.write(page * PAGE as u64, &[fill; PAGE], Allowance::Normal)).unwrap();
}

pub(crate) fn read(vm: &Pager, object: &Object, page: u64) -> Result<u8, VmError> {
    let mut buf = [0; PAGE];
    block_on(vm, object.read(page * PAGE as u64, &mut buf))?;
    assert!(buf.iter().all(|&b| b == buf[0]), "a page is written as a whole");
    Ok(buf[0])
}

pub(crate) fn take_write(vm: &Pager) -> Io {
    loop {
        match next_io(vm) {
            Some(io @ Io::Write(_)) => return io,
            Some(_) => panic!("nobody reads"),
            None => assert_eq!(vm.pageout(), Step::Worked),
        }
    }
}
