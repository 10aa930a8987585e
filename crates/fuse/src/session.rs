//! A file system served: negotiation, threads, and their end.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;

use crate::abi::init_flag;
use crate::device::Device;
use crate::mount::{FuseError, Mounted};
use crate::negotiate::{Granted, Negotiation, Wanted, negotiate};
use crate::request::{Op, Request};
use crate::serve::Serve;
use crate::transport::{classic, forgets, uring};

/// The threads of a session.
#[derive(Debug, Clone, Copy)]
pub struct Threads {
    /// Threads that read requests, without io_uring.
    pub classic: usize,
    /// Requests at once for each processor, with io_uring.
    pub places: usize,
}

/// A file system that is being served.
#[derive(Debug)]
pub struct Session {
    // Unmounted first: that ends the threads.
    mounted: Mounted,
    device: Arc<Device>,
    granted: Granted,
    by_ring: bool,
    no_ring: Option<io::Error>,
    threads: Vec<JoinHandle<io::Result<()>>>,
}

/// Bytes that INIT may have.
const INIT_BYTES: usize = 8192;

impl Session {
    /// Agrees with the kernel, and starts the threads. By io_uring if that is wanted and the kernel has it.
    ///
    /// # Errors
    /// [`FuseError::TooOld`], or when the connection breaks or no thread can be had. Nothing stays mounted.
    pub fn start(
        device: Device,
        mounted: Mounted,
        serve: &Arc<dyn Serve>,
        mut wanted: Wanted,
        threads: Threads,
    ) -> Result<Session, FuseError> {
        let device = Arc::new(device);
        let mut session = Session {
            mounted,
            device,
            granted: Granted { minor: 0, flags: 0 },
            by_ring: false,
            no_ring: None,
            threads: Vec::new(),
        };
        // Agreeing on rings without having them would hang the mount: they are made first.
        let mut rings = None;
        if wanted.uring {
            match session.make_rings(serve, wanted, threads) {
                Ok(made) => rings = Some(made),
                Err(error) => (wanted.uring, session.no_ring) = (false, Some(error)),
            }
        }
        session.granted = session.init(wanted)?;
        let max_write = wanted.max_write as usize;
        match rings {
            Some(go) if session.granted.has(init_flag::OVER_IO_URING) => {
                session.by_ring = true;
                go.iter().for_each(|go| go.send(()).unwrap_or(()));
                session
                    .spawn("forgets", serve, move |device, serve| forgets::run(device, serve, max_write))?;
            }
            _ => {
                for _ in 0..threads.classic {
                    session
                        .spawn("fuse", serve, move |device, serve| classic::run(device, serve, max_write))?;
                }
            }
        }
        Ok(session)
    }

    fn spawn(
        &mut self,
        name: &str,
        serve: &Arc<dyn Serve>,
        run: impl FnOnce(&Arc<Device>, &dyn Serve) -> io::Result<()> + Send + 'static,
    ) -> Result<(), FuseError> {
        let (device, serve) = (self.device.clone(), serve.clone());
        let thread = overspill_sys::process::spawn_or_die(name, move || {
            run(&device, &*serve)
                .inspect_err(|error| tracing::error!(%error, "a connection to the kernel breaks"))
        });
        self.threads.push(thread.map_err(FuseError::Session)?);
        Ok(())
    }

    /// Starts a thread with a ring for each processor; they wait for the word.
    fn make_rings(
        &mut self,
        serve: &Arc<dyn Serve>,
        wanted: Wanted,
        threads: Threads,
    ) -> io::Result<Vec<Sender<()>>> {
        if std::fs::read_to_string("/sys/module/fuse/parameters/enable_uring")
            .map_or(true, |on| on.trim() != "Y")
        {
            return Err(io::Error::other(
                "root has not written Y to /sys/module/fuse/parameters/enable_uring",
            ));
        }
        let mut words = Vec::new();
        let payload = wanted.max_write.max(8192) as usize;
        for cpu in 0..possible_cpus()? {
            let (made, is_made) = channel();
            let (word, go) = channel();
            let queue = uring::Queue { cpu, places: threads.places, payload };
            self.spawn("fuse-ring", serve, move |device, serve| {
                uring::run(device, serve, &queue, &made, &go)
            })
            .map_err(io::Error::other)?;
            is_made.recv().map_err(io::Error::other)??;
            words.push(word);
        }
        Ok(words)
    }

    /// Answers INIT.
    fn init(&self, wanted: Wanted) -> Result<Granted, FuseError> {
        let mut buf = vec![0; INIT_BYTES.max(wanted.max_write as usize + 4096)];
        loop {
            let len = self.device.receive(&mut buf).map_err(FuseError::Session)?;
            let gone = || FuseError::Session(io::ErrorKind::ConnectionAborted.into());
            let request = Request::decode(&buf[..len.ok_or_else(gone)?]);
            let request = request.map_err(|error| FuseError::Session(io::Error::other(error)))?;
            let Op::Init { args, flags } = request.op else { continue };
            let outcome = negotiate(&args, flags, wanted);
            let parts = [io::IoSlice::new(outcome.bytes())];
            match outcome {
                Negotiation::Agreed(_, granted) => {
                    self.device.reply(request.unique, 0, &parts);
                    tracing::info!(minor = granted.minor, flags = %format_args!("{:#x}", granted.flags), "agreed");
                    return Ok(granted);
                }
                Negotiation::Again(_) => self.device.reply(request.unique, 0, &parts),
                Negotiation::TooOld(minor) => {
                    self.device.reply(request.unique, -EPROTO, &[]);
                    return Err(FuseError::TooOld(minor));
                }
            }
        }
    }

    /// The connection, for notifications.
    pub fn device(&self) -> &Arc<Device> {
        &self.device
    }

    /// The agreement with the kernel.
    pub fn granted(&self) -> Granted {
        self.granted
    }

    /// True if requests come by io_uring.
    pub fn by_ring(&self) -> bool {
        self.by_ring
    }

    /// The reason why io_uring was wanted and is not used.
    pub fn no_ring(&self) -> Option<&io::Error> {
        self.no_ring.as_ref()
    }

    /// Serves until the file system is unmounted.
    ///
    /// # Errors
    /// [`FuseError::Session`] when the connection breaks.
    pub fn join(mut self) -> Result<(), FuseError> {
        let mut result = Ok(());
        for thread in self.threads.drain(..) {
            // A thread that panics ends the process.
            if let Ok(Err(error)) = thread.join() {
                result = Err(FuseError::Session(error));
            }
        }
        self.mounted.gone = true;
        result
    }
}

const EPROTO: i32 = 71;

/// The switch that lets a connection use rings.
const ENABLE_URING: &str = "/sys/module/fuse/parameters/enable_uring";

/// The queues that requests by io_uring need, one for each processor; `None` where the kernel has no such transport, or
/// root has not written Y to its switch.
#[must_use]
pub fn ring_queues() -> Option<usize> {
    let on = std::fs::read_to_string(ENABLE_URING).ok()?;
    (on.trim() == "Y").then(|| possible_cpus().ok().map(usize::from)).flatten()
}

/// The number of processors that this machine can have: the kernel wants a queue for each.
fn possible_cpus() -> io::Result<u16> {
    let text = std::fs::read_to_string("/sys/devices/system/cpu/possible")?;
    parse_possible(&text).ok_or_else(|| io::Error::other(format!("possible processors: '{}'", text.trim())))
}

/// One more than the last number of a list such as `0-3,8`.
fn parse_possible(text: &str) -> Option<u16> {
    text.trim().rsplit([',', '-']).next()?.parse::<u16>().ok()?.checked_add(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processors_are_counted() {
        assert_eq!(parse_possible("0-1\n"), Some(2));
        assert_eq!(parse_possible("0\n"), Some(1));
        assert_eq!(parse_possible("0-3,8-11"), Some(12));
        assert_eq!(parse_possible(""), None);
    }
}
