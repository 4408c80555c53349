//! The bytes of an event file: records of TFRecord (length, checksum, data, checksum), each an `Event` message of TensorFlow's
//! `event.proto`, of which we need four fields.

/// One event.
pub(super) enum Event {
    /// The first of every file.
    Version,
    /// What earlier files say of this step and later ones does not count any more.
    Start,
    /// Numbers by name.
    Scalars(Vec<(String, f64)>),
}

impl Event {
    /// The message, made at `wall` (seconds since 1970).
    pub(super) fn encoded(&self, wall: f64, step: u64) -> Vec<u8> {
        let mut event = Vec::new();
        fixed(&mut event, 1, &wall.to_le_bytes());
        varint(&mut event, 2, step);
        match self {
            Self::Version => bytes(&mut event, 3, b"brain.Event:2"),
            // SessionLog { status: START }
            Self::Start => bytes(&mut event, 7, &[1 << 3, 1]),
            Self::Scalars(scalars) => {
                let mut summary = Vec::new();
                for (tag, value) in scalars {
                    let mut scalar = Vec::new();
                    bytes(&mut scalar, 1, tag.as_bytes());
                    fixed(&mut scalar, 2, &(*value as f32).to_le_bytes());
                    bytes(&mut summary, 1, &scalar);
                }
                bytes(&mut event, 5, &summary);
            }
        }
        event
    }
}

/// Frames one message.
pub(super) fn record(message: &[u8]) -> Vec<u8> {
    let length = (message.len() as u64).to_le_bytes();
    let parts = [&length[..], &masked(&length).to_le_bytes(), message, &masked(message).to_le_bytes()];
    parts.concat()
}

/// The checksum as TFRecord stores it: turned and shifted, so that checksums of data that holds checksums stay good.
fn masked(data: &[u8]) -> u32 {
    crc32c(data).rotate_right(15).wrapping_add(0xa282_ead8)
}

/// CRC-32C (Castagnoli). A step is a few kilobytes: bit by bit is quick enough.
fn crc32c(data: &[u8]) -> u32 {
    const POLYNOMIAL: u32 = 0x82f6_3b78;
    !data.iter().fold(!0, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (POLYNOMIAL & (crc & 1).wrapping_neg()))
    })
}

/// A field of four or eight bytes.
fn fixed<const N: usize>(into: &mut Vec<u8>, field: u8, value: &[u8; N]) {
    into.push(field << 3 | if N == 8 { 1 } else { 5 });
    into.extend_from_slice(value);
}

fn varint(into: &mut Vec<u8>, field: u8, value: u64) {
    into.push(field << 3);
    number(into, value);
}

fn bytes(into: &mut Vec<u8>, field: u8, value: &[u8]) {
    into.push(field << 3 | 2);
    number(into, value.len() as u64);
    into.extend_from_slice(value);
}

fn number(into: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        into.push(value as u8 | 0x80);
        value >>= 7;
    }
    into.push(value as u8);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_are_those_of_the_standard() {
        // RFC 3720, B.4
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(&[0xff; 32]), 0x62a8_ab43);
    }

    #[test]
    fn a_scalar_has_the_bytes_of_the_schema() {
        let event = Event::Scalars(vec![("a".into(), 0.5)]).encoded(1.0, 300);
        let expected = [
            &[0x09][..],
            &1f64.to_le_bytes(),
            &[0x10, 0xac, 0x02],
            &[0x2a, 0x0a, 0x0a, 0x08, 0x0a, 0x01, b'a', 0x15, 0, 0, 0, 0x3f],
        ];
        assert_eq!(event, expected.concat());
        let framed = record(&event);
        assert_eq!(framed.len(), event.len() + 16);
        assert_eq!(framed[..8], (event.len() as u64).to_le_bytes());
    }
}
