//! Selective acknowledgements, carried as the payload of an ACK packet (specification 02 §15).

/// First four bytes of a block list.
pub const MAGIC: [u8; 4] = *b"SACK";
/// Most blocks in one list.
pub const MAX_BLOCKS: usize = 4;

/// A received range: `left` is its first byte, `right` the first byte behind it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Block {
    /// First sequence number received.
    pub left: u32,
    /// First sequence number not received.
    pub right: u32,
}

/// Up to [`MAX_BLOCKS`] blocks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Blocks {
    blocks: [Block; MAX_BLOCKS],
    len: usize,
}

impl Blocks {
    /// Keeps the first four of `blocks`.
    pub fn from_slice(blocks: &[Block]) -> Self {
        let mut out = Self::default();
        for block in blocks.iter().take(MAX_BLOCKS) {
            out.blocks[out.len] = *block;
            out.len += 1;
        }
        out
    }

    /// The blocks.
    pub fn as_slice(&self) -> &[Block] {
        &self.blocks[..self.len]
    }

    /// Appends the payload; nothing for an empty list.
    pub fn emit(&self, out: &mut Vec<u8>) {
        if self.len == 0 {
            return;
        }
        out.extend_from_slice(&MAGIC);
        out.push(self.len as u8);
        for block in self.as_slice() {
            out.extend_from_slice(&block.left.to_be_bytes());
            out.extend_from_slice(&block.right.to_be_bytes());
        }
    }

    /// Decodes as the official receiver does: trailing bytes are ignored and edges not judged. A sender asks this of
    /// its own data before it leaves, because such data would be taken for a list (02 §27.3).
    pub fn parse_lenient(b: &[u8]) -> Option<Self> {
        if b.len() < 5 || b[..4] != MAGIC {
            return None;
        }
        let len = usize::from(b[4]);
        if !(1..=MAX_BLOCKS).contains(&len) || b.len() < 5 + 8 * len {
            return None;
        }
        let mut out = Self { len, ..Self::default() };
        for (block, c) in out.blocks.iter_mut().zip(b[5..5 + 8 * len].chunks_exact(8)) {
            block.left = u32::from_be_bytes([c[0], c[1], c[2], c[3]]);
            block.right = u32::from_be_bytes([c[4], c[5], c[6], c[7]]);
        }
        Some(out)
    }

    /// Decodes only a payload of exactly the announced length (02 §27.3). The caller also checks that every block lies
    /// within what it has sent; otherwise the payload is user data.
    pub fn parse_exact(b: &[u8]) -> Option<Self> {
        Self::parse_lenient(b).filter(|blocks| b.len() == 5 + 8 * blocks.len)
    }
}
