//! How much is read.

/// Sizes beyond which a reader takes nothing, and says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadLimits {
    /// Of a file that is one document, in bytes.
    pub file_bytes: u64,
    /// Of a row of a corpus, in bytes. The file may have any size.
    pub row_bytes: usize,
}

impl Default for ReadLimits {
    fn default() -> Self {
        Self { file_bytes: 64 << 20, row_bytes: 16 << 20 }
    }
}
