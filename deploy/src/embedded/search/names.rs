//! Names that no country has, spelt much as countries spell theirs.
//!
//! A model of three letters in a row, taken from the countries that are asked about in training, and nearly half of the time
//! letters at random: so that spelling what is likely pays less than copying.

use std::collections::{BTreeMap, BTreeSet};

use folgore_dataset::{
    Side,
    countries::{countries, countries_of},
};

use super::draws::Draws;

/// Share of words that are letters at random.
const RANDOM: f64 = 0.4;
const LONGEST: usize = 11;
const LETTERS: &[u8] = b"abcdefghijklmnopqrstuvwxyz";
/// Stands before and after a word.
const END: u8 = b'$';

/// Words that many names have, of which alone none is made.
const BEFORE: [&str; 18] = [
    "Saint",
    "San",
    "Santo",
    "South",
    "North",
    "New",
    "East",
    "Western",
    "United",
    "Republic of",
    "Isle of",
    "Port",
    "Fort",
    "El",
    "La",
    "St.",
    "Central",
    "Mount",
];
const AFTER: [&str; 8] = ["Islands", "Island", "Republic", "City", "Town", "Kingdom", "States", "Emirates"];
const BETWEEN: [&str; 6] = ["and", "of", "la", "de", "es", "the"];

/// Makes names.
#[derive(Clone, Debug)]
pub struct Names {
    /// What follows two letters, as often as it does.
    follows: BTreeMap<[u8; 2], Vec<u8>>,
    /// Words of real names, in lower case.
    real: BTreeSet<String>,
}

impl Names {
    /// From the spelling of the countries that are asked about in training; no word of any country's name is made.
    pub fn new() -> Self {
        let mut follows: BTreeMap<[u8; 2], Vec<u8>> = BTreeMap::new();
        for country in countries_of(Side::Train) {
            for word in words(&country.name).chain(words(&country.capital)) {
                let mut last = [END; 2];
                for letter in word.bytes().chain([END]) {
                    follows.entry(last).or_default().push(letter);
                    last = [last[1], letter];
                }
            }
        }
        let named = countries().iter().flat_map(|c| [&c.name, &c.capital, &c.language]);
        Self { follows, real: named.flat_map(|name| words(name).collect::<Vec<_>>()).collect() }
    }

    /// A name of one to three words.
    pub fn name(&self, d: &mut Draws) -> String {
        let word = |d: &mut Draws| self.marked(d);
        match d.share() {
            p if p < 0.62 => word(d),
            p if p < 0.76 => format!("{} {}", word(d), word(d)),
            p if p < 0.85 => format!("{} {}", d.of_these(&BEFORE), word(d)),
            p if p < 0.92 => format!("{} {}", word(d), d.of_these(&AFTER)),
            _ => format!("{} {} {}", word(d), d.of_these(&BETWEEN), word(d)),
        }
    }

    /// A word, seldom with a hyphen or an apostrophe in it.
    fn marked(&self, d: &mut Draws) -> String {
        match d.share() {
            p if p < 0.92 => self.word(d),
            p if p < 0.95 => format!("{}-{}", self.word(d), self.word(d)),
            p if p < 0.97 => format!("{}'s", self.word(d)),
            p if p < 0.99 => format!("{}'{}", char::from(LETTERS[d.below(26)]).to_ascii_uppercase(), self.word(d)),
            _ => format!("({})", self.word(d)),
        }
    }

    /// A word that is in no real name, with a capital letter.
    pub fn word(&self, d: &mut Draws) -> String {
        loop {
            let word = if d.chance(RANDOM) { random(d) } else { self.spelt(d) };
            if (3..=LONGEST).contains(&word.len()) && !self.real.contains(&word) {
                return capital(&word);
            }
        }
    }

    fn spelt(&self, d: &mut Draws) -> String {
        let (mut word, mut last) = (String::new(), [END; 2]);
        // Two letters that were seen together are followed by something.
        while let Some(next) = self.follows.get(&last) {
            let letter = *d.of_these(next);
            if letter == END || word.len() > LONGEST {
                break;
            }
            word.push(char::from(letter));
            last = [last[1], letter];
        }
        word
    }

    /// `name` with one letter changed, dropped or doubled.
    pub fn misspelt(&self, name: &str, d: &mut Draws) -> String {
        let places: Vec<usize> = (1..name.len()).filter(|at| name.as_bytes()[*at].is_ascii_lowercase()).collect();
        if places.is_empty() {
            return self.word(d);
        }
        let at = *d.of_these(&places);
        let letter = char::from(LETTERS[d.below(26)]);
        let (before, after) = (&name[..at], &name[at + 1..]);
        match d.below(3) {
            0 => format!("{before}{after}"),
            1 => format!("{before}{letter}{}", &name[at..]),
            _ => format!("{before}{letter}{after}"),
        }
    }
}

fn random(d: &mut Draws) -> String {
    (0..3 + d.below(7)).map(|_| char::from(LETTERS[d.below(26)])).collect()
}

fn capital(word: &str) -> String {
    word[..1].to_ascii_uppercase() + &word[1..]
}

/// The words of a name, in lower case; what joins words and what many names have in common is none.
fn words(name: &str) -> impl Iterator<Item = String> + '_ {
    let common = |word: &str| {
        let all = BEFORE.iter().chain(&AFTER).chain(&BETWEEN).flat_map(|words| words.split(' '));
        all.into_iter().any(|known| known.eq_ignore_ascii_case(word))
    };
    name.split(|c: char| !c.is_ascii_alphabetic())
        .filter(move |word| word.len() > 1 && !common(word))
        .map(str::to_ascii_lowercase)
}
