//! The zone allocator, as the text of 2011 describes it (R50): a zone per type, free elements linked through
//! themselves, and a collection that returns a page when all its elements are free. A historical rival only.

use std::cell::UnsafeCell;
use std::collections::HashMap;

use crate::rivals::{Allocator, SIZES};

const PAGE: usize = 4096;

struct Pages {
    free: *mut u8,
    count: usize,
}

/// A zone for each size. For one thread only.
pub struct Zone;

struct Zones(UnsafeCell<[Pages; SIZES.len()]>);

// SAFETY: only one thread uses a `Zone`, as `THREADS` says.
unsafe impl Sync for Zones {}

static ZONES: Zones =
    Zones(UnsafeCell::new([const { Pages { free: std::ptr::null_mut(), count: 0 } }; SIZES.len()]));

fn zone(size: usize) -> &'static mut Pages {
    let number = SIZES.iter().position(|s| *s == size).expect("one of the sizes");
    // SAFETY: one thread, and no caller holds two references at once.
    unsafe { &mut (*ZONES.0.get())[number] }
}

fn map() -> *mut u8 {
    // SAFETY: a fresh anonymous mapping.
    let page = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            PAGE,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
            -1,
            0,
        )
    };
    assert_ne!(page, libc::MAP_FAILED);
    page.cast()
}

/// Returns every page whose elements are all free: it counts the free elements per page, as zone_gc did.
fn collect(size: usize) {
    let zone = zone(size);
    let mut of_page: HashMap<usize, usize> = HashMap::new();
    let mut at = zone.free;
    while !at.is_null() {
        *of_page.entry(at.addr() & !(PAGE - 1)).or_default() += 1;
        // SAFETY: a free element holds the address of the next.
        at = unsafe { at.cast::<*mut u8>().read() };
    }
    let whole = |at: *mut u8| of_page[&(at.addr() & !(PAGE - 1))] == PAGE / size;
    let (mut kept, mut at) = (std::ptr::null_mut(), zone.free);
    let mut gone = Vec::new();
    while !at.is_null() {
        // SAFETY: as above; kept elements stay mapped.
        unsafe {
            let next = at.cast::<*mut u8>().read();
            if whole(at) {
                if at.addr().is_multiple_of(PAGE) {
                    gone.push(at);
                }
            } else {
                at.cast::<*mut u8>().write(kept);
                kept = at;
            }
            at = next;
        }
    }
    zone.free = kept;
    for page in gone {
        // SAFETY: mapped by `map`, and the list has none of its elements any more.
        unsafe { libc::munmap(page.cast(), PAGE) };
    }
}

impl Allocator for Zone {
    const THREADS: bool = false;

    fn alloc(size: usize) -> *mut u8 {
        let zone = zone(size);
        if zone.free.is_null() {
            let page = map();
            for i in (0..PAGE / size).rev() {
                // SAFETY: inside the page.
                unsafe {
                    let element = page.add(i * size);
                    element.cast::<*mut u8>().write(zone.free);
                    zone.free = element;
                }
            }
        }
        let element = zone.free;
        // SAFETY: a free element holds the address of the next.
        zone.free = unsafe { element.cast::<*mut u8>().read() };
        zone.count += 1;
        element
    }

    unsafe fn free(object: *mut u8, size: usize) {
        let zone = zone(size);
        // SAFETY: the caller gave the element up, and it has room for a pointer.
        unsafe { object.cast::<*mut u8>().write(zone.free) };
        zone.free = object;
        zone.count -= 1;
    }

    fn purge() {
        SIZES.iter().for_each(|size| collect(*size));
    }
}
