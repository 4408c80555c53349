//! Bodies on the wire: MessagePack with named fields, or JSON where the first byte is `{`.
//!
//! A reply is written in the format of its request, so that any language can join with nothing but JSON.

use serde::{Serialize, de::DeserializeOwned};

/// How a body is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// MessagePack, structs as maps.
    MessagePack,
    /// JSON.
    Json,
}

impl Format {
    /// The format of `body`: MessagePack never starts with `{` here, because 0x7b is a small integer there.
    pub fn of(body: &[u8]) -> Self {
        if body.first() == Some(&b'{') { Format::Json } else { Format::MessagePack }
    }
}

/// A body that cannot be read or written.
#[derive(Debug, thiserror::Error)]
#[error("{what} as {format:?} ({bytes} bytes): {reason}")]
pub struct CodecError {
    /// Name of the type.
    pub what: &'static str,
    /// Format tried.
    pub format: Format,
    /// Length of the body; 0 when writing.
    pub bytes: usize,
    /// What is wrong.
    pub reason: String,
}

/// Writes `value` as MessagePack with named fields.
pub fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, CodecError> {
    rmp_serde::to_vec_named(value).map_err(|e| error::<T>(Format::MessagePack, 0, e))
}

/// Writes `value` as JSON.
pub fn encode_json<T: Serialize>(value: &T) -> Result<Vec<u8>, CodecError> {
    serde_json::to_vec(value).map_err(|e| error::<T>(Format::Json, 0, e))
}

/// Reads `body`, in the format that it is in; bytes after the value are refused.
pub fn decode<T: DeserializeOwned>(body: &[u8]) -> Result<T, CodecError> {
    match Format::of(body) {
        Format::Json => serde_json::from_slice(body).map_err(|e| error::<T>(Format::Json, body.len(), e)),
        Format::MessagePack => {
            let mut reader = body;
            let value =
                rmp_serde::from_read(&mut reader).map_err(|e| error::<T>(Format::MessagePack, body.len(), e))?;
            if reader.is_empty() {
                Ok(value)
            } else {
                let extra = format!("{} bytes after the value", reader.len());
                Err(error::<T>(Format::MessagePack, body.len(), extra))
            }
        }
    }
}

fn error<T>(format: Format, bytes: usize, reason: impl ToString) -> CodecError {
    CodecError { what: std::any::type_name::<T>(), format, bytes, reason: reason.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::search::Search;

    #[test]
    fn both_formats_read_back_and_garbage_is_named() {
        let search = Search { query: "Chad capital".into(), top_k: 3 };
        let packed = encode(&search).unwrap();
        let json = encode_json(&search).unwrap();
        assert_eq!(Format::of(&packed), Format::MessagePack);
        assert_eq!(decode::<Search>(&packed).unwrap(), search);
        assert_eq!(decode::<Search>(&json).unwrap(), search);
        let mut longer = packed.clone();
        longer.push(0);
        assert!(decode::<Search>(&longer).unwrap_err().to_string().contains("1 bytes after"));
        assert!(decode::<Search>(&packed[..4]).unwrap_err().to_string().contains("Search"));
    }
}
