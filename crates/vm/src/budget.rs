//! The budget: bytes of RAM this VM may use, everything counted (iron rule 3).
//!
//! One number, `charged`, holds frames, small pages, metadata and unspent reservations. Pages are taken only out of a
//! [`Reservation`], made before any lock; a caller that finds too little room waits for pageout, first come first
//! served. Metadata ([`Charge`]) never waits: it is small and must not fail because pages happen to fill memory.
//! Pageout makes up for it, and it is bounded by its own share of the limit.
//!
//! ```text
//!   0 ────────────────────── limit - high ──── limit - low ──── limit
//!      pageout goes on until below ▲                 ▲ pageout begins above
//! ```

use std::collections::VecDeque;
use std::future::Future;

use overspill_slab::kept;
use overspill_sys::Frame;
use smallvec::SmallVec;

use crate::error::VmError;
use crate::page::{CHUNK, PAGE};
use crate::revoke::Leases;
use crate::signals::DriverSlot;
use crate::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering, fence};
use crate::sync::{Arc, Mutex};
use crate::wait::ticket::{Pending, Sender, ticket};

pub(crate) struct Budget {
    /// Bytes charged, reservations included. Shared with the arena, whose frames take their bytes off themselves.
    charged: Arc<std::sync::atomic::AtomicUsize>,
    /// Bytes of that which are metadata.
    metadata: AtomicUsize,
    /// Live reservations and attempts at one: the bytes they hold return soon, or become pages.
    alive: AtomicUsize,
    /// Reservations ever made.
    made: AtomicU64,
    /// May change at any time ([`Budget::set_limit`]).
    limit: AtomicUsize,
    /// The upper bound of `limit`.
    most: usize,
    waiters: Mutex<VecDeque<Waiter>>,
    /// `waiters.len()`, readable without the lock.
    waiting: AtomicUsize,
    /// Set from a request for pageout until pageout rests.
    pub(crate) short: AtomicBool,
    driver: std::sync::Arc<DriverSlot>,
    leases: Leases,
}

/// The smallest limit that can be set: a chunk, the most that one reservation is for, must be a small part of it.
const LEAST: usize = 4 * CHUNK;

kept!(counted Pending<Result<Reservation, VmError>>, "ticket for memory");

struct Waiter {
    bytes: usize,
    reply: Sender<Result<Reservation, VmError>>,
}

impl std::fmt::Debug for Budget {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Budget({} of {})", self.charged(), self.limit())
    }
}

impl Budget {
    pub(crate) fn new(
        charged: Arc<std::sync::atomic::AtomicUsize>,
        limit: usize,
        most: usize,
        driver: std::sync::Arc<DriverSlot>,
    ) -> Arc<Budget> {
        Arc::new(Budget {
            charged,
            metadata: AtomicUsize::new(0),
            alive: AtomicUsize::new(0),
            made: AtomicU64::new(0),
            limit: AtomicUsize::new(limit),
            most,
            waiters: Mutex::new(VecDeque::new()),
            waiting: AtomicUsize::new(0),
            short: AtomicBool::new(false),
            driver,
            leases: Leases::default(),
        })
    }

    pub(crate) fn charged(&self) -> usize {
        self.charged.load(Ordering::Acquire)
    }

    pub(crate) fn metadata(&self) -> usize {
        self.metadata.load(Ordering::Relaxed)
    }

    pub(crate) fn limit(&self) -> usize {
        self.limit.load(Ordering::Relaxed)
    }

    /// Changes the limit. If more is charged, pageout frees the difference and writers wait meanwhile.
    ///
    /// # Errors
    /// [`VmError::Limit`] if it is beyond the bound that memory was laid out for, or does not hold metadata and some
    /// pages.
    pub(crate) fn set_limit(self: &Arc<Self>, limit: usize) -> Result<(), VmError> {
        if limit > self.most || limit < LEAST + self.metadata() / 3 * 4 {
            return Err(VmError::Limit);
        }
        self.limit.store(limit, Ordering::Relaxed);
        self.grant();
        self.kick_if_short();
        Ok(())
    }

    /// The upper bound of the limit.
    pub(crate) fn most(&self) -> usize {
        self.most
    }

    /// The room that pageout keeps for writers while it works: small beside the budget.
    fn low(&self) -> usize {
        (self.limit() / 32).clamp(4 * PAGE, 64 << 20)
    }

    /// The free room at which pageout rests.
    fn high(&self) -> usize {
        let low = self.low();
        low + low / 2
    }

    /// True if pageout should begin.
    pub(crate) fn below_low(&self) -> bool {
        self.charged() + self.low() > self.limit() || self.has_waiters()
    }

    /// How many bytes pageout should free before it rests, given that `coming` bytes are on their way.
    pub(crate) fn wanted(&self, coming: usize) -> usize {
        let waiting = if self.has_waiters() { PAGE } else { 0 };
        (self.charged() + self.high())
            .saturating_sub(self.limit() + coming)
            .max(waiting.saturating_sub(coming))
    }

    /// Bytes that pages may take in all once pageout rests: all but metadata and the room kept for writers.
    pub(crate) fn pageable(&self) -> usize {
        self.limit().saturating_sub(self.high() + self.metadata())
    }

    pub(crate) fn leases(&self) -> &Leases {
        &self.leases
    }

    /// Uncharges bytes that were on lease.
    pub(crate) fn end_lease(self: &Arc<Self>, bytes: usize) {
        self.uncharge(bytes);
    }

    pub(crate) fn has_waiters(&self) -> bool {
        self.waiting.load(Ordering::Acquire) > 0
    }

    /// The largest possible reservation: more could never be had.
    pub(crate) fn max_reservation(&self) -> usize {
        self.limit() / 2
    }

    fn try_take(&self, bytes: usize) -> bool {
        let mut now = self.charged.load(Ordering::Relaxed);
        loop {
            if now + bytes > self.limit() {
                return false;
            }
            // Acquire pairs with the Release of the thread that uncharged: its memory is free before we use it.
            match self.charged.compare_exchange_weak(now, now + bytes, Ordering::Acquire, Ordering::Relaxed) {
                Ok(_) => return true,
                Err(seen) => now = seen,
            }
        }
    }

    /// Counted before it is taken: pageout that finds nothing to free must see that memory is only set aside.
    fn try_reserve(self: &Arc<Self>, bytes: usize) -> Option<Reservation> {
        self.alive.fetch_add(1, Ordering::AcqRel);
        if !self.try_take(bytes) {
            self.alive.fetch_sub(1, Ordering::AcqRel);
            return None;
        }
        self.made.fetch_add(1, Ordering::AcqRel);
        Some(Reservation { budget: self.clone(), bytes })
    }

    fn kick_if_short(&self) {
        if self.below_low() && !self.short.swap(true, Ordering::AcqRel) {
            self.driver.get().pageout_wanted();
        }
    }

    /// Reserves `bytes` for pages: now, or when pageout has made room.
    ///
    /// # Errors
    /// [`VmError::NoMemory`] when pageout found nothing more to free.
    pub(crate) async fn reserve(self: &Arc<Self>, bytes: usize) -> Result<Reservation, VmError> {
        if bytes > self.max_reservation() {
            return Err(VmError::NoMemory);
        }
        if !self.has_waiters()
            && let Some(reservation) = self.try_reserve(bytes)
        {
            self.kick_if_short();
            return Ok(reservation);
        }
        self.wait(bytes)?.await.unwrap_or(Err(VmError::ShutDown))
    }

    /// Reserves `bytes` for pages if there is room and no waiter.
    pub(crate) fn reserve_now(self: &Arc<Self>, bytes: usize) -> Option<Reservation> {
        if self.below_low() {
            return None;
        }
        self.try_reserve(bytes)
    }

    fn wait(
        self: &Arc<Self>,
        bytes: usize,
    ) -> Result<impl Future<Output = Option<Result<Reservation, VmError>>> + use<>, VmError> {
        let (reply, ticket) = ticket()?;
        {
            let mut waiters = self.waiters.lock();
            waiters.push_back(Waiter { bytes, reply });
            self.waiting.fetch_add(1, Ordering::AcqRel);
        }
        self.grant();
        self.kick_if_short();
        Ok(ticket)
    }

    /// Serves waiters, as far as there is room. To be called after memory came free.
    pub(crate) fn grant(self: &Arc<Self>) {
        // Either we see a waiter that has just queued, or it sees the memory that has just come free.
        fence(Ordering::SeqCst);
        if !self.has_waiters() {
            return;
        }
        let mut served: SmallVec<[(Waiter, Reservation); 8]> = SmallVec::new();
        {
            let mut waiters = self.waiters.lock();
            while let Some(first) = waiters.front() {
                if !first.reply.is_wanted() {
                    waiters.pop_front();
                    self.waiting.fetch_sub(1, Ordering::AcqRel);
                    continue;
                }
                let Some(reservation) = self.try_reserve(first.bytes) else { break };
                let waiter = waiters.pop_front().expect("looked at above");
                self.waiting.fetch_sub(1, Ordering::AcqRel);
                served.push((waiter, reservation));
            }
        }
        for (waiter, reservation) in served {
            waiter.reply.send(Ok(reservation));
        }
    }

    /// Count of reservations ever made, or `None` while one is alive: memory that is short then comes back without
    /// pageout, or becomes pages that pageout can evict.
    ///
    /// To be called after `short` was cleared: the end of a reservation then asks for pageout again.
    pub(crate) fn quiet(&self) -> Option<u64> {
        // Under the lock no waiter is being tried, which would look like a reservation and end without a signal.
        let _still = self.waiters.lock();
        let made = self.made.load(Ordering::Acquire);
        (self.alive.load(Ordering::Acquire) == 0).then_some(made)
    }

    /// Fails every waiter with `why`.
    pub(crate) fn refuse_all(self: &Arc<Self>, why: VmError) {
        let refused: Vec<Waiter> = {
            let mut waiters = self.waiters.lock();
            self.waiting.store(0, Ordering::Release);
            waiters.drain(..).collect()
        };
        for waiter in refused {
            waiter.reply.send(Err(why));
        }
    }

    /// Charges metadata without waiting.
    ///
    /// # Errors
    /// [`VmError::NoMemory`] when metadata has its share of the budget already.
    pub(crate) fn charge(self: &Arc<Self>, bytes: usize) -> Result<Charge, VmError> {
        if bytes > self.metadata_left() {
            return Err(VmError::NoMemory);
        }
        Ok(self.charge_forced(bytes))
    }

    /// Bytes that metadata may still take of its share, three quarters of the budget. Metadata that must be (of data that
    /// somebody was told is written) may go beyond.
    pub(crate) fn metadata_left(&self) -> usize {
        (self.limit() / 4 * 3).saturating_sub(self.metadata())
    }

    /// True if metadata may go on beyond its share to say what was lost.
    pub(crate) fn has_room_for_notes(&self) -> bool {
        self.metadata() < self.limit() / 8 * 7
    }

    /// True if `bytes` of metadata that must be could come upon us twice and leave too little for pages to move; or
    /// little of its share is left.
    pub(crate) fn metadata_is_short(&self, bytes: usize) -> bool {
        let must_be = bytes.saturating_mul(2).min(self.limit() / 2);
        let metadata = self.metadata();
        metadata + must_be > self.limit() / 8 * 7 || metadata > self.limit() / 8 * 5
    }

    /// Charges metadata that exists already or must not fail.
    pub(crate) fn charge_forced(self: &Arc<Self>, bytes: usize) -> Charge {
        self.charged.fetch_add(bytes, Ordering::Acquire);
        self.metadata.fetch_add(bytes, Ordering::Relaxed);
        self.kick_if_short();
        Charge { budget: Some(self.clone()), bytes }
    }

    /// A frame beyond any reservation, for pageout, which frees more than it takes. Its bytes are arbitrary.
    ///
    /// # Errors
    /// [`VmError::NoMemory`] when the arena has none left.
    pub(crate) fn take_frame_forced(
        self: &Arc<Self>,
        arena: &std::sync::Arc<overspill_sys::Arena>,
    ) -> Result<Frame, VmError> {
        self.charged.fetch_add(PAGE, Ordering::Acquire);
        arena.take().ok_or_else(|| {
            self.uncharge(PAGE);
            VmError::NoMemory
        })
    }

    /// Bytes of pages beyond any reservation, as [`Budget::take_frame_forced`].
    pub(crate) fn charge_page_forced(self: &Arc<Self>, bytes: usize) -> PageCharge {
        self.charged.fetch_add(bytes, Ordering::Acquire);
        PageCharge { budget: self.clone(), bytes }
    }

    /// Uncharges the bytes that [`Charge::hand_over`] left to the caller.
    pub(crate) fn uncharge_metadata(self: &Arc<Self>, bytes: usize) {
        self.metadata.fetch_sub(bytes, Ordering::Relaxed);
        self.uncharge(bytes);
    }

    fn uncharge(self: &Arc<Self>, bytes: usize) {
        self.charged.fetch_sub(bytes, Ordering::Release);
        self.grant();
    }
}

/// Bytes set aside for pages of one operation. The unspent rest returns on drop.
#[derive(Debug)]
pub(crate) struct Reservation {
    budget: Arc<Budget>,
    bytes: usize,
}

impl Reservation {
    /// Leaves its bytes charged, until [`Budget::end_lease`].
    pub(crate) fn become_lease(mut self) {
        self.bytes = 0;
    }

    fn spend(&mut self, bytes: usize) {
        assert!(self.bytes >= bytes, "more than was reserved");
        self.bytes -= bytes;
    }

    /// Takes a frame out of the reservation. Its bytes are arbitrary.
    ///
    /// # Panics
    /// When less than a page is left: the caller reserved too little, a bug.
    pub(crate) fn take_frame(&mut self, arena: &std::sync::Arc<overspill_sys::Arena>) -> Frame {
        self.spend(PAGE);
        // The arena has at least as many frames as the budget has pages.
        arena.take().expect("a reserved frame exists")
    }

    /// Takes `bytes` out as a guard of their own.
    ///
    /// # Panics
    /// As [`Reservation::take_frame`].
    pub(crate) fn take_bytes(&mut self, bytes: usize) -> PageCharge {
        self.spend(bytes);
        PageCharge { budget: self.budget.clone(), bytes }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if self.bytes > 0 {
            self.budget.uncharge(self.bytes);
        }
        self.budget.alive.fetch_sub(1, Ordering::AcqRel);
        // Pageout may have stopped because this reservation was alive.
        if self.budget.has_waiters() {
            self.budget.kick_if_short();
        }
    }
}

/// Bytes of a page smaller than a frame; uncharged when dropped.
#[derive(Debug)]
pub(crate) struct PageCharge {
    budget: Arc<Budget>,
    bytes: usize,
}

impl PageCharge {
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }
}

impl PageCharge {
    pub(crate) fn budget(&self) -> &Arc<Budget> {
        &self.budget
    }
}

impl Drop for PageCharge {
    fn drop(&mut self) {
        self.budget.uncharge(self.bytes);
    }
}

/// Metadata counted in the budget for as long as this lives.
#[derive(Debug)]
pub struct Charge {
    /// None once handed over.
    budget: Option<Arc<Budget>>,
    bytes: usize,
}

impl Charge {
    /// Bytes charged.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// A second charge of the same size, for a copy of the object that this one pays for.
    pub(crate) fn again(&self) -> Charge {
        match &self.budget {
            Some(budget) => budget.charge_forced(self.bytes),
            None => Charge { budget: None, bytes: 0 },
        }
    }

    /// Leaves uncharging to the caller ([`Budget::uncharge_metadata`]): objects of one size that can reach the budget
    /// otherwise need not keep a charge.
    pub(crate) fn hand_over(mut self) {
        self.budget = None;
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        if let Some(budget) = &self.budget {
            budget.uncharge_metadata(self.bytes);
        }
    }
}
