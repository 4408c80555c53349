//! What the policy did right before: which of it is kept, and which of it is replayed (ExGRPO, arXiv 2510.02245).
//!
//! A question lies in the bucket of as many successes as its group had when it was asked last, and any succeeded. Buckets are
//! drawn by a law over the number of successes, whatever they hold; within a bucket all questions are alike. A question that a
//! whole group has solved is retired: it is not asked again, unless too few others were left.
//!
//! Where the paper's program differs from the paper, the paper is followed: entropy is the mean over what was said. And token
//! ids are kept, as they were sampled, never texts. Retirement acts when the next group is opened, and not at the next epoch.

use std::collections::{BTreeMap, BTreeSet};

use folgore_config::replay::{BucketLaw, Experience};
use folgore_protocol::{Task, seed};

use crate::record::rows::{PastRow, QuestionRow};

/// Separates the draws of this file from all others of the run.
const STREAM: u64 = 0x6578_7065_7269_656e;

/// Questions replayed in a step of `num_prompts`, of `live` that there are.
pub fn replayed_questions(num_prompts: u32, ratio: f64, live: usize) -> usize {
    ((f64::from(num_prompts) * ratio) as usize).min(live)
}

/// How likely each bucket is drawn, of those that hold something: by successes, of `members` in a group.
pub fn bucket_probabilities(law: BucketLaw, members: u32, sizes: &BTreeMap<u32, usize>) -> BTreeMap<u32, f64> {
    let n = f64::from(members);
    let weight = |successes: u32| {
        let k = f64::from(successes);
        match law {
            BucketLaw::Normal => (-(k - n / 2.0).powi(2) / 2.0).exp(),
            BucketLaw::Linear => k / n,
            BucketLaw::Sqrt => (k / n).sqrt(),
            BucketLaw::LinearClip => (k / n).min(0.5),
        }
    };
    let weights = sizes.iter().filter(|(_, size)| **size > 0).map(|(k, _)| (*k, weight(*k)));
    let weights: BTreeMap<u32, f64> = weights.collect();
    let sum: f64 = weights.values().sum();
    weights.into_iter().map(|(k, weight)| (k, weight / sum)).collect()
}

/// Brings what was drawn of each bucket down to what it holds; gives how many are to be drawn again.
pub fn cap(drawn: &mut BTreeMap<u32, usize>, sizes: &BTreeMap<u32, usize>) -> usize {
    let mut excess = 0;
    for (bucket, count) in drawn {
        let held = sizes.get(bucket).copied().unwrap_or(0);
        excess += count.saturating_sub(held);
        *count = held.min(*count);
    }
    excess
}

/// A success to be kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Success {
    /// Place of its seat in the group.
    pub sample: u32,
    /// `Trajectory::fingerprint` of it.
    pub fingerprint: u64,
}

/// The questions of which anything is known.
#[derive(Clone, Debug, Default)]
pub struct Pool {
    settings: Experience,
    /// Members of a group.
    members: u32,
    /// Questions that there are to ask.
    questions_max: u64,
    questions: BTreeMap<String, QuestionRow>,
    retired: u64,
    changed: BTreeSet<String>,
    removed: Vec<u64>,
}

impl Pool {
    /// The pool of a run whose groups have `members`, and which asks `questions_max` questions.
    pub fn new(
        settings: Experience,
        members: u32,
        questions_max: u64,
        questions: BTreeMap<String, QuestionRow>,
    ) -> Self {
        let retired = questions.values().filter(|q| q.retired).count() as u64;
        Self { settings, members, questions_max, questions, retired, ..Self::default() }
    }

    /// What it goes by.
    pub fn settings(&self) -> &Experience {
        &self.settings
    }

    /// True if the question is not to be asked any more.
    pub fn is_retired(&self, id: &str) -> bool {
        self.questions.get(id).is_some_and(|question| question.retired)
    }

    /// What is known of a question.
    pub fn question(&self, id: &str) -> Option<&QuestionRow> {
        self.questions.get(id)
    }

    /// Questions of which successes are kept; their successes; questions that are retired.
    pub fn sizes(&self) -> (u64, u64, u64) {
        let past = self.live().map(|(_, question)| question.past.len() as u64).sum();
        (self.live().count() as u64, past, self.retired)
    }

    /// Rows that changed since the last call, and numbers of successes that are gone.
    pub fn take_change(&mut self) -> (Vec<(String, QuestionRow)>, Vec<u64>) {
        let changed = std::mem::take(&mut self.changed);
        let rows = changed.into_iter().filter_map(|id| Some((id.clone(), self.questions.get(&id)?.clone())));
        (rows.collect(), std::mem::take(&mut self.removed))
    }

    fn live(&self) -> impl Iterator<Item = (&String, &QuestionRow)> {
        self.questions.iter().filter(|(_, question)| !question.past.is_empty())
    }

    /// A group for `task` had these `successes`. With `collect` those are kept that are not there yet, numbered from
    /// `next_number` on; gives them with their numbers.
    pub fn visited(
        &mut self,
        task: &Task,
        successes: u32,
        fresh: &[Success],
        collect: bool,
        (step, next_number): (u64, u64),
    ) -> Vec<(u64, Success)> {
        if successes >= self.members {
            self.retire(task);
            return Vec::new();
        }
        let most = self.settings.max_successes.unwrap_or(self.members - 1);
        let wanted = (self.settings.min_successes..=most).contains(&successes);
        if !collect || !wanted || self.is_retired(&task.id) {
            return Vec::new();
        }
        self.make_room(&task.id);
        let unknown = || QuestionRow { task: task.clone(), successes: 0, past: Vec::new(), retired: false };
        let question = self.questions.entry(task.id.clone()).or_insert_with(unknown);
        question.successes = successes;
        let mut kept = Vec::new();
        for success in fresh {
            if question.past.iter().all(|past| past.fingerprint != success.fingerprint) {
                let number = next_number + kept.len() as u64;
                question.past.push(PastRow { number, fingerprint: success.fingerprint, step });
                kept.push((number, *success));
            }
        }
        let over = question.past.len().saturating_sub(self.settings.max_per_question as usize);
        let gone: BTreeSet<u64> = question.past.drain(..over).map(|past| past.number).collect();
        // what was to be kept and is over at once is never written
        kept.retain(|(number, _)| !gone.contains(number));
        self.removed.extend(gone.into_iter().filter(|number| *number < next_number));
        self.changed.insert(task.id.clone());
        kept
    }

    /// A question that all have solved. It stays where too few others would be left to ask: what is sampled of ever fewer
    /// questions ends in nothing.
    fn retire(&mut self, task: &Task) {
        let left = self.questions_max.saturating_sub(self.retired + 1);
        if !self.settings.retire || left < self.settings.min_live_questions || self.is_retired(&task.id) {
            return;
        }
        self.forget(&task.id);
        let successes = self.members;
        let retired = QuestionRow { task: task.clone(), successes, past: Vec::new(), retired: true };
        self.questions.insert(task.id.clone(), retired);
        self.changed.insert(task.id.clone());
        self.retired += 1;
    }

    fn forget(&mut self, id: &str) {
        let Some(question) = self.questions.get_mut(id) else { return };
        self.removed.extend(question.past.drain(..).map(|past| past.number));
        self.changed.insert(id.to_owned());
    }

    /// Forgets what was asked longest ago, if there is no place for `id`.
    fn make_room(&mut self, id: &str) {
        let known = self.questions.get(id).is_some_and(|question| !question.past.is_empty());
        if known || self.live().count() < self.settings.max_questions as usize {
            return;
        }
        let age = |question: &QuestionRow| question.past.last().map(|past| past.number);
        let oldest = self.live().min_by_key(|(_, question)| age(question)).map(|(id, _)| id.clone());
        oldest.into_iter().for_each(|id| self.forget(&id));
    }

    fn forget_what_is_too_old(&mut self, step: u64) {
        let Some(most) = self.settings.max_age_steps else { return };
        for (id, question) in &mut self.questions {
            let before = question.past.len();
            let (kept, gone) =
                std::mem::take(&mut question.past).into_iter().partition(|past| past.step + most >= step);
            question.past = kept;
            let gone: Vec<PastRow> = gone;
            self.removed.extend(gone.iter().map(|past| past.number));
            if question.past.len() != before {
                self.changed.insert(id.clone());
            }
        }
    }

    /// The questions to replay in `step`, of `num_prompts`; no question twice.
    pub fn choose(&mut self, run_seed: u64, step: u64, num_prompts: u32) -> Vec<String> {
        self.forget_what_is_too_old(step);
        let mut buckets: BTreeMap<u32, Vec<String>> = BTreeMap::new();
        for (id, question) in self.live() {
            buckets.entry(question.successes).or_default().push(id.clone());
        }
        let sizes: BTreeMap<u32, usize> = buckets.iter().map(|(k, ids)| (*k, ids.len())).collect();
        let wanted = replayed_questions(num_prompts, self.settings.ratio, sizes.values().sum());
        let mut draw = Draw { seed: seed::mix(&[run_seed, STREAM, step]), index: 0 };
        let law = |sizes: &BTreeMap<u32, usize>| bucket_probabilities(self.settings.bucket_law, self.members, sizes);
        let all = law(&sizes);
        let mut drawn: BTreeMap<u32, usize> = BTreeMap::new();
        (0..wanted).filter_map(|_| draw.one_of(&all)).for_each(|k| *drawn.entry(k).or_default() += 1);
        for _ in 0..cap(&mut drawn, &sizes) {
            let room = sizes.iter().map(|(k, size)| (*k, size - drawn.get(k).copied().unwrap_or(0))).collect();
            draw.one_of(&law(&room)).into_iter().for_each(|k| *drawn.entry(k).or_default() += 1);
        }
        let mut chosen = Vec::new();
        for (k, count) in drawn {
            let ids = buckets.entry(k).or_default();
            seed::shuffle(seed::mix(&[draw.seed, u64::from(k)]), ids);
            chosen.extend(ids.drain(..count.min(ids.len())));
        }
        chosen
    }
}

/// Draws one after the other.
struct Draw {
    seed: u64,
    index: u64,
}

impl Draw {
    /// A bucket by its probability; none of none.
    fn one_of(&mut self, probabilities: &BTreeMap<u32, f64>) -> Option<u32> {
        let mut left = f64::from(seed::uniform(self.seed, self.index));
        self.index += 1;
        for (bucket, probability) in probabilities {
            left -= probability;
            if left < 0.0 {
                return Some(*bucket);
            }
        }
        // what rounding has left over belongs to the last
        probabilities.keys().last().copied()
    }
}

#[cfg(test)]
mod tests {
    use folgore_protocol::Prompt;

    use super::*;

    fn task(id: &str) -> Task {
        Task { id: id.into(), prompt: Prompt::Text(id.into()), columns: Default::default() }
    }

    fn pool(change: impl FnOnce(&mut Experience)) -> Pool {
        let mut settings = Experience { min_live_questions: 1, ..Experience::default() };
        change(&mut settings);
        Pool::new(settings, 8, 1000, BTreeMap::new())
    }

    fn visit(pool: &mut Pool, id: &str, successes: u32, number: u64) -> Vec<u64> {
        let fresh: Vec<Success> =
            (0..successes).map(|sample| Success { sample, fingerprint: number + u64::from(sample) }).collect();
        pool.visited(&task(id), successes, &fresh, true, (number, number)).iter().map(|(n, _)| *n).collect()
    }

    #[test]
    fn what_is_kept_is_bounded_and_the_oldest_goes_first() {
        let mut pool = pool(|s| (s.max_per_question, s.max_questions) = (3, 2));
        assert_eq!(visit(&mut pool, "a", 2, 10), [10, 11]);
        assert_eq!(visit(&mut pool, "a", 2, 10), [] as [u64; 0], "the same again is known");
        assert_eq!(visit(&mut pool, "a", 2, 20), [20, 21]);
        assert_eq!(pool.take_change().1, [10], "one is over");
        assert_eq!(visit(&mut pool, "b", 5, 30), [32, 33, 34], "never more than the bound");
        visit(&mut pool, "c", 1, 40);
        assert_eq!(pool.sizes(), (2, 4, 0), "a, asked longest ago, made room");
        assert_eq!(pool.take_change().1, [11, 20, 21]);
    }

    #[test]
    fn retiring_stops_before_too_few_are_left() {
        let mut pool = Pool::new(Experience { min_live_questions: 3, ..Experience::default() }, 2, 4, BTreeMap::new());
        for id in ["a", "b"] {
            pool.visited(&task(id), 2, &[], true, (1, 0));
        }
        assert!(pool.is_retired("a") && !pool.is_retired("b"));
    }

    #[test]
    fn draws_follow_the_law_and_no_question_comes_twice() {
        let mut pool = pool(|s| s.ratio = 1.0);
        for i in 0..70 {
            visit(&mut pool, &format!("q{i}"), 1 + i % 7, 100 + 10 * u64::from(i));
        }
        let mut counts: BTreeMap<u32, u64> = BTreeMap::new();
        for step in 1..=400 {
            let chosen = pool.choose(7, step, 5);
            assert_eq!(chosen.iter().collect::<BTreeSet<_>>().len(), 5);
            assert_eq!(chosen, pool.choose(7, step, 5), "a function of the step");
            chosen.iter().for_each(|id| *counts.entry(pool.questions[id].successes).or_default() += 1);
        }
        let law = bucket_probabilities(BucketLaw::Normal, 8, &(1..=7).map(|k| (k, 10)).collect());
        for (k, probability) in law {
            let seen = counts.get(&k).copied().unwrap_or(0) as f64 / 2000.0;
            assert!((seen - probability).abs() < 0.04, "{k}: {seen} {probability}");
        }
        assert_eq!(pool.choose(7, 1, 1000).len(), 70, "all that there are");
    }

    #[test]
    fn what_is_too_old_is_forgotten() {
        let mut pool = pool(|s| s.max_age_steps = Some(5));
        visit(&mut pool, "a", 1, 10);
        assert_eq!(pool.choose(1, 15, 2), ["a"]);
        assert!(pool.choose(1, 16, 2).is_empty());
        assert_eq!(pool.take_change().1, [10]);
    }
}
