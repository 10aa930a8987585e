//! Intrusive lists: they allocate nothing, and a member leaves the middle in constant time.

use std::marker::PhantomData;
use std::ptr::NonNull;

/// The links that a member carries for one list.
pub(crate) struct Links<T> {
    prev: Option<NonNull<T>>,
    next: Option<NonNull<T>>,
}

impl<T> Links<T> {
    pub(crate) const fn new() -> Self {
        Links { prev: None, next: None }
    }
}

/// Selects the links of a member through which a list runs.
///
/// # Safety
/// `links` must return the same place inside `*at` each time.
pub(crate) unsafe trait Linked<T> {
    fn links(at: NonNull<T>) -> *mut Links<T>;
}

/// A doubly linked list. The list's lock also guards its members; each is on at most one list per `Links`.
pub(crate) struct List<T, L> {
    head: Option<NonNull<T>>,
    tail: Option<NonNull<T>>,
    len: usize,
    through: PhantomData<L>,
}

// SAFETY: a list is pointers to members, which move between threads only with the lock around the list.
unsafe impl<T, L> Send for List<T, L> {}

impl<T, L: Linked<T>> List<T, L> {
    pub(crate) const fn new() -> Self {
        List { head: None, tail: None, len: 0, through: PhantomData }
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn head(&self) -> Option<NonNull<T>> {
        self.head
    }

    /// # Safety
    /// `at` is a member of this list.
    pub(crate) unsafe fn next(&self, at: NonNull<T>) -> Option<NonNull<T>> {
        // SAFETY: members are alive while they are listed.
        unsafe { (*L::links(at)).next }
    }

    /// # Safety
    /// `at` lives until it is taken out, and is on no list through these links.
    pub(crate) unsafe fn push_front(&mut self, at: NonNull<T>) {
        let old = self.head.replace(at);
        // SAFETY: `at` by contract, the old head because it is listed.
        unsafe {
            *L::links(at) = Links { prev: None, next: old };
            match old {
                Some(old) => (*L::links(old)).prev = Some(at),
                None => self.tail = Some(at),
            }
        }
        self.len += 1;
    }

    /// # Safety
    /// As for [`List::push_front`].
    pub(crate) unsafe fn push_back(&mut self, at: NonNull<T>) {
        let old = self.tail.replace(at);
        // SAFETY: `at` by contract, the old tail because it is listed.
        unsafe {
            *L::links(at) = Links { prev: old, next: None };
            match old {
                Some(old) => (*L::links(old)).next = Some(at),
                None => self.head = Some(at),
            }
        }
        self.len += 1;
    }

    /// # Safety
    /// `at` is a member of this list.
    pub(crate) unsafe fn remove(&mut self, at: NonNull<T>) {
        // SAFETY: `at` and its neighbours are members.
        unsafe {
            let Links { prev, next } = std::mem::replace(&mut *L::links(at), Links::new());
            match prev {
                Some(prev) => (*L::links(prev)).next = next,
                None => self.head = next,
            }
            match next {
                Some(next) => (*L::links(next)).prev = prev,
                None => self.tail = prev,
            }
        }
        self.len -= 1;
    }

    pub(crate) fn pop_front(&mut self) -> Option<NonNull<T>> {
        let head = self.head?;
        // SAFETY: the head is a member.
        unsafe { self.remove(head) };
        Some(head)
    }

    /// Takes every member, in constant time.
    pub(crate) fn take(&mut self) -> Self {
        std::mem::replace(self, Self::new())
    }
}
