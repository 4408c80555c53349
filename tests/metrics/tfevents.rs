//! Reads event files as TensorBoard does: every checksum is checked, and a restart takes back what earlier files said of its
//! step and later ones.

use std::{collections::BTreeMap, fs, path::Path};

/// Values by name and step; the same step told twice is a failure.
pub type Scalars = BTreeMap<String, BTreeMap<u64, f32>>;

/// What the event files in `folder` show together, and how many there are.
pub fn read(folder: &Path) -> (Scalars, usize) {
    let mut paths: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort_unstable();
    let mut scalars = Scalars::new();
    for path in &paths {
        assert!(path.file_name().unwrap().to_str().unwrap().contains("tfevents"), "{path:?}");
        for (i, event) in records(&fs::read(path).unwrap()).iter().enumerate() {
            take(&mut scalars, event, i == 0);
        }
    }
    (scalars, paths.len())
}

fn take(scalars: &mut Scalars, event: &[u8], first: bool) {
    let fields: BTreeMap<u64, Field> = fields(event).into_iter().collect();
    let Some(Field::Eight(wall)) = fields.get(&1) else { panic!("an event without a time") };
    assert!((1.6e9..1e11).contains(&f64::from_bits(*wall)));
    let step = match fields.get(&2) {
        Some(Field::Number(step)) => *step,
        _ => 0,
    };
    assert_eq!(first, matches!(fields.get(&3), Some(Field::Bytes(b"brain.Event:2"))), "the version comes first");
    if let Some(Field::Bytes(session)) = fields.get(&7) {
        assert_eq!(*session, [8, 1], "a start");
        scalars.values_mut().for_each(|series| series.retain(|told, _| *told < step));
    }
    let Some(Field::Bytes(summary)) = fields.get(&5) else { return };
    for (_, value) in self::fields(summary) {
        let Field::Bytes(value) = value else { panic!("a value is a message") };
        let [(1, Field::Bytes(tag)), (2, Field::Four(number))] = self::fields(value)[..] else { panic!("{value:?}") };
        let series = scalars.entry(String::from_utf8(tag.to_vec()).unwrap()).or_default();
        let before = series.insert(step, f32::from_bits(number));
        assert_eq!(before, None, "{} is told twice at step {step}", String::from_utf8_lossy(tag));
    }
}

/// The whole records of a file; a torn last one is what a killed process leaves.
fn records(mut file: &[u8]) -> Vec<&[u8]> {
    let mut found = Vec::new();
    while let Some((length, rest)) = checked(file, 8) {
        let length = u64::from_le_bytes(length.try_into().unwrap()) as usize;
        let Some((data, rest)) = checked(rest, length) else { break };
        found.push(data);
        file = rest;
    }
    found
}

/// The first `length` bytes, whose checksum follows, and what comes after it. None if they are not all there.
fn checked(bytes: &[u8], length: usize) -> Option<(&[u8], &[u8])> {
    let (data, rest) = bytes.split_at_checked(length)?;
    let (sum, rest) = rest.split_at_checked(4)?;
    let crc = crc32c(data);
    let masked = crc.rotate_right(15).wrapping_add(0xa282_ead8);
    assert_eq!(u32::from_le_bytes(sum.try_into().unwrap()), masked, "checksum");
    Some((data, rest))
}

/// By a table, unlike the writer's.
fn crc32c(data: &[u8]) -> u32 {
    let table: Vec<u32> = (0..256u32)
        .map(|byte| (0..8).fold(byte, |crc, _| if crc % 2 == 1 { (crc >> 1) ^ 0x82f6_3b78 } else { crc >> 1 }))
        .collect();
    !data.iter().fold(!0, |crc: u32, byte| table[(crc as u8 ^ byte) as usize] ^ (crc >> 8))
}

#[derive(Clone, Copy)]
enum Field<'a> {
    Number(u64),
    Eight(u64),
    Four(u32),
    Bytes(&'a [u8]),
}

/// The fields of a protobuf message by their numbers.
fn fields(mut message: &[u8]) -> Vec<(u64, Field<'_>)> {
    let mut found = Vec::new();
    while !message.is_empty() {
        let key = number(&mut message);
        let value = match key & 7 {
            0 => Field::Number(number(&mut message)),
            1 => Field::Eight(u64::from_le_bytes(cut(&mut message, 8).try_into().unwrap())),
            2 => {
                let length = number(&mut message) as usize;
                Field::Bytes(cut(&mut message, length))
            }
            5 => Field::Four(u32::from_le_bytes(cut(&mut message, 4).try_into().unwrap())),
            other => panic!("wire type {other}"),
        };
        found.push((key >> 3, value));
    }
    found
}

fn number(message: &mut &[u8]) -> u64 {
    let end = message.iter().position(|byte| byte & 0x80 == 0).unwrap();
    cut(message, end + 1).iter().rev().fold(0, |sum, byte| sum << 7 | u64::from(byte & 0x7f))
}

fn cut<'a>(message: &mut &'a [u8], length: usize) -> &'a [u8] {
    let (found, rest) = message.split_at(length);
    *message = rest;
    found
}
