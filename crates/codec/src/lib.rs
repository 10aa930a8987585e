//! Clusters: up to 16 pages of a chunk are encoded as one payload, and decoded again.
//!
//! ```text
//!   payload   strip 0 | strip 1 | …                     a strip: 4 pages (Fine) or all 16 (Whole), read on its own
//!   strip     mark | shape (u32) | body                 then zeros up to a multiple of 16 bytes
//!   body      the layout as it is, or compressed by lz4 or zstd as one piece
//!   Layout::Full     page 0 (4096 bytes) | page 1 (4096 bytes) | …
//!   Layout::Listed   n lengths (u16, little endian) | bytes of page 0 | bytes of page 1 | …
//! ```
//!
//! - A reader of one page reads and decodes one strip. Strips of 16 KiB compress a tenth worse than 64 KiB and decode
//!   in a quarter of the time (docs/MEASURED.md).
//! - Short pages take less (R25). Where the list of lengths would cost more than it saves, the pages are laid out full:
//!   a page then comes back 4096 bytes long, zeros behind the bytes that were given. So a page comes back **at least**
//!   as long as it went in, and the rest is zeros.
//! - A compressed body is used only if it saves a sixteenth: less is not worth the time of each read.
//! - [`Encoded`] and the caller's tag, which a reader needs, stay in memory with the caller (R5). A strip's mark
//!   ([`Seal`]) covers the tag, which is never used twice, the strip's number, its shape and its body. So the mark may
//!   lie beside them, and another cluster's bytes, old bytes and rotten bytes are errors, never wrong data.
//! - An [`Encoder`] allocates when it is made and never again: it runs on the pageout path (R35). (zstd, a C library,
//!   may ask malloc for its workspace again; if malloc fails, the strip stays uncompressed.)
#![forbid(unsafe_code)]

mod decode;
mod encode;
mod seal;
mod shape;

pub use decode::{CodecError, decode};
pub use encode::Encoder;
pub use seal::{Bound, Seal};
pub use shape::{Encoded, Grain, MAX_CLUSTER, MAX_PAGES, MAX_PAYLOAD, Method, PAGE, Pages, UNIT};

#[cfg(test)]
mod tests;
