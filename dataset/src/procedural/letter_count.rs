//! `letter_count`: how often a letter occurs in some words; hard for models that read tokens and not letters.

use folgore_config::data::LetterCount;
use folgore_protocol::seed;
use serde_json::json;

use super::Question;

const CONSONANTS: &[u8] = b"bcdfglmnprst";
const VOWELS: &[u8] = b"aeiou";

/// Words of six to nine letters, pronounceable and mostly no words of any language; the letter asked for is in them.
pub(crate) fn question(difficulty: &LetterCount, stream: u64) -> Question {
    let words: Vec<String> =
        (0..u64::from(difficulty.num_words.max(1))).map(|i| word(seed::mix(&[stream, i]))).collect();
    let text = words.join(" ");
    let letters: Vec<char> = text.chars().filter(|c| *c != ' ').collect();
    let letter = letters[seed::below(stream, 0, letters.len() as u64) as usize];
    let count = letters.iter().filter(|c| **c == letter).count();
    let plain = format!(
        "How many times does the letter \"{letter}\" occur in \"{text}\"? Spell it out, then give the number alone inside \
         <answer> and </answer>."
    );
    let columns = json!({"answer": count.to_string(), "letter": letter.to_string(), "text": text});
    Question {
        key: format!("{letter} in {text}"),
        words: plain.clone(),
        plain,
        columns: columns.as_object().cloned().unwrap_or_default(),
        worked: None,
    }
}

fn word(stream: u64) -> String {
    let length = 6 + seed::below(stream, 0, 4);
    let first_vowel = seed::below(stream, 1, 2);
    let letter = |i: u64| {
        let from = if (i + first_vowel).is_multiple_of(2) { CONSONANTS } else { VOWELS };
        char::from(from[seed::below(stream, 2 + i, from.len() as u64) as usize])
    };
    (0..length).map(letter).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_count_is_that_of_the_letter() {
        let mut counts = std::collections::BTreeSet::new();
        for stream in 0..500 {
            let difficulty = LetterCount { num_words: 1 + (stream % 3) as u32 };
            let question = question(&difficulty, stream);
            let (text, letter) =
                (question.columns["text"].as_str().unwrap(), question.columns["letter"].as_str().unwrap());
            assert_eq!(text.split(' ').count() as u32, difficulty.num_words);
            let count = text.matches(letter).count();
            assert_eq!(question.columns["answer"], count.to_string());
            counts.insert(count);
        }
        assert!(counts.len() >= 4, "{counts:?}");
    }
}
