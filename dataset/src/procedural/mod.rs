//! Questions made by a rule: endless, with an exact answer, a difficulty, and held-out questions that never train.
//!
//! A question is a pure function of the rule, its side and its index. Its side is decided by its own text: those whose
//! CRC-32 ends in a number below 100 of 1000 are held out, whoever makes them, for whatever run. Only `countries` holds out
//! what the questions are about.

mod arithmetic;
mod carries;
mod countdown;
pub mod countries;
mod crc32;
mod letter_count;
mod trace;

use folgore_config::data::DataSection;
use folgore_protocol::{Body, Digest, Example, Message, Prompt, Task, seed};
use serde_json::{Map, Value};

pub use carries::carries_traces;
pub use crc32::crc32;
pub use trace::{TraceMixture, arithmetic_traces, careful_sum};

use crate::error::DatasetError;

/// True if the question may only be asked to evaluate.
pub fn held_out(question: &str) -> bool {
    crc32(question.as_bytes()) % 1000 < 100
}

/// Which questions a side may ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Those to train on.
    Train,
    /// Those to evaluate on.
    Eval,
}

/// A question before it is put into a prompt.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Question {
    /// The text that decides its side; the same for every way of asking.
    pub key: String,
    /// Asked as the embedded policy was taught, or plainly.
    pub plain: String,
    /// Asked in words, for chat models.
    pub words: String,
    /// What rewards are given.
    pub columns: Map<String, Value>,
    /// What an expert says to it, as the embedded policy would; none where the rule has none, or where it depends on the index.
    pub worked: Option<String>,
}

/// A rule with its difficulty.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Rule {
    Arithmetic(folgore_config::data::Arithmetic),
    Countdown(folgore_config::data::Countdown),
    LetterCount(folgore_config::data::LetterCount),
    Countries(folgore_config::data::Countries),
}

/// Questions tried for one index before the rule is found to have none.
const TRIES: u64 = 20_000;

impl Rule {
    /// The rule that `section` names; none if it names a file.
    pub(crate) fn of(section: &DataSection) -> Option<Self> {
        match section.dataset.as_str() {
            "arithmetic" => Some(Rule::Arithmetic(section.arithmetic.clone())),
            "countdown" => Some(Rule::Countdown(section.countdown.clone())),
            "letter_count" => Some(Rule::LetterCount(section.letter_count.clone())),
            "countries" => Some(Rule::Countries(section.countries.clone())),
            _ => None,
        }
    }

    pub(crate) fn name(&self) -> &'static str {
        match self {
            Rule::Arithmetic(_) => "arithmetic",
            Rule::Countdown(_) => "countdown",
            Rule::LetterCount(_) => "letter_count",
            Rule::Countries(_) => "countries",
        }
    }

    /// What to change where the rule makes no question.
    fn advice(&self) -> &'static str {
        match self {
            Rule::Arithmetic(_) => "raise data.arithmetic.digits",
            Rule::Countdown(_) => "raise data.countdown.max_target, or lower data.countdown.num_numbers",
            Rule::LetterCount(_) => "raise data.letter_count.num_words",
            Rule::Countries(_) => "set data.countries.hops to 1",
        }
    }

    /// Question of the stream `stream`, if the rule makes one of that side from it.
    fn make(&self, side: Side, stream: u64) -> Option<Question> {
        let question = match self {
            Rule::Arithmetic(difficulty) => Some(arithmetic::question(difficulty, stream)),
            Rule::Countdown(difficulty) => countdown::question(difficulty, stream),
            Rule::LetterCount(difficulty) => Some(letter_count::question(difficulty, stream)),
            // Whole countries are held out, whatever is asked about them.
            Rule::Countries(settings) => return countries::question(settings, side, stream),
        };
        question.filter(|q| held_out(&q.key) == (side == Side::Eval))
    }

    /// Question number `index` of `side`; none if [`TRIES`] draws gave none.
    fn question(&self, side: Side, index: u64) -> Option<Question> {
        let own = seed::mix(&[u64::from(side == Side::Eval), index]);
        (0..TRIES).find_map(|attempt| self.make(side, seed::mix(&[own, attempt])))
    }
}

/// One side of a rule, read by place.
#[derive(Clone, Debug)]
pub struct Questions {
    rule: Rule,
    chat: bool,
    system: Option<String>,
    prefix: Option<String>,
    /// Asked in place of a question that is not found: one that was, so that asking never fails.
    witness: Question,
    /// Number of training questions.
    len: u64,
}

/// Which worked answers are wrong.
const WRONG: u64 = 0x0077_726f_6e67;
/// How many training questions a rule is taken to have: more than any run asks.
pub(crate) const TRAIN_LEN: u64 = 1_000_000_000;
/// Most held-out questions.
pub(crate) const EVAL_LEN: u64 = 4096;

impl Questions {
    /// The training side of the rule that `section` names.
    pub(crate) fn training(rule: Rule, section: &DataSection) -> Result<Self, DatasetError> {
        let Some(witness) = rule.question(Side::Train, 0) else {
            return Err(DatasetError::NoQuestion { name: rule.name(), side: "training", advice: rule.advice() });
        };
        let (system, prefix) = (section.system_prompt.clone(), section.prompt_prefix.clone());
        let len = section.max_rows.unwrap_or(TRAIN_LEN).min(TRAIN_LEN);
        Ok(Self { rule, chat: section.chat, system, prefix, witness, len })
    }

    /// Number of training questions.
    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    /// What an expert says to question number `index`; none where the rule has no worked answers.
    pub(crate) fn worked(&self, index: u64) -> Option<String> {
        let question = self.rule.question(Side::Train, index).unwrap_or_else(|| self.witness.clone());
        question.worked.or_else(|| self.work(&question.key, index))
    }

    /// What an expert says to `key`, a question of this rule.
    fn work(&self, key: &str, index: u64) -> Option<String> {
        let Rule::Arithmetic(difficulty) = &self.rule else { return None };
        let (a, b) = key.strip_suffix('=')?.split_once('+')?;
        let wrong = f64::from(seed::uniform(WRONG, index)) < difficulty.wrong;
        Some(carries::worked(a.parse().ok()?, b.parse().ok()?, wrong))
    }

    /// The training questions as rows to imitate, and held-out ones, which are worked rightly; none where the rule has no worked
    /// answers, or questions without end.
    pub(crate) fn examples(&self) -> Option<(Vec<Example>, Vec<Example>)> {
        let example = |task: Task, worked: String| {
            let prompt = task.prompt.last_text().to_owned();
            let body = Body::Completion { prompt, completion: worked };
            Example { id: task.id, source: self.rule.name().to_owned(), body, columns: task.columns }
        };
        let train = (0..self.len).take_while(|_| self.len <= EVAL_LEN);
        let train: Option<Vec<Example>> =
            train.map(|index| Some(example(self.task(index), self.worked(index)?))).collect();
        let mut right = self.clone();
        if let Rule::Arithmetic(difficulty) = &mut right.rule {
            difficulty.wrong = 0.0;
        }
        let held_out = self.held_out().ok()?.into_iter();
        let eval = held_out.map(|task| {
            let key = task.columns.get("question")?.as_str()?.to_owned();
            Some(example(task, right.work(&key, 0)?))
        });
        Some((train.filter(|train| !train.is_empty())?, eval.collect::<Option<_>>()?))
    }

    /// Task number `index`.
    pub(crate) fn task(&self, index: u64) -> Task {
        let question = self.rule.question(Side::Train, index);
        self.ask("train", index, question.unwrap_or_else(|| self.witness.clone()))
    }

    /// The held-out questions, all different, at most [`EVAL_LEN`]; fewer where the rule has fewer.
    pub(crate) fn held_out(&self) -> Result<Vec<Task>, DatasetError> {
        let mut seen = std::collections::BTreeSet::new();
        let mut tasks: Vec<Task> = Vec::new();
        // Small rules repeat themselves: four times the length finds nearly all that they have.
        for index in 0..4 * EVAL_LEN {
            let Some(question) = self.rule.question(Side::Eval, index) else { break };
            if seen.insert(question.key.clone()) {
                tasks.push(self.ask("eval", tasks.len() as u64, question));
            }
            if tasks.len() as u64 == EVAL_LEN {
                break;
            }
        }
        if tasks.is_empty() {
            let (name, advice) = (self.rule.name(), self.rule.advice());
            return Err(DatasetError::NoQuestion { name, side: "held-out", advice });
        }
        Ok(tasks)
    }

    fn ask(&self, side: &str, index: u64, question: Question) -> Task {
        let prompt = if self.chat {
            Prompt::Messages(vec![Message::new("user", question.words)])
        } else {
            Prompt::Text(question.plain)
        };
        Task {
            id: format!("{}:{side}:{index}", self.rule.name()),
            prompt: crate::shape::introduced(prompt, self.prefix.as_deref(), self.system.as_deref()),
            columns: question.columns,
        }
    }

    /// Identity of the questions: the rule, its difficulty and how it asks.
    pub(crate) fn digest(&self) -> Digest {
        // The number is that of the rules in this folder: a change of what they ask changes it.
        let facts = match &self.rule {
            Rule::Countries(_) => countries::FACTS,
            _ => "",
        };
        let prefix = self.prefix.iter().map(|prefix| format!(" {prefix:?}")).collect::<String>();
        let few = if self.len < TRAIN_LEN { format!(" {}", self.len) } else { String::new() };
        Digest::of(format!("rules 1 {:?} {} {:?}{prefix}{facts}{few}", self.rule, self.chat, self.system).as_bytes())
    }

    /// One line for the user, without what stands in front of every question.
    pub(crate) fn describe(&self) -> String {
        let task = self.task(0);
        let text = task.prompt.last_text();
        let asked = self.prefix.as_deref().and_then(|prefix| text.strip_prefix(prefix)).unwrap_or(text);
        // the settings as they are written in a configuration
        let settings = match &self.rule {
            Rule::Arithmetic(of) => serde_json::to_value(of),
            Rule::Countdown(of) => serde_json::to_value(of),
            Rule::LetterCount(of) => serde_json::to_value(of),
            Rule::Countries(of) => serde_json::to_value(of),
        };
        let settings = settings.ok().and_then(|value| Some(value.as_object()?.clone())).unwrap_or_default();
        let said = settings.iter().filter(|(_, value)| !value.is_null());
        let said: Vec<String> = said.map(|(key, value)| format!("{key} {value}")).collect();
        format!("{}: made by a rule ({}), for example {asked:?}", self.rule.name(), said.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn questions(dataset: &str) -> Questions {
        let section = DataSection { dataset: dataset.into(), ..DataSection::default() };
        Questions::training(Rule::of(&section).unwrap(), &section).unwrap()
    }

    #[test]
    fn sides_are_disjoint_and_a_question_is_a_function_of_its_place() {
        for name in folgore_config::data::PROCEDURAL {
            let questions = questions(name);
            let text = |task: &Task| task.prompt.last_text().to_owned();
            let train: BTreeSet<String> = (0..3000).map(|i| text(&questions.task(i))).collect();
            let held: Vec<String> = questions.held_out().unwrap().iter().map(text).collect();
            assert!(held.iter().all(|q| !train.contains(q)), "{name}");
            assert_eq!(held.iter().collect::<BTreeSet<_>>().len(), held.len(), "{name}: all different");
            assert!(held.len() >= 300, "{name}: {}", held.len());
            assert_eq!(questions.task(17), questions.task(17));
            assert!(train.len() > 1000, "{name}: {}", train.len());
        }
    }

    #[test]
    fn a_tenth_of_all_questions_is_held_out() {
        let questions = (100..1000).map(|a| format!("{a}+{a}="));
        let share = questions.filter(|q| held_out(q)).count();
        assert!((60..120).contains(&share), "{share}");
    }

    #[test]
    fn chat_and_system_prompt_shape_the_prompt_and_not_the_question() {
        let section = DataSection { chat: true, system_prompt: Some("s".into()), ..DataSection::default() };
        let chat = Questions::training(Rule::of(&section).unwrap(), &section).unwrap();
        let (asked, plain) = (chat.task(5), questions("arithmetic").task(5));
        assert_eq!(asked.columns, plain.columns);
        let Prompt::Messages(messages) = asked.prompt else { panic!() };
        assert_eq!(messages.iter().map(|m| m.role.as_str()).collect::<Vec<_>>(), ["system", "user"]);
        assert_ne!(chat.digest(), questions("arithmetic").digest());
    }

    #[test]
    fn a_small_rule_has_few_questions_and_says_so_by_its_length() {
        let mut section = DataSection::default();
        section.arithmetic.digits = 1;
        let questions = Questions::training(Rule::of(&section).unwrap(), &section).unwrap();
        let held = questions.held_out().unwrap();
        assert!((2..30).contains(&held.len()), "{}", held.len());
    }
}
