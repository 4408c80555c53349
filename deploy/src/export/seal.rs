//! Length and SHA-256 of a file: whether it still is what was written.

use std::{
    fs::File,
    io::{self, Read},
    path::Path,
};

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// A file of an export as it was written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sealed {
    /// Its name in the folder.
    pub name: String,
    /// Its length.
    pub bytes: u64,
    /// Of its content, in hexadecimal digits.
    pub sha256: String,
}

impl Sealed {
    /// The file `name` of `folder` as it is now.
    pub fn of(folder: &Path, name: &str) -> Result<Self> {
        let path = folder.join(name);
        let (bytes, sha256) = read(&path).with_context(|| path.display().to_string())?;
        Ok(Self { name: name.to_owned(), bytes, sha256 })
    }

    /// What has become another since then, in words.
    pub fn fault(&self, folder: &Path) -> Option<String> {
        let name = &self.name;
        match Self::of(folder, name) {
            Err(error) => Some(format!("file {name}: {}", error.root_cause())),
            Ok(now) if now.bytes != self.bytes => {
                Some(format!("file {name}: expected {} bytes, got {}", self.bytes, now.bytes))
            }
            Ok(now) if now.sha256 != self.sha256 => {
                Some(format!("file {name}: expected sha256 {}, got {}", self.sha256, now.sha256))
            }
            Ok(_) => None,
        }
    }
}

fn read(path: &Path) -> io::Result<(u64, String)> {
    let (mut file, mut hash) = (File::open(path)?, Sha256::new());
    let (mut chunk, mut bytes) = (vec![0; 1 << 20], 0);
    loop {
        match file.read(&mut chunk)? {
            0 => break,
            len => {
                hash.update(&chunk[..len]);
                bytes += len as u64;
            }
        }
    }
    Ok((bytes, hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()))
}
