//! How rows of the record are written: a schema byte, eight bytes of SHA-256, then bincode.
//!
//! This is the one module that names bincode. It is pinned at 2.0.1 because its authors have stopped; the format is frozen,
//! compact and not self-describing, hence the schema byte. The checksum is ours because the database checks its pages only
//! when it is opened: a bit that flips later must not become a token.

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::DeserializeOwned, de::Error as _, ser::Error as _};
use sha2::{Digest, Sha256};

/// Version of the stored forms in [`super::rows`]; raised with every change to them.
pub const SCHEMA: u8 = 6;

const CHECKSUM: usize = 8;
const HEADER: usize = 1 + CHECKSUM;
/// No row is longer; a damaged length must not become an allocation.
const ROW_BYTES_MAX: usize = 1 << 30;

/// Why a row cannot be read or written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RowError {
    /// Another version wrote it.
    #[error("written with schema {found}, this program reads schema {SCHEMA}")]
    Schema {
        /// The version found.
        found: u8,
    },
    /// The bytes are not what was written.
    #[error("damaged: {0}")]
    Damaged(String),
    /// The value cannot be written.
    #[error("cannot be written: {0}")]
    Unwritable(String),
}

fn config() -> impl bincode::config::Config {
    bincode::config::standard().with_limit::<ROW_BYTES_MAX>()
}

fn checksum(payload: &[u8]) -> [u8; CHECKSUM] {
    let mut sum = [0; CHECKSUM];
    sum.copy_from_slice(&Sha256::digest(payload)[..CHECKSUM]);
    sum
}

/// Writes `value`.
pub fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, RowError> {
    let payload = bincode::serde::encode_to_vec(value, config()).map_err(|e| RowError::Unwritable(e.to_string()))?;
    let mut row = Vec::with_capacity(HEADER + payload.len());
    row.push(SCHEMA);
    row.extend(checksum(&payload));
    row.extend(payload);
    Ok(row)
}

/// Reads what [`encode`] wrote; anything else is an error, never a value.
pub fn decode<T: DeserializeOwned>(row: &[u8]) -> Result<T, RowError> {
    let damaged = |what: String| RowError::Damaged(what);
    if row.len() < HEADER {
        return Err(damaged(format!("{} bytes, expected at least {HEADER}", row.len())));
    }
    let (header, payload) = row.split_at(HEADER);
    if header[1..] != checksum(payload) {
        return Err(damaged(format!("the checksum over {} bytes does not match", payload.len())));
    }
    if header[0] != SCHEMA {
        return Err(RowError::Schema { found: header[0] });
    }
    let (value, read) = bincode::serde::decode_from_slice(payload, config()).map_err(|e| damaged(e.to_string()))?;
    if read == payload.len() {
        Ok(value)
    } else {
        Err(damaged(format!("{} bytes after the value", payload.len() - read)))
    }
}

/// Serde adapter for values that need a self-describing format (free columns, tagged enums): JSON text inside the row.
pub mod as_json {
    use super::*;

    /// Writes `value` as a JSON string.
    pub fn serialize<T: Serialize, S: Serializer>(value: &T, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&serde_json::to_string(value).map_err(S::Error::custom)?)
    }

    /// Reads a JSON string.
    pub fn deserialize<'de, T: DeserializeOwned, D: Deserializer<'de>>(deserializer: D) -> Result<T, D::Error> {
        let text = String::deserialize(deserializer)?;
        serde_json::from_str(&text).map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_flipped_bit_and_every_cut_is_noticed() {
        let value = (7u64, vec![1.5f64, -2.0], "text".to_owned());
        let row = encode(&value).unwrap();
        assert_eq!(decode::<(u64, Vec<f64>, String)>(&row).unwrap(), value);
        for bit in 8..row.len() * 8 {
            let mut bad = row.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(decode::<(u64, Vec<f64>, String)>(&bad).is_err(), "bit {bit} was not noticed");
        }
        for len in 0..row.len() {
            assert!(decode::<(u64, Vec<f64>, String)>(&row[..len]).is_err());
        }
    }

    #[test]
    fn another_schema_is_named() {
        let mut row = encode(&1u64).unwrap();
        row[0] = 9;
        assert_eq!(decode::<u64>(&row), Err(RowError::Schema { found: 9 }));
    }
}
