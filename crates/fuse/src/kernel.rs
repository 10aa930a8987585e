//! What we ask of the kernel, on a thread that serves no requests: dropping the kernel's copy of a file first writes
//! back what is dirty in it, through us, and waits for reads in flight.

use std::collections::HashSet;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use fuser::{INodeNo, Notifier};

enum Ask {
    /// Drop the kernel's copy of a file, then go on with this.
    WriteBack(u64, Box<dyn FnOnce() + Send>),
    /// Drop the kernel's copies of the files in `stale`.
    DropStale,
}

pub(crate) struct Kernel {
    asks: Sender<Ask>,
    stale: Arc<Mutex<HashSet<u64>>>,
    notifier: Arc<OnceLock<Notifier>>,
}

impl Kernel {
    /// # Errors
    /// When there is no thread to be had.
    pub(crate) fn new() -> std::io::Result<Kernel> {
        let (asks, asked) = channel();
        let stale = Arc::new(Mutex::new(HashSet::new()));
        let notifier = Arc::new(OnceLock::new());
        let (theirs, n) = (stale.clone(), notifier.clone());
        std::thread::Builder::new().name("kernel".into()).spawn(move || run(&asked, &theirs, &n))?;
        Ok(Kernel { asks, stale, notifier })
    }

    pub(crate) fn connect(&self, notifier: Notifier) {
        let _ = self.notifier.set(notifier);
    }

    /// Calls `then` when everything the kernel held dirty of a file has been written here.
    pub(crate) fn after_write_back(&self, ino: u64, then: Box<dyn FnOnce() + Send>) {
        // The thread lives as long as self; were it gone, the request would be answered late rather than never.
        if let Err(unsent) = self.asks.send(Ask::WriteBack(ino, then)) {
            if let Ask::WriteBack(_, then) = unsent.0 {
                then();
            }
        }
    }

    /// Drops the kernel's copy of a file, soon.
    pub(crate) fn drop_copy(&self, ino: u64) {
        let mut stale = self.stale.lock().unwrap_or_else(PoisonError::into_inner);
        if stale.insert(ino) && stale.len() == 1 {
            let _ = self.asks.send(Ask::DropStale);
        }
    }
}

fn run(asked: &Receiver<Ask>, stale: &Mutex<HashSet<u64>>, notifier: &OnceLock<Notifier>) {
    let invalidate = |ino| {
        if let Some(notifier) = notifier.get() {
            // Length 0 is "to the end". An inode the kernel has forgotten has no copy to drop.
            let _ = notifier.inval_inode(INodeNo(ino), 0, 0);
        }
    };
    while let Ok(ask) = asked.recv() {
        match ask {
            Ask::WriteBack(ino, then) => {
                invalidate(ino);
                then();
            }
            Ask::DropStale => {
                let stale = std::mem::take(&mut *stale.lock().unwrap_or_else(PoisonError::into_inner));
                stale.into_iter().for_each(invalidate);
            }
        }
    }
}
