//! The model of an object, page by page: the contents that a page may show now, those it showed while a read was under way, and
//! those it will show when the change under way is done.

use overspill_vm::PAGE;

/// Contents of a page.
type Bytes = Box<[u8]>;

/// The outcome of a change, for one of its pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    Done,
    NotDone,
    /// The change was given up at some point.
    Unknown,
}

/// A page in the model.
#[derive(Debug, Clone)]
struct Page {
    /// Contents that it may have. More than one only after a change of unknown outcome.
    possible: Vec<Bytes>,
    /// Contents that it will have when the change under way is done. One change at a time.
    coming: Option<Vec<Bytes>>,
    /// Contents that it had before, and until when: for reads that have begun earlier.
    past: Vec<(u64, Bytes)>,
    /// Damage was seen here, or data was lost: reads may fail until the page is wholly overwritten.
    may_be_lost: bool,
    /// True if the change under way makes it sound again.
    heals: bool,
}

/// The contents of one object.
#[derive(Debug, Clone)]
pub(crate) struct Model {
    pages: Vec<Page>,
}

/// The part of `len` bytes at `at` in each page: the page, the range in the page, and the range in the bytes.
fn parts(
    at: usize,
    len: usize,
) -> impl Iterator<Item = (usize, std::ops::Range<usize>, std::ops::Range<usize>)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        let (page, from) = ((at + done) / PAGE, (at + done) % PAGE);
        let n = (PAGE - from).min(len - done);
        (n > 0).then(|| {
            let part = (page, from..from + n, done..done + n);
            done += n;
            part
        })
    })
}

impl Model {
    pub(crate) fn new(pages: usize) -> Model {
        let page = Page {
            possible: vec![vec![0; PAGE].into()],
            coming: None,
            past: Vec::new(),
            may_be_lost: false,
            heals: false,
        };
        Model { pages: vec![page; pages] }
    }

    /// The model of an object with these bytes, whole pages.
    pub(crate) fn of(bytes: &[u8]) -> Model {
        let mut model = Model::new(bytes.len() / PAGE);
        for (page, bytes) in model.pages.iter_mut().zip(bytes.chunks_exact(PAGE)) {
            page.possible = vec![bytes.into()];
        }
        model
    }

    /// True if a change of these bytes can begin: no other one is at their pages.
    pub(crate) fn is_free(&self, at: usize, len: usize) -> bool {
        parts(at, len).all(|(page, ..)| self.pages[page].coming.is_none())
    }

    /// A write of `data` begins.
    pub(crate) fn begin(&mut self, at: usize, data: &[u8]) {
        for (page, within, from) in parts(at, data.len()) {
            let page = &mut self.pages[page];
            assert!(page.coming.is_none(), "changes of one page come one after the other");
            let mut coming = page.possible.clone();
            coming.iter_mut().for_each(|bytes| bytes[within.clone()].copy_from_slice(&data[from.clone()]));
            coming.dedup();
            page.heals = within.len() == PAGE;
            page.coming = Some(coming);
        }
    }

    /// The change of these bytes has ended at `now`, with `outcome` for each page (given the bytes up to the page's
    /// end).
    pub(crate) fn end(&mut self, at: usize, len: usize, now: u64, outcome: impl Fn(usize) -> Outcome) {
        for (page, _, part) in parts(at, len) {
            let outcome = outcome(part.end);
            let page = &mut self.pages[page];
            let coming = page.coming.take().unwrap_or_default();
            let gone = match outcome {
                Outcome::Done => {
                    page.may_be_lost &= !page.heals;
                    std::mem::replace(&mut page.possible, coming)
                }
                Outcome::NotDone => coming,
                Outcome::Unknown => {
                    page.possible.extend(coming);
                    page.possible.dedup();
                    Vec::new()
                }
            };
            page.past.extend(gone.into_iter().map(|bytes| (now, bytes)));
        }
    }

    /// A change that completes at once.
    pub(crate) fn write(&mut self, at: usize, data: &[u8], now: u64) {
        self.begin(at, data);
        self.end(at, data.len(), now, |_| Outcome::Done);
    }

    /// Reads of these bytes may fail from now on.
    pub(crate) fn doubt(&mut self, at: usize, len: usize) {
        parts(at, len).for_each(|(page, ..)| self.pages[page].may_be_lost = true);
    }

    pub(crate) fn is_in_doubt(&self, at: usize, len: usize) -> bool {
        parts(at, len).any(|(page, ..)| self.pages[page].may_be_lost)
    }

    /// True if the page must exist.
    pub(crate) fn page_has_data(&self, page: usize) -> bool {
        self.pages[page].possible.iter().all(|bytes| bytes.iter().any(|&b| b != 0))
    }

    /// No read is under way: forgets past contents.
    pub(crate) fn forget_past(&mut self) {
        self.pages.iter_mut().for_each(|page| page.past.clear());
    }

    /// Asserts that `read` is a valid result of a read at `at` that began at `since` and ends now: each page as it was
    /// at some time in between, and nothing half done (R28, R67).
    ///
    /// # Panics
    /// When it is not valid.
    pub(crate) fn assert_read(&self, at: usize, read: &[u8], since: u64) {
        for (number, within, from) in parts(at, read.len()) {
            let page = &self.pages[number];
            let past = page.past.iter().filter(|(until, _)| *until >= since).map(|(_, bytes)| bytes);
            let mut all = page.possible.iter().chain(page.coming.iter().flatten()).chain(past);
            assert!(
                all.any(|bytes| bytes[within.clone()] == read[from.clone()]),
                "page {number} holds what was never written there"
            );
        }
    }
}
