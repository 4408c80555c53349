//! The objective for other tools: one JSON request in, advantages, loss and gradient out (`folgore loss`).

use folgore_config::algo::AlgoSection;
use folgore_protocol::trajectory::Source;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{Counts, Objective, ObjectiveError, RowInput};
use crate::{
    advantage::{self, NonFiniteReward},
    metrics::Metrics,
};

/// A mask entry: `true`/`false`, or 1/0.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Flag {
    /// As JSON has it.
    Bool(bool),
    /// As tensors have it.
    Number(f64),
}

/// Rows and settings. Matrices have one inner list for each row; a list may be as long as its row or padded, as long as
/// all lists of the row agree. `null` may stand where the mask is off.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LossRequest {
    /// Keys of the section `algo`; `preset` names the settings that they change, `max_completion_length` may stand here.
    #[serde(default)]
    pub config: Map<String, Value>,
    /// Log-probs under the weights being trained.
    pub logprobs: Vec<Vec<Option<f64>>>,
    /// Log-probs under the weights that the batch began with; left out: `logprobs`, held constant.
    #[serde(default)]
    pub old: Option<Vec<Vec<Option<f64>>>>,
    /// Log-probs under the reference; owed with `beta`.
    #[serde(default, rename = "ref")]
    pub reference: Option<Vec<Vec<Option<f64>>>>,
    /// Log-probs that the sampler reported; left out, or an empty list for a row: no correction. Owed by rows of experience,
    /// which had them when they were sampled.
    #[serde(default)]
    pub rollout: Option<Vec<Vec<Option<f64>>>>,
    /// Where each row comes from: `on_policy`, `teacher` or `replay`; left out: the policy sampled all of them.
    #[serde(default)]
    pub sources: Option<Vec<Source>>,
    /// The step, for weights that change with it; left out: 1.
    #[serde(default)]
    pub step: Option<u64>,
    /// Trained tokens; left out: all.
    #[serde(default)]
    pub mask: Option<Vec<Vec<Flag>>>,
    /// One reward for each row, `null` where unscored.
    #[serde(default)]
    pub rewards: Option<Vec<Option<f64>>>,
    /// Rollout that each row belongs to, any names: turns that do not go on from each other are rows of one rollout. It counts once in
    /// its group, its rows have one reward, and share its advantage. Left out: each row is a rollout.
    #[serde(default)]
    pub rollout_ids: Option<Vec<Value>>,
    /// Group of each row, any numbers; left out: all rows are one group.
    #[serde(default)]
    pub groups: Option<Vec<u64>>,
    /// One advantage for each row, in place of `rewards`.
    #[serde(default)]
    pub advantages: Option<Vec<f64>>,
}

/// What came of a request.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LossReply {
    /// One for each row.
    pub advantages: Vec<f64>,
    /// The loss.
    pub loss: f64,
    /// Its gradient by `logprobs`; 0 where the mask is off.
    pub grad: Vec<Vec<f64>>,
    /// What training would log.
    pub metrics: Metrics,
}

/// A request that cannot be answered.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// It is not of the expected form.
    #[error("loss request: {0}")]
    Form(#[from] serde_json::Error),
    /// Its settings are not usable.
    #[error("config: {0}")]
    Config(String),
    /// A list has another length than the rows.
    #[error("{key}: expected {expected} entries, one for each row, got {got}")]
    Rows {
        /// Name of the list.
        key: &'static str,
        /// Number of rows.
        expected: usize,
        /// Its length.
        got: usize,
    },
    /// Rows of one rollout that differ in what they have to share.
    #[error("rollout {0}")]
    Rollout(String),
    /// A mask entry is neither 0 nor 1.
    #[error("mask, row {row}, token {token}: expected 0 or 1, got {got}")]
    Mask {
        /// Place of the row.
        row: usize,
        /// Place of the token.
        token: usize,
        /// The entry.
        got: f64,
    },
    /// Neither rewards nor advantages.
    #[error("rewards: expected one for each row, or advantages in their place, got neither")]
    NoRewards,
    /// A reward is not finite.
    #[error(transparent)]
    Reward(#[from] NonFiniteReward),
    /// The objective refuses the rows.
    #[error(transparent)]
    Objective(#[from] ObjectiveError),
}

/// Answers a request in JSON.
pub fn evaluate_json(request: Value) -> Result<LossReply, RequestError> {
    serde_json::from_value::<LossRequest>(request)?.evaluate()
}

impl LossRequest {
    /// Answers the request.
    pub fn evaluate(&self) -> Result<LossReply, RequestError> {
        let (algo, max_completion_length) = self.settings()?;
        let objective = Objective::new(&algo, max_completion_length)?.at_step(self.step.unwrap_or(1));
        let n = self.logprobs.len();
        let all_fresh = vec![Source::OnPolicy; n];
        let by_row = self.sources.as_ref().unwrap_or(&all_fresh);
        expect_rows("sources", by_row.len(), n)?;
        let sources: Vec<Vec<Source>> = by_row.iter().zip(&self.logprobs).map(|(s, row)| vec![*s; row.len()]).collect();
        let rollouts = self.rollouts()?;
        let advantages = self.advantages(&algo, &rollouts)?;

        let logprobs = numbers(&self.logprobs);
        let column = |key, values: &Option<Vec<_>>| match values {
            None => Ok(None),
            Some(values) => expect_rows(key, values.len(), n).map(|()| Some(numbers(values))),
        };
        let old = column("old", &self.old)?;
        let reference = column("ref", &self.reference)?;
        let rollout = column("rollout", &self.rollout)?;
        let masks = self.masks()?;
        expect_rows("mask", masks.len(), n)?;

        let tokens = |(mask, source): (&Vec<bool>, &Source)| (mask.iter().filter(|on| **on).count(), *source);
        let tokens: Vec<(usize, Source)> = masks.iter().zip(by_row).map(tokens).collect();
        let whole = |of: usize| {
            let own = tokens.iter().zip(&rollouts).filter(|((_, source), r)| **r == of && objective.counts(*source));
            own.map(|((n, _), _)| n).sum()
        };
        let rows: Vec<RowInput<'_>> = (0..n)
            .map(|i| RowInput {
                sources: &sources[i],
                logprobs: &logprobs[i],
                old: old.as_ref().map(|v| v[i].as_slice()),
                reference: reference.as_ref().map(|v| v[i].as_slice()),
                rollout: rollout.as_ref().map(|v| v[i].as_slice()).filter(|v| !v.is_empty() || logprobs[i].is_empty()),
                mask: &masks[i],
                advantage: advantages[i],
                whole: Some(whole(rollouts[i])),
            })
            .collect();
        let counted = tokens.iter().filter(|(_, source)| objective.counts(*source)).map(|(n, _)| *n);
        let imitated = tokens.iter().filter(|(_, source)| !objective.counts(*source)).map(|(n, _)| n).sum();
        let counts = Counts { imitated, ..Counts::of(counted) };
        let result = objective.evaluate(&rows, &objective.normaliser(counts))?;
        let mut metrics = Metrics::new();
        result.stats.metrics(&mut metrics);
        Ok(LossReply { advantages, loss: result.loss, grad: result.grads, metrics })
    }

    fn settings(&self) -> Result<(AlgoSection, u32), RequestError> {
        let mut own = self.config.clone();
        let longest = self.logprobs.iter().map(Vec::len).max().unwrap_or(0) as u32;
        let length = match own.remove("max_completion_length") {
            None => longest,
            Some(value) => serde_json::from_value(value)
                .map_err(|e| RequestError::Config(format!("max_completion_length: {e}")))?,
        };
        let base = match own.remove("preset") {
            None => AlgoSection::default(),
            Some(name) => name.as_str().and_then(AlgoSection::preset).ok_or_else(|| {
                let known = folgore_config::algo::ALGO_PRESETS.join(", ");
                RequestError::Config(format!("preset: expected one of {known}, got {name}"))
            })?,
        };
        let Value::Object(mut merged) = serde_json::to_value(base)? else {
            return Err(RequestError::Config("the section algo is not a map".into()));
        };
        merged.extend(own);
        let algo = serde_json::from_value(merged.into()).map_err(|e| RequestError::Config(e.to_string()))?;
        Ok((algo, length))
    }

    /// By row, the first row of its rollout.
    fn rollouts(&self) -> Result<Vec<usize>, RequestError> {
        let n = self.logprobs.len();
        let Some(ids) = &self.rollout_ids else { return Ok((0..n).collect()) };
        expect_rows("rollout_ids", ids.len(), n)?;
        Ok(ids.iter().map(|id| ids.iter().position(|other| other == id).unwrap_or_default()).collect())
    }

    /// Refuses rows of one rollout that differ in `of`.
    fn expect_shared<T: PartialEq + Serialize>(
        &self,
        rollouts: &[usize],
        what: &'static str,
        of: &[T],
    ) -> Result<(), RequestError> {
        let differs = |(row, first): &(usize, &usize)| of[*row] != of[**first];
        let Some((row, first)) = rollouts.iter().enumerate().find(differs) else { return Ok(()) };
        let rollout = self.rollout_ids.as_ref().map_or(Value::Null, |ids| ids[row].clone());
        let said = |value: &T| serde_json::to_string(value).unwrap_or_default();
        let (first, got) = (said(&of[*first]), said(&of[row]));
        let differs = format!("expected one {what} for all of its rows, got {first} and, in row {row}, {got}");
        Err(RequestError::Rollout(format!("{rollout}: {differs}")))
    }

    /// Over rollouts, each of which counts once; for every row.
    fn advantages(&self, algo: &AlgoSection, rollouts: &[usize]) -> Result<Vec<f64>, RequestError> {
        if let Some(advantages) = &self.advantages {
            expect_rows("advantages", advantages.len(), self.logprobs.len())?;
            self.expect_shared(rollouts, "advantage", advantages)?;
            return Ok(advantages.clone());
        }
        let rewards = self.rewards.as_ref().ok_or(RequestError::NoRewards)?;
        let all_one = vec![0; rewards.len()];
        let ids = self.groups.as_ref().unwrap_or(&all_one);
        expect_rows("rewards", rewards.len(), self.logprobs.len())?;
        expect_rows("groups", ids.len(), rewards.len())?;
        self.expect_shared(rollouts, "reward", rewards)?;
        self.expect_shared(rollouts, "group", ids)?;
        self.sources.iter().try_for_each(|sources| self.expect_shared(rollouts, "source", sources))?;
        let mut groups: Vec<(u64, Vec<usize>)> = Vec::new();
        let firsts = ids.iter().enumerate().filter(|(row, _)| rollouts[*row] == *row);
        for (row, id) in firsts {
            match groups.iter_mut().find(|(known, _)| known == id) {
                Some((_, rows)) => rows.push(row),
                None => groups.push((*id, vec![row])),
            }
        }
        let by_group: Vec<Vec<Option<f64>>> =
            groups.iter().map(|(_, rows)| rows.iter().map(|r| rewards[*r]).collect()).collect();
        let mut advantages = vec![0.0; rewards.len()];
        let is_fresh = |row: &usize| self.sources.as_ref().is_none_or(|s| s.get(*row) == Some(&Source::OnPolicy));
        let fresh: Vec<Vec<bool>> = groups.iter().map(|(_, rows)| rows.iter().map(is_fresh).collect()).collect();
        for ((_, rows), values) in groups.iter().zip(advantage::of_sourced_rewards(algo, &by_group, &fresh)?) {
            for (row, value) in rows.iter().zip(values) {
                advantages[*row] = value;
            }
        }
        Ok(rollouts.iter().map(|first| advantages[*first]).collect())
    }

    fn masks(&self) -> Result<Vec<Vec<bool>>, RequestError> {
        let Some(mask) = &self.mask else {
            return Ok(self.logprobs.iter().map(|row| vec![true; row.len()]).collect());
        };
        let read = |row, token, flag: &Flag| match *flag {
            Flag::Bool(on) => Ok(on),
            Flag::Number(1.0) => Ok(true),
            Flag::Number(0.0) => Ok(false),
            Flag::Number(got) => Err(RequestError::Mask { row, token, got }),
        };
        let row = |(i, flags): (usize, &Vec<Flag>)| flags.iter().enumerate().map(|(t, f)| read(i, t, f)).collect();
        mask.iter().enumerate().map(row).collect()
    }
}

fn expect_rows(key: &'static str, got: usize, expected: usize) -> Result<(), RequestError> {
    if got == expected { Ok(()) } else { Err(RequestError::Rows { key, expected, got }) }
}

/// `null` becomes not-a-number, which the objective refuses where the mask is on and never reads where it is off.
fn numbers(rows: &[Vec<Option<f64>>]) -> Vec<Vec<f64>> {
    rows.iter().map(|row| row.iter().map(|x| x.unwrap_or(f64::NAN)).collect()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_request_without_extras_is_on_policy() {
        let reply = evaluate_json(json!({"logprobs": [[-1.0, -2.0], [-0.5, null]], "rewards": [1, 0],
            "mask": [[1, 1], [true, 0]], "config": {"scale_rewards": "none"}}))
        .unwrap();
        assert_eq!(reply.advantages, [0.5, -0.5]);
        let third = 0.5 / 3.0;
        for (got, want) in reply.grad.iter().flatten().zip([-third, -third, third, 0.0]) {
            assert!((got - want).abs() < 1e-15, "{:?}", reply.grad);
        }
        assert_eq!(reply.grad[1][1], 0.0);
        assert_eq!(reply.metrics["ratio/max"], 1.0);
    }

    #[test]
    fn groups_may_interleave_and_presets_may_be_changed() {
        let reply = evaluate_json(json!({"logprobs": [[-1.0], [-1.0], [-1.0], [-1.0]], "rewards": [1, 5, 0, 5],
            "groups": [7, 3, 7, 3], "config": {"preset": "dr_grpo", "max_completion_length": 4}}))
        .unwrap();
        assert_eq!(reply.advantages, [0.5, 0.0, -0.5, 0.0]);
        assert_eq!(reply.grad[0][0], -0.5 / 16.0);
    }

    #[test]
    fn what_is_wrong_is_named() {
        let two = |more: Value| {
            let mut request = json!({"logprobs": [[-1.0], [-1.0]], "rewards": [1, 1], "rollout_ids": ["a", "a"]});
            request.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            request
        };
        for (request, want) in [
            (
                two(json!({"rewards": [1, 0.5]})),
                "rollout \"a\": expected one reward for all of its rows, got 1.0 and, in row 1, 0.5",
            ),
            (two(json!({"groups": [1, 2]})), "expected one group"),
            (two(json!({"sources": ["teacher", "on_policy"]})), "expected one source"),
            (two(json!({"advantages": [1, 2]})), "expected one advantage"),
            (two(json!({"rollout_ids": [1]})), "rollout_ids: expected 2 entries"),
            (json!({"logprobs": [[-1.0]]}), "rewards"),
            (json!({"logprobs": [[-1.0]], "rewards": [1, 2]}), "rewards: expected 1"),
            (json!({"logprobs": [[-1.0]], "rewards": [1], "olds": []}), "olds"),
            (json!({"logprobs": [[-1.0]], "rewards": [1], "old": [[-1.0, -2.0]]}), "1 values of old"),
            (json!({"logprobs": [[-1.0]], "rewards": [1], "mask": [[2]]}), "expected 0 or 1"),
            (json!({"logprobs": [[null]], "rewards": [1]}), "finite logprobs"),
            (json!({"logprobs": [[-1.0]], "rewards": [1], "config": {"beta": 0.1}}), "beta"),
            (json!({"logprobs": [[-1.0]], "rewards": [1], "config": {"loss_type": "cispo"}}), "algo.epsilon_high"),
            (json!({"logprobs": [[-1.0]], "rewards": [1], "config": {"epsilonn": 1}}), "epsilonn"),
            (json!({"logprobs": [[-1.0]], "rewards": [1], "config": {"preset": "ppo"}}), "preset"),
        ] {
            let error = evaluate_json(request).unwrap_err().to_string();
            assert!(error.contains(want), "{error:?} does not say {want:?}");
        }
    }
}
