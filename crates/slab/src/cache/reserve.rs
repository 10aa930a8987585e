//! Reserves: objects set aside for the most that a step will need, so that it cannot fail halfway (iron rule 1).

use std::ptr::{NonNull, null_mut};

use super::layers::Layers;
use super::life::Lazy;
use crate::OutOfMemory;
use crate::options::Options;

/// Objects per link of a reserve.
const LINK: usize = 62;

/// Objects of a cache, set aside until they are taken or the reserve is dropped. The list of them lies outside the
/// objects: constructed objects stay as they are.
pub struct Reserve<'c> {
    layers: &'c Layers,
    top: *mut Link,
    left: usize,
    /// Links without objects. `fill` uses them again; drop frees them.
    spare: *mut Link,
}

struct Link {
    next: *mut Link,
    count: usize,
    objects: [*mut u8; LINK],
}

static LINKS: Lazy = Lazy::new(Options::new("reserve link", size_of::<Link>()));
const _: () = assert!(align_of::<Link>() == 8);

// SAFETY: only the reserve has its objects and links; a cache is Sync.
unsafe impl Send for Reserve<'_> {}

impl std::fmt::Debug for Reserve<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reserve").field("left", &self.left).finish_non_exhaustive()
    }
}

impl<'c> Reserve<'c> {
    pub(crate) fn new(layers: &'c Layers, n: usize) -> Result<Self, OutOfMemory> {
        let mut reserve = Reserve { layers, top: null_mut(), left: 0, spare: null_mut() };
        reserve.fill(n)?;
        Ok(reserve)
    }

    /// The number of objects left.
    pub fn left(&self) -> usize {
        self.left
    }

    /// Refills the reserve to `n` objects.
    ///
    /// # Errors
    /// When there is no memory; objects already in the reserve stay.
    pub fn fill(&mut self, n: usize) -> Result<(), OutOfMemory> {
        while self.left < n {
            // SAFETY: `top`, if not null, is a link of ours alone.
            if self.top.is_null() || unsafe { (*self.top).count } == LINK {
                let link = match self.pop_spare() {
                    Some(link) => link.as_ptr(),
                    None => LINKS.layers()?.alloc()?.cast::<Link>().as_ptr(),
                };
                // SAFETY: the link is ours alone.
                unsafe { link.write(Link { next: self.top, count: 0, objects: [null_mut(); LINK] }) };
                self.top = link;
            }
            let object = self.layers.alloc()?;
            // SAFETY: as above, and the link is not full.
            unsafe {
                (*self.top).objects[(*self.top).count] = object.as_ptr();
                (*self.top).count += 1;
            }
            self.left += 1;
        }
        Ok(())
    }

    /// Takes an object out; `None` only if the reserve is empty. Never allocates or waits.
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
            // SAFETY: allocated from this cache, and given to nobody else.
            unsafe { self.layers.free(object) };
        }
        while let Some(link) = self.pop_spare() {
            if let Ok(links) = LINKS.layers() {
                // SAFETY: allocated from `LINKS`, and used no more.
                unsafe { links.free(link.cast()) };
            }
        }
    }
}
