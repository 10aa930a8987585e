//! An arena of pages that imports spans from its source, as in vmem (R44).
//!
//! A span is 64 pages, described by one word of bits. A run is cut from a span whose largest free run is the smallest
//! that fits, so that other spans fall empty; [`Arena::trim`] returns unused pages and whole spans. Span records come
//! from a reserve of the arena's own, filled ahead of need: an arena never asks a cache for memory.

use std::alloc::Layout;
use std::ptr::NonNull;
use std::sync::OnceLock;

use super::list::{Linked, Links, List};
use super::pagemap::PageMap;
use super::source::{self, PageSource, System};
use crate::sync::Leaf;
use crate::{OutOfMemory, PAGE};

const SPAN_PAGES: usize = 64;
const SPAN: usize = SPAN_PAGES * PAGE;
/// Runs of 1, 2, 4 … 64 pages.
const ORDERS: usize = 7;
/// Records made at a time.
const RECORDS: usize = PAGE / size_of::<Span>();
/// The reserve is refilled when no more than this many records are left.
const RESERVE: usize = 8;

struct Span {
    /// Links of the list of all spans.
    all: Links<Span>,
    /// Links of the list for its largest free run, or of the free list while the record is unused.
    sized: Links<Span>,
    base: NonNull<u8>,
    /// Bit set: the page is handed out.
    used: u64,
    /// Bit set: the page may be backed by memory.
    touched: u64,
    /// Index of the `by_order` list that `sized` is on; none while every page is used.
    order: Option<u8>,
}

struct All;
struct Sized;

// SAFETY: `links` always returns the same field.
unsafe impl Linked<Span> for All {
    fn links(at: NonNull<Span>) -> *mut Links<Span> {
        // SAFETY: the address of a field of `*at`; nothing is read.
        unsafe { &raw mut (*at.as_ptr()).all }
    }
}

// SAFETY: `links` always returns the same field.
unsafe impl Linked<Span> for Sized {
    fn links(at: NonNull<Span>) -> *mut Links<Span> {
        // SAFETY: the address of a field of `*at`; nothing is read.
        unsafe { &raw mut (*at.as_ptr()).sized }
    }
}

struct Spans {
    all: List<Span, All>,
    by_order: [List<Span, Sized>; ORDERS],
    records: List<Span, Sized>,
    used_pages: usize,
    touched_pages: usize,
    /// Bytes of runs longer than a span, which go straight to the source.
    direct: usize,
    /// Bytes of all records. Records are never given back.
    described: usize,
}

/// Sizes of an arena, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ArenaInfo {
    /// Address space imported from the source.
    pub imported: usize,
    /// Handed out to callers.
    pub used: usize,
    /// May be in RAM: handed out, or given back and not yet trimmed.
    pub resident: usize,
    /// Memory of the arena's own records.
    pub records: usize,
}

/// Hands out pages of a source, importing a span (256 KiB) at a time. It is a [`PageSource`] itself.
pub struct Arena<S: PageSource> {
    source: S,
    spans: Leaf<Spans>,
    map: PageMap<Span, { SPAN.trailing_zeros() }>,
}

// SAFETY: spans are reached only under the lock; the rest is Sync by itself.
unsafe impl<S: PageSource> Send for Arena<S> {}
// SAFETY: as for Send.
unsafe impl<S: PageSource> Sync for Arena<S> {}

impl<S: PageSource> std::fmt::Debug for Arena<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Arena").field("info", &self.info()).finish_non_exhaustive()
    }
}

/// The arena of all caches that name no source of their own.
pub fn global() -> &'static Arena<System> {
    static GLOBAL: OnceLock<Arena<System>> = OnceLock::new();
    GLOBAL.get_or_init(|| Arena::new(System))
}

/// Bits of the pages at which an aligned run of an order may start.
const fn starts(order: usize) -> u64 {
    let mut bits = 0;
    let mut at = 0;
    while at < SPAN_PAGES {
        bits |= 1 << at;
        at += 1 << order;
    }
    bits
}

/// The first page of the first free run of an order.
fn fit(free: u64, order: usize) -> Option<u32> {
    let runs = (0..order).fold(free, |m, step| m & (m >> (1 << step))) & starts(order);
    (runs != 0).then(|| runs.trailing_zeros())
}

fn largest(free: u64) -> Option<u8> {
    (0..7u8).rev().find(|order| fit(free, usize::from(*order)).is_some())
}

fn mask(first: u32, pages: usize) -> u64 {
    let run = if pages == SPAN_PAGES { u64::MAX } else { (1 << pages) - 1 };
    run << first
}

impl Spans {
    fn describe(&mut self) {
        if self.records.len() > RESERVE {
            return;
        }
        let Some(page) = source::reserve(PAGE) else { return };
        self.described += PAGE;
        let records = page.cast::<Span>();
        for i in 0..RECORDS {
            // SAFETY: inside the page just reserved, which is aligned, never given back, and written before use.
            unsafe {
                let record = records.add(i);
                record.write(Span {
                    all: Links::new(),
                    sized: Links::new(),
                    base: NonNull::dangling(),
                    used: 0,
                    touched: 0,
                    order: None,
                });
                self.records.push_back(record);
            }
        }
    }

    /// Puts a span on the list for its largest free run.
    ///
    /// # Safety
    /// `span` belongs to this arena.
    unsafe fn sort(&mut self, span: NonNull<Span>) {
        // SAFETY: spans live as long as they are listed, and the caller holds the lock.
        unsafe {
            let at = span.as_ptr();
            let order = largest(!(*at).used);
            if order == (*at).order {
                return;
            }
            if let Some(old) = (*at).order {
                self.by_order[usize::from(old)].remove(span);
            }
            if let Some(new) = order {
                self.by_order[usize::from(new)].push_front(span);
            }
            (*at).order = order;
        }
    }

    /// Cuts a run of `pages` from the imported spans; `None` if no span has room.
    fn cut(&mut self, pages: usize) -> Option<NonNull<u8>> {
        let order = pages.next_power_of_two().trailing_zeros() as usize;
        let span = self.by_order[order..].iter().find_map(List::head)?;
        // SAFETY: listed spans are alive, and the caller holds the lock.
        unsafe {
            let at = span.as_ptr();
            let first = fit(!(*at).used, order)?;
            let taken = mask(first, pages);
            (*at).used |= taken;
            self.used_pages += pages;
            self.touched_pages += (taken & !(*at).touched).count_ones() as usize;
            (*at).touched |= taken;
            self.sort(span);
            Some((*at).base.add(first as usize * PAGE))
        }
    }
}

impl<S: PageSource> Arena<S> {
    /// An arena over a source, without memory yet.
    pub const fn new(source: S) -> Self {
        Arena {
            source,
            spans: Leaf::new(Spans {
                all: List::new(),
                by_order: [const { List::new() }; ORDERS],
                records: List::new(),
                used_pages: 0,
                touched_pages: 0,
                direct: 0,
                described: 0,
            }),
            map: PageMap::new(),
        }
    }

    /// The arena's sizes.
    pub fn info(&self) -> ArenaInfo {
        let spans = self.spans.lock();
        ArenaInfo {
            imported: spans.all.len() * SPAN + spans.direct,
            used: spans.used_pages * PAGE + spans.direct,
            resident: spans.touched_pages * PAGE + spans.direct,
            records: spans.described,
        }
    }

    /// Returns unused memory to the source: the memory behind unused pages, and empty spans. The source is called
    /// without the lock. Returns the bytes of RAM freed.
    pub fn trim(&self) -> usize {
        let mut went = 0;
        let mut left = self.spans.lock().all.len();
        while left > 0 {
            left -= 1;
            let mut spans = self.spans.lock();
            let Some(span) = spans.all.pop_front() else { break };
            // SAFETY: just taken off the list of living spans, under the lock.
            let (base, used, idle) = unsafe {
                let at = span.as_ptr();
                ((*at).base, (*at).used, (*at).touched & !(*at).used)
            };
            if used == 0 {
                went += idle.count_ones() as usize * PAGE;
                spans.touched_pages -= idle.count_ones() as usize;
                // SAFETY: the span is empty, and was just taken off the list of all.
                unsafe { self.forget(&mut spans, span) };
                drop(spans);
                // SAFETY: imported with this layout, no page of it is used, and the map no longer names it.
                unsafe { self.source.release(base, span_layout()) };
                continue;
            }
            // SAFETY: alive, and just taken off the list of all.
            unsafe { spans.all.push_back(span) };
            if idle != 0 {
                // The idle pages are marked used while the source is called, so that no other thread gets them.
                // SAFETY: alive, because some of its pages are in use, and the lock is held.
                unsafe {
                    (*span.as_ptr()).used |= idle;
                    spans.sort(span);
                }
                drop(spans);
                let discarded = self.discard(base, idle);
                let mut spans = self.spans.lock();
                // SAFETY: alive, because the pages we marked keep it from being empty.
                unsafe {
                    (*span.as_ptr()).used &= !idle;
                    (*span.as_ptr()).touched &= !discarded;
                    spans.sort(span);
                }
                spans.touched_pages -= discarded.count_ones() as usize;
                went += discarded.count_ones() as usize * PAGE;
            }
        }
        went
    }

    /// Has the source discard the memory of some pages of a span; returns the pages that it discarded.
    fn discard(&self, base: NonNull<u8>, mut pages: u64) -> u64 {
        let mut gone = 0;
        while pages != 0 {
            let first = pages.trailing_zeros();
            let run = (pages >> first).trailing_ones() as usize;
            let mask = mask(first, run);
            pages &= !mask;
            // SAFETY: the caller marked these pages of an imported span as used, and nobody reads them.
            if unsafe { self.source.discard(base.add(first as usize * PAGE), run * PAGE) } {
                gone |= mask;
            }
        }
        gone
    }

    /// # Safety
    /// `span` is empty and no longer on the list of all.
    unsafe fn forget(&self, spans: &mut Spans, span: NonNull<Span>) {
        // SAFETY: alive by contract; clearing entries that were set cannot fail.
        unsafe {
            let at = span.as_ptr();
            if let Some(order) = (*at).order.take() {
                spans.by_order[usize::from(order)].remove(span);
            }
            let cleared = self.map.set((*at).base.addr().get(), SPAN, None);
            debug_assert!(cleared.is_ok());
            spans.records.push_back(span);
        }
    }

    fn import(&self) -> Result<(), OutOfMemory> {
        let base = self.source.grow(span_layout()).ok_or(OutOfMemory)?;
        let mut spans = self.spans.lock();
        spans.describe();
        let record = spans.records.pop_front();
        let named = record.ok_or(OutOfMemory).and_then(|record| {
            self.map.set(base.addr().get(), SPAN, Some(record)).inspect_err(|_| {
                // SAFETY: it was just taken off this list.
                unsafe { spans.records.push_front(record) };
            })?;
            Ok(record)
        });
        match named {
            Ok(span) => {
                // SAFETY: the record is aligned, on no list, and ours since it was popped.
                unsafe {
                    span.write(Span {
                        all: Links::new(),
                        sized: Links::new(),
                        base,
                        used: 0,
                        touched: 0,
                        order: None,
                    });
                    spans.all.push_back(span);
                    spans.sort(span);
                }
                Ok(())
            }
            Err(error) => {
                drop(spans);
                // SAFETY: just grown with this layout, and used by nobody.
                unsafe { self.source.release(base, span_layout()) };
                Err(error)
            }
        }
    }
}

const fn span_layout() -> Layout {
    match Layout::from_size_align(SPAN, SPAN) {
        Ok(layout) => layout,
        Err(_) => unreachable!(),
    }
}

// SAFETY: a run's bits stay set while it is handed out, so no other caller gets its pages. The source's contract covers
// the rest.
unsafe impl<S: PageSource> PageSource for Arena<S> {
    fn grow(&self, layout: Layout) -> Option<NonNull<u8>> {
        let pages = layout.size() / PAGE;
        if pages > SPAN_PAGES || layout.align() > PAGE {
            let at = self.source.grow(layout)?;
            self.spans.lock().direct += layout.size();
            return Some(at);
        }
        loop {
            if let Some(run) = self.spans.lock().cut(pages) {
                return Some(run);
            }
            self.import().ok()?;
        }
    }

    unsafe fn release(&self, at: NonNull<u8>, layout: Layout) {
        let pages = layout.size() / PAGE;
        if pages > SPAN_PAGES || layout.align() > PAGE {
            self.spans.lock().direct -= layout.size();
            // SAFETY: by the caller's contract.
            unsafe { self.source.release(at, layout) };
            return;
        }
        let mut spans = self.spans.lock();
        let span = self.map.get(at.addr().get()).expect("released where it was grown");
        // SAFETY: a span with a page in use is alive, and the lock is held.
        unsafe {
            let first = (at.addr().get() - (*span.as_ptr()).base.addr().get()) / PAGE;
            let run = mask(u32::try_from(first).expect("below 64"), pages);
            debug_assert_eq!((*span.as_ptr()).used & run, run, "released twice");
            (*span.as_ptr()).used &= !run;
            spans.sort(span);
        }
        spans.used_pages -= pages;
    }

    unsafe fn discard(&self, at: NonNull<u8>, bytes: usize) -> bool {
        // SAFETY: by the caller's contract.
        unsafe { self.source.discard(at, bytes) }
    }

    fn trim(&self) -> usize {
        Arena::trim(self)
    }
}

impl<S: PageSource> Drop for Arena<S> {
    fn drop(&mut self) {
        self.trim();
        debug_assert_eq!(self.info().used, 0, "an arena goes after what lives in it");
    }
}

#[cfg(test)]
mod tests {
    use super::source::{Faulty, Limited};
    use super::*;

    fn pages(n: usize) -> Layout {
        Layout::from_size_align(n * PAGE, PAGE).unwrap()
    }

    #[test]
    fn runs_are_found_where_they_fit() {
        assert_eq!(fit(u64::MAX, 6), Some(0));
        assert_eq!(fit(!1, 6), None);
        assert_eq!(largest(!1), Some(5));
        assert_eq!(fit(!1, 5), Some(32));
        assert_eq!(fit(0b1111_0000, 2), Some(4));
        assert_eq!(fit(0b0011_1100, 2), None, "runs are aligned");
        assert_eq!(largest(0), None);
    }

    #[test]
    fn spans_come_and_go_with_what_they_hold() {
        let arena = Arena::new(Limited::new(System, 4 * SPAN));
        let mut runs: Vec<(NonNull<u8>, usize)> = Vec::new();
        for i in 0..60 {
            let n = i % 5 + 1;
            let at = arena.grow(pages(n)).unwrap();
            // SAFETY: just handed out.
            unsafe { at.write_bytes(u8::try_from(i).unwrap(), n * PAGE) };
            assert!(runs.iter().all(|(other, m)| at.addr() >= other.addr().checked_add(m * PAGE).unwrap()
                || other.addr() >= at.addr().checked_add(n * PAGE).unwrap()));
            runs.push((at, n));
        }
        assert_eq!(arena.info().used, 180 * PAGE);
        for (i, (at, n)) in runs.into_iter().enumerate() {
            // SAFETY: handed out above, and given back once.
            unsafe {
                assert_eq!(at.read(), u8::try_from(i).unwrap());
                arena.release(at, pages(n));
            }
        }
        assert_eq!(arena.info().used, 0);
        assert_eq!(arena.info().resident, 180 * PAGE);
        assert_eq!(arena.trim(), 180 * PAGE);
        assert_eq!((arena.info().imported, arena.info().resident, arena.source.used()), (0, 0, 0));
    }

    #[test]
    fn unused_pages_of_used_spans_are_discarded_and_come_back_zeroed() {
        let arena = Arena::new(System);
        let (kept, gone) = (arena.grow(pages(1)).unwrap(), arena.grow(pages(1)).unwrap());
        // SAFETY: just handed out, each given back once.
        unsafe {
            kept.write(7);
            gone.write(8);
            arena.release(gone, pages(1));
        }
        assert_eq!(arena.trim(), PAGE);
        assert_eq!(arena.info().resident, PAGE);
        let again = arena.grow(pages(1)).unwrap();
        assert_eq!(again, gone);
        // SAFETY: as above.
        unsafe {
            assert_eq!((kept.read(), again.read()), (7, 0));
            arena.release(kept, pages(1));
            arena.release(again, pages(1));
        }
    }

    #[test]
    fn a_source_that_refuses_is_out_of_memory_and_no_harm() {
        let arena = Arena::new(Faulty::new(Limited::new(System, SPAN)));
        arena.source.refuse(0, 1);
        assert!(arena.grow(pages(1)).is_none());
        let all = arena.grow(pages(SPAN_PAGES)).unwrap();
        assert!(arena.grow(pages(1)).is_none(), "over the limit");
        assert!(arena.grow(pages(SPAN_PAGES + 1)).is_none(), "over the limit, direct");
        // SAFETY: handed out, given back once.
        unsafe { arena.release(all, pages(SPAN_PAGES)) };
        let one = arena.grow(pages(1)).unwrap();
        // SAFETY: as above.
        unsafe { arena.release(one, pages(1)) };
    }
}
