//! The encoder that needs no model: words and their parts, hashed.

use std::collections::BTreeMap;

use folgore_protocol::Digest;
use rayon::prelude::*;

use super::{EncodeError, Encoder, normalise};
use crate::{
    chunk::{APPROXIMATE, approximate},
    lexical::Words,
};

/// Fixed: other seeds give other vectors, and those of two indexes are compared.
const SEED: u64 = 0x0066_6f6c_676f_7265;
/// Letters of the parts of a word.
const PARTS: std::ops::RangeInclusive<usize> = 3..=5;
/// What all parts of a word weigh together, where the word weighs 1.
const PARTS_WEIGHT: f32 = 1.5;
/// Letters from which on a word has its full weight: the short ones are mostly "the" and "of".
const FULL_LETTERS: f32 = 6.0;

/// Each word, and each run of three to five letters in it, adds or takes 1 at a place that its hash names (signed feature hashing,
/// Weinberger et al. 2009), so that texts that share words, or words of one stem, or misspelt ones, get vectors that are near.
///
/// It is weaker than a trained encoder, by a lot: it knows no meaning ("car" and "automobile" are strangers) and no rarity, because a
/// vector must not depend on the other texts; only short words count less. It is exact, fast, the same everywhere, and needs no
/// download. Beside BM25 it adds what BM25 cannot do: words that are nearly the same.
#[derive(Clone, Debug)]
pub struct Hashed {
    dim: usize,
    words: Words,
}

impl Default for Hashed {
    /// Vectors of 512 numbers.
    fn default() -> Self {
        Self { dim: 512, words: Words { min_chars: 1, identifiers: true } }
    }
}

impl Hashed {
    /// Vectors of `dim` numbers, 16 at least: fewer take less room, and confuse more words with each other.
    pub fn new(dim: usize) -> Self {
        Self { dim: dim.max(16), ..Self::default() }
    }

    fn vector(&self, text: &str) -> Vec<f32> {
        let mut counts: BTreeMap<String, f32> = BTreeMap::new();
        self.words.each(text, |word| *counts.entry(word.to_owned()).or_default() += 1.0);
        let mut vector = vec![0.0; self.dim];
        for (word, count) in counts {
            let letters: Vec<char> = std::iter::once('<').chain(word.chars()).chain(['>']).collect();
            let length = letters.len() as f32 - 2.0;
            // A word that is there often says little more than one that is there twice.
            let weight = (1.0 + count.ln()) * (length / FULL_LETTERS).min(1.0);
            self.put(&mut vector, letters.iter(), weight);
            let parts: usize = PARTS.map(|n| (letters.len() + 1).saturating_sub(n)).sum();
            let part = weight * PARTS_WEIGHT / (parts as f32).sqrt();
            for n in PARTS.filter(|n| *n < letters.len()) {
                letters.windows(n).for_each(|part_letters| self.put(&mut vector, part_letters.iter(), part));
            }
        }
        normalise(&mut vector);
        vector
    }

    /// Adds or takes `weight` where the hash of `letters` says.
    fn put<'a>(&self, vector: &mut [f32], letters: impl Iterator<Item = &'a char>, weight: f32) {
        let hash = hash(letters);
        let at = (hash % self.dim as u64) as usize;
        vector[at] += if hash >> 63 == 0 { weight } else { -weight };
    }
}

/// FNV-1a over code points, then stirred as SplitMix64 does: the top bits of FNV depend on too little.
fn hash<'a>(letters: impl Iterator<Item = &'a char>) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325 ^ SEED;
    for letter in letters {
        hash = (hash ^ u64::from(u32::from(*letter))).wrapping_mul(0x0100_0000_01b3);
    }
    hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    hash ^ (hash >> 31)
}

impl Encoder for Hashed {
    fn name(&self) -> &str {
        "hashed"
    }

    fn dim(&self) -> usize {
        self.dim
    }

    fn digest(&self) -> Digest {
        let say = format!("hashed 1, {} numbers, seed {SEED:x}", self.dim);
        Digest::of(say.as_bytes())
    }

    /// It looks at all of a text.
    fn max_tokens(&self) -> usize {
        usize::MAX
    }

    /// It has no tokens of its own, so that chunks are those of an index without an encoder.
    fn count_tokens(&self, text: &str) -> usize {
        approximate(text)
    }

    fn counter(&self) -> String {
        APPROXIMATE.into()
    }

    fn encode(&self, texts: &[&str]) -> Result<Vec<Vec<f32>>, EncodeError> {
        Ok(texts.par_iter().map(|text| self.vector(text)).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vectors::dot;

    fn alike(a: &str, b: &str) -> f32 {
        let vectors = Hashed::default().encode(&[a, b]).unwrap();
        dot(&vectors[0], &vectors[1])
    }

    #[test]
    fn what_shares_words_or_parts_of_them_is_near() {
        assert!((alike("Paris is in France", "paris IS in france!") - 1.0).abs() < 1e-6);
        let (same, stem, typo) = (
            alike("the capital of France", "France and its capital"),
            alike("retrieving documents", "document retrieval"),
            alike("Kazakhstan", "Kazakstan"),
        );
        let other = alike("the capital of France", "tree frogs eat insects");
        assert!(same > 0.6 && stem > 0.3 && typo > 0.3, "{same} {stem} {typo}");
        assert!(other.abs() < 0.15, "{other}");
        assert!(alike("parseHttpRequest", "parse the http request") > 0.5);
    }

    #[test]
    fn vectors_have_length_one_and_do_not_change() {
        let vectors = Hashed::new(64).encode(&["some words", "", " .,", "a"]).unwrap();
        let length = |v: &[f32]| dot(v, v).sqrt();
        assert!(vectors.iter().all(|v| v.len() == 64));
        assert!((length(&vectors[0]) - 1.0).abs() < 1e-6 && (length(&vectors[3]) - 1.0).abs() < 1e-6);
        assert_eq!((length(&vectors[1]), length(&vectors[2])), (0.0, 0.0));
        // Indexes on disk hold such vectors: another hash would make them strangers without a word.
        assert_eq!(hash("abc".chars().collect::<Vec<_>>().iter()), PINNED);
    }

    const PINNED: u64 = 1_887_630_405_458_187_649;
}
