//! Faults of objects: found, described and reported.

use std::ptr::NonNull;

use super::records::{Slab, SlabLayer};
use super::slab::locate;
use super::whatis::whatis;
use crate::debug::report::{self, Fault, Report};
use crate::debug::trace::Trace;
use crate::debug::verify::Leak;

impl SlabLayer {
    pub(crate) fn this(&self) -> NonNull<SlabLayer> {
        NonNull::from(self)
    }

    /// Reports a fault of an object, and ends the process.
    #[cold]
    pub(crate) fn fault(&self, fault: Fault, object: NonNull<u8>) -> ! {
        report::fatal(&self.describe(fault, object))
    }

    /// A report about an object.
    pub(crate) fn describe(&self, fault: Fault, object: NonNull<u8>) -> Report {
        let mut report = Report {
            fault,
            cache: self.options.name,
            owner: None,
            address: object.addr().get(),
            size: self.geometry.size,
            objects: 1,
            allocated: None,
            freed: None,
            here: Some(Trace::capture()),
        };
        match locate(self.this(), object) {
            Ok(slab) if self.options.verify => {
                // SAFETY: the slab is alive: it was found to be of this cache, and a fault ends the process.
                unsafe {
                    if Slab::index(slab, &self.geometry, object).is_ok() {
                        let traces = self.geometry.marks().traces(object);
                        (report.allocated, report.freed) = traces.unzip();
                    }
                }
            }
            Err(Fault::OtherCache) => report.owner = whatis(report.address).map(|w| w.cache),
            _ => {}
        }
        report
    }

    /// A free object of a slab that was written after its free.
    ///
    /// # Safety
    /// `slab` is alive, and its free buffers stay free during the call.
    unsafe fn written_after_free(&self, slab: NonNull<Slab>) -> Option<NonNull<u8>> {
        // SAFETY: by contract.
        (0..self.geometry.objects).find_map(|index| unsafe {
            let object = Slab::buffer(slab, &self.geometry, index).add(self.geometry.front);
            let written = Slab::is_free(slab, index) && self.geometry.marks().is_written(object);
            written.then_some(object)
        })
    }

    /// Reports a free buffer of a slab that was written, if there is one.
    ///
    /// # Safety
    /// As [`SlabLayer::written_after_free`].
    pub(crate) unsafe fn check_free_buffers(&self, slab: NonNull<Slab>) {
        // SAFETY: by contract.
        if let Some(object) = unsafe { self.written_after_free(slab) } {
            self.fault(Fault::WriteAfterFree, object);
        }
    }

    /// Visits every slab of a verified cache, with the lock held.
    fn each_slab(&self, mut visit: impl FnMut(NonNull<Slab>)) {
        let slabs = self.slabs.lock();
        for list in [&slabs.partial, &slabs.empty, &slabs.full] {
            let mut at = list.head();
            while let Some(slab) = at {
                visit(slab);
                // SAFETY: a member of this list, which the lock keeps.
                at = unsafe { list.next(slab) };
            }
        }
    }

    /// Checks every free object now; aborts the process if one was written.
    pub(crate) fn check(&self) {
        if !self.options.verify {
            return;
        }
        let mut written = None;
        self.each_slab(|slab| {
            // SAFETY: the lock is held, so free buffers stay free. Each was poisoned before its bit was set.
            written = written.or_else(|| unsafe { self.written_after_free(slab) });
        });
        if let Some(object) = written {
            self.fault(Fault::WriteAfterFree, object);
        }
    }

    /// Allocated objects by the call that allocated them, most bytes first. Empty without verify: no traces exist.
    pub(crate) fn leaks(&self) -> Vec<Leak> {
        let mut leaks: Vec<Leak> = Vec::new();
        if !self.options.verify {
            return leaks;
        }
        self.each_slab(|slab| {
            for index in 0..self.geometry.objects {
                // SAFETY: the lock is held, so slabs stay and no trace is being written.
                unsafe {
                    if Slab::is_free(slab, index) {
                        continue;
                    }
                    let object = Slab::buffer(slab, &self.geometry, index).add(self.geometry.front);
                    let trace = self.geometry.marks().allocated_by(object);
                    match leaks.iter_mut().find(|leak| leak.trace == trace) {
                        Some(leak) => {
                            leak.objects += 1;
                            leak.bytes += self.geometry.size;
                        }
                        None => leaks.push(Leak { objects: 1, bytes: self.geometry.size, trace }),
                    }
                }
            }
        });
        leaks.sort_by_key(|leak| std::cmp::Reverse(leak.bytes));
        leaks
    }

    /// Reports objects still allocated when their cache is dropped.
    pub(crate) fn report_leaks(&self) {
        for leak in self.leaks() {
            report::tell(&Report {
                fault: Fault::Leak,
                cache: self.options.name,
                owner: None,
                address: 0,
                size: self.geometry.size,
                objects: leak.objects,
                allocated: Some(leak.trace),
                freed: None,
                here: None,
            });
        }
    }
}
