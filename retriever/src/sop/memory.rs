//! Procedures in force, and which of them fit a question.

use std::{
    cmp::Ordering,
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use folgore_protocol::Digest;

use super::{
    Procedure, SopError, Status,
    questions::{bounded, content, holds, plain, sentences},
};
use crate::{
    ChunkId, Fusion, Hit, Ranking, SearchError,
    encode::{Encoder as _, Hashed},
    lexical::{Bm25, Bm25Settings, Words},
    ranking::Top,
    vectors::{GraphSettings, VectorIndex, VectorRanking, Vectors as _},
};

/// Numbers of a vector: so many that words seldom meet by accident.
const DIM: usize = 2048;
/// Vectors that are looked at for a sentence: the nearest.
const NEAREST: usize = 256;
/// Texts encoded together.
const BATCH: usize = 256;

/// A procedure that fits a question.
#[derive(Clone, Debug, PartialEq)]
pub struct Found {
    /// Its place in [`Procedures::active`].
    pub at: usize,
    /// How well it fits: 1 where a trigger stands in the question, else how near the nearest of its sentences comes to the nearest of
    /// the procedure's triggers, name and case of use.
    pub score: f32,
    /// The longest of its triggers that stand in the question.
    pub trigger: Option<String>,
}

/// Procedures that can be found.
///
/// Two rankings are made one ([`Fusion`] by weighted scores): BM25 over all words of a procedure, and vectors of [`Hashed`], in which
/// each sentence of a question looks for the nearest trigger, name or case of use. The first knows which words are rare, the second which
/// are nearly the same. They give the order; who is found at all must reach a least score in the second, whose scores mean the same for
/// any question and any memory. A procedure of which a trigger stands in the question is found, and comes before all others.
pub struct Procedures {
    active: Vec<Procedure>,
    /// Of each procedure, plain, the longest first.
    triggers: Vec<Vec<String>>,
    lexical: Bm25,
    near: Near,
    digest: Digest,
}

impl Procedures {
    /// Holds those of `procedures` that are active and, unless `categories` is empty, of one of these categories.
    ///
    /// # Errors
    /// If none is left, or no procedure is of a category that is asked for.
    pub fn new(procedures: Vec<Procedure>, categories: &[String]) -> Result<Self, SopError> {
        let nothing = |expected: String, got: String| SopError::Expected { place: "procedures".into(), expected, got };
        for asked in categories {
            let known: BTreeSet<&str> = procedures.iter().map(|p| p.category.as_str()).collect();
            if !known.contains(asked.as_str()) {
                let known: Vec<String> = known.iter().map(|name| format!("{name:?}")).collect();
                return Err(nothing(
                    format!("some of category {asked:?}"),
                    format!("only those of {}", known.join(", ")),
                ));
            }
        }
        let all = procedures.len();
        let is_held =
            |p: &Procedure| p.status == Status::Active && (categories.is_empty() || categories.contains(&p.category));
        let mut active: Vec<Procedure> = procedures.into_iter().filter(is_held).collect();
        if active.is_empty() {
            let got = format!("none among {all}: others are drafts, retired or of other categories");
            return Err(nothing("at least one that is active".into(), got));
        }
        // the order of files is no matter, also where scores are equal
        active.sort_by(|a, b| a.name.cmp(&b.name));
        let failed = |reason: String| nothing("rankings".into(), reason);
        let words = Words { identifiers: true, ..Words::default() };
        let lexical =
            Bm25::new(Bm25Settings { words, ..Bm25Settings::default() }).map_err(|e| failed(e.to_string()))?;
        for (i, procedure) in active.iter().enumerate() {
            lexical.add(i as ChunkId, &all_words(procedure));
        }
        let near = Near::new(&active).map_err(|e| failed(e.to_string()))?;
        let longest_first = |procedure: &Procedure| {
            let mut triggers: Vec<String> = procedure.triggers.iter().map(|trigger| plain(trigger)).collect();
            triggers.sort_by_key(|trigger| std::cmp::Reverse(trigger.chars().count()));
            triggers
        };
        let triggers = active.iter().map(longest_first).collect();
        let written = serde_json::to_vec(&active).unwrap_or_default();
        Ok(Self { triggers, lexical, near, digest: Digest::of(&written), active })
    }

    /// Those that can be found, by name.
    pub fn active(&self) -> &[Procedure] {
        &self.active
    }

    /// Names what they say.
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// The procedures that fit `question` with a score of at least `min_score`, best first, at most `most`. Of a long question the
    /// beginning is looked at.
    ///
    /// # Errors
    /// If a ranking fails.
    pub fn find(&self, question: &str, most: usize, min_score: f32) -> Result<Vec<Found>, SearchError> {
        let question = bounded(question);
        let said = plain(question);
        let all = self.active.len();
        let near = self.near.search(question)?;
        let words: Vec<Hit> =
            self.lexical.search(&[&content(question)], all, &|_| true)?.into_iter().flatten().collect();
        let fused = Fusion::Weighted.fuse(&[(&words, 0.5), (&near, 0.5)], all);
        let mut ranked = vec![(0.0, 0.0); all];
        fused.iter().for_each(|hit| ranked[hit.chunk as usize].0 = hit.score);
        near.iter().for_each(|hit| ranked[hit.chunk as usize].1 = hit.score);
        let look = |(at, (fused, near)): (usize, (f32, f32))| {
            let trigger = self.triggers[at].iter().find(|trigger| holds(&said, trigger)).cloned();
            let score = if trigger.is_some() { 1.0 } else { near.clamp(0.0, 1.0) };
            (fused, Found { at, score, trigger })
        };
        let mut found: Vec<(f32, Found)> = ranked.into_iter().enumerate().map(look).collect();
        found.retain(|(_, found)| found.score >= min_score);
        // stable: equal ones stay by name
        found.sort_by(|(a_fused, a), (b_fused, b)| {
            let letters = |found: &Found| found.trigger.as_ref().map_or(0, |trigger| trigger.chars().count());
            letters(b).cmp(&letters(a)).then(b_fused.partial_cmp(a_fused).unwrap_or(Ordering::Equal))
        });
        found.truncate(most);
        Ok(found.into_iter().map(|(_, found)| found).collect())
    }
}

/// Everything that a procedure says.
fn all_words(procedure: &Procedure) -> String {
    let Procedure { name, category, when, triggers, steps, .. } = procedure;
    let steps = steps.iter().flat_map(|step| [step.action.as_str(), step.expect.as_str()]);
    let parts = [name.as_str(), category, when].into_iter().chain(triggers.iter().map(String::as_str)).chain(steps);
    parts.collect::<Vec<_>>().join("\n")
}

/// Ranks procedures by the nearest pair of a sentence of the question and something that says when the procedure is used.
struct Near {
    ranking: VectorRanking,
    /// The procedure of each vector.
    owners: Vec<usize>,
}

impl Near {
    fn new(procedures: &[Procedure]) -> Result<Self, Box<dyn std::error::Error + Send + Sync>> {
        let encoder = Hashed::new(DIM);
        let vectors = VectorIndex::new(DIM, GraphSettings::never())?;
        let keys: Vec<(usize, &str)> =
            procedures.iter().enumerate().flat_map(|(i, p)| keys(p).map(move |key| (i, key))).collect();
        for (batch, part) in keys.chunks(BATCH).enumerate() {
            let texts: Vec<String> = part.iter().map(|(_, key)| content(key)).collect();
            let encoded = encoder.encode_passages(&texts.iter().map(String::as_str).collect::<Vec<_>>())?;
            let first = batch * BATCH;
            let numbered: Vec<(ChunkId, &[f32])> =
                encoded.iter().enumerate().map(|(i, vector)| ((first + i) as ChunkId, vector.as_slice())).collect();
            vectors.add(&numbered)?;
        }
        let owners = keys.into_iter().map(|(owner, _)| owner).collect();
        let ranking = VectorRanking::new(Arc::new(encoder), Arc::new(vectors));
        Ok(Self { ranking, owners })
    }

    /// The procedures that come near to `question`, best first, equal ones in their order.
    fn search(&self, question: &str) -> Result<Vec<Hit>, SearchError> {
        let mut best: BTreeMap<usize, f32> = BTreeMap::new();
        let texts: Vec<String> = sentences(question).into_iter().map(content).collect();
        let texts: Vec<&str> = texts.iter().map(String::as_str).filter(|text| !text.is_empty()).collect();
        for hit in self.ranking.search(&texts, NEAREST, &|_| true)?.into_iter().flatten() {
            let score = best.entry(self.owners[hit.chunk as usize]).or_insert(hit.score);
            *score = score.max(hit.score);
        }
        let mut top = Top::new(best.len());
        best.into_iter().for_each(|(procedure, score)| top.offer(Hit { chunk: procedure as ChunkId, score }));
        Ok(top.into_hits())
    }
}

/// What says when a procedure is used.
fn keys(procedure: &Procedure) -> impl Iterator<Item = &str> {
    let when = Some(procedure.when.as_str()).filter(|when| !when.is_empty());
    procedure.triggers.iter().map(String::as_str).chain([procedure.name.as_str()]).chain(when)
}
