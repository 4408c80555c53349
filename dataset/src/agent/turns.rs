//! What belongs together in an agent's rollout: which reward is whose, and which turns are one sample. Rules of Agent Lightning.

/// When something began and ended, on any clock that all of a rollout share.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct When {
    /// Begin.
    pub start: f64,
    /// End, not before the begin.
    pub end: f64,
}

/// The reward of each of `calls`, which are in the order of their begins: going through `rewards` by the time at which they were given,
/// each belongs to the call that ended last before it and has none yet (`first_occurrence`). So a call may be given a reward that came
/// after later calls had theirs. A reward without such a call belongs to nobody.
pub fn match_rewards(calls: &[When], rewards: &[(f64, f64)]) -> Vec<Option<f64>> {
    let mut by_time = rewards.to_vec();
    by_time.sort_by(|a, b| a.0.total_cmp(&b.0));
    let mut of = vec![None; calls.len()];
    for (at, reward) in by_time {
        let open = (0..calls.len()).rev().find(|call| of[*call].is_none() && calls[*call].end <= at);
        if let Some(call) = open {
            of[call] = Some(reward);
        }
    }
    of
}

/// Each turn with the next reward from it on; none after the last one: nobody judged what came of those turns.
pub fn inherit(rewards: &[Option<f64>]) -> Vec<Option<f64>> {
    let mut next = None;
    let mut inherited: Vec<Option<f64>> = rewards
        .iter()
        .rev()
        .map(|reward| {
            next = reward.or(next);
            next
        })
        .collect();
    inherited.reverse();
    inherited
}

/// Turns that are one sequence.
#[derive(Clone, Debug, PartialEq)]
pub struct Merged<T> {
    /// Places of the turns.
    pub turns: Vec<usize>,
    /// What the first of them was given.
    pub prompt: Vec<T>,
    /// All that followed.
    pub response: Vec<T>,
    /// By item of the response, whether a turn said it; what was told in between was not.
    pub said: Vec<bool>,
}

/// Makes one sample of turns that go on from each other: the prompt of each begins with prompt and response of the one before it. Where a
/// prompt does not, because a template has rewritten the conversation or another one began, a new sample begins. Items are token ids, or
/// messages.
pub fn merge<T: Clone + PartialEq>(turns: &[(Vec<T>, Vec<T>)]) -> Vec<Merged<T>> {
    let mut samples: Vec<Merged<T>> = Vec::new();
    for (place, (prompt, response)) in turns.iter().enumerate() {
        if let Some(sample) = samples.last_mut()
            && let Some(told) = sample.continued_by(prompt)
        {
            sample.response.extend_from_slice(told);
            sample.said.resize(sample.response.len(), false);
            sample.turns.push(place);
        } else {
            let (turns, prompt) = (vec![place], prompt.clone());
            samples.push(Merged { turns, prompt, response: Vec::new(), said: Vec::new() });
        }
        if let Some(sample) = samples.last_mut() {
            sample.response.extend_from_slice(response);
            sample.said.resize(sample.response.len(), true);
        }
    }
    samples
}

impl<T: PartialEq> Merged<T> {
    /// What `prompt` adds to all of the sample; none if it does not begin with it.
    fn continued_by<'a>(&self, prompt: &'a [T]) -> Option<&'a [T]> {
        let rest = prompt.strip_prefix(self.prompt.as_slice())?;
        rest.strip_prefix(self.response.as_slice())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn vectors(name: &str) -> Value {
        let all: Value =
            serde_json::from_str(include_str!("../../../learner/tests/data/off_policy_vectors.json")).unwrap();
        all["agent_lightning"][name].clone()
    }

    #[test]
    fn first_occurrence_matching() {
        let case = vectors("first_occurrence_matching");
        let spans = case["spans"].as_array().unwrap();
        let of_kind = |kind: &str| spans.iter().filter(|s| s["kind"] == *kind).collect::<Vec<_>>();
        let number = |span: &Value, key: &str| span[key].as_f64().unwrap();
        let calls = of_kind("llm");
        let when: Vec<When> = calls.iter().map(|s| When { start: number(s, "start"), end: number(s, "end") }).collect();
        let mut rewards: Vec<(f64, f64)> =
            of_kind("reward").iter().map(|s| (number(s, "start"), number(s, "reward"))).collect();
        rewards.reverse();
        let found = match_rewards(&when, &rewards);
        for (call, reward) in calls.iter().zip(&found) {
            assert_eq!(*reward, case["reward_of_llm_call"][call["id"].as_str().unwrap()].as_f64(), "{call}");
        }
        let last = found.iter().rev().find_map(|reward| *reward);
        assert_eq!(last, case["final_reward_last_triplet_with_reward"].as_f64());
        // a call that still goes on has no reward yet, and one reward is not given twice
        assert_eq!(match_rewards(&when[2..], &[(8.0, 0.5)]), [None]);
        assert_eq!(match_rewards(&when[..2], &[(7.0, 0.5), (8.0, 1.0)]), [Some(1.0), Some(0.5)]);
        assert_eq!(match_rewards(&when[..1], &[(3.0, 0.25), (4.0, 0.5)]), [Some(0.25)]);
    }

    #[test]
    fn trajectory_merge() {
        let case = vectors("trajectory_merge");
        let ids = |v: &Value| v.as_array().unwrap().iter().map(|x| x.as_u64().unwrap()).collect::<Vec<_>>();
        let turns: Vec<_> =
            case["turns"].as_array().unwrap().iter().map(|t| (ids(&t["prompt"]), ids(&t["response"]))).collect();
        let want: Vec<Merged<u64>> = case["samples"]
            .as_array()
            .unwrap()
            .iter()
            .map(|s| Merged {
                turns: ids(&s["turns"]).into_iter().map(|t| t as usize).collect(),
                prompt: ids(&s["prompt"]),
                response: ids(&s["response"]),
                said: ids(&s["response_mask"]).into_iter().map(|m| m == 1).collect(),
            })
            .collect();
        assert_eq!(merge(&turns), want);
        // the same prompt again goes on from nothing
        assert_eq!(merge(&[(vec![1], vec![2]), (vec![1], vec![3])]).len(), 2);
        assert_eq!(merge(&[(vec![1], vec![2]), (vec![1, 2], vec![3])])[0].said, [true, true]);
    }

    #[test]
    fn earlier_turns_inherit_the_next_reward() {
        let found = inherit(&[None, Some(0.5), None, None, Some(1.0), None]);
        assert_eq!(found, [Some(0.5), Some(0.5), Some(1.0), Some(1.0), Some(1.0), None]);
        assert_eq!(inherit(&[None, None]), [None, None]);
    }
}
