//! An engine: one VM, its stores, and the threads that run it. Faces (mounts now, disks and regions to come) are opened
//! and closed on it, and share its memory and stores (R12).

mod error;
mod options;
mod place;
mod store;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use overspill_mount::Tuning;
use overspill_runtime::{Driver, DriverOptions, Spawn};
use overspill_vm::{Pager, Vm, VmConfig, VmError};

pub use self::error::{EngineError, ErrorKind};
pub use self::options::{Debugging, EngineOptions, Layout, Method, StoreChoice};
use self::place::Place;
use crate::control::protocol::{FaceInfo, Reply, Request};
use crate::control::server::Server;
use crate::stats::{self, Stats};

/// An engine. A handle: it ends with its last handle, and each face holds one.
#[derive(Clone)]
pub struct Engine(Arc<Inner>);

/// A part of the outside that uses an engine's memory.
pub(crate) trait Face: Send + Sync {
    /// Its name to the outside.
    fn info(&self) -> FaceInfo;

    /// Its statistics, and the engine's.
    fn stats(&self, engine: &Engine) -> Stats;
}

struct Inner {
    options: EngineOptions,
    // The server's thread uses the VM, and the driver's threads run it: this is the order in which they end.
    control: Option<Server>,
    driver: Driver,
    pager: Pager,
    store_mode: String,
    notes: Vec<String>,
    faces: Mutex<Faces>,
}

#[derive(Default)]
struct Faces {
    /// Weak, and therefore never the reason why a face stays.
    open: Vec<Weak<dyn Face>>,
    /// Bytes of memory that transports have.
    lent: usize,
}

/// Bytes that the process takes beside its VM and transports: the program, its stacks, and what the C library's heap
/// wastes. Nothing in small budgets: it would be most of them.
fn process_memory(memory: usize) -> usize {
    if memory < 64 << 20 { 0 } else { 6 << 20 }
}

impl Engine {
    /// Opens the store and starts the threads.
    ///
    /// # Errors
    /// [`EngineError`]; nothing is left behind.
    pub fn start(options: EngineOptions) -> Result<Engine, EngineError> {
        overspill_sys::process::limit_malloc_arenas();
        protect_daemon();
        let memory = usize::try_from(options.memory).unwrap_or(usize::MAX);
        let mut notes = Vec::new();
        let (store, store_mode) = store::open(&options, &mut notes)?;
        let most = memory.saturating_sub(process_memory(memory));
        let mut config = VmConfig::new(most.saturating_sub(room_for_transports(memory)));
        config.most_memory_bytes = most;
        config.method = options.compress;
        let pager = Pager::new(&config, store.into_iter().collect()).map_err(|error| match error {
            VmError::NoMemory => EngineError::Memory(options.memory),
            error => EngineError::Start(std::io::Error::other(error)),
        })?;
        let driver_options =
            DriverOptions { memory: Some(memory), uring: !options.debug.no_uring, source_threads: 0 };
        let driver = Driver::start(&pager, driver_options).map_err(EngineError::Start)?;
        let store_mode = store::with_io(store_mode, &driver, &mut notes);
        pager.set_eager(options.debug.evict);
        let faces = Mutex::default();
        Ok(Engine(Arc::new_cyclic(|inner: &Weak<Inner>| {
            let control = options.control.then(|| serve_control(inner.clone(), &mut notes)).flatten();
            Inner { options, control, driver, pager, store_mode, notes, faces }
        })))
    }

    /// Notes on missing features, one line each.
    pub fn notes(&self) -> &[String] {
        &self.0.notes
    }

    /// Its options.
    pub fn options(&self) -> &EngineOptions {
        &self.0.options
    }

    /// Its VM, for faces.
    pub fn vm(&self) -> &Vm {
        self.0.pager.vm()
    }

    /// The store's layout and its way of I/O, in words.
    pub(crate) fn store_mode(&self) -> &str {
        &self.0.store_mode
    }

    /// Times that a thread of the driver had missed a wake-up.
    pub(crate) fn lost_signals(&self) -> u64 {
        self.0.driver.lost_signals()()
    }

    /// Runs operations that wait.
    pub(crate) fn spawner(&self) -> Arc<dyn Spawn> {
        self.0.driver.spawner(&self.0.pager)
    }

    /// Refuses a mountpoint above the engine's own store: the store would page to itself (R14).
    pub(crate) fn check_mountpoint(&self, mountpoint: &Path) -> Result<(), EngineError> {
        let (StoreChoice::Directory(path) | StoreChoice::File(path)) = &self.0.options.store else {
            return Ok(());
        };
        if let (Ok(store), Ok(place)) = (store::place_of(path), Place::of(mountpoint))
            && store.is_within(&place)
        {
            return Err(EngineError::StoreOnItself(path.clone(), mountpoint.to_owned()));
        }
        Ok(())
    }

    /// Takes memory from the VM for a face's transport, until the loan is dropped. Room for one mount's is set aside.
    pub(crate) fn lend(&self, bytes: usize) -> Result<Loan, EngineError> {
        let mut faces = self.0.faces();
        let lent = faces.lent + bytes;
        self.0.fit(lent).map_err(|source| EngineError::NoRoom { needed: bytes, source })?;
        faces.lent = lent;
        Ok(Loan { engine: self.clone(), bytes })
    }

    /// Makes a face known to the control socket, until the registration is dropped.
    pub(crate) fn register(&self, face: &Arc<dyn Face>) -> Registration {
        self.0.faces().open.push(Arc::downgrade(face));
        let link = self.0.control.as_ref().and_then(|control| control.link(&face.info()));
        Registration { link }
    }

    fn answer(&self, request: &Request) -> Reply {
        let faces: Vec<Arc<dyn Face>> = {
            let mut faces = self.0.faces();
            faces.open.retain(|face| face.strong_count() > 0);
            faces.open.iter().filter_map(Weak::upgrade).collect()
        };
        match request {
            Request::Faces => Reply::Faces(faces.iter().map(|face| face.info()).collect()),
            Request::Stats { face } => match faces.iter().find(|f| f.info().device == *face) {
                Some(face) => Reply::Stats(Box::new(face.stats(self))),
                None => Reply::Error(format!("nothing of this process is {face}")),
            },
            Request::Slabinfo => Reply::Slabinfo(Box::new(stats::slabinfo())),
        }
    }
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine").field("options", &self.0.options).finish_non_exhaustive()
    }
}

impl Inner {
    fn faces(&self) -> MutexGuard<'_, Faces> {
        self.faces.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Fits the VM beside transports that take `lent` bytes.
    fn fit(&self, lent: usize) -> Result<(), VmError> {
        let memory = usize::try_from(self.options.memory).unwrap_or(usize::MAX);
        let aside = room_for_transports(memory).max(lent) + process_memory(memory);
        self.pager.set_memory(memory.saturating_sub(aside))
    }
}

/// Memory of a transport, taken from the VM.
pub(crate) struct Loan {
    engine: Engine,
    bytes: usize,
}

impl Drop for Loan {
    fn drop(&mut self) {
        let inner = &self.engine.0;
        let mut faces = inner.faces();
        faces.lent -= self.bytes;
        // More memory is never refused.
        let _ = inner.fit(faces.lent);
    }
}

/// A face's entry beside the control socket.
pub(crate) struct Registration {
    link: Option<PathBuf>,
}

impl Drop for Registration {
    fn drop(&mut self) {
        if let Some(link) = &self.link {
            // Left behind, it names a socket where nobody answers.
            let _ = std::fs::remove_file(link);
        }
    }
}

fn room_for_transports(memory: usize) -> usize {
    Tuning::for_memory(memory).memory()
}

fn serve_control(inner: Weak<Inner>, notes: &mut Vec<String>) -> Option<Server> {
    let answer = move |request: &Request| match inner.upgrade() {
        Some(inner) => Engine(inner).answer(request),
        None => Reply::Error("this process is about to start or to end".to_owned()),
    };
    match Server::start(Box::new(answer)) {
        Ok(server) => Some(server),
        Err(error) => {
            notes.push(format!("no control socket ({error}): `overspill stats` has no answer here"));
            None
        }
    }
}

/// Asks the kernel to treat a process that reclaim may wait for with care. Needs CAP_SYS_RESOURCE, which even root may
/// lack in a container; `doctor` says so, here it is only logged.
fn protect_daemon() {
    if let Err(error) = overspill_sys::process::set_io_flusher() {
        tracing::info!(%error, "PR_SET_IO_FLUSHER refused: under memory pressure the kernel may make this daemon wait");
    }
}
