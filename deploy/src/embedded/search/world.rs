//! Countries that do not exist, with passages to search: what the policy is taught on.

use folgore_dataset::countries::{Country, passages};
use folgore_protocol::Passage;
use folgore_retriever::{
    Ranking as _,
    lexical::{Bm25, Bm25Settings},
};

use super::{draws::Draws, names::Names};

/// Countries of a world.
const COUNTRIES: usize = 180;
/// Languages of a world; the first of them are spoken in many countries.
const LANGUAGES: usize = 40;
/// Passages that a search brings, as in the demonstration.
pub const TOP_K: usize = 2;

/// A world.
pub struct World {
    /// Its countries.
    pub countries: Vec<Country>,
    library: Library,
}

impl World {
    /// The world of a stream.
    pub fn new(names: &Names, stream: u64) -> Self {
        let mut d = Draws::of(stream);
        let endings = ["", "", "n", "an", "ish", "ese", "ic", "i"];
        let language = |d: &mut Draws| names.word(d) + *d.of_these(&endings);
        let languages: Vec<String> = (0..LANGUAGES).map(|_| language(&mut d)).collect();
        let shared: Vec<String> = (0..3).map(|_| code(&mut d)).collect();
        let countries: Vec<Country> = (0..COUNTRIES)
            .map(|_| Country {
                name: names.name(&mut d),
                capital: names.name(&mut d),
                language: languages[(d.share().powi(2) * LANGUAGES as f64) as usize].clone(),
                population: log_uniform(&mut d, 100.0, 1.4e9),
                area: log_uniform(&mut d, 2.0, 1.7e7),
                currency: if d.chance(0.25) { d.of_these(&shared).clone() } else { code(&mut d) },
                calling_code: calling_code(&mut d),
            })
            .collect();
        let library = Library::new(passages(&countries));
        Self { countries, library }
    }

    /// What a search in it brings.
    pub fn search(&self, query: &str) -> Vec<&Passage> {
        self.library.search(query)
    }
}

/// Passages and their index, ranked as a run ranks them.
pub struct Library {
    passages: Vec<Passage>,
    index: Bm25,
}

impl Library {
    /// An index of `passages`.
    pub fn new(passages: Vec<Passage>) -> Self {
        let index = Bm25::new(Bm25Settings::default()).expect("the default settings are settings");
        for (place, passage) in passages.iter().enumerate() {
            index.add(place as u32, &format!("{}\n{}", passage.title, passage.text));
        }
        Self { passages, index }
    }

    /// The best passages for `query`.
    pub fn search(&self, query: &str) -> Vec<&Passage> {
        let hits = self.index.search(&[query], TOP_K, &|_| true).expect("words need no encoder");
        hits.iter().flatten().map(|hit| &self.passages[hit.chunk as usize]).collect()
    }
}

fn log_uniform(d: &mut Draws, low: f64, high: f64) -> u64 {
    (low * (high / low).powf(d.share())) as u64
}

fn code(d: &mut Draws) -> String {
    (0..3).map(|_| char::from(b'A' + d.below(26) as u8)).collect()
}

/// One to four digits, most often three; four begin with 1, as American ones do.
fn calling_code(d: &mut Draws) -> String {
    match d.share() {
        p if p < 0.04 => (1 + d.below(9)).to_string(),
        p if p < 0.24 => (10 + d.below(90)).to_string(),
        p if p < 0.85 => (100 + d.below(900)).to_string(),
        _ => (1000 + d.below(1000)).to_string(),
    }
}
