//! Procedures in prompts: the memory that a configuration asks for, and what it does to questions.
//!
//! It is done where questions are read, before their lengths are looked at: training, evaluations and workers all get prompts as they
//! are then, and rewards see what the policy was told. A procedure goes to the end of the system message, makes one where a conversation
//! has none, and stands in front of plain text, which stays plain.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::{Context as _, Result};
use folgore_config::SopSection;
use folgore_dataset::{Change, Dataset, Tasks};
use folgore_model::tokenizer::Tokenizer;
use folgore_protocol::{Digest, Message, Prompt, Task};
use folgore_retriever::sop::{self, Found, Procedure, Procedures, Told};
use serde::{Deserialize, Serialize};

/// Name of the memory among the facts of a run.
pub const PROCEDURES: &str = "procedures";

/// Procedures, and how they are put into prompts.
pub struct SopMemory {
    procedures: Procedures,
    section: SopSection,
    tokenizer: Arc<Tokenizer>,
    /// What stands in front of plain questions and is none itself.
    prefix: Option<String>,
    /// What was written down already, by what was found.
    written: Mutex<HashMap<Vec<usize>, Arc<Told>>>,
}

/// What a question finds.
pub struct Look {
    /// Procedures that fit, best first.
    pub found: Vec<Found>,
    /// What is told of them.
    pub told: Arc<Told>,
}

/// A memory as a checkpoint keeps it: whoever speaks to the policy later can tell it the same.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Kept {
    /// How procedures are found and told.
    pub settings: SopSection,
    /// Those in force.
    pub active: Vec<Procedure>,
}

impl SopMemory {
    /// The memory of `section`, whose tokens `tokenizer` counts; none where it is off. `prefix` is what stands in front of plain
    /// questions.
    ///
    /// # Errors
    /// If procedures cannot be read, or none can be found.
    pub fn of(section: &SopSection, tokenizer: &Arc<Tokenizer>, prefix: Option<&str>) -> Result<Option<Self>> {
        if !section.is_on() {
            return Ok(None);
        }
        let read = sop::read(&section.path).context("sop.path")?;
        Self::with(section.clone(), read, tokenizer, prefix).map(Some)
    }

    /// The memory that a checkpoint keeps.
    ///
    /// # Errors
    /// If none of its procedures can be found.
    pub fn kept(kept: Kept, tokenizer: &Arc<Tokenizer>) -> Result<Self> {
        Self::with(kept.settings, kept.active, tokenizer, None)
    }

    fn with(
        section: SopSection,
        procedures: Vec<Procedure>,
        tokenizer: &Arc<Tokenizer>,
        prefix: Option<&str>,
    ) -> Result<Self> {
        let procedures = Procedures::new(procedures, &section.categories).context("sop")?;
        let (tokenizer, prefix) = (tokenizer.clone(), prefix.map(str::to_owned));
        Ok(Self { procedures, section, tokenizer, prefix, written: Mutex::default() })
    }

    /// What is kept of it.
    pub fn keep(&self) -> Kept {
        // what is in force is of these categories already
        let settings = SopSection { categories: Vec::new(), ..self.section.clone() };
        Kept { settings, active: self.procedures.active().to_vec() }
    }

    /// Those that can be found.
    pub fn active(&self) -> &[Procedure] {
        self.procedures.active()
    }

    /// Names what prompts depend on: what procedures say, and how they are found and told; not where they lie.
    pub fn fact(&self) -> String {
        let SopSection { max_procedures, max_procedure_tokens, min_score, .. } = &self.section;
        let all = format!("{} {max_procedures} {max_procedure_tokens} {min_score}", self.procedures.digest());
        Digest::of(all.as_bytes()).short()
    }

    /// What `question` finds.
    ///
    /// # Errors
    /// If the search fails.
    pub fn look(&self, question: &str) -> Result<Look> {
        let SopSection { max_procedures, min_score, .. } = self.section;
        let found = self.procedures.find(question, max_procedures as usize, min_score as f32)?;
        let places: Vec<usize> = found.iter().map(|found| found.at).collect();
        let mut written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(told) = written.get(&places) {
            return Ok(Look { found, told: told.clone() });
        }
        let procedures: Vec<&Procedure> = places.iter().map(|at| &self.procedures.active()[*at]).collect();
        // a text that cannot be encoded takes no place that it could have
        let count = |text: &str| self.tokenizer.encode_untrusted(text).map_or(usize::MAX, |ids| ids.len());
        let told = Arc::new(sop::told(&procedures, self.section.max_procedure_tokens as usize, count));
        if written.len() < KEPT {
            written.insert(places, told.clone());
        }
        Ok(Look { found, told })
    }

    /// What `prompt` finds: of a conversation, the newest of the user's messages that finds anything.
    fn look_for(&self, prompt: &Prompt) -> Result<Look> {
        match prompt {
            Prompt::Text(text) => {
                let question = self.prefix.as_deref().and_then(|prefix| text.strip_prefix(prefix)).unwrap_or(text);
                self.look(question)
            }
            Prompt::Messages(messages) => {
                for said in messages.iter().rev().filter(|message| message.role == "user") {
                    let look = self.look(&said.content)?;
                    if !look.found.is_empty() {
                        return Ok(look);
                    }
                }
                Ok(Look { found: Vec::new(), told: Arc::default() })
            }
        }
    }

    /// `prompt` with the procedures that fit it, and what they are.
    ///
    /// # Errors
    /// If the search fails.
    pub fn introduce(&self, prompt: Prompt) -> Result<(Prompt, Look)> {
        let look = self.look_for(&prompt)?;
        Ok((put(prompt, &look.told.text), look))
    }
}

/// Texts that are kept: those of the sets of procedures that questions usually find.
const KEPT: usize = 4096;

/// Puts `text` into `prompt`.
fn put(prompt: Prompt, text: &str) -> Prompt {
    if text.is_empty() {
        return prompt;
    }
    match prompt {
        Prompt::Text(question) => Prompt::Text(format!("{text}\n\n{question}")),
        Prompt::Messages(mut messages) => {
            match messages.first_mut().filter(|first| matches!(first.role.as_str(), "system" | "developer")) {
                Some(system) if system.content.is_empty() => text.clone_into(&mut system.content),
                Some(system) => system.content = format!("{}\n\n{text}", system.content),
                None => messages.insert(0, Message::new("system", text)),
            }
            Prompt::Messages(messages)
        }
    }
}

/// What the questions of one side found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tally {
    /// Questions.
    pub questions: u64,
    /// Those that found a procedure which was told.
    pub told: u64,
    /// Those of which the last procedure was told without its last steps.
    pub shortened: u64,
    /// Those that found a procedure for which there was no room.
    pub no_room: u64,
    /// Questions that found it, by name of the procedure.
    pub by_name: BTreeMap<String, u64>,
}

/// What a memory did to the questions of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Introduced {
    /// First digits of the digest of the memory.
    pub digest: String,
    /// Procedures that can be found.
    pub active: usize,
    /// Training questions; none where they are made when they are asked for.
    pub train: Option<Tally>,
    /// Held-out questions.
    pub held_out: Option<Tally>,
    /// The first prompt in which a procedure stands, for people.
    #[serde(skip)]
    pub example: Option<Prompt>,
}

/// Puts procedures into all questions of `dataset`.
///
/// # Errors
/// If the search fails.
pub fn introduce(memory: &Arc<SopMemory>, dataset: &mut Dataset) -> Result<Introduced> {
    let mut example = None;
    let train = side(memory, &mut dataset.train, &mut example)?;
    let held_out = side(memory, &mut dataset.eval, &mut example)?;
    Ok(Introduced { digest: memory.fact(), active: memory.active().len(), train, held_out, example })
}

fn side(memory: &Arc<SopMemory>, tasks: &mut Tasks, example: &mut Option<Prompt>) -> Result<Option<Tally>> {
    let Tasks::Rows(rows) = tasks else {
        let memory = memory.clone();
        let change = move |task: Task| match memory.introduce(task.prompt.clone()) {
            Ok((prompt, _)) => Task { prompt, ..task },
            Err(error) => {
                tracing::error!(task = task.id, %error, "asked without a procedure");
                task
            }
        };
        let made = std::mem::replace(tasks, Tasks::Rows(Vec::new()));
        *tasks = made.changed(Change(Arc::new(change)));
        return Ok(None);
    };
    let mut tally = Tally::default();
    for task in rows {
        let question = std::mem::replace(&mut task.prompt, Prompt::Text(String::new()));
        let (prompt, look) = memory.introduce(question).with_context(|| format!("question {}", task.id))?;
        task.prompt = prompt;
        tally.add(memory, &look);
        if example.is_none() && look.told.procedures > 0 {
            *example = Some(task.prompt.clone());
        }
    }
    Ok(Some(tally))
}

impl Tally {
    fn add(&mut self, memory: &SopMemory, look: &Look) {
        self.questions += 1;
        self.told += u64::from(look.told.procedures > 0);
        self.shortened += u64::from(look.told.left_out > 0);
        self.no_room += u64::from(look.told.procedures == 0 && !look.found.is_empty());
        for found in look.found.iter().take(look.told.procedures) {
            *self.by_name.entry(memory.active()[found.at].name.clone()).or_default() += 1;
        }
    }

    /// In a few words.
    fn describe(&self, what: &str) -> String {
        let mut said = format!("{} of {} {what} questions find one", self.told, self.questions);
        for (count, how) in [(self.shortened, "shortened"), (self.no_room, "without room for it")] {
            if count > 0 {
                said += &format!(", {count} {how}");
            }
        }
        let mut by_name: Vec<(&String, &u64)> = self.by_name.iter().collect();
        by_name.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
        let names: Vec<String> = by_name.iter().take(SHOWN).map(|(name, count)| format!("{name} {count}")).collect();
        if !names.is_empty() {
            let more = if by_name.len() > SHOWN { ", ..." } else { "" };
            said += &format!(" ({}{more})", names.join(", "));
        }
        said
    }
}

/// Names of procedures shown.
const SHOWN: usize = 4;

impl Introduced {
    /// One line for the user.
    pub fn describe(&self) -> String {
        let train =
            self.train.as_ref().map_or("questions are made as they are asked".into(), |t| t.describe("training"));
        let held_out = self.held_out.as_ref().filter(|t| t.questions > 0);
        let held_out = held_out.map_or(String::new(), |t| format!("; {}", t.describe("held-out")));
        format!("procedures: {} in force; {train}{held_out}", self.active)
    }

    /// What to warn of.
    pub fn warnings(&self) -> Vec<String> {
        let sides = [&self.train, &self.held_out].into_iter().flatten();
        let (told, no_room) = sides.clone().fold((0, 0), |(told, no), tally| (told + tally.told, no + tally.no_room));
        let mut warnings = Vec::new();
        if no_room > 0 {
            warnings.push(format!(
                "sop.max_procedure_tokens: {no_room} questions find a procedure that does not fit, not even with its first step alone"
            ));
        } else if told == 0 && self.train.is_some() {
            warnings.push("sop: no question finds a procedure; `folgore sop find QUESTION` shows scores".into());
        }
        warnings
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory() -> SopMemory {
        let tokenizer = crate::policy::open_tokenizer(folgore_config::model::EMBEDDED_SEARCH).unwrap();
        let section = SopSection { path: vec!["builtin".into()], max_procedure_tokens: 4000, ..SopSection::default() };
        SopMemory::of(&section, &tokenizer, Some("Q: refund, incident\n")).unwrap().unwrap()
    }

    fn messages(said: &[(&str, &str)]) -> Prompt {
        Prompt::Messages(said.iter().map(|(role, content)| Message::new(*role, *content)).collect())
    }

    #[test]
    fn a_procedure_goes_to_the_end_of_the_system_message_or_is_one() {
        assert_eq!(put(Prompt::Text("1+1=".into()), "P"), Prompt::Text("P\n\n1+1=".into()));
        assert_eq!(put(messages(&[("user", "q")]), "P"), messages(&[("system", "P"), ("user", "q")]));
        let own = messages(&[("system", "Be brief."), ("user", "q")]);
        assert_eq!(put(own.clone(), "P"), messages(&[("system", "Be brief.\n\nP"), ("user", "q")]));
        assert_eq!(put(own.clone(), ""), own);
        let developer = messages(&[("developer", ""), ("user", "q")]);
        assert_eq!(put(developer, "P"), messages(&[("developer", "P"), ("user", "q")]));
    }

    #[test]
    fn the_newest_message_of_the_user_that_finds_any_decides() {
        let memory = memory();
        let name = |prompt: Prompt| {
            let look = memory.look_for(&prompt).unwrap();
            look.found.first().map(|found| memory.active()[found.at].name.clone())
        };
        let refund = ("user", "I want a refund");
        assert_eq!(
            name(messages(&[refund, ("assistant", "An outage!"), ("user", "Yes, please.")])).unwrap(),
            "Handle a refund request"
        );
        assert_eq!(name(messages(&[refund, ("user", "We have an outage")])).unwrap(), "Triage an incident");
        assert_eq!(name(messages(&[("system", "refund"), ("user", "Hello")])), None);
        // worked examples in front of a question are none of it
        assert_eq!(name(Prompt::Text("Q: refund, incident\nTell me a joke".into())), None);
        assert_eq!(name(Prompt::Text("Q: refund\nTell me a joke".into())).unwrap(), "Handle a refund request");
    }

    #[test]
    fn the_fact_is_what_is_said_and_how_and_not_where_it_lies() {
        let memory = memory();
        let kept = memory.keep();
        let again = SopMemory::kept(kept.clone(), &memory.tokenizer).unwrap();
        assert_eq!(again.fact(), memory.fact());
        let settings = SopSection { min_score: 0.6, ..kept.settings.clone() };
        assert_ne!(
            SopMemory::kept(Kept { settings, ..kept.clone() }, &memory.tokenizer).unwrap().fact(),
            memory.fact()
        );
        let fewer = Kept { active: kept.active[1..].to_vec(), ..kept };
        assert_ne!(SopMemory::kept(fewer, &memory.tokenizer).unwrap().fact(), memory.fact());
    }

    #[test]
    fn questions_that_are_made_get_procedures_too_and_rows_are_counted() {
        let section = folgore_config::DataSection { dataset: "arithmetic".into(), chat: true, ..Default::default() };
        let mut dataset = folgore_dataset::load(&section).unwrap();
        let plain = dataset.train.task(7);
        let introduced = introduce(&Arc::new(memory()), &mut dataset).unwrap();
        let told = dataset.train.task(7);
        assert_eq!((&told.id, &told.columns), (&plain.id, &plain.columns));
        let Prompt::Messages(said) = &told.prompt else { panic!("{:?}", told.prompt) };
        assert!(
            said[0].role == "system" && said[0].content.starts_with("Follow this procedure: Do arithmetic"),
            "{said:?}"
        );
        assert_eq!(introduced.train, None);
        let held_out = introduced.held_out.clone().unwrap();
        assert_eq!((held_out.questions, held_out.told), (dataset.eval.len(), dataset.eval.len()));
        assert!(introduced.describe().contains("questions are made as they are asked; "), "{}", introduced.describe());
        assert!(introduced.warnings().is_empty() && introduced.example.is_some());
    }
}
