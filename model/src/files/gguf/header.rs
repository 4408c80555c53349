//! The header of a GGUF file: metadata and the places of tensors.
//!
//! Read here rather than by candle, whose reader divides by a zero alignment, takes overlapping tensors and cannot name a
//! block type that it does not know. Every count is checked against the bytes that are left before anything is allocated.
//! Format: the GGUF specification of ggml, versions 2 and 3, little-endian.

use std::{collections::BTreeMap, ops::Range};

use crate::{
    ModelError,
    files::{bytes::Bytes, fault},
};

const CHUNK: usize = 1 << 18;
const ENTRIES: u64 = 1 << 16;
const DEPTH: usize = 4;

/// A value of the metadata.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Value {
    Unsigned(u64),
    Signed(i64),
    Float(f64),
    Bool(bool),
    Text(String),
    Texts(Vec<String>),
    Integers(Vec<i64>),
    Floats(Vec<f32>),
    /// An array of arrays or of booleans, skipped: no key that we read holds one.
    Skipped,
}

/// Where a tensor lies and how it is coded.
#[derive(Clone, Debug)]
pub(crate) struct TensorInfo {
    /// Slowest axis first.
    pub(crate) shape: Vec<usize>,
    /// Number of the block type.
    pub(crate) kind: u32,
    /// From the beginning of the file.
    pub(crate) start: u64,
}

/// The header.
#[derive(Debug, Default)]
pub(crate) struct Header {
    pub(crate) metadata: BTreeMap<String, Value>,
    /// Number of the type of each entry of the metadata, and where the value lies in the file.
    pub(crate) places: BTreeMap<String, (u32, Range<u64>)>,
    pub(crate) tensors: BTreeMap<String, TensorInfo>,
    /// What the keys of an error belong to.
    pub(crate) place: String,
}

impl Header {
    pub(crate) fn read(bytes: &Bytes) -> Result<Self, ModelError> {
        let mut cursor = Cursor { bytes, position: 0, buffer: Vec::new(), used: 0 };
        let version = cursor.magic_and_version()?;
        if !(2..=3).contains(&version) {
            let hint = if version > 0xffff { "it is big-endian" } else { "versions 2 and 3 are" };
            return Err(fault::unsupported(&bytes.name, format!("GGUF version {version}"), hint));
        }
        let tensor_count = cursor.count("number of tensors", 24, ENTRIES)?;
        let entry_count = cursor.count("number of metadata entries", 13, ENTRIES)?;
        let (mut metadata, mut places) = (BTreeMap::new(), BTreeMap::new());
        for _ in 0..entry_count {
            let key = cursor.text("key of the metadata")?;
            let (kind, start) = (cursor.u32()?, cursor.position);
            let value = cursor.value(&key, kind, 0)?;
            places.insert(key.clone(), (kind, start..cursor.position));
            if metadata.insert(key.clone(), value).is_some() {
                return Err(fault::invalid(&bytes.name, key, "one entry", "two"));
            }
        }
        let mut header = Self { metadata, places, tensors: BTreeMap::new(), place: bytes.name.clone() };
        for _ in 0..tensor_count {
            let name = cursor.text("name of a tensor")?;
            let info = cursor.tensor(&name)?;
            if header.tensors.insert(name.clone(), info).is_some() {
                return Err(fault::invalid(&bytes.name, format!("tensor {name}"), "one entry", "two"));
            }
        }
        let alignment = header.unsigned("general.alignment")?.unwrap_or(32);
        if alignment == 0 || alignment > 1 << 20 {
            return Err(fault::invalid(&bytes.name, "general.alignment", "1 to 1048576", alignment));
        }
        let data_start = cursor.position.next_multiple_of(alignment);
        for (name, info) in &mut header.tensors {
            let start = info.start.checked_add(data_start).filter(|start| *start <= bytes.len);
            let wrong = || fault::invalid(&bytes.name, format!("offset of {name}"), "a place in the file", info.start);
            info.start = start.ok_or_else(wrong)?;
        }
        Ok(header)
    }

    fn wrong(&self, key: &str, expected: &str) -> ModelError {
        let mut got = format!("{:?}", self.metadata.get(key));
        got.truncate(got.floor_char_boundary(200));
        fault::invalid(&self.place, key, expected, got)
    }

    pub(crate) fn unsigned(&self, key: &str) -> Result<Option<u64>, ModelError> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(Value::Unsigned(value)) => Ok(Some(*value)),
            Some(Value::Signed(value)) if *value >= 0 => Ok(Some(*value as u64)),
            Some(_) => Err(self.wrong(key, "a whole number of 0 or more")),
        }
    }

    pub(crate) fn float(&self, key: &str) -> Result<Option<f64>, ModelError> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(Value::Float(value)) => Ok(Some(*value)),
            Some(_) => Err(self.wrong(key, "a number")),
        }
    }

    pub(crate) fn flag(&self, key: &str) -> Result<Option<bool>, ModelError> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(Value::Bool(value)) => Ok(Some(*value)),
            Some(_) => Err(self.wrong(key, "true or false")),
        }
    }

    pub(crate) fn text(&self, key: &str) -> Result<Option<&str>, ModelError> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(Value::Text(value)) => Ok(Some(value)),
            Some(_) => Err(self.wrong(key, "a text")),
        }
    }

    pub(crate) fn texts(&self, key: &str) -> Result<Option<&[String]>, ModelError> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(Value::Texts(list)) => Ok(Some(list)),
            Some(_) => Err(self.wrong(key, "a list of texts")),
        }
    }

    pub(crate) fn integers(&self, key: &str) -> Result<Option<&[i64]>, ModelError> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(Value::Integers(list)) => Ok(Some(list)),
            Some(_) => Err(self.wrong(key, "a list of whole numbers")),
        }
    }

    pub(crate) fn floats(&self, key: &str) -> Result<Option<&[f32]>, ModelError> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(Value::Floats(list)) => Ok(Some(list)),
            Some(_) => Err(self.wrong(key, "a list of numbers")),
        }
    }
}

/// Reads forward through the file, a chunk at a time.
struct Cursor<'a> {
    bytes: &'a Bytes,
    position: u64,
    buffer: Vec<u8>,
    used: usize,
}

impl Cursor<'_> {
    fn left(&self) -> u64 {
        self.bytes.len - self.position
    }

    fn take(&mut self, len: usize) -> Result<Vec<u8>, ModelError> {
        if len as u64 > self.left() {
            let expected = format!("{len} more bytes at {}", self.position);
            return Err(fault::invalid(&self.bytes.name, "end of the file", expected, self.left()));
        }
        if self.buffer.len() - self.used < len {
            let chunk = (CHUNK.max(len) as u64).min(self.left());
            self.buffer = self.bytes.read_at(self.position, chunk as usize)?;
            self.used = 0;
        }
        let taken = self.buffer[self.used..self.used + len].to_vec();
        self.used += len;
        self.position += len as u64;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], ModelError> {
        let mut out = [0; N];
        out.copy_from_slice(&self.take(N)?);
        Ok(out)
    }

    fn u32(&mut self) -> Result<u32, ModelError> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, ModelError> {
        self.array().map(u64::from_le_bytes)
    }

    fn magic_and_version(&mut self) -> Result<u32, ModelError> {
        let magic: [u8; 4] = self.array()?;
        if &magic != b"GGUF" {
            return Err(fault::invalid(&self.bytes.name, "first bytes", "GGUF", format!("{magic:02x?}")));
        }
        self.u32()
    }

    /// A count of things that take at least `least` bytes each.
    fn count(&mut self, what: &str, least: u64, most: u64) -> Result<usize, ModelError> {
        let count = self.u64()?;
        let most = most.min(self.left() / least);
        if count > most {
            return Err(fault::invalid(&self.bytes.name, what, format!("at most {most}"), count));
        }
        Ok(count as usize)
    }

    fn text(&mut self, what: &str) -> Result<String, ModelError> {
        let len = self.count(&format!("length of {what}"), 1, 1 << 26)?;
        let bytes = self.take(len)?;
        String::from_utf8(bytes).map_err(|e| fault::invalid(&self.bytes.name, what, "UTF-8 text", e))
    }

    fn number(&mut self, key: &str, kind: u32) -> Result<Value, ModelError> {
        Ok(match kind {
            0 => Value::Unsigned(self.array::<1>()?[0].into()),
            1 => Value::Signed(i8::from_le_bytes(self.array()?).into()),
            2 => Value::Unsigned(u16::from_le_bytes(self.array()?).into()),
            3 => Value::Signed(i16::from_le_bytes(self.array()?).into()),
            4 => Value::Unsigned(self.u32()?.into()),
            5 => Value::Signed(i32::from_le_bytes(self.array()?).into()),
            6 => Value::Float(f32::from_le_bytes(self.array()?).into()),
            7 => Value::Bool(self.array::<1>()?[0] != 0),
            10 => Value::Unsigned(self.u64()?),
            11 => Value::Signed(i64::from_le_bytes(self.array()?)),
            12 => Value::Float(f64::from_le_bytes(self.array()?)),
            _ => return Err(fault::invalid(&self.bytes.name, format!("type of {key}"), "0 to 12", kind)),
        })
    }

    fn value(&mut self, key: &str, kind: u32, depth: usize) -> Result<Value, ModelError> {
        match kind {
            8 => self.text(key).map(Value::Text),
            9 if depth < DEPTH => self.list(key, depth),
            9 => Err(fault::invalid(&self.bytes.name, key, format!("lists nested at most {DEPTH} deep"), "more")),
            _ => self.number(key, kind),
        }
    }

    fn list(&mut self, key: &str, depth: usize) -> Result<Value, ModelError> {
        let kind = self.u32()?;
        let least = match kind {
            0 | 1 | 7 => 1,
            2 | 3 => 2,
            4..=6 => 4,
            9 => 12,
            _ => 8,
        };
        let count = self.count(&format!("length of {key}"), least, 1 << 24)?;
        match kind {
            8 => (0..count).map(|_| self.text(key)).collect::<Result<_, _>>().map(Value::Texts),
            6 | 12 => {
                let mut list = Vec::with_capacity(count);
                for _ in 0..count {
                    if let Value::Float(value) = self.number(key, kind)? {
                        list.push(value as f32);
                    }
                }
                Ok(Value::Floats(list))
            }
            7 | 9 => {
                for _ in 0..count {
                    self.value(key, kind, depth + 1)?;
                }
                Ok(Value::Skipped)
            }
            _ => {
                let mut list = Vec::with_capacity(count);
                for _ in 0..count {
                    match self.number(key, kind)? {
                        Value::Signed(value) => list.push(value),
                        Value::Unsigned(value) => list.push(i64::try_from(value).unwrap_or(i64::MAX)),
                        _ => {
                            return Err(fault::invalid(&self.bytes.name, key, "whole numbers", format!("type {kind}")));
                        }
                    }
                }
                Ok(Value::Integers(list))
            }
        }
    }

    fn tensor(&mut self, name: &str) -> Result<TensorInfo, ModelError> {
        let axes = self.u32()?;
        if axes > 4 {
            return Err(fault::invalid(&self.bytes.name, format!("axes of {name}"), "at most 4", axes));
        }
        let mut shape = Vec::with_capacity(axes as usize);
        for _ in 0..axes {
            let size = self.u64()?;
            let wrong = || fault::invalid(&self.bytes.name, format!("shape of {name}"), "sizes below 2^40", size);
            shape.push(usize::try_from(size).ok().filter(|s| *s < 1 << 40).ok_or_else(wrong)?);
        }
        shape.reverse();
        Ok(TensorInfo { shape, kind: self.u32()?, start: self.u64()? })
    }
}
