//! Seals: proof that a strip's bytes are the ones that were written.

/// The identity that a strip's mark binds its body to.
#[derive(Debug, Clone, Copy)]
pub struct Bound {
    /// The cluster's tag, never used for another cluster.
    pub tag: u64,
    /// The strip's number in the cluster.
    pub strip: u32,
    /// The strip's shape, as in the header.
    pub shape: u32,
}

impl Bound {
    fn to_bytes(self) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&self.tag.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.strip.to_le_bytes());
        bytes[12..].copy_from_slice(&self.shape.to_le_bytes());
        bytes
    }
}

/// The kind of seal. An authenticating cipher will be a second kind; the checksum finds accidents, not attacks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Seal {
    /// CRC-32.
    #[default]
    Crc,
}

impl Seal {
    /// Bytes of the longest mark.
    pub(crate) const MARK: usize = 4;

    /// Seals `body` in place and writes its mark.
    pub(crate) fn close(self, bound: Bound, body: &mut [u8], mark: &mut [u8; Self::MARK]) {
        match self {
            Seal::Crc => *mark = crc(bound, body).to_le_bytes(),
        }
    }

    /// The body as it was before sealing; `None` when the mark does not match.
    pub(crate) fn open(self, bound: Bound, body: &[u8], mark: [u8; Self::MARK]) -> Option<&[u8]> {
        match self {
            Seal::Crc => (crc(bound, body).to_le_bytes() == mark).then_some(body),
        }
    }
}

fn crc(bound: Bound, body: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&bound.to_bytes());
    hasher.update(body);
    hasher.finalize()
}
