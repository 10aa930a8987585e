//! The VM as its driver sees it.

use std::ops::Deref;
use std::sync::Arc as StdArc;

use overspill_store::Store;
use overspill_sys::AlignedBuf;

use crate::config::VmConfig;
use crate::error::VmError;
use crate::memory::records::{Memory, StoreId};
use crate::page::PAGE;
use crate::pagein::requests::{FillIo, ReadIo};
use crate::pagein::service::PageIn;
use crate::pageout::daemon::Step;
use crate::pageout::recompress::Recompressor;
use crate::pageout::requests::{WriteIo, WriteTicket};
use crate::pageout::state::{Layout, Pageout};
use crate::signals::Signals;
use crate::sync::Arc;
use crate::sync::atomic::Ordering;
use crate::vm::Vm;

/// A VM with its pageout, for its driver. It owns no thread and never blocks.
///
/// The driver calls [`Pager::pageout`] when memory is short, takes and completes the requests to stores and sources,
/// has space prepared when pageout asks for it, and tells the time.
#[derive(Debug, Clone)]
pub struct Pager {
    vm: Vm,
    pageout: Arc<Pageout>,
    /// None where nothing is compressed twice.
    recompressor: Option<Arc<Recompressor>>,
    /// Bytes of buffers, which never change.
    buffers: usize,
}

impl Deref for Pager {
    type Target = Vm;
    fn deref(&self) -> &Vm {
        &self.vm
    }
}

impl Pager {
    /// A VM that pages to `stores`, the first of them first, or keeps everything in memory when there is none.
    ///
    /// # Errors
    /// [`VmError::Arena`] when address space cannot be had, [`VmError::NoMemory`] when the configured memory does not
    /// even hold the buffers.
    pub fn new(config: &VmConfig, stores: Vec<StdArc<dyn Store>>) -> Result<Pager, VmError> {
        let buffers = config.buffers(!stores.is_empty());
        let limit = config.memory_bytes.checked_sub(buffers).filter(|&left| left >= 4 * PAGE);
        let limit = limit.ok_or(VmError::NoMemory)?;
        let most = config.most_memory_bytes.max(config.memory_bytes) - buffers;
        let memory = Memory::new(limit, most, stores)?;
        let pagein = Arc::new(PageIn::new(&memory, config.fetch_slots));
        let &VmConfig { method, batches, batch_bytes, always_bypass, .. } = config;
        let pageout = Pageout::new(&pagein, &Layout { method, batches, batch_bytes, always_bypass })?;
        Ok(Pager {
            vm: Vm { pagein },
            pageout: Arc::new(pageout),
            recompressor: config.recompresses().then(Arc::default),
            buffers,
        })
    }

    /// The faces' handle.
    pub fn vm(&self) -> &Vm {
        &self.vm
    }

    fn memory(&self) -> &Arc<Memory> {
        &self.vm.pagein.memory
    }

    /// Introduces the driver. Once; later calls are ignored.
    pub fn set_signals(&self, signals: StdArc<dyn Signals>) {
        self.memory().driver.set(signals);
    }

    /// Changes the bytes of RAM that the VM may use, everything counted. A smaller limit holds at once for writers;
    /// pageout frees the difference.
    ///
    /// # Errors
    /// [`VmError::Limit`] when it is beyond [`VmConfig::most_memory_bytes`], or too small for wired memory.
    pub fn set_memory(&self, bytes: usize) -> Result<(), VmError> {
        let limit = bytes.checked_sub(self.buffers).ok_or(VmError::Limit)?;
        self.memory().budget.set_limit(limit)
    }

    /// One step of pageout.
    pub fn pageout(&self) -> Step {
        self.pageout.step()
    }

    /// Evicts some pages while writers wait: for a second thread, beside the one that steps pageout. Returns true if it
    /// did.
    pub fn help_pageout(&self) -> bool {
        self.pageout.help()
    }

    /// Compresses a cluster of compressed memory again, smaller. For idle cores. Returns true if there was one to try:
    /// never where memory is plentiful, or where [`VmConfig::recompress`] is off.
    pub fn recompress(&self) -> bool {
        self.recompressor.as_ref().is_some_and(|recompressor| recompressor.turn(&self.vm.pagein))
    }

    /// True if an operation waits for memory.
    pub fn has_waiters(&self) -> bool {
        self.memory().budget.has_waiters()
    }

    /// Evicts every page as soon as it can be, whatever the budget: for tests and debugging.
    pub fn set_eager(&self, eager: bool) {
        self.memory().eager.store(eager, Ordering::Relaxed);
        self.memory().driver.get().pageout_wanted();
    }

    /// The clock shows `now`: wakes the operations whose time has come.
    pub fn tick(&self, now: u64) {
        if self.memory().timers.take_due(now) {
            self.memory().driver.get().pageout_wanted();
        }
    }

    /// The next time at which [`Pager::tick`] should be called, if an operation waits for a time.
    pub fn next_alarm(&self) -> Option<u64> {
        self.memory().timers.next()
    }

    /// Pageout's writes that are at a store now.
    pub fn writes_in_flight(&self) -> usize {
        self.pageout.in_flight()
    }

    /// A write to a store that no driver has taken.
    pub fn next_write(&self) -> Option<WriteIo> {
        self.pageout.next_write()
    }

    /// True if there are writes that no driver has taken.
    pub fn has_writes(&self) -> bool {
        self.pageout.has_writes()
    }

    /// Ends a write, and gives its buffer back.
    pub fn complete_write(&self, ticket: WriteTicket, buf: AlignedBuf, result: std::io::Result<()>) {
        self.pageout.complete(ticket, buf, result);
        // Pageout waited for this write, or rests and is asked once more than necessary.
        self.memory().driver.get().pageout_wanted();
    }

    /// A read from a store that no driver has taken.
    pub fn next_read(&self) -> Option<ReadIo> {
        self.vm.pagein.requests.next_read()
    }

    /// As [`Pager::next_reads`], but also the reads right behind it, for one request to the store: in order, each
    /// beginning where the one before ends or in its last block. At most `bytes` altogether, and at least one read.
    pub fn next_reads(&self, bytes: usize, out: &mut Vec<ReadIo>) {
        self.vm.pagein.requests.next_reads((bytes / overspill_store::BLOCK) as u64, out);
    }

    /// The newest read: for the thread that asked for it, and waits.
    pub fn newest_read(&self) -> Option<ReadIo> {
        self.vm.pagein.requests.newest_read()
    }

    /// True if there are reads that no driver has taken.
    pub fn has_reads(&self) -> bool {
        self.vm.pagein.requests.has_reads()
    }

    /// Ends a read with the bytes read, [`ReadIo::len`] of them. Decodes them on the calling thread.
    #[expect(clippy::needless_pass_by_value, reason = "a request ends once")]
    pub fn complete_read(&self, read: ReadIo, result: std::io::Result<&[u8]>) {
        self.vm.pagein.complete_read(&read, result);
    }

    /// A read from a source that no driver has taken.
    pub fn next_fill(&self) -> Option<FillIo> {
        self.vm.pagein.requests.next_fill()
    }

    /// True if there are reads from sources that no driver has taken.
    pub fn has_fills(&self) -> bool {
        self.vm.pagein.requests.has_fills()
    }

    /// Ends a read from a source with the bytes read, up to [`FillIo::LEN`] of them; the rest is zeros.
    #[expect(clippy::needless_pass_by_value, reason = "a request ends once")]
    pub fn complete_fill(&self, fill: FillIo, result: std::io::Result<&[u8]>) {
        self.vm.pagein.complete_fill(&fill, result);
    }

    /// The stores, by number.
    pub fn stores(&self) -> impl Iterator<Item = (StoreId, &StdArc<dyn Store>)> {
        self.memory().backings.iter().map(|backing| (backing.id, &backing.store))
    }

    /// A store.
    pub fn store(&self, id: StoreId) -> Option<&StdArc<dyn Store>> {
        self.memory().backings.get(usize::from(id.0)).map(|backing| &backing.store)
    }

    /// Has the stores prepare the space that pageout waits for. Blocks.
    pub fn prepare_space(&self) {
        for backing in self.memory().backings.iter() {
            if backing.is_wanted.load(Ordering::Acquire) {
                backing.store.maintain(true);
            }
        }
    }

    /// Work of the stores off the pageout path: preallocates where pageout writes, punches holes. Blocks. Returns true
    /// if more can be done at once.
    pub fn maintain_stores(&self) -> bool {
        let short = self.is_short();
        let mut more = false;
        for backing in self.memory().backings.iter() {
            let wanted = backing.is_wanted.load(Ordering::Acquire);
            if !short {
                backing.is_wanted.store(false, Ordering::Release);
            }
            more |= backing.store.maintain(short && (wanted || backing.id == StoreId(0)));
        }
        more
    }

    /// Gives free memory back to the kernel, off the pageout path. Call it now and then, and often under pressure.
    pub fn maintain(&self) {
        self.memory().give_back();
    }

    /// Gives up to `bytes` of memory that holds no frame in use back to the kernel at once.
    pub fn trim(&self, bytes: usize) {
        self.memory().arena.trim(bytes);
    }

    /// Counts `bytes` of the process's memory that nothing else charged, such as holes in the heap, in the budget.
    /// Replaces the last call's bytes. Pageout then makes room for them.
    pub fn set_overhead(&self, bytes: usize) {
        self.memory().set_overhead(bytes);
    }

    /// True if too much of the stores is dead.
    pub fn wants_compaction(&self) -> bool {
        self.vm.pagein.wants_compaction()
    }

    /// Bytes of the stores that are neither free nor living pages.
    pub fn dead_bytes(&self) -> u64 {
        self.vm.pagein.dead_bytes()
    }

    /// Brings back the living pages of the sparsest of some segments. Waits for memory and stores. Returns true if
    /// there was one.
    pub async fn compact(&self) -> bool {
        self.vm.pagein.compact().await
    }
}
