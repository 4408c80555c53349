//! Bytes of a file or of memory, read at positions.
//!
//! Files are read, not mapped: a mapped file that shrinks kills the process, and a read that fails is an error with a name.

use std::{fmt, fs::File, path::Path};

use super::fault;
use crate::ModelError;

/// Where the bytes come from.
pub(crate) struct Bytes {
    /// Path of the file, or a name for people.
    pub(crate) name: String,
    /// Number of bytes when it was opened.
    pub(crate) len: u64,
    store: Store,
}

/// Bytes in memory, whoever holds them.
type Held = Box<dyn AsRef<[u8]> + Send + Sync>;

enum Store {
    File(File),
    Memory(Held),
}

impl fmt::Debug for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bytes").field("name", &self.name).field("len", &self.len).finish_non_exhaustive()
    }
}

impl Bytes {
    /// Opens a file, through links too: the shared cache of Hugging Face is made of them. Anything else than a file is refused
    /// before it is opened, since a pipe would wait for its other end.
    pub(crate) fn open(path: &Path) -> Result<Self, ModelError> {
        let kind = std::fs::metadata(path).map_err(|e| fault::io(path, e))?;
        if !kind.is_file() {
            let got = if kind.is_dir() { "a folder" } else { "a pipe, a socket or a device" };
            return Err(fault::invalid(path.display(), "path", "a file", got));
        }
        let file = File::open(path).map_err(|e| fault::io(path, e))?;
        let len = file.metadata().map_err(|e| fault::io(path, e))?.len();
        Ok(Self { name: path.display().to_string(), len, store: Store::File(file) })
    }

    pub(crate) fn memory(name: &str, bytes: impl AsRef<[u8]> + Send + Sync + 'static) -> Self {
        Self { name: name.into(), len: bytes.as_ref().len() as u64, store: Store::Memory(Box::new(bytes)) }
    }

    /// Reads `len` bytes from `offset`; refuses a range outside the file before it allocates.
    pub(crate) fn read_at(&self, offset: u64, len: usize) -> Result<Vec<u8>, ModelError> {
        let end = offset.checked_add(len as u64).filter(|end| *end <= self.len);
        if end.is_none() {
            let got = format!("{len} bytes at {offset}");
            return Err(fault::invalid(&self.name, "range", format!("at most {} bytes", self.len), got));
        }
        match &self.store {
            Store::Memory(bytes) => Ok((**bytes).as_ref()[offset as usize..offset as usize + len].to_vec()),
            Store::File(file) => {
                let mut buffer = vec![0; len];
                read_exact_at(file, &mut buffer, offset).map_err(|e| fault::io(&self.name, e))?;
                Ok(buffer)
            }
        }
    }
}

#[cfg(unix)]
fn read_exact_at(file: &File, buffer: &mut [u8], offset: u64) -> std::io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, buffer, offset)
}

#[cfg(windows)]
fn read_exact_at(file: &File, mut buffer: &mut [u8], mut offset: u64) -> std::io::Result<()> {
    while !buffer.is_empty() {
        let count = std::os::windows::fs::FileExt::seek_read(file, buffer, offset)?;
        if count == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        buffer = &mut buffer[count..];
        offset += count as u64;
    }
    Ok(())
}

/// Reads a small text file whole; refuses more than `limit` bytes.
pub(crate) fn read_text(path: &Path, limit: u64) -> Result<String, ModelError> {
    let bytes = Bytes::open(path)?;
    if bytes.len > limit {
        return Err(fault::invalid(&bytes.name, "size", format!("at most {limit} bytes"), bytes.len));
    }
    let content = bytes.read_at(0, bytes.len as usize)?;
    String::from_utf8(content).map_err(|e| fault::invalid(&bytes.name, "content", "UTF-8 text", e))
}

/// Like [`read_text`], none if there is no such file.
pub(crate) fn read_text_if_there(path: &Path, limit: u64) -> Result<Option<String>, ModelError> {
    if path.exists() { read_text(path, limit).map(Some) } else { Ok(None) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_outside_are_refused_from_both_stores() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x");
        std::fs::write(&path, b"abcdef").unwrap();
        let memory = Bytes::memory("x", b"abcdef");
        for bytes in [Bytes::open(&path).unwrap(), memory] {
            assert_eq!(bytes.read_at(2, 3).unwrap(), b"cde");
            assert_eq!(bytes.read_at(6, 0).unwrap(), b"");
            assert!(bytes.read_at(4, 3).is_err());
            assert!(bytes.read_at(u64::MAX, 2).is_err());
        }
    }
}
