//! Alarms: what a user has to hear before a run wastes its time, or learns the wrong thing.
//!
//! Pure: the batch of a step in, alarms out. Each is told when its trouble begins and not again until the trouble has ended; it
//! ends at a lower mark than it begins at, so that a number near the mark does not tell it again and again. Nothing here is
//! stored: a resumed run watches from its first step on.

use std::{
    collections::{BTreeMap, VecDeque},
    fmt,
};

use folgore_protocol::{Batch, Draws, Outcome};

use crate::advantage::Moments;

/// Steps in a row without any difference between rewards.
const EQUAL_STEPS: u32 = 5;
/// Steps over which the errors of the reward are counted.
const ERROR_STEPS: usize = 10;
/// Fewer judged draws say nothing about a share.
const ERROR_DRAWS: u64 = 20;
/// The share of errors from which on it is an alarm, and the one at which it ends.
const ERROR_SHARE: (f64, f64) = (0.05, 0.025);
/// Steps whose mean is compared with that of as many steps before them.
const HALF: usize = 10;
/// Standard errors by which a mean has to differ to count as risen.
const RISEN: f64 = 3.0;
/// Standard errors by which the second scorer has to rise to end its alarm.
const FOLLOWS: f64 = 2.0;

/// One thing to tell.
#[derive(Clone, Debug, PartialEq)]
pub enum Alarm {
    /// Nothing could be learnt in some steps, because rewards did not differ.
    EqualRewards {
        /// Steps in a row.
        steps: u32,
        /// The reward of every completion, if it was one.
        reward: Option<f64>,
    },
    /// The reward fails often.
    Errors {
        /// Draws on which it failed.
        errors: u64,
        /// Draws that were put to it.
        judged: u64,
    },
    /// The reward rises, and a reward of weight 0 beside it does not.
    SecondScorer {
        /// Name of the second scorer.
        name: String,
        /// Steps that were looked at.
        steps: usize,
        /// Mean reward in their first half and in their second.
        reward: (f64, f64),
        /// The same of the second scorer.
        second: (f64, f64),
    },
}

impl Alarm {
    /// A short name for logs.
    pub fn label(&self) -> &'static str {
        match self {
            Alarm::EqualRewards { .. } => "equal_rewards",
            Alarm::Errors { .. } => "reward_errors",
            Alarm::SecondScorer { .. } => "second_scorer",
        }
    }
}

impl fmt::Display for Alarm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Alarm::EqualRewards { steps, reward } => {
                match reward {
                    Some(reward) => write!(f, "every completion of the last {steps} steps got reward {reward}")?,
                    None => write!(f, "in the last {steps} steps all completions of a question got the same reward")?,
                }
                write!(
                    f,
                    ": nothing can be learnt from rewards that are equal. If the answers are right, the task is learnt: \
                     stop, or give harder questions; if they are wrong, give easier ones; if neither, look at the reward \
                     with `folgore reward test`"
                )
            }
            Alarm::Errors { errors, judged } => write!(
                f,
                "the reward failed on {errors} of the last {judged} draws ({:.1} %). None was scored 0: they are drawn again, or \
                 their group is left out, which makes steps slow and leaves out what the reward cannot judge. \
                 `folgore reward test` shows what fails and why",
                *errors as f64 / *judged as f64 * 100.0
            ),
            Alarm::SecondScorer { name, steps, reward, second } => write!(
                f,
                "within {steps} steps the reward rose from {:.3} to {:.3}, and the second scorer {name} did not ({:.3} to {:.3}): \
                 the policy may have found out how to please the reward alone. Read its samples (`folgore inspect`), and \
                 mend the reward or give {name} a weight",
                reward.0, reward.1, second.0, second.1
            ),
        }
    }
}

/// Watches one launch of a run.
#[derive(Debug, Default)]
pub struct Alarms {
    equal_steps: u32,
    equal_told: bool,
    /// Draws of the run at the ends of the last steps.
    draws: VecDeque<Draws>,
    errors_told: bool,
    /// Mean reward and means of second scorers of each step.
    means: VecDeque<(f64, BTreeMap<String, f64>)>,
    second_told: BTreeMap<String, bool>,
}

impl Alarms {
    /// A step was trained on `batch`; gives what begins to be wrong with its rewards.
    pub fn observe(&mut self, batch: &Batch) -> Vec<Alarm> {
        let groups: Vec<Vec<f64>> =
            batch.groups.iter().map(|group| group.rewards().into_iter().flatten().collect()).collect();
        let mut alarms: Vec<Alarm> = self.equal(&groups).into_iter().collect();
        let all: Vec<f64> = groups.concat();
        if !all.is_empty() {
            push(&mut self.means, (Moments::of(&all).mean, second_scorers(batch)), 2 * HALF);
            alarms.extend(self.second());
        }
        alarms
    }

    fn equal(&mut self, groups: &[Vec<f64>]) -> Option<Alarm> {
        let first = groups.iter().flatten().next().copied()?;
        let several = groups.iter().map(Vec::len).sum::<usize>() > 1;
        let one = several && groups.iter().flatten().all(|reward| *reward == first);
        let flat = groups.iter().all(|group| group.len() > 1 && group.iter().all(|reward| *reward == group[0]));
        if !one && !flat {
            (self.equal_steps, self.equal_told) = (0, false);
            return None;
        }
        self.equal_steps = self.equal_steps.saturating_add(1);
        let told = std::mem::replace(&mut self.equal_told, self.equal_steps >= EQUAL_STEPS);
        (self.equal_told && !told)
            .then_some(Alarm::EqualRewards { steps: self.equal_steps, reward: one.then_some(first) })
    }

    /// The draws of the run so far, at the end of a step or (`waiting`) while one is waited for: a reward that always fails
    /// never completes one. The first call says where this launch begins.
    pub fn draws(&mut self, so_far: Draws, waiting: bool) -> Option<Alarm> {
        let before = self.draws.front().copied().unwrap_or(so_far);
        if !waiting || self.draws.is_empty() {
            push(&mut self.draws, so_far, ERROR_STEPS);
        }
        let since = |value: fn(&Draws) -> u64| value(&so_far).saturating_sub(value(&before));
        let errors = since(|draws| draws.errors);
        let judged = errors + since(|draws| draws.scored) + since(|draws| draws.unscorable);
        if judged < ERROR_DRAWS {
            return None;
        }
        let share = errors as f64 / judged as f64;
        let told = self.errors_told;
        self.errors_told = if told { share > ERROR_SHARE.1 } else { share > ERROR_SHARE.0 };
        (self.errors_told && !told).then_some(Alarm::Errors { errors, judged })
    }

    fn second(&mut self) -> Vec<Alarm> {
        if self.means.len() < 2 * HALF {
            return Vec::new();
        }
        let halves = |value: &dyn Fn(&(f64, BTreeMap<String, f64>)) -> Option<f64>| {
            let values: Option<Vec<f64>> = self.means.iter().map(value).collect();
            values.map(|values| Rise::of(&values))
        };
        let Some(reward) = halves(&|(reward, _)| Some(*reward)) else { return Vec::new() };
        let names: Vec<String> =
            self.means.back().map(|(_, seconds)| seconds.keys().cloned().collect()).unwrap_or_default();
        let mut alarms = Vec::new();
        for name in names {
            let Some(second) = halves(&|(_, seconds)| seconds.get(&name).copied()) else { continue };
            let told = self.second_told.get(&name).copied().unwrap_or(false);
            // Everything good that it looks for is there already: it has nowhere to rise to.
            let full = second.constant.is_some_and(|value| value > 0.0);
            let begins = reward.by >= RISEN && second.by <= 0.0 && !full;
            let goes_on = told && second.by < FOLLOWS && reward.by > 0.0;
            self.second_told.insert(name.clone(), begins || goes_on);
            if begins && !told {
                alarms.push(Alarm::SecondScorer { name, steps: 2 * HALF, reward: reward.means, second: second.means });
            }
        }
        alarms
    }
}

/// How two halves of some numbers differ.
struct Rise {
    means: (f64, f64),
    /// By how many standard errors of the difference.
    by: f64,
    /// The one value that all of them have, if they have.
    constant: Option<f64>,
}

impl Rise {
    fn of(values: &[f64]) -> Self {
        let (first, last) = values.split_at(values.len() / 2);
        let (a, b) = (Moments::of(first), Moments::of(last));
        let error = (a.std.powi(2) / first.len() as f64 + b.std.powi(2) / last.len() as f64).sqrt();
        let difference = b.mean - a.mean;
        // Numbers that do not vary at all differ for certain, or not at all.
        let by = if difference == 0.0 { 0.0 } else { difference / error };
        let constant = values.first().copied().filter(|first| values.iter().all(|value| value == first));
        Self { means: (a.mean, b.mean), by, constant }
    }
}

/// Mean of each part that does not count in the total, by name. What a member tells of itself (`name/detail`) is no scorer.
fn second_scorers(batch: &Batch) -> BTreeMap<String, f64> {
    let mut sums: BTreeMap<&str, (f64, u32)> = BTreeMap::new();
    for member in batch.groups.iter().flat_map(|group| &group.members) {
        let Outcome::Scored { parts, .. } = &member.outcome else { continue };
        let is_detail =
            |name: &str| parts.iter().any(|p| name.strip_prefix(&p.name).is_some_and(|rest| rest.starts_with('/')));
        for part in parts.iter().filter(|part| part.weight == 0.0 && !is_detail(&part.name)) {
            let (sum, count) = sums.entry(&part.name).or_default();
            *sum += part.value;
            *count += 1;
        }
    }
    sums.into_iter().map(|(name, (sum, count))| (name.to_owned(), sum / f64::from(count))).collect()
}

fn push<T>(queue: &mut VecDeque<T>, value: T, most: usize) {
    queue.push_back(value);
    if queue.len() > most {
        queue.pop_front();
    }
}

#[cfg(test)]
mod tests {
    use folgore_protocol::{GroupId, GroupRecord, Part, Prompt, Purpose, SeatKey, StopReason, Task, Trajectory};

    use super::*;

    fn member(outcome: Outcome) -> Trajectory {
        Trajectory {
            seat: SeatKey { group: GroupId(0), sample: 0, draw: 0 },
            task_id: "t".into(),
            purpose: Purpose::Train,
            rows: Vec::new(),
            outcome,
            stop_reason: StopReason::Eos,
            worker: "w".into(),
            duration_ms: 0,
            token: String::new(),
        }
    }

    /// A batch of groups with these rewards, each with a second scorer's value.
    fn batch(groups: &[&[f64]], second: f64) -> Batch {
        let outcome = |total: f64| Outcome::Scored {
            total,
            parts: vec![
                Part { name: "rule".into(), value: total, weight: 1.0 },
                Part { name: "rule/detail".into(), value: 0.0, weight: 0.0 },
                Part { name: "judge".into(), value: second, weight: 0.0 },
            ],
            answer: None,
        };
        let task = || Task { id: "t".into(), prompt: Prompt::Text("q".into()), columns: Default::default() };
        let group = |rewards: &&[f64]| GroupRecord {
            id: GroupId(0),
            task: task(),
            members: rewards.iter().map(|r| member(outcome(*r))).collect(),
        };
        Batch {
            step: 1,
            groups: groups.iter().map(group).collect(),
            filtered_groups: 0,
            unscored_groups: 0,
            passed_over: 0,
            draws: Draws::default(),
        }
    }

    fn draws(scored: u64, errors: u64) -> Draws {
        Draws { scored, errors, ..Draws::default() }
    }

    #[test]
    fn equal_rewards_are_told_once_until_they_differ_again() {
        let mut alarms = Alarms::default();
        let flat = batch(&[&[1.0, 1.0], &[1.0, 1.0]], 0.0);
        let told: Vec<usize> = (0..20).filter(|_| !alarms.observe(&flat).is_empty()).collect();
        assert_eq!(told, [4]);
        assert!(alarms.observe(&batch(&[&[1.0, 0.0], &[1.0, 1.0]], 0.0)).is_empty());
        let by_question = batch(&[&[0.0, 0.0], &[1.0, 1.0]], 0.0);
        let told: Vec<Alarm> = (0..20).flat_map(|_| alarms.observe(&by_question)).collect();
        assert_eq!(told, [Alarm::EqualRewards { steps: 5, reward: None }]);
    }

    #[test]
    fn groups_of_one_are_equal_only_if_all_of_them_are() {
        let mut alarms = Alarms::default();
        assert!((0..20).all(|_| alarms.observe(&batch(&[&[0.0], &[1.0]], 0.0)).is_empty()));
        assert!((0..20).any(|_| !alarms.observe(&batch(&[&[1.0], &[1.0]], 0.0)).is_empty()));
    }

    #[test]
    fn errors_are_told_above_five_in_a_hundred_once_an_episode() {
        let (mut alarms, mut so_far) = (Alarms::default(), draws(0, 0));
        assert_eq!(alarms.draws(so_far, false), None);
        let mut step = |scored, errors| {
            so_far.add(&draws(scored, errors));
            alarms.draws(so_far, false)
        };
        assert!((0..30).all(|_| step(95, 5).is_none()), "five in a hundred is not above it");
        assert_eq!(step(90, 10), Some(Alarm::Errors { errors: 55, judged: 1000 }));
        assert!((0..30).all(|_| step(97, 3).is_none()), "between the marks it goes on");
        assert!((0..30).all(|_| step(100, 0).is_none()), "it ends");
        assert!(step(0, 100).is_some(), "and begins again");
    }

    #[test]
    fn a_reward_that_always_fails_is_told_before_the_first_batch() {
        let mut alarms = Alarms::default();
        assert_eq!(alarms.draws(draws(500, 400), true), None, "what was before this launch");
        assert_eq!(alarms.draws(draws(500, 419), true), None, "too few to tell");
        assert_eq!(alarms.draws(draws(500, 420), true), Some(Alarm::Errors { errors: 20, judged: 20 }));
        assert_eq!(alarms.draws(draws(500, 440), true), None, "told once");
    }

    /// Observes a run whose reward and second scorer go as the functions say; gives what was told.
    fn watch(steps: u32, reward: impl Fn(f64) -> f64, second: impl Fn(f64) -> f64) -> Vec<Alarm> {
        let mut alarms = Alarms::default();
        // A wave stands for noise.
        let noise = |step: f64| (step * 1.7).sin() * 0.02;
        let batch = |step: f64| batch(&[&[reward(step) + noise(step), 1.0]], second(step));
        (0..steps).map(f64::from).flat_map(|step| alarms.observe(&batch(step))).collect()
    }

    #[test]
    fn a_reward_that_leaves_its_second_scorer_behind_is_told() {
        let rises = |step: f64| step * 0.02;
        let told = watch(60, rises, |step| 0.5 - step * 0.01);
        assert_eq!(told.len(), 1, "{told:?}");
        assert!(matches!(&told[0], Alarm::SecondScorer { name, .. } if name == "judge"), "{told:?}");
        assert_eq!(watch(60, rises, rises), [], "both rise");
        assert_eq!(watch(60, |_| 0.5, |step| -step), [], "the reward does not rise");
        assert_eq!(watch(19, rises, |_| 0.0), [], "too early to tell");
        assert_eq!(watch(60, rises, |_| 0.0).len(), 1, "nothing right is found");
        assert_eq!(watch(60, rises, |_| 1.0), [], "it has nowhere to rise to");
    }

    #[test]
    fn every_alarm_says_what_and_the_way_out() {
        let equal = Alarm::EqualRewards { steps: 5, reward: Some(0.0) }.to_string();
        assert!(equal.contains("last 5 steps got reward 0") && equal.contains("harder questions"), "{equal}");
        let errors = Alarm::Errors { errors: 12, judged: 120 }.to_string();
        assert!(errors.contains("12 of the last 120 draws (10.0 %)") && errors.contains("reward test"), "{errors}");
        let name = "judge".to_owned();
        let second = Alarm::SecondScorer { name, steps: 20, reward: (0.1, 0.8), second: (0.5, 0.4) }.to_string();
        assert!(second.contains("0.100 to 0.800") && second.contains("give judge a weight"), "{second}");
    }
}
