//! Safetensors files: a checked header, tensors read one at a time; and writing, aside and renamed.
//!
//! The header of a stranger's file is checked before anything is allocated for it: its length against the file's and a
//! limit, then (by the `safetensors` crate) shapes against offsets, no gaps, no overlaps, and here the end of the data
//! against the end of the file.

use std::{
    borrow::Cow,
    collections::{BTreeMap, HashSet},
    fmt,
    io::Write as _,
    path::Path,
};

use half::{bf16, f16};
use safetensors::tensor::{Dtype, Metadata};
use serde::{
    Deserialize, Deserializer,
    de::{IgnoredAny, MapAccess, Visitor},
};
use serde_json::{Map, Value, json};

use super::{atomic::write_atomic_with, bytes::Bytes, fault, fingerprint::Part};
use crate::{Footprint, HostData, HostTensor, ModelError, TensorSource, Tensors};

/// How much header a reader takes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    header_bytes: u64,
    tensors: usize,
}

impl Limits {
    /// For a model's weights, the limit of the format itself.
    pub(crate) const WEIGHTS: Self = Self { header_bytes: 100_000_000, tensors: 1_000_000 };
    /// For an adapter, which may come from a peer.
    pub(crate) const ADAPTER: Self = Self { header_bytes: 1 << 20, tensors: 4096 };
}

/// An open file.
#[derive(Debug)]
pub(crate) struct SafetensorsFile {
    bytes: Bytes,
    header: Metadata,
    data_start: u64,
}

impl SafetensorsFile {
    pub(crate) fn open(path: &Path, limits: Limits) -> Result<Self, ModelError> {
        Self::new(Bytes::open(path)?, limits)
    }

    pub(crate) fn memory(
        name: &str,
        bytes: impl AsRef<[u8]> + Send + Sync + 'static,
        limits: Limits,
    ) -> Result<Self, ModelError> {
        Self::new(Bytes::memory(name, bytes), limits)
    }

    fn new(bytes: Bytes, limits: Limits) -> Result<Self, ModelError> {
        let place = bytes.name.clone();
        if bytes.len < 8 {
            return Err(fault::invalid(place, "size", "a safetensors file of at least 8 bytes", bytes.len));
        }
        let mut length = [0; 8];
        length.copy_from_slice(&bytes.read_at(0, 8)?);
        let length = u64::from_le_bytes(length);
        let most = limits.header_bytes.min(bytes.len - 8);
        if length > most {
            return Err(fault::invalid(place, "length of the header", format!("at most {most} bytes"), length));
        }
        let text = bytes.read_at(8, length as usize)?;
        if let Some(name) = named_twice(&text) {
            return Err(fault::invalid(place, format!("tensor {name}"), "one entry", "two"));
        }
        let header: Metadata = serde_json::from_slice(&text)
            .map_err(|e| fault::invalid(&place, "header", "a valid safetensors header", e))?;
        let count = header.offset_keys().len();
        if count > limits.tensors {
            return Err(fault::invalid(place, "number of tensors", format!("at most {}", limits.tensors), count));
        }
        let data_start = 8 + length;
        let data_len = header.data_len() as u64;
        if data_len != bytes.len - data_start {
            let got = bytes.len - data_start;
            return Err(fault::invalid(place, "bytes of data", format!("{data_len}, as the header says"), got));
        }
        Ok(Self { bytes, header, data_start })
    }

    /// Path or name.
    pub(crate) fn name(&self) -> &str {
        &self.bytes.name
    }

    /// The free texts of the header.
    pub(crate) fn metadata(&self, key: &str) -> Option<&str> {
        self.header.metadata().as_ref()?.get(key).map(String::as_str)
    }

    /// Reads every tensor.
    pub(crate) fn read_all(&self) -> Result<Tensors, ModelError> {
        self.names().into_iter().map(|name| self.tensor(&name).map(|tensor| (name, tensor))).collect()
    }

    /// The bytes of a tensor, whatever its type.
    pub(crate) fn raw(&self, name: &str) -> Result<Vec<u8>, ModelError> {
        let info = self.header.info(name).ok_or_else(|| fault::missing(self.name(), format!("tensor {name}")))?;
        let (start, end) = info.data_offsets;
        self.bytes.read_at(self.data_start + start as u64, end - start)
    }

    /// What identifies the tensor `name`.
    pub(crate) fn part(&self, name: &str) -> Option<Part<'_>> {
        let info = self.header.info(name)?;
        let (start, end) = info.data_offsets;
        let kind = format!("{:?}", info.dtype);
        Some(Part {
            kind,
            shape: info.shape.clone(),
            bytes: &self.bytes,
            start: self.data_start + start as u64,
            len: end - start,
        })
    }
}

impl SafetensorsFile {
    /// Reads one tensor; codes are taken only where `codes` says so.
    fn read(&self, name: &str, codes: bool) -> Result<HostTensor, ModelError> {
        let info = self.header.info(name).ok_or_else(|| fault::missing(self.name(), format!("tensor {name}")))?;
        let data = |read: Vec<u8>| match info.dtype {
            Dtype::F32 => Some(HostData::F32(le_chunks(&read, f32::from_le_bytes))),
            Dtype::BF16 => Some(HostData::Bf16(le_chunks(&read, u16::from_le_bytes))),
            Dtype::F16 => Some(HostData::F32(le_chunks(&read, |b| f16::from_le_bytes(b).to_f32()))),
            Dtype::U8 if codes => Some(HostData::U8(read)),
            _ => None,
        };
        let read = self.raw(name)?;
        let refused = || {
            let what = format!("tensor {name} of type {:?}", info.dtype);
            fault::unsupported(self.name(), what, "weights have to be F32, BF16 or F16")
        };
        Ok(HostTensor { shape: info.shape.clone(), data: data(read).ok_or_else(refused)? })
    }
}

impl TensorSource for SafetensorsFile {
    fn footprint(&self, name: &str) -> Option<Footprint> {
        let info = self.header.info(name)?;
        let count = info.shape.iter().product();
        // vectors are widened; they do not matter
        Some(if info.dtype == Dtype::BF16 { Footprint::bf16(count) } else { Footprint::f32(count) })
    }

    fn tensor(&self, name: &str) -> Result<HostTensor, ModelError> {
        self.read(name, false)
    }

    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.header.info(name).map(|info| info.shape.clone())
    }

    fn names(&self) -> Vec<String> {
        let mut names = self.header.offset_keys();
        names.sort();
        names
    }
}

/// A key that the object in `json` holds twice, of which a parser would keep one without a word.
fn named_twice(json: &[u8]) -> Option<String> {
    struct Twice(Option<String>);

    impl<'de> Deserialize<'de> for Twice {
        fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
            from.deserialize_map(Keys)
        }
    }

    struct Keys;

    impl<'de> Visitor<'de> for Keys {
        type Value = Twice;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an object")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Twice, A::Error> {
            let (mut seen, mut twice) = (HashSet::new(), None);
            while let Some((key, IgnoredAny)) = map.next_entry::<String, _>()? {
                if seen.contains(&key) {
                    twice = twice.or(Some(key));
                } else {
                    seen.insert(key);
                }
            }
            Ok(Twice(twice))
        }
    }

    // what is no object is refused by the parser that comes next
    serde_json::from_slice::<Twice>(json).ok()?.0
}

/// Splits little-endian bytes into numbers.
pub(crate) fn le_chunks<const N: usize, T>(bytes: &[u8], number: impl Fn([u8; N]) -> T) -> Vec<T> {
    bytes.as_chunks::<N>().0.iter().map(|chunk| number(*chunk)).collect()
}

/// Encodes `tensors` with the texts of `metadata` in the header. Equal input gives equal bytes: wide numbers
/// before narrow ones, then by name.
pub fn to_bytes<'a>(
    tensors: impl IntoIterator<Item = (impl Into<String>, &'a HostTensor)>,
    metadata: &BTreeMap<String, String>,
) -> Vec<u8> {
    let order = in_order(tensors);
    let text = header(order.iter().map(|(entry, _)| entry), metadata);
    let mut out = Vec::with_capacity(8 + text.len() + order.iter().map(|(entry, _)| entry.bytes).sum::<usize>());
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text);
    for (_, tensor) in order {
        append(&tensor.data, &mut out);
    }
    out
}

/// Encodes `data`.
fn append(data: &HostData, out: &mut Vec<u8>) {
    match data {
        HostData::F32(values) => out.extend(values.iter().flat_map(|v| v.to_le_bytes())),
        HostData::Bf16(bits) => out.extend(bits.iter().flat_map(|v| v.to_le_bytes())),
        HostData::U8(codes) => out.extend(codes),
    }
}

/// Tensors in the order of a file, with what its header says of them.
fn in_order<'a>(
    tensors: impl IntoIterator<Item = (impl Into<String>, &'a HostTensor)>,
) -> Vec<(Entry, &'a HostTensor)> {
    let entry = |(name, tensor): (_, &'a HostTensor)| {
        let (width, dtype) = match tensor.data {
            HostData::F32(_) => (4, "F32"),
            HostData::Bf16(_) => (2, "BF16"),
            HostData::U8(_) => (1, "U8"),
        };
        let bytes = width * tensor.shape.iter().product::<usize>();
        (width, Entry { name: Into::into(name), dtype, shape: tensor.shape.clone(), bytes }, tensor)
    };
    let mut order: Vec<(usize, Entry, &HostTensor)> = tensors.into_iter().map(entry).collect();
    order.sort_by(|(a, x, _), (b, y, _)| (b, &x.name).cmp(&(a, &y.name)));
    order.into_iter().map(|(_, entry, tensor)| (entry, tensor)).collect()
}

/// The header of a file of `entries`, padded.
fn header<'a>(entries: impl Iterator<Item = &'a Entry>, metadata: &BTreeMap<String, String>) -> Vec<u8> {
    let mut header = Map::new();
    header.insert("__metadata__".into(), json!(metadata));
    let mut end = 0;
    for Entry { name, dtype, shape, bytes } in entries {
        let start = end;
        end += bytes;
        header.insert(name.clone(), json!({"dtype": dtype, "shape": shape, "data_offsets": [start, end]}));
    }
    let mut text = Value::Object(header).to_string().into_bytes();
    text.resize(text.len().next_multiple_of(8), b' ');
    text
}

/// The metadata that torch's readers look for.
fn of_torch() -> BTreeMap<String, String> {
    BTreeMap::from([("format".into(), "pt".into())])
}

/// Writes `tensors` to `path`, whole or not at all, with the metadata that torch's readers look for.
pub fn write(path: &Path, tensors: &Tensors) -> Result<(), ModelError> {
    write_tensors(path, tensors)
}

/// As [`write`]. One tensor at a time is encoded.
pub(crate) fn write_tensors<'a>(
    path: &Path,
    tensors: impl IntoIterator<Item = (impl Into<String>, &'a HostTensor)>,
) -> Result<(), ModelError> {
    let (entries, tensors): (Vec<Entry>, Vec<&HostTensor>) = in_order(tensors).into_iter().unzip();
    let mut tensors = tensors.into_iter();
    write_raw(path, &entries, |entry| {
        let mut out = Vec::with_capacity(entry.bytes);
        tensors.next().into_iter().for_each(|tensor| append(&tensor.data, &mut out));
        Ok(out)
    })
}

/// How numbers are held in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    /// f32.
    F32,
    /// IEEE half.
    F16,
    /// bfloat16.
    Bf16,
}

impl Precision {
    /// As torch and `config.json` name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "float32",
            Self::F16 => "float16",
            Self::Bf16 => "bfloat16",
        }
    }

    /// Bytes of one number.
    pub fn bytes(self) -> usize {
        if self == Self::F32 { 4 } else { 2 }
    }

    /// A tensor of such numbers.
    pub(crate) fn entry(self, name: String, shape: Vec<usize>) -> Entry {
        let dtype = match self {
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::Bf16 => "BF16",
        };
        let bytes = shape.iter().product::<usize>() * self.bytes();
        Entry { name, dtype, shape, bytes }
    }

    /// The bytes of `entry`, which goes to `path`.
    pub(crate) fn contents(self, path: &Path, entry: &Entry, values: &[f32]) -> Result<Vec<u8>, ModelError> {
        let wrong = |expected: String, got: String| {
            Err(fault::invalid(path.display(), format!("values of {}", entry.name), expected, got))
        };
        let count = entry.shape.iter().product::<usize>();
        if values.len() != count {
            return wrong(count.to_string(), values.len().to_string());
        }
        let most = || values.iter().fold(0.0f32, |most, v| if v.is_finite() { most.max(v.abs()) } else { *v });
        match self.encode(values) {
            Some(bytes) => Ok(bytes),
            None => wrong(format!("what {} can hold", entry.dtype), most().to_string()),
        }
    }

    /// The numbers as bytes; none if one is not finite, or is beyond the range.
    fn encode(self, values: &[f32]) -> Option<Vec<u8>> {
        let mut out = Vec::with_capacity(values.len() * self.bytes());
        for value in values {
            let finite = match self {
                Self::F32 => {
                    out.extend(value.to_le_bytes());
                    value.is_finite()
                }
                Self::F16 => {
                    let half = f16::from_f32(*value);
                    out.extend(half.to_le_bytes());
                    half.is_finite()
                }
                Self::Bf16 => {
                    let half = bf16::from_f32(*value);
                    out.extend(half.to_le_bytes());
                    half.is_finite()
                }
            };
            if !finite {
                return None;
            }
        }
        Some(out)
    }
}

/// A tensor that is to be written.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Its name.
    pub name: String,
    /// The format's name of its type.
    pub dtype: &'static str,
    /// Its dimensions.
    pub shape: Vec<usize>,
    /// Bytes that it takes.
    pub bytes: usize,
}

/// Writes `entries` to `path`, whole or not at all. `contents` is asked for the bytes of each in turn, so that one of them at a
/// time is in memory; another number of them than was said is an error with the name.
pub fn write_raw(
    path: &Path,
    entries: &[Entry],
    mut contents: impl FnMut(&Entry) -> Result<Vec<u8>, ModelError>,
) -> Result<(), ModelError> {
    let text = header(entries.iter(), &of_torch());
    write_atomic_with(path, |file| {
        let io = |e| fault::io(path, e);
        file.write_all(&(text.len() as u64).to_le_bytes()).and_then(|()| file.write_all(&text)).map_err(io)?;
        for entry in entries {
            let bytes = contents(entry)?;
            if bytes.len() != entry.bytes {
                let what = format!("bytes of {}", entry.name);
                return Err(fault::invalid(path.display(), what, entry.bytes, bytes.len()));
            }
            file.write_all(&bytes).map_err(io)?;
        }
        Ok(())
    })
}

/// Opens a safetensors file of weights: its header is checked, tensors are read when they are asked for.
pub fn open(path: &Path) -> Result<Box<dyn TensorSource + Send + Sync>, ModelError> {
    Ok(Box::new(SafetensorsFile::open(path, Limits::WEIGHTS)?))
}

/// Reads a safetensors file whole.
pub fn read(path: &Path) -> Result<Tensors, ModelError> {
    SafetensorsFile::open(path, Limits::WEIGHTS)?.read_all()
}

/// Decodes a safetensors file held in memory, codes of eight bits too; `name` is for errors.
pub fn from_bytes(name: &str, bytes: impl Into<Cow<'static, [u8]>>) -> Result<Tensors, ModelError> {
    let file = SafetensorsFile::memory(name, bytes.into(), Limits::WEIGHTS)?;
    file.names().into_iter().map(|name| file.read(&name, true).map(|tensor| (name, tensor))).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Writes tensors of these names and shapes.
    fn write_each(
        path: &Path,
        tensors: &[(String, Vec<usize>)],
        precision: Precision,
        mut values: impl FnMut(&str) -> Result<Vec<f32>, ModelError>,
    ) -> Result<(), ModelError> {
        let entry = |(name, shape): &(String, Vec<usize>)| precision.entry(name.clone(), shape.clone());
        let entries: Vec<Entry> = tensors.iter().map(entry).collect();
        write_raw(path, &entries, |entry| precision.contents(path, entry, &values(&entry.name)?))
    }

    fn sample() -> Tensors {
        let bf16 = HostTensor { shape: vec![3], data: HostData::Bf16(vec![0x3f80, 0x4000, 0xbf80]) };
        [("b.half".to_owned(), bf16), ("a".into(), HostTensor::f32([2, 2], vec![1.0, -2.5, 3.0, f32::MIN_POSITIVE]))]
            .into_iter()
            .chain([("z.empty".to_owned(), HostTensor::f32([0, 4], vec![]))])
            .chain([("codes".to_owned(), HostTensor { shape: vec![3], data: HostData::U8(vec![7, 0, 255]) })])
            .collect()
    }

    fn bytes_of(header: &str, data: usize) -> Vec<u8> {
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.as_bytes());
        bytes.resize(bytes.len() + data, 0);
        bytes
    }

    #[test]
    fn what_is_written_is_read_by_us_and_by_the_reference() {
        let bytes = to_bytes(&sample(), &BTreeMap::from([("format".into(), "pt".into())]));
        assert_eq!(from_bytes("x", bytes.clone()).unwrap(), sample());
        let error = SafetensorsFile::memory("x", bytes.clone(), Limits::WEIGHTS).unwrap().read_all().unwrap_err();
        assert!(error.to_string().contains("tensor codes of type U8"), "codes are no weights: {error}");
        let reference = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        assert_eq!(reference.tensor("b.half").unwrap().dtype(), Dtype::BF16);
        assert_eq!(bytes, to_bytes(&sample(), &BTreeMap::from([("format".into(), "pt".into())])));
    }

    #[test]
    fn tensors_written_one_at_a_time_are_read_back_rounded() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("w.safetensors");
        let list = [("b".to_owned(), vec![2, 2]), ("a".to_owned(), vec![1])];
        let value = |name: &str| Ok(if name == "a" { vec![0.1] } else { vec![1.0, -2.5, 1e-3, 100.0] });
        for (precision, tenth) in [
            (Precision::F32, 0.1),
            (Precision::F16, f16::from_f32(0.1).to_f32()),
            (Precision::Bf16, bf16::from_f32(0.1).to_f32()),
        ] {
            write_each(&path, &list, precision, value).unwrap();
            let read = read(&path).unwrap();
            assert_eq!(read["a"].to_f32(), [tenth]);
            assert_eq!((read["b"].shape.as_slice(), read["b"].to_f32()[1]), ([2, 2].as_slice(), -2.5));
        }
        let error = |value: f32| {
            let written = write_each(&path, &list[1..], Precision::F16, |_| Ok(vec![value]));
            written.unwrap_err().to_string()
        };
        assert!(error(1e6).contains("values of a: expected what F16 can hold, got 1000000"));
        assert!(error(f32::NAN).contains("got NaN"));
    }

    #[test]
    fn f16_is_widened_and_integers_are_refused_by_name() {
        let header = r#"{"h":{"dtype":"F16","shape":[2],"data_offsets":[0,4]},"i":{"dtype":"I32","shape":[1],"data_offsets":[4,8]}}"#;
        let mut bytes = bytes_of(header, 8);
        let at = bytes.len() - 8;
        bytes[at..at + 4].copy_from_slice(&[0x00, 0x3c, 0x00, 0xc1]);
        let file = SafetensorsFile::memory("w", bytes, Limits::WEIGHTS).unwrap();
        assert_eq!(file.tensor("h").unwrap(), HostTensor::f32([2], vec![1.0, -2.5]));
        let error = file.tensor("i").unwrap_err().to_string();
        assert!(error.contains("tensor i of type I32"), "{error}");
    }

    #[test]
    fn lying_headers_are_refused() {
        let one =
            |range: &str, shape: &str| format!(r#"{{"a":{{"dtype":"F32","shape":{shape},"data_offsets":{range}}}}}"#);
        let cases = [
            (vec![1, 0, 0], "size"),
            ([u64::MAX.to_le_bytes().as_slice(), b"{}"].concat(), "length of the header"),
            (bytes_of(&one("[0,8]", "[1]"), 8), "header"),
            (bytes_of(&one("[4,8]", "[1]"), 8), "header"),
            (bytes_of(&one("[0,4]", "[4611686018427387905]"), 4), "header"),
            (bytes_of(&one("[0,4]", "[1]"), 5), "bytes of data"),
            (bytes_of(&one("[0,4]", "[1]"), 3), "bytes of data"),
            (bytes_of("not json", 0), "header"),
        ];
        for (bytes, what) in cases {
            let error = SafetensorsFile::memory("w", bytes, Limits::WEIGHTS).unwrap_err().to_string();
            assert!(error.starts_with(&format!("w: {what}")), "{error}");
        }
        let wide = |len: usize| bytes_of(&("{}".to_owned() + &" ".repeat(len - 2)), 0);
        assert!(SafetensorsFile::memory("w", wide(1 << 20), Limits::ADAPTER).is_ok());
        assert!(SafetensorsFile::memory("w", wide((1 << 20) + 1), Limits::ADAPTER).is_err());
    }

    proptest! {
        #[test]
        fn damaged_bytes_never_panic(at in 0usize..200, value: u8, cut in 0usize..300) {
            let mut bytes = to_bytes(&sample(), &BTreeMap::new());
            let at = at % bytes.len();
            bytes[at] = value;
            bytes.truncate(cut.max(1));
            let _ = from_bytes("w", bytes);
        }
    }
}
