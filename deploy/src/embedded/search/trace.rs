//! What the policy is shown: episodes as a run would play them, with the habits of a mixture, and material to copy.

use folgore_dataset::countries::{Country, Field, PHRASINGS, asked, by_capital, prompted};
use folgore_protocol::Passage;

use super::{draws::Draws, names::Names, world::World};

/// A part of a trace: what the policy writes itself, or what it is told.
#[derive(Clone, Debug, PartialEq)]
pub struct Piece {
    /// The text.
    pub text: String,
    /// True for what the policy writes.
    pub own: bool,
}

/// How often each kind of trace and each habit is shown; all are shares of 1.
#[derive(Clone, Debug)]
pub struct Mixture {
    /// A line that is said twice: copying and nothing else.
    repeats: f64,
    /// Passages and then several questions on them.
    rounds: f64,
    /// Of episodes: those that need two searches.
    two_hops: f64,
    /// Of episodes: an answer out of nothing.
    direct: f64,
    /// Of searches: the field alone.
    field_only: f64,
    /// Of searches: another country, or a name that is misspelt.
    wrong_name: f64,
    /// Of searches: the name alone.
    name_only: f64,
    /// Of searches that did not bring what was asked for: another one, done well.
    again: f64,
    /// Of passages that hold the answer: something else in them is quoted.
    misquote: f64,
}

impl Mixture {
    /// Nothing goes wrong.
    pub fn good() -> Self {
        Self {
            repeats: 0.04,
            rounds: 0.25,
            two_hops: 0.3,
            direct: 0.0,
            field_only: 0.0,
            wrong_name: 0.0,
            name_only: 0.0,
            again: 1.0,
            misquote: 0.0,
        }
    }

    /// The habits that reinforcement finds.
    fn weak() -> Self {
        Self {
            direct: 0.5,
            field_only: 0.2,
            wrong_name: 0.2,
            name_only: 0.2,
            again: 0.3,
            misquote: 0.2,
            rounds: 0.3,
            ..Self::good()
        }
    }

    /// The same without material to copy.
    #[cfg(test)]
    pub fn episodes_only(self) -> Self {
        Self { repeats: 0.0, rounds: 0.0, ..self }
    }

    /// What is shown when the share `done` of a training is over: at first much to copy, then good episodes, weak ones at last.
    pub fn at(done: f64) -> Self {
        match done {
            d if d < 0.12 => Self { repeats: 0.3, rounds: 0.4, two_hops: 0.0, ..Self::good() },
            d if d < 0.3 => Self { rounds: 0.35, two_hops: 0.1, ..Self::good() },
            d if d < 0.75 => Self::good(),
            _ => Self::weak(),
        }
    }
}

/// The trace of a stream; the end token is not part of it.
pub fn traced(world: &World, names: &Names, mixture: &Mixture, stream: u64) -> Vec<Piece> {
    let mut scribe = Scribe { world, names, mixture, d: Draws::of(stream), pieces: Vec::new() };
    match scribe.d.share() {
        p if p < mixture.repeats => scribe.repeat(),
        p if p < mixture.repeats + mixture.rounds => scribe.rounds(),
        _ => scribe.episode(),
    }
    scribe.pieces
}

/// How the environment puts passages, in three parts that are encoded by themselves.
pub fn information(found: &[&Passage]) -> [String; 3] {
    let listed = found.iter().enumerate().map(|(i, p)| format!("Doc {}(Title: {}) {}", i + 1, p.title, p.text));
    let listed = listed.collect::<Vec<_>>().join("\n");
    ["<information>".into(), format!(" {listed} "), "</information>".into()]
}

/// The turn that searches for `query`.
pub fn searching(thought: &str, query: &str) -> String {
    format!("<think> {thought} </think><search> {query} </search>")
}

/// The turn that quotes `value` of `name` and answers with it.
pub fn answering(name: &str, value: &str) -> String {
    format!("<think> {name}: {value} </think><answer> {value} </answer>")
}

/// What a first search is begun with.
pub const INTENT: &str = "I should search";

struct Scribe<'a> {
    world: &'a World,
    names: &'a Names,
    mixture: &'a Mixture,
    d: Draws,
    pieces: Vec<Piece>,
}

impl<'a> Scribe<'a> {
    fn told(&mut self, text: impl Into<String>) {
        self.pieces.push(Piece { text: text.into(), own: false });
    }

    fn says(&mut self, text: impl Into<String>) {
        self.pieces.push(Piece { text: text.into(), own: true });
    }

    fn country(&mut self) -> &'a Country {
        self.d.of_these(&self.world.countries)
    }

    fn repeat(&mut self) {
        let words = 2 + self.d.below(5);
        let line = (0..words).map(|_| self.names.name(&mut self.d)).collect::<Vec<_>>().join(" ");
        self.told(format!(" {line}\n"));
        self.says(format!(" {line}\n"));
    }

    fn rounds(&mut self) {
        let shown = 2 + self.d.below(2);
        let known: Vec<(&Country, usize)> = (0..shown).map(|_| (self.country(), self.d.below(3))).collect();
        let found: Vec<Passage> = known.iter().map(|(country, part)| passage(country, *part)).collect();
        for part in information(&found.iter().collect::<Vec<_>>()) {
            self.told(part);
        }
        for _ in 0..2 + self.d.below(4) {
            let (country, part) = *self.d.of_these(&known);
            let field = Field::ALL[2 * part + self.d.below(2)];
            let phrasing = self.d.below(PHRASINGS as usize) as u64;
            self.told(prompted(&asked(field, &country.name, phrasing)));
            self.says(searching(INTENT, &format!("{} {}", country.name, field.name())));
            self.says(answering(field.name(), &country.fact(field)));
        }
    }

    fn episode(&mut self) {
        let two = self.d.chance(self.mixture.two_hops);
        let country = self.country();
        let fields: &[Field] = if two { &Field::FAR } else { &Field::ALL };
        let field = *self.d.of_these(fields);
        let whom = if two { by_capital(country) } else { country.name.clone() };
        let phrasing = self.d.below(PHRASINGS as usize) as u64;
        self.told(prompted(&asked(field, &whom, phrasing)));
        if self.d.chance(self.mixture.direct) {
            let value = self.country().fact(field);
            return self.says(format!("<think> I know this </think><answer> {value} </answer>"));
        }
        if two {
            let found = self.search(INTENT, &country.capital, Field::Capital, true);
            self.hop(country, found, field);
        } else {
            let wanted = |p: &Passage| holds(p, &country.name, field, &country.fact(field));
            let found = self.search(INTENT, &country.name, field, false);
            self.conclude(found, field, wanted, Some(country));
        }
    }

    /// The second search of two, if the first has brought the country; `found` is what it brought.
    fn hop(&mut self, country: &'a Country, found: Vec<&'a Passage>, field: Field) {
        let wanted = |p: &Passage| p.text.starts_with(&format!("capital: {};", country.capital));
        let Some(passage) = found.iter().find(|p| wanted(p)) else { return self.guess(&found, field) };
        let title = &passage.title;
        let found = self.search(&format!("country: {title}"), title, field, false);
        let titled = |p: &Passage| p.title == *title && p.text.contains(&format!("{}: ", field.name()));
        self.conclude(found, field, titled, None);
    }

    /// Answers from `found` if `wanted` is there; else searches again for `other`, or answers with what there is.
    fn conclude(
        &mut self,
        found: Vec<&'a Passage>,
        field: Field,
        wanted: impl Fn(&Passage) -> bool,
        other: Option<&'a Country>,
    ) {
        if let Some(passage) = found.iter().copied().find(|p| wanted(p)) {
            if self.d.chance(self.mixture.misquote) {
                return self.guess(&found, field);
            }
            return match value(passage, field) {
                Some(value) => self.says(answering(field.name(), value)),
                None => self.guess(&found, field),
            };
        }
        match other {
            Some(country) if self.d.chance(self.mixture.again) => {
                let query = format!("{} {}", country.name, field.name());
                let found = self.ask(INTENT, &query);
                self.conclude(found, field, wanted, None);
            }
            _ => self.guess(&found, field),
        }
    }

    /// Searches for `field` of `name`, well or badly; `hop` says that `name` is a capital.
    fn search(&mut self, thought: &str, name: &str, field: Field, hop: bool) -> Vec<&'a Passage> {
        let m = self.mixture;
        let field = field.name();
        let query = match self.d.share() {
            p if p < m.field_only => field.to_owned(),
            p if p < m.field_only + m.wrong_name => {
                let wrong = match self.d.chance(0.5) {
                    true => self.names.misspelt(name, &mut self.d),
                    false if hop => self.country().capital.clone(),
                    false => self.country().name.clone(),
                };
                format!("{wrong} {field}")
            }
            p if p < m.field_only + m.wrong_name + m.name_only => name.to_owned(),
            _ => format!("{name} {field}"),
        };
        self.ask(thought, &query)
    }

    fn ask(&mut self, thought: &str, query: &str) -> Vec<&'a Passage> {
        self.says(searching(thought, query));
        let found = self.world.search(query);
        for part in information(&found) {
            self.told(part);
        }
        found
    }

    /// Answers with any fact of `found`, of the right kind if there is one.
    fn guess(&mut self, found: &[&'a Passage], field: Field) {
        let facts: Vec<(&str, &str)> = found.iter().flat_map(|p| facts(p)).collect();
        let alike: Vec<_> = facts.iter().copied().filter(|(name, _)| *name == field.name()).collect();
        let these = if alike.is_empty() || self.d.chance(0.3) { &facts } else { &alike };
        if these.is_empty() {
            let value = self.country().fact(field);
            return self.says(format!("<think> nothing found </think><answer> {value} </answer>"));
        }
        let (name, value) = *self.d.of_these(these);
        self.says(answering(name, value));
    }
}

/// Passage number `part` of `country`.
fn passage(country: &Country, part: usize) -> Passage {
    let mut all = folgore_dataset::countries::passages(std::slice::from_ref(country));
    all.swap_remove(part)
}

fn facts(passage: &Passage) -> impl Iterator<Item = (&str, &str)> {
    passage.text.split("; ").filter_map(|fact| fact.split_once(": "))
}

fn value(passage: &Passage, field: Field) -> Option<&str> {
    facts(passage).find(|(name, _)| *name == field.name()).map(|(_, value)| value)
}

fn holds(passage: &Passage, name: &str, field: Field, fact: &str) -> bool {
    passage.title == name && value(passage, field) == Some(fact)
}
