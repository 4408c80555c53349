//! Damage: a few changes at random places of a file of the corpus, drawn from a seed and a number alone.

/// A generator of numbers (splitmix64): what it gives depends on its seed alone, on every machine.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, most: usize) -> usize {
        (self.next() % most.max(1) as u64) as usize
    }

    fn of<'a, T>(&mut self, list: &'a [T]) -> &'a T {
        &list[self.below(list.len())]
    }
}

/// Numbers at which readers go wrong.
const NUMBERS: [u64; 14] =
    [0, 1, 2, 7, 31, 127, 255, 65_535, 1 << 20, 1 << 31, u32::MAX as u64, 1 << 40, i64::MAX as u64, u64::MAX];
/// The same in text.
const TEXTS: [&str; 16] = [
    "0",
    "-1",
    "1",
    "3",
    "255",
    "4294967295",
    "4294967296",
    "9223372036854775807",
    "18446744073709551615",
    "1e999",
    "-0.0",
    "1.5",
    "null",
    "true",
    "[]",
    "{}",
];

/// Input `number` of `seed`, made of the files of `corpus`; `words` are put in where it is text. At most `largest` bytes.
pub(crate) fn mutated(corpus: &[Vec<u8>], words: &[&str], seed: u64, number: u64, largest: usize) -> Vec<u8> {
    let mut random = Random(seed.wrapping_mul(0x2545_f491_4f6c_dd1d) ^ number);
    let mut bytes = random.of(corpus).clone();
    for _ in 0..1 + random.below(6) {
        change(&mut bytes, corpus, words, &mut random);
    }
    bytes.truncate(largest);
    bytes
}

fn change(bytes: &mut Vec<u8>, corpus: &[Vec<u8>], words: &[&str], random: &mut Random) {
    let at = random.below(bytes.len() + 1);
    let len = match random.below(4) {
        0 => random.below(bytes.len() - at + 1),
        _ => random.below(24).min(bytes.len() - at),
    };
    match random.below(11) {
        0 => bytes.iter_mut().skip(at).take(1).for_each(|byte| *byte ^= 1 << random.below(8)),
        1 => bytes.iter_mut().skip(at).take(1).for_each(|byte| *byte = random.next() as u8),
        2 => {
            let number = random.of(&NUMBERS).to_le_bytes();
            let width = *random.of(&[1, 2, 4, 8]);
            bytes.iter_mut().skip(at).zip(&number[..width]).for_each(|(byte, new)| *byte = *new);
        }
        3 => drop(bytes.drain(at..at + len)),
        4 => {
            let copy = bytes[at..at + len].to_vec();
            let to = random.below(bytes.len() + 1);
            bytes.splice(to..to, copy);
        }
        5 => {
            let other = random.of(corpus);
            let from = random.below(other.len() + 1);
            let piece = &other[from..from + random.below(other.len() - from + 1)];
            bytes.splice(at..at + len, piece.iter().copied());
        }
        6 => bytes.truncate(at),
        7 => replace_number(bytes, random),
        8 if !words.is_empty() => drop(bytes.splice(at..at, random.of(words).bytes())),
        9 => {
            // deep nesting
            let (open, times) = (*random.of(&[b'[', b'{', b'(', 0]), 1 << random.below(16));
            bytes.splice(at..at, std::iter::repeat_n(open, times));
        }
        _ => {
            let bit = 1 << random.below(12);
            let byte = bytes.get(at).copied().unwrap_or(b'9');
            bytes.splice(at..at, std::iter::repeat_n(byte, bit));
        }
    }
}

/// Another number (or none) for one that stands in a text.
fn replace_number(bytes: &mut Vec<u8>, random: &mut Random) {
    let starts: Vec<usize> = (0..bytes.len())
        .filter(|at| bytes[*at].is_ascii_digit() && (*at == 0 || !bytes[at - 1].is_ascii_digit()))
        .collect();
    if starts.is_empty() {
        return;
    }
    let at = *random.of(&starts);
    let len = bytes[at..].iter().take_while(|byte| byte.is_ascii_digit()).count();
    bytes.splice(at..at + len, random.of(&TEXTS).bytes());
}
