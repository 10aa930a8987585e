//! What an object should hold.

use overspill_vm::PAGE;

/// A page as the model knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Page {
    /// Its bytes; all zeros for absent.
    bytes: Box<[u8]>,
    /// Damage was seen here, or data was given up: reads may fail until it is wholly overwritten.
    may_be_lost: bool,
}

/// The contents of one object, page by page.
#[derive(Debug, Clone)]
pub(crate) struct Model {
    pages: Vec<Page>,
}

impl Model {
    pub(crate) fn new(pages: usize) -> Model {
        Model { pages: vec![Page { bytes: vec![0; PAGE].into(), may_be_lost: false }; pages] }
    }

    /// Writes; pages overwritten as a whole are sound again.
    pub(crate) fn write(&mut self, at: usize, data: &[u8]) {
        let mut done = 0;
        while done < data.len() {
            let (page, from) = ((at + done) / PAGE, (at + done) % PAGE);
            let n = (PAGE - from).min(data.len() - done);
            self.pages[page].bytes[from..from + n].copy_from_slice(&data[done..done + n]);
            self.pages[page].may_be_lost &= n < PAGE;
            done += n;
        }
    }

    /// Bytes become zeros; whole pages are sound again.
    pub(crate) fn zero(&mut self, at: usize, len: usize) {
        self.write(at, &vec![0; len]);
    }

    /// Reads of these bytes may fail from now on.
    pub(crate) fn doubt(&mut self, at: usize, len: usize) {
        for page in &mut self.pages[at / PAGE..(at + len).div_ceil(PAGE)] {
            page.may_be_lost = true;
        }
    }

    pub(crate) fn is_in_doubt(&self, at: usize, len: usize) -> bool {
        self.pages[at / PAGE..(at + len).div_ceil(PAGE)].iter().any(|page| page.may_be_lost)
    }

    pub(crate) fn page_has_data(&self, page: usize) -> bool {
        self.pages[page].bytes.iter().any(|&b| b != 0)
    }

    /// Whether the page at `at` holds `bytes`, all of them in that page.
    fn shows(&self, at: usize, bytes: &[u8]) -> bool {
        let (page, from) = (at / PAGE, at % PAGE);
        &self.pages[page].bytes[from..from + bytes.len()] == bytes
    }
}

/// Asserts that `read` is what a read at `at` may see while a change is perhaps under way: each page as one of
/// `states` has it, none in between (R28, R67).
///
/// # Panics
/// When it is not.
pub(crate) fn assert_read(states: &[&Model], at: usize, read: &[u8]) {
    let mut done = 0;
    while done < read.len() {
        let n = (PAGE - (at + done) % PAGE).min(read.len() - done);
        let got = &read[done..done + n];
        assert!(
            states.iter().any(|state| state.shows(at + done, got)),
            "page {} holds what was never written there",
            (at + done) / PAGE
        );
        done += n;
    }
}
