//! A map from an address to the object that lies there, in constant time: a two-level radix tree over user space.
//!
//! A lookup takes no lock and does not dereference the address: any number is safe. Tables are reserved address space,
//! touched only where an entry is set (8 bytes per page or span), and never given back.

use std::ptr::{NonNull, null_mut};
use std::sync::atomic::{AtomicPtr, Ordering};

use super::source;

/// Bits of an address in user space; higher addresses have no entry.
const ADDRESS_BITS: u32 = if cfg!(target_arch = "x86_64") { 47 } else { 48 };

/// Maps each `1 << SHIFT` bytes of address space to a `T` that lives elsewhere.
pub(crate) struct PageMap<T, const SHIFT: u32> {
    root: AtomicPtr<AtomicPtr<AtomicPtr<T>>>,
}

impl<T, const SHIFT: u32> PageMap<T, SHIFT> {
    const LEAF_BITS: u32 = (ADDRESS_BITS - SHIFT).div_ceil(2);
    const ROOT_BITS: u32 = ADDRESS_BITS - SHIFT - Self::LEAF_BITS;

    pub(crate) const fn new() -> Self {
        PageMap { root: AtomicPtr::new(null_mut()) }
    }

    fn split(address: usize) -> Option<(usize, usize)> {
        let page = address >> SHIFT;
        let (root, leaf) = (page >> Self::LEAF_BITS, page & ((1 << Self::LEAF_BITS) - 1));
        (root >> Self::ROOT_BITS == 0).then_some((root, leaf))
    }

    /// The entry of the page in which `address` lies.
    pub(crate) fn get(&self, address: usize) -> Option<NonNull<T>> {
        let (root, leaf) = Self::split(address)?;
        let table = NonNull::new(self.root.load(Ordering::Acquire))?;
        // SAFETY: the root table has 1 << ROOT_BITS entries, checked by `split`, and is never unmapped.
        let entries = NonNull::new(unsafe { table.add(root).as_ref() }.load(Ordering::Acquire))?;
        // SAFETY: a leaf has 1 << LEAF_BITS entries, which bounds `leaf`, and is never unmapped.
        NonNull::new(unsafe { entries.add(leaf).as_ref() }.load(Ordering::Acquire))
    }

    /// Prefetches the entry of an address into the CPU's cache.
    pub(crate) fn prefetch(&self, address: usize) {
        let Some((root, leaf)) = Self::split(address) else { return };
        let Some(table) = NonNull::new(self.root.load(Ordering::Acquire)) else { return };
        // SAFETY: as in `get`; the entry is not read.
        unsafe {
            if let Some(entries) = NonNull::new(table.add(root).as_ref().load(Ordering::Acquire)) {
                prefetch(entries.add(leaf));
            }
        }
    }

    /// Sets the entry of every page of `bytes` from `address`. `None` clears, which cannot fail where an entry was set.
    ///
    /// # Errors
    /// When there is no memory for a table; no entry is set then.
    pub(crate) fn set(
        &self,
        address: usize,
        bytes: usize,
        to: Option<NonNull<T>>,
    ) -> Result<(), crate::OutOfMemory> {
        let value = to.map_or(null_mut(), NonNull::as_ptr);
        for at in (address..address + bytes).step_by(1 << SHIFT) {
            match self.entry(at) {
                // SAFETY: as in `get`.
                Ok(entry) => unsafe { entry.as_ref() }.store(value, Ordering::Release),
                Err(none) => {
                    // Clearing entries that were set cannot fail.
                    let _ = self.set(address, at - address, None);
                    return Err(none);
                }
            }
        }
        Ok(())
    }

    /// The entry of an address; makes its tables where they are missing.
    fn entry(&self, address: usize) -> Result<NonNull<AtomicPtr<T>>, crate::OutOfMemory> {
        let (root, leaf) = Self::split(address).ok_or(crate::OutOfMemory)?;
        let table = table(&self.root, 1 << Self::ROOT_BITS)?;
        // SAFETY: as in `get`.
        let entries = table_of(unsafe { table.add(root).as_ref() }, 1 << Self::LEAF_BITS)?;
        // SAFETY: as in `get`.
        Ok(unsafe { entries.add(leaf) })
    }
}

/// Prefetches `at` into the CPU's cache.
pub(crate) fn prefetch<T>(at: NonNull<T>) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a hint; it reads nothing, and can fault at no address.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(at.as_ptr().cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}

fn table_of<T>(
    slot: &AtomicPtr<AtomicPtr<T>>,
    entries: usize,
) -> Result<NonNull<AtomicPtr<T>>, crate::OutOfMemory> {
    table(slot, entries)
}

/// The table in `slot`; reserves it if there is none.
fn table<T>(
    slot: &AtomicPtr<AtomicPtr<T>>,
    entries: usize,
) -> Result<NonNull<AtomicPtr<T>>, crate::OutOfMemory> {
    if let Some(there) = NonNull::new(slot.load(Ordering::Acquire)) {
        return Ok(there);
    }
    let bytes = entries * size_of::<AtomicPtr<T>>();
    let fresh: NonNull<AtomicPtr<T>> = source::reserve(bytes).ok_or(crate::OutOfMemory)?.cast();
    match slot.compare_exchange(null_mut(), fresh.as_ptr(), Ordering::AcqRel, Ordering::Acquire) {
        Ok(_) => Ok(fresh),
        Err(theirs) => {
            // SAFETY: just reserved with this length, and seen by nobody.
            unsafe { source::unreserve(fresh.cast(), bytes) };
            NonNull::new(theirs).ok_or(crate::OutOfMemory)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_set_is_found_and_nothing_else() {
        let map = PageMap::<u8, 12>::new();
        let thing = NonNull::<u8>::dangling();
        assert_eq!(map.get(0x7000), None);
        map.set(0x7f00_1234_5000, 3 * 4096, Some(thing)).unwrap();
        assert_eq!(map.get(0x7f00_1234_4fff), None);
        for at in [0x7f00_1234_5000, 0x7f00_1234_5fff, 0x7f00_1234_7fff] {
            assert_eq!(map.get(at), Some(thing));
        }
        assert_eq!(map.get(0x7f00_1234_8000), None);
        assert_eq!(map.get(usize::MAX), None);
        assert_eq!(map.get(0), None);
        map.set(0x7f00_1234_6000, 4096, None).unwrap();
        assert_eq!(map.get(0x7f00_1234_6800), None);
        assert_eq!(map.get(0x7f00_1234_7000), Some(thing));
        let end = 1 << ADDRESS_BITS;
        assert!(map.set(end - 4096, 2 * 4096, Some(thing)).is_err());
        assert_eq!(map.get(end - 4096), None, "what fails has set nothing");
    }
}
