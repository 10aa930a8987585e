//! Objects set aside: what a step will need at most, so that it cannot fail halfway (iron rule 1).

use std::ptr::{NonNull, null_mut};

use crate::OutOfMemory;
use crate::raw::Raw;

/// Objects per link of a reserve.
const LINK: usize = 62;

/// `n` objects of a cache, nobody else's until they are taken out or the reserve goes. They are kept outside of
/// themselves: constructed objects stay as they are.
pub struct Reserve<'c> {
    raw: &'c Raw,
    top: *mut Link,
    left: usize,
    /// Links without objects: they go when there is time, or are filled again.
    spare: *mut Link,
}

struct Link {
    next: *mut Link,
    count: usize,
    objects: [*mut u8; LINK],
}

static LINKS: crate::ObjectCache = crate::ObjectCache::lazy(
    crate::Options::new("reserve link", size_of::<Link>()).align(align_of::<Link>()),
);

// SAFETY: the objects and links are the reserve's alone; a cache is Sync.
unsafe impl Send for Reserve<'_> {}

impl std::fmt::Debug for Reserve<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reserve").field("left", &self.left).finish_non_exhaustive()
    }
}

impl<'c> Reserve<'c> {
    pub(crate) fn new(raw: &'c Raw, n: usize) -> Result<Self, OutOfMemory> {
        let mut reserve = Reserve { raw, top: null_mut(), left: 0, spare: null_mut() };
        reserve.fill(n)?;
        Ok(reserve)
    }

    /// How many are left.
    pub fn left(&self) -> usize {
        self.left
    }

    /// Brings it up to `n` again.
    ///
    /// # Errors
    /// When there is no memory; what there was before is still there.
    pub fn fill(&mut self, n: usize) -> Result<(), OutOfMemory> {
        while self.left < n {
            // SAFETY: `top`, where there is one, is ours alone.
            if self.top.is_null() || unsafe { (*self.top).count } == LINK {
                let link = match self.pop_spare() {
                    Some(link) => link.as_ptr(),
                    None => LINKS.alloc()?.cast::<Link>().as_ptr(),
                };
                // SAFETY: ours alone, with room for a link.
                unsafe { link.write(Link { next: self.top, count: 0, objects: [null_mut(); LINK] }) };
                self.top = link;
            }
            let object = self.raw.alloc()?;
            // SAFETY: as above, and it is not full.
            unsafe {
                (*self.top).objects[(*self.top).count] = object.as_ptr();
                (*self.top).count += 1;
            }
            self.left += 1;
        }
        Ok(())
    }

    /// Takes one out; `None` only when all are gone. Allocates nothing and waits for nobody.
    pub fn take(&mut self) -> Option<NonNull<u8>> {
        loop {
            let top = NonNull::new(self.top)?.as_ptr();
            // SAFETY: links are ours alone, and objects below `count` are initialised.
            unsafe {
                if let Some(last) = (*top).count.checked_sub(1) {
                    (*top).count = last;
                    self.left -= 1;
                    return NonNull::new((*top).objects[last]);
                }
                self.top = (*top).next;
                (*top).next = self.spare;
                self.spare = top;
            }
        }
    }
}

impl Reserve<'_> {
    fn pop_spare(&mut self) -> Option<NonNull<Link>> {
        let link = NonNull::new(self.spare)?;
        // SAFETY: spare links are ours alone.
        self.spare = unsafe { (*link.as_ptr()).next };
        Some(link)
    }
}

impl Drop for Reserve<'_> {
    fn drop(&mut self) {
        while let Some(object) = self.take() {
            // SAFETY: allocated from this cache, and handed to nobody.
            unsafe { self.raw.free(object) };
        }
        while let Some(link) = self.pop_spare() {
            // SAFETY: allocated there, and used no more.
            unsafe { LINKS.free(link.cast()) };
        }
    }
}
