//! Traces of agents, made by whatever ran them, into rows to imitate: calls of a language model with the rewards that came of them, as spans
//! in the shape of Agent Lightning and OpenTelemetry, one span a row of a file.
//!
//! [`read`] puts spans together by rollout. Of a rollout that was tried several times only the last attempt counts. Within it spans are in
//! the order of their begins, or of their numbers where a span has no times. A call below a reward (a judge at work) is not the agent's,
//! and an answer that is told twice is one. [`turns`] says which reward is whose; each turn inherits the next reward, turns after the last
//! one are left out. Turns that go on from each other become one conversation, of which what the model said is learnt and what it was told
//! in between is not. [`best`] takes the best of them, as rejection sampling does.

mod span;
pub mod turns;

use std::collections::{BTreeMap, BTreeSet};

use folgore_config::DataSection;
use folgore_protocol::{Example, Message, example::Body};
use serde_json::{Value, json};

use crate::{
    error::{BadRow, DatasetError},
    rows::{self, Limits, RawRow},
    shape::{Fields, messages, tools},
};
use span::{Span, Told};
use turns::{When, inherit, match_rewards, merge};

/// What was read of a file of spans.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Traced {
    /// Rows to imitate with their reward, in the order of the rollouts.
    pub rows: Vec<(f64, Example)>,
    /// Rollouts.
    pub rollouts: usize,
    /// Calls of a language model that the agents made.
    pub turns: usize,
    /// Of these, those that no reward came after.
    pub unjudged: usize,
}

/// A call that the agent made.
struct Turn {
    when: When,
    asked: Vec<Message>,
    said: Vec<Message>,
    tools: Vec<Value>,
}

/// Reads the spans in the file at `path`.
///
/// # Errors
/// If it cannot be read, or a row is no span; the error names row and field.
pub fn read(path: &std::path::Path, section: &DataSection) -> Result<Traced, DatasetError> {
    let shown = path.display().to_string();
    let bad = |row| DatasetError::BadRow { path: shown.clone(), row };
    let limits = Limits { line_bytes: section.max_line_bytes, rows: u64::MAX, memory: &section.memory };
    let mut by_rollout: BTreeMap<String, Vec<Span>> = BTreeMap::new();
    let mut order = Vec::new();
    for row in rows::read(path, &limits)?.rows {
        let row = row.map_err(&bad)?;
        let span = span::read(&row.fields).map_err(|fault| bad(at(&row, fault)))?;
        let spans = by_rollout.entry(span.rollout.clone()).or_default();
        if spans.is_empty() {
            order.push(span.rollout.clone());
        }
        spans.push(span);
    }
    let mut traced = Traced { rollouts: order.len(), ..Traced::default() };
    for rollout in order {
        let spans = last_attempt(by_rollout.remove(&rollout).unwrap_or_default());
        let faulty = |(field, expected, got)| DatasetError::BadRow {
            path: format!("{shown}, rollout {rollout}"),
            row: BadRow { row: 0, line: None, field: Some(field), expected, got },
        };
        of_rollout(&rollout, spans, section, &mut traced).map_err(faulty)?;
    }
    Ok(traced)
}

fn at(row: &RawRow, (field, expected, got): crate::shape::fields::Fault) -> BadRow {
    BadRow { row: row.number, line: row.line, field: Some(field), expected, got }
}

/// The best `share` of `rows`, at least one, the best first; of equal rewards those that came first.
pub fn best(mut rows: Vec<(f64, Example)>, share: f64) -> Vec<(f64, Example)> {
    rows.sort_by(|a, b| b.0.total_cmp(&a.0));
    let count = (rows.len() as f64 * share) as usize;
    rows.truncate(count.max(1));
    rows
}

/// Spans of the attempt that began last, in order.
fn last_attempt(mut spans: Vec<Span>) -> Vec<Span> {
    let timed = spans.iter().all(|span| span.start.is_some());
    let key = |span: &Span| if timed { span.start.unwrap_or_default() } else { span.sequence.unwrap_or(0) as f64 };
    let mut begun: BTreeMap<&str, f64> = BTreeMap::new();
    for span in &spans {
        let first = begun.entry(&span.attempt).or_insert(f64::INFINITY);
        *first = first.min(key(span));
    }
    let last = begun.into_iter().max_by(|a, b| a.1.total_cmp(&b.1)).map(|(attempt, _)| attempt.to_owned());
    spans.retain(|span| Some(&span.attempt) == last.as_ref());
    spans.sort_by(|a, b| key(a).total_cmp(&key(b)).then(a.sequence.cmp(&b.sequence)));
    spans
}

fn of_rollout(
    rollout: &str,
    spans: Vec<Span>,
    section: &DataSection,
    into: &mut Traced,
) -> Result<(), crate::shape::fields::Fault> {
    let timed = spans.iter().all(|span| span.start.is_some() && span.end.is_some());
    let judged: BTreeSet<String> = below_rewards(&spans);
    let (mut calls, mut rewards, mut known) = (Vec::new(), Vec::new(), BTreeSet::new());
    for (place, span) in spans.into_iter().enumerate() {
        let number = span.sequence.map_or(place as f64, |n| n as f64);
        let begin = span.start.filter(|_| timed).unwrap_or(number);
        match span.told {
            Told::Other => {}
            Told::Reward(value) => rewards.push((begin, value)),
            Told::Call(_) if judged.contains(&span.id) => {}
            Told::Call(call) if call.response.as_ref().is_some_and(|id| !known.insert(id.clone())) => {}
            Told::Call(call) => {
                let fields = Fields::from_iter([("tools".to_owned(), call.tools)]);
                calls.push(Turn {
                    when: When { start: begin, end: span.end.filter(|_| timed).unwrap_or(number) },
                    asked: messages("gen_ai.prompt", &call.asked, section.reasoning)?.0,
                    said: messages("gen_ai.completion", &call.said, section.reasoning)?.0,
                    tools: tools(&fields)?,
                });
            }
        }
    }
    into.turns += calls.len();
    let when: Vec<When> = calls.iter().map(|call| call.when).collect();
    let worth = inherit(&match_rewards(&when, &rewards));
    into.unjudged += worth.iter().filter(|reward| reward.is_none()).count();
    // turns after the last reward are the last turns
    let judged = worth.iter().flatten().count();
    let turns: Vec<(Vec<Message>, Vec<Message>)> =
        calls[..judged].iter().map(|call| (call.asked.clone(), call.said.clone())).collect();
    for (number, sample) in merge(&turns).into_iter().enumerate() {
        let last = *sample.turns.last().unwrap_or(&0);
        let reward = worth[last].unwrap_or_default();
        let learnt = sample.prompt.iter().map(|_| false).chain(sample.said.iter().copied());
        let learnt: Vec<bool> = learnt.collect();
        let all: Vec<Message> = sample.prompt.into_iter().chain(sample.response).collect();
        let learnt = learnt.iter().zip(&all).map(|(said, message)| *said && message.role == "assistant").collect();
        let body = Body::Conversation { messages: all, learnt, tools: calls[last].tools.clone() };
        let columns = json!({"rollout_id": rollout, "reward": reward});
        into.rows.push((
            reward,
            Example {
                id: format!("{rollout}-{number}"),
                source: "agent".into(),
                body,
                columns: columns.as_object().cloned().unwrap_or_default(),
            },
        ));
    }
    Ok(())
}

/// Ids of the spans that lie below a reward.
fn below_rewards(spans: &[Span]) -> BTreeSet<String> {
    let parents: BTreeMap<&str, &str> =
        spans.iter().filter_map(|span| Some((span.id.as_str(), span.parent.as_deref()?))).collect();
    let rewards: BTreeSet<&str> =
        spans.iter().filter(|span| matches!(span.told, Told::Reward(_))).map(|span| span.id.as_str()).collect();
    let below = |span: &&Span| {
        let mut at = span.id.as_str();
        // as many steps as there are spans: whoever is his own ancestor is below nothing
        (0..spans.len()).any(|_| {
            at = parents.get(at).copied().unwrap_or("");
            !at.is_empty() && rewards.contains(at)
        })
    };
    spans.iter().filter(below).map(|span| span.id.clone()).filter(|id| !id.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lines of spans: an agent that calls a tool, is judged, and goes on without a judge; then another conversation.
    fn spans() -> Vec<Value> {
        let call = |rollout: &str, n: u64, prompt: &[(&str, &str)], said: &str| {
            let mut attributes = serde_json::Map::new();
            for (i, (role, content)) in prompt.iter().enumerate() {
                attributes.insert(format!("gen_ai.prompt.{i}.role"), (*role).into());
                attributes.insert(format!("gen_ai.prompt.{i}.content"), (*content).into());
            }
            attributes.insert("gen_ai.completion.0.role".into(), "assistant".into());
            attributes.insert("gen_ai.completion.0.content".into(), said.into());
            attributes.insert("gen_ai.response.id".into(), format!("{rollout}-{n}").into());
            json!({"rollout_id": rollout, "attempt_id": "a1", "span_id": format!("s{n}"), "sequence_id": n,
                "name": "openai.chat.completion", "start_time": n, "end_time": n as f64 + 0.5, "attributes": attributes})
        };
        let reward = |rollout: &str, n: u64, value: f64| {
            json!({"rollout_id": rollout, "attempt_id": "a1", "span_id": format!("s{n}"), "sequence_id": n,
                "name": "agentlightning.annotation", "start_time": n, "end_time": n,
                "attributes": {"agentlightning.reward.0.name": "primary", "agentlightning.reward.0.value": value}})
        };
        let first = [("user", "2+3, twice?")];
        let second = [("user", "2+3, twice?"), ("assistant", "add(2,3)"), ("tool", "5")];
        let mut judge = call("r1", 5, &[("user", "is 10 right?")], "yes");
        judge["parent_id"] = "s4".into();
        let mut earlier = call("r1", 0, &first, "forty");
        earlier["attempt_id"] = "a0".into();
        vec![
            call("r1", 2, &second, "10"),
            earlier,
            call("r1", 1, &first, "add(2,3)"),
            call("r1", 2, &second, "10"),
            reward("r1", 4, 1.0),
            judge,
            call("r1", 6, &[("user", "what else?")], "nothing"),
            call("r2", 1, &first, "11"),
            reward("r2", 2, 0.0),
        ]
    }

    fn traced(spans: &[Value]) -> Result<Traced, DatasetError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("spans.jsonl");
        let text: String = spans.iter().map(|span| format!("{span}\n")).collect();
        std::fs::write(&path, text).unwrap();
        read(&path, &DataSection::default())
    }

    #[test]
    fn spans_become_conversations_with_the_reward_that_came_of_them() {
        let found = traced(&spans()).unwrap();
        assert_eq!((found.rollouts, found.turns, found.unjudged), (2, 4, 1));
        let [(one, first), (zero, second)] = found.rows.as_slice() else { panic!("{:?}", found.rows) };
        assert_eq!((*one, *zero, first.id.as_str()), (1.0, 0.0, "r1-0"));
        let Body::Conversation { messages, learnt, .. } = &first.body else { panic!() };
        let said: Vec<(&str, bool)> = messages.iter().map(|m| m.content.as_str()).zip(learnt.iter().copied()).collect();
        assert_eq!(said, [("2+3, twice?", false), ("add(2,3)", true), ("5", false), ("10", true)]);
        assert_eq!((&first.columns["reward"], &second.columns["rollout_id"]), (&json!(1.0), &json!("r2")));
    }

    #[test]
    fn the_order_of_the_file_does_not_count_and_numbers_do_where_times_lack() {
        let want = traced(&spans()).unwrap();
        let mut shuffled = spans();
        shuffled.rotate_left(3);
        let mut found = traced(&shuffled).unwrap();
        found.rows.sort_by(|a, b| a.1.id.cmp(&b.1.id));
        assert_eq!(found, want);
        let mut untimed = spans();
        untimed.iter_mut().for_each(|span| drop(span.as_object_mut().unwrap().remove("end_time")));
        assert_eq!(traced(&untimed).unwrap(), want);
    }

    #[test]
    fn the_best_come_first_and_one_is_always_left() {
        let rows = traced(&spans()).unwrap().rows;
        let rewards = |share| best(rows.clone(), share).iter().map(|(reward, _)| *reward).collect::<Vec<_>>();
        assert_eq!((rewards(1.0), rewards(0.5), rewards(0.1)), (vec![1.0, 0.0], vec![1.0], vec![1.0]));
        assert!(best(Vec::new(), 0.5).is_empty());
    }

    #[test]
    fn what_is_no_span_is_named() {
        let error = traced(&[json!({"rollout_id": "r"})]).unwrap_err().to_string();
        assert!(error.contains("row 1") && error.contains("`name`"), "{error}");
    }
}
