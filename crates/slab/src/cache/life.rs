//! The making and the end of a cache, and a cache that is made on first use.

use std::alloc::Layout;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicPtr, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex as Plain, PoisonError};

use super::layers::{Layers, MAGAZINES, REAP_INTERVAL};
use crate::cpu::depot::Depot;
use crate::cpu::{CpuLayer, Slot};
use crate::options::Options;
use crate::pages::arena;
use crate::pages::source::PageSource as _;
use crate::registry::{self, Member};
use crate::slabs::layer::SlabLayer;
use crate::sync::Mutex;
use crate::{OutOfMemory, PAGE};

impl Layers {
    /// Creates a cache and registers it.
    ///
    /// # Errors
    /// When there is no memory, or no slab can hold such objects.
    fn create(options: Options) -> Result<NonNull<Layers>, OutOfMemory> {
        let wanted = if options.magazines && !options.verify { CpuLayer::slots_needed() } else { 0 };
        let layer = SlabLayer::new(options)?;
        let rounds = MAGAZINES
            .iter()
            .find(|(size, _)| layer.geometry.buffer <= *size)
            .map_or(0, |(_, rounds)| *rounds);
        let slots = if rounds == 0 { 0 } else { wanted };
        let record = size_of::<Layers>().next_multiple_of(align_of::<Slot>());
        let bytes = (record + slots * size_of::<Slot>()).next_multiple_of(PAGE);
        let whole = Layout::from_size_align(bytes, PAGE).map_err(|_| OutOfMemory)?;
        let at = arena::global().grow(whole).ok_or(OutOfMemory)?;
        let layers = at.cast::<Layers>();
        // SAFETY: the slots lie behind the record, in the memory just grown. The record lives until `destroy`.
        unsafe {
            let behind = at.add(record).cast::<Slot>();
            let cpu = if slots == 0 { CpuLayer::off() } else { CpuLayer::new(behind.as_ptr()) };
            layers.write(Layers {
                cpu,
                rounds: if slots == 0 { 0 } else { rounds },
                depot: Mutex::new(Depot::new()),
                slabs: layer,
                member: Member::new(),
                reaps: AtomicU64::new(0),
                guards: AtomicU64::new(0),
                guarded: AtomicUsize::new(0),
                interval: AtomicU64::new(u64::try_from(REAP_INTERVAL.as_millis()).expect("15 s")),
                whole,
            });
            registry::add(Self::member(layers), layers);
        }
        Ok(layers)
    }

    /// # Safety
    /// `at` is a cache's record.
    unsafe fn member(at: NonNull<Layers>) -> NonNull<Member> {
        // SAFETY: the address of a field; nothing is read.
        unsafe { NonNull::new_unchecked(&raw mut (*at.as_ptr()).member) }
    }

    /// Destroys a cache: its magazines, its empty slabs and its record. Slabs with allocated objects stay, and with
    /// them the record, unregistered.
    ///
    /// # Safety
    /// Nobody uses the cache any more, except to read objects that are still allocated.
    unsafe fn destroy(at: NonNull<Layers>) {
        // SAFETY: by contract; `create` registered it.
        let layers = unsafe {
            registry::remove(Self::member(at));
            at.as_ref()
        };
        layers.flush();
        layers.slabs.release_empty();
        if layers.slabs.slabs.lock().slabs > 0 {
            return;
        }
        let whole = layers.whole;
        // SAFETY: no slab names the cache and nobody else uses it. It was grown with this layout.
        unsafe {
            at.drop_in_place();
            arena::global().release(at.cast(), whole);
        }
    }
}

/// True if the environment asks for verification of this cache: `OVERSPILL_SLAB_VERIFY` is `all` or a list of names.
fn verify_asked(name: &str) -> bool {
    std::env::var("OVERSPILL_SLAB_VERIFY")
        .is_ok_and(|names| names.split(',').any(|n| n == "all" || n == name))
}

/// A cache that is made on first use, so that it can be a static. It ends on drop; under verify, objects still
/// allocated are reported then.
pub(crate) struct Lazy {
    pub(crate) options: Options,
    layers: AtomicPtr<Layers>,
}

impl Lazy {
    pub(crate) const fn new(options: Options) -> Self {
        Lazy { options, layers: AtomicPtr::new(std::ptr::null_mut()) }
    }

    /// # Errors
    /// When the cache has to be made and there is no memory, or no slab can hold such objects.
    #[inline(always)]
    pub(crate) fn layers(&self) -> Result<&Layers, OutOfMemory> {
        match NonNull::new(self.layers.load(Ordering::Acquire)) {
            // SAFETY: alive until `self` is dropped.
            Some(layers) => Ok(unsafe { layers.as_ref() }),
            None => self.make(),
        }
    }

    #[cold]
    fn make(&self) -> Result<&Layers, OutOfMemory> {
        static MAKING: Plain<()> = Plain::new(());
        let _making = MAKING.lock().unwrap_or_else(PoisonError::into_inner);
        let mut layers = self.layers.load(Ordering::Acquire);
        if layers.is_null() {
            let mut options = self.options.clone();
            options.verify |= verify_asked(options.name);
            layers = Layers::create(options)?.as_ptr();
            self.layers.store(layers, Ordering::Release);
        }
        // SAFETY: just created or found, and alive until `self` is dropped.
        Ok(unsafe { &*layers })
    }
}

impl Drop for Lazy {
    fn drop(&mut self) {
        if let Some(layers) = NonNull::new(*self.layers.get_mut()) {
            // SAFETY: `&mut self`, so no reference to the cache is left.
            unsafe {
                layers.as_ref().slabs.report_leaks();
                Layers::destroy(layers);
            }
        }
    }
}
