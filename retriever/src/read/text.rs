//! Bytes to text.

/// A text, and what was done to it.
pub(super) struct Decoded {
    pub(super) text: String,
    pub(super) note: Option<String>,
}

/// Bytes in which a file is told from one that is no text.
const SNIFFED: usize = 8192;

/// UTF-8, or UTF-16 with its mark. What is neither becomes U+FFFD, which is noted; NUL is a sign of something else than text.
pub(super) fn decode(bytes: &[u8]) -> Result<Decoded, &'static str> {
    match bytes {
        [0xef, 0xbb, 0xbf, rest @ ..] => Ok(utf8(rest)),
        [0xff, 0xfe, rest @ ..] => Ok(utf16(rest, u16::from_le_bytes)),
        [0xfe, 0xff, rest @ ..] => Ok(utf16(rest, u16::from_be_bytes)),
        _ if bytes[..bytes.len().min(SNIFFED)].contains(&0) => Err("no text: it holds NUL bytes"),
        _ if mostly_invalid(&bytes[..bytes.len().min(SNIFFED)]) => Err("no text: most of it is not UTF-8"),
        _ => Ok(utf8(bytes)),
    }
}

fn mostly_invalid(start: &[u8]) -> bool {
    let invalid: usize = start.utf8_chunks().map(|chunk| chunk.invalid().len()).sum();
    invalid * 3 > start.len()
}

fn utf8(bytes: &[u8]) -> Decoded {
    let replaced = bytes.utf8_chunks().filter(|chunk| !chunk.invalid().is_empty()).count();
    Decoded { text: String::from_utf8_lossy(bytes).into_owned(), note: noted(replaced, "UTF-8") }
}

fn utf16(bytes: &[u8], unit: fn([u8; 2]) -> u16) -> Decoded {
    let (pairs, rest) = bytes.as_chunks::<2>();
    let mut replaced = rest.len();
    let chars = char::decode_utf16(pairs.iter().map(|pair| unit(*pair)));
    let text = chars.map(|c| c.unwrap_or_else(|_| (replaced += 1, char::REPLACEMENT_CHARACTER).1)).collect();
    Decoded { text, note: noted(replaced, "UTF-16") }
}

fn noted(replaced: usize, form: &str) -> Option<String> {
    (replaced > 0).then(|| format!("not {form} in {replaced} places, which are U+FFFD now"))
}

/// The first heading of a Markdown text, if one is near its start.
pub(super) fn first_heading(text: &str) -> Option<String> {
    let heading = text.lines().take(50).find_map(|line| line.strip_prefix("# "))?;
    let heading = heading.trim().trim_end_matches('#').trim();
    let end = heading.floor_char_boundary(200);
    (!heading.is_empty()).then(|| heading[..end].to_owned())
}
