//! The reactor: a ring on a thread of its own, and its clients. Each client has requests to any descriptors; the
//! reactor begins them, waits for all of them at once, and reports each to its client.

use overspill_sys::{Ring, RingDone, RingOp};

use crate::wake::{AT_MOST, KINDS, Worker};

/// A source of requests for a reactor.
pub trait Client {
    /// Begins requests, as long as the client has some and the ring has room.
    fn begin(&mut self, ring: &mut Requests<'_>);
    /// Kinds of requests, as bits, that no thread has taken.
    fn ready(&self) -> u8;
    /// Kinds that could be begun now.
    fn room(&self, ring: &Ring) -> u8;
    /// A request of this client is done.
    fn done(&mut self, ring: &mut Requests<'_>, done: RingDone);
}

/// The ring, as one client sees it.
pub struct Requests<'a> {
    ring: &'a mut Ring,
    client: u64,
}

/// A client's number is in the upper half of a token.
const CLIENT: u32 = 32;

impl Requests<'_> {
    /// The ring, for its buffers.
    pub fn ring(&mut self) -> &mut Ring {
        self.ring
    }

    /// Begins a request that the client knows by `token`.
    ///
    /// # Errors
    /// The request, if there is no room.
    pub fn begin(&mut self, token: u32, op: RingOp) -> Result<(), RingOp> {
        self.ring.begin(self.client << CLIENT | u64::from(token), op)
    }
}

/// A ring and its clients.
pub struct Reactor<'a> {
    ring: Ring,
    clients: Vec<Box<dyn Client + 'a>>,
}

impl<'a> Reactor<'a> {
    /// A reactor without clients.
    pub fn new(ring: Ring) -> Reactor<'a> {
        Reactor { ring, clients: Vec::new() }
    }

    /// One more client.
    pub fn add(&mut self, client: Box<dyn Client + 'a>) {
        self.clients.push(client);
    }
}

impl Worker for Reactor<'_> {
    fn begin(&mut self) {
        for (number, client) in (0..).zip(&mut self.clients) {
            client.begin(&mut Requests { ring: &mut self.ring, client: number });
        }
    }

    fn ready(&self) -> u8 {
        self.clients.iter().fold(0, |kinds, client| kinds | client.ready())
    }

    fn room(&self) -> u8 {
        self.clients.iter().fold(0, |kinds, client| kinds | client.room(&self.ring)) & KINDS
    }

    fn wait(&mut self, is_up: &dyn Fn()) {
        let Reactor { ring, clients } = self;
        let waited = ring.wait(AT_MOST, |ring, done| {
            is_up();
            let number = done.token >> CLIENT;
            if let Some(client) = usize::try_from(number).ok().and_then(|number| clients.get_mut(number)) {
                let token = done.token & u64::from(u32::MAX);
                client.done(&mut Requests { ring, client: number }, RingDone { token, ..done });
            }
        });
        if let Err(error) = waited {
            // Nothing is lost: requests under way still end, and the next wait sees them.
            tracing::warn!(%error, "io_uring does not wait");
            std::thread::sleep(AT_MOST / 10);
        }
    }
}
