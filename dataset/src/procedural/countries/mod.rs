//! `countries`: questions about facts of countries, and the passages that hold their answers.
//!
//! The facts are those of the package countryinfo (`facts.tsv`, with its licence; `make_facts.py` wrote it). 160 countries
//! are asked about in training, the others are held out; each has three passages of two facts. A question of two hops names a
//! capital in the place of its country, and asks for what is not in the passage that holds the capital.

use std::{fmt::Write as _, sync::LazyLock};

use folgore_config::data::Countries;
use folgore_protocol::{Passage, seed};
use serde_json::json;

use super::{Question, Side};

/// The compiled-in facts, one country a line; the notice of their licence is in the comments.
pub(crate) const FACTS: &str = include_str!("facts.tsv");
/// Countries that are asked about in training.
const TRAINED: usize = 160;
/// Decides which countries those are.
const SPLIT: u64 = 7;
/// Ways to put a question.
pub const PHRASINGS: u64 = 3;

/// What is known of a country.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Field {
    /// Its capital.
    Capital,
    /// Its first language.
    Language,
    /// Its inhabitants.
    Population,
    /// Its area, in square kilometres.
    Area,
    /// The code of its currency.
    Currency,
    /// Its telephone prefix.
    CallingCode,
}

impl Field {
    /// All of them; two and two are in one passage.
    pub const ALL: [Field; 6] =
        [Field::Capital, Field::Language, Field::Population, Field::Area, Field::Currency, Field::CallingCode];
    /// Those that are never in the passage of the capital.
    pub const FAR: [Field; 4] = [Field::Population, Field::Area, Field::Currency, Field::CallingCode];

    /// As questions and passages call it.
    pub fn name(self) -> &'static str {
        match self {
            Field::Capital => "capital",
            Field::Language => "language",
            Field::Population => "population",
            Field::Area => "area",
            Field::Currency => "currency",
            Field::CallingCode => "calling code",
        }
    }
}

/// A country, real or made up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Country {
    /// Name, without accents.
    pub name: String,
    /// Capital, without accents.
    pub capital: String,
    /// English name of the first language.
    pub language: String,
    /// Inhabitants.
    pub population: u64,
    /// Square kilometres.
    pub area: u64,
    /// ISO code of the currency.
    pub currency: String,
    /// Digits of the telephone prefix.
    pub calling_code: String,
}

impl Country {
    /// The fact as passages say it and answers repeat it; large numbers are rounded (`26.0 million`, `652 thousand`).
    pub fn fact(&self, field: Field) -> String {
        match field {
            Field::Capital => self.capital.clone(),
            Field::Language => self.language.clone(),
            Field::Population => rounded(self.population),
            Field::Area => rounded(self.area),
            Field::Currency => self.currency.clone(),
            Field::CallingCode => self.calling_code.clone(),
        }
    }

    fn read(line: &str) -> Option<Self> {
        let mut columns = line.split('\t');
        let mut text = || columns.next().map(str::to_owned);
        let (name, capital, language) = (text()?, text()?, text()?);
        let (population, area) = (text()?.parse().ok()?, text()?.parse().ok()?);
        Some(Self { name, capital, language, population, area, currency: text()?, calling_code: text()? })
    }
}

fn rounded(number: u64) -> String {
    match number {
        0..10_000 => number.to_string(),
        10_000..999_500 => format!("{} thousand", (number + 500) / 1000),
        _ => format!("{:.1} million", number as f64 / 1e6),
    }
}

/// All countries, in alphabetical order.
pub fn countries() -> &'static [Country] {
    static ALL: LazyLock<Vec<Country>> =
        LazyLock::new(|| FACTS.lines().filter(|line| !line.starts_with('#')).filter_map(Country::read).collect());
    &ALL
}

/// The countries that `side` is asked about; a fixed shuffle decides.
pub fn countries_of(side: Side) -> &'static [Country] {
    static SIDES: LazyLock<[Vec<Country>; 2]> = LazyLock::new(|| {
        let mut trained = countries().to_vec();
        seed::shuffle(SPLIT, &mut trained);
        let held_out = trained.split_off(TRAINED.min(trained.len()));
        [trained, held_out]
    });
    &SIDES[usize::from(side == Side::Eval)]
}

/// What is searched: three passages of two facts for each country. Ids are places, titles the names; the score is 0.
pub fn passages(countries: &[Country]) -> Vec<Passage> {
    let mut passages = Vec::with_capacity(3 * countries.len());
    for country in countries {
        for fields in Field::ALL.chunks(2) {
            let mut text = String::new();
            for field in fields {
                let between = if text.is_empty() { "" } else { "; " };
                // Writing to a text does not fail.
                let _ = write!(text, "{between}{}: {}", field.name(), country.fact(*field));
            }
            passages.push(Passage { id: passages.len().to_string(), title: country.name.clone(), text, score: 0.0 });
        }
    }
    passages
}

/// The question for `field` of `whom` (a country, or how it is to be found), in one of [`PHRASINGS`] ways.
pub fn asked(field: Field, whom: &str, phrasing: u64) -> String {
    let field = field.name();
    match phrasing % PHRASINGS {
        0 => format!("What is the {field} of {whom}?"),
        1 => format!("Which {field} does {whom} have?"),
        _ => format!("Tell me the {field} of {whom}."),
    }
}

/// How a question of two hops names `country`.
pub fn by_capital(country: &Country) -> String {
    format!("the country whose capital is {}", country.capital)
}

/// How a question is put to the embedded policy.
pub fn prompted(question: &str) -> String {
    format!("Question: {question}\n")
}

/// A question about a country of `side`; none where its capital names two countries.
pub(crate) fn question(settings: &Countries, side: Side, stream: u64) -> Option<Question> {
    let known = countries_of(side);
    let country = known.get(seed::below(stream, 0, known.len().max(1) as u64) as usize)?;
    let (fields, whom): (&[Field], _) = match settings.hops {
        1 => (&Field::ALL, country.name.clone()),
        _ => (&Field::FAR, by_capital(country)),
    };
    let unclear = countries().iter().filter(|other| other.capital == country.capital).count() > 1;
    if settings.hops > 1 && unclear {
        return None;
    }
    let field = fields[seed::below(stream, 1, fields.len() as u64) as usize];
    let question = asked(field, &whom, seed::below(stream, 2, PHRASINGS));
    let columns = json!({"question": question, "golden_answers": [country.fact(field)]});
    let plain = prompted(&question);
    let columns = columns.as_object().cloned().unwrap_or_default();
    let worked = Some(worked(country, field, settings.hops > 1));
    Some(Question { key: question.clone(), plain, words: question, columns, worked })
}

/// What an expert says who searches as the embedded policy does at its best: one search, or two, the first for the capital.
fn worked(country: &Country, field: Field, two: bool) -> String {
    let searches = |thought: &str, query: &str| format!("<think> {thought} </think><search> {query} </search>");
    let (name, wanted, fact) = (&country.name, field.name(), country.fact(field));
    let intent = "I should search";
    let found = match two {
        false => searches(intent, &format!("{name} {wanted}")),
        true => {
            searches(intent, &format!("{} capital", country.capital))
                + &searches(&format!("country: {name}"), &format!("{name} {wanted}"))
        }
    };
    format!("{found}<think> {wanted}: {fact} </think><answer> {fact} </answer>")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn facts_are_whole_and_as_the_source_has_them() {
        let lines = FACTS.lines().filter(|line| !line.starts_with('#')).count();
        assert_eq!((countries().len(), lines), (215, 215), "every line is read");
        let chad = countries().iter().find(|c| c.name == "Chad").unwrap();
        let facts = Field::ALL.map(|field| chad.fact(field));
        assert_eq!(facts, ["N'Djamena", "French", "13.2 million", "1.3 million", "XAF", "235"]);
        for c in countries() {
            assert!(c.name.is_ascii() && c.capital.is_ascii() && !c.language.is_empty(), "{c:?}");
            assert!(c.currency.len() == 3 && c.calling_code.chars().all(|d| d.is_ascii_digit()), "{c:?}");
            assert!(c.population > 0 && c.area > 0, "{c:?}");
        }
        assert!(FACTS.contains("MIT License") && FACTS.contains("countryinfo"), "source and licence go with the facts");
    }

    #[test]
    fn an_expert_searches_and_then_quotes() {
        let chad = countries().iter().find(|c| c.name == "Chad").unwrap();
        assert_eq!(
            worked(chad, Field::Currency, true),
            "<think> I should search </think><search> N'Djamena capital </search>\
             <think> country: Chad </think><search> Chad currency </search>\
             <think> currency: XAF </think><answer> XAF </answer>"
        );
    }

    #[test]
    fn sides_share_no_country() {
        let names = |side| countries_of(side).iter().map(|c| c.name.as_str()).collect::<BTreeSet<_>>();
        let (trained, held_out) = (names(Side::Train), names(Side::Eval));
        assert_eq!((trained.len(), held_out.len()), (160, 55));
        assert!(trained.is_disjoint(&held_out));
    }

    #[test]
    fn large_numbers_are_rounded() {
        let said = [9_999, 10_000, 652_230, 999_499, 999_500, 26_023_100].map(rounded);
        assert_eq!(said, ["9999", "10 thousand", "652 thousand", "999 thousand", "1.0 million", "26.0 million"]);
    }

    #[test]
    fn an_answer_is_in_a_passage_of_its_country() {
        let passages = passages(countries());
        assert_eq!(passages.len(), 3 * countries().len());
        for country in countries() {
            for field in Field::ALL {
                let fact = format!("{}: {}", field.name(), country.fact(field));
                let holds = |p: &&Passage| p.title == country.name && p.text.split("; ").any(|said| said == fact);
                assert_eq!(passages.iter().filter(holds).count(), 1, "{fact} of {}", country.name);
            }
        }
        let chad: Vec<&str> = passages.iter().filter(|p| p.title == "Chad").map(|p| p.text.as_str()).collect();
        assert_eq!(chad[0], "capital: N'Djamena; language: French");
    }

    #[test]
    fn two_hops_name_the_capital_and_ask_for_what_is_elsewhere() {
        let mut asked = BTreeSet::new();
        for stream in 0..20_000 {
            let Some(question) = question(&Countries { hops: 2 }, Side::Eval, stream) else { continue };
            assert!(question.plain.contains("whose capital is "), "{}", question.plain);
            assert!(!question.plain.contains("language") && !question.plain.contains("Kingston"), "{}", question.plain);
            assert!(
                countries_of(Side::Eval)
                    .iter()
                    .all(|c| !question.plain.contains(&format!(" {}?", c.name)) || c.capital == c.name)
            );
            asked.insert(question.key);
        }
        assert!(asked.len() >= 300, "{}", asked.len());
    }
}
