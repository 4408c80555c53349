//! Writes GGUF files, version 3: metadata, then tensors coded and written one at a time, aside and renamed.

use std::{collections::HashSet, io::Write, path::Path};

use super::Block;
use crate::{
    ModelError,
    files::{atomic::write_atomic_with, fault},
};

/// Where tensors begin: on multiples of this, as in files that say nothing else.
const ALIGNMENT: usize = 32;

/// A value of the metadata, of a type of its own: readers look for the right one.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs, reason = "the types of the format")]
pub enum Field {
    U8(u8),
    I8(i8),
    U16(u16),
    I16(i16),
    U32(u32),
    I32(i32),
    F32(f32),
    Bool(bool),
    Text(String),
    /// All of one type; an empty list is one of texts.
    List(Vec<Field>),
    U64(u64),
    I64(i64),
    F64(f64),
    /// The bytes of another file's value, of any type.
    Copied {
        /// The format's number of the type.
        kind: u32,
        /// As they lie there.
        bytes: Vec<u8>,
    },
}

impl From<&str> for Field {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

/// A tensor to write.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// Its name in the file.
    pub name: String,
    /// Slowest axis first, as everywhere here; the file holds it the other way round.
    pub shape: Vec<usize>,
    /// How it is coded: one of the types that [`Block::encode`] makes.
    pub block: Block,
}

/// Writes `metadata` and `tensors` to `path`, whole or not at all. `values` is asked for the numbers of each tensor in turn, so
/// that one of them at a time is in memory.
///
/// Errors name the tensor or the key: a shape that is not whole blocks, another number of values than the shape says, values
/// that the block cannot hold (NaN, infinities, above its range), a name or key given twice, a list of mixed types.
pub fn write(
    path: &Path,
    metadata: &[(String, Field)],
    tensors: &[Plan],
    mut values: impl FnMut(&Plan) -> Result<Vec<f32>, ModelError>,
) -> Result<(), ModelError> {
    let place = path.display().to_string();
    let header = header(&place, metadata, tensors)?;
    write_atomic_with(path, |file| {
        let io = |e| fault::io(path, e);
        file.write_all(&header).map_err(io)?;
        for plan in tensors {
            let bytes = encode(&place, plan, values(plan)?)?;
            file.write_all(&bytes).map_err(io)?;
            file.write_all(&[0; ALIGNMENT][..padding(bytes.len())]).map_err(io)?;
        }
        Ok(())
    })
}

fn padding(len: usize) -> usize {
    len.next_multiple_of(ALIGNMENT) - len
}

fn encode(place: &str, plan: &Plan, values: Vec<f32>) -> Result<Vec<u8>, ModelError> {
    let name = &plan.name;
    let count: usize = plan.shape.iter().product();
    if values.len() != count {
        return Err(fault::invalid(place, format!("values of {name}"), count, values.len()));
    }
    plan.block.encode(&values).ok_or_else(|| {
        let got = match values.iter().find(|value| !value.is_finite()) {
            Some(value) => value.to_string(),
            None => format!("values up to {:e}", values.iter().fold(0.0f32, |most, value| most.max(value.abs()))),
        };
        fault::invalid(place, format!("tensor {name}"), format!("what {} can hold", plan.block.name()), got)
    })
}

fn header(place: &str, metadata: &[(String, Field)], tensors: &[Plan]) -> Result<Vec<u8>, ModelError> {
    let mut out = b"GGUF\x03\0\0\0".to_vec();
    out.extend((tensors.len() as u64).to_le_bytes());
    out.extend((metadata.len() as u64).to_le_bytes());
    let mut seen = HashSet::new();
    for (key, field) in metadata {
        once(place, &mut seen, key)?;
        text(&mut out, key);
        out.extend(field.kind().to_le_bytes());
        field.write(&mut out).map_err(|mixed| fault::invalid(place, key, "a list of one type, not nested", mixed))?;
    }
    seen.clear();
    let mut start = 0;
    for plan in tensors {
        once(place, &mut seen, &plan.name)?;
        let (name, shape) = (&plan.name, &plan.shape);
        let whole = || {
            let expected = format!("rows of whole {} blocks, at most 4 axes", plan.block.name());
            fault::invalid(place, format!("shape of {name}"), expected, format!("{shape:?}"))
        };
        let bytes = plan.block.bytes(shape).filter(|_| shape.len() <= 4).ok_or_else(whole)?;
        text(&mut out, name);
        out.extend((shape.len() as u32).to_le_bytes());
        for size in shape.iter().rev() {
            out.extend((*size as u64).to_le_bytes());
        }
        out.extend(plan.block.number().to_le_bytes());
        out.extend((start as u64).to_le_bytes());
        start += bytes.next_multiple_of(ALIGNMENT);
    }
    out.resize(out.len() + padding(out.len()), 0);
    Ok(out)
}

fn once<'a>(place: &str, seen: &mut HashSet<&'a str>, name: &'a str) -> Result<(), ModelError> {
    if seen.insert(name) { Ok(()) } else { Err(fault::invalid(place, name, "one entry", "two")) }
}

fn text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

impl Field {
    /// The format's number of the type.
    fn kind(&self) -> u32 {
        match self {
            Self::U8(_) => 0,
            Self::I8(_) => 1,
            Self::U16(_) => 2,
            Self::I16(_) => 3,
            Self::U32(_) => 4,
            Self::I32(_) => 5,
            Self::F32(_) => 6,
            Self::Bool(_) => 7,
            Self::Text(_) => 8,
            Self::List(_) => 9,
            Self::U64(_) => 10,
            Self::I64(_) => 11,
            Self::F64(_) => 12,
            Self::Copied { kind, .. } => *kind,
        }
    }

    /// Appends the value; the two types where a list is mixed, or nested.
    fn write(&self, out: &mut Vec<u8>) -> Result<(), String> {
        match self {
            Self::U8(value) => out.push(*value),
            Self::I8(value) => out.push(*value as u8),
            Self::U16(value) => out.extend(value.to_le_bytes()),
            Self::I16(value) => out.extend(value.to_le_bytes()),
            Self::U32(value) => out.extend(value.to_le_bytes()),
            Self::I32(value) => out.extend(value.to_le_bytes()),
            Self::F32(value) => out.extend(value.to_le_bytes()),
            Self::Bool(value) => out.push(u8::from(*value)),
            Self::Text(value) => text(out, value),
            Self::U64(value) => out.extend(value.to_le_bytes()),
            Self::I64(value) => out.extend(value.to_le_bytes()),
            Self::F64(value) => out.extend(value.to_le_bytes()),
            Self::Copied { bytes, .. } => out.extend(bytes),
            Self::List(list) => {
                let kind = list.first().map_or(8, Self::kind);
                if let Some(other) = list.iter().find(|item| item.kind() != kind || kind == 9) {
                    return Err(format!("types {kind} and {}", other.kind()));
                }
                out.extend(kind.to_le_bytes());
                out.extend((list.len() as u64).to_le_bytes());
                for item in list {
                    item.write(out)?;
                }
            }
        }
        Ok(())
    }
}
