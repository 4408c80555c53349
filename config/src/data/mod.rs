//! `data`: where the questions come from, and how their rows are read.

mod curriculum;
mod format;
pub mod names;
mod source;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::Problems;

pub use curriculum::{Curriculum, CurriculumMode};
pub use format::{DataFormat, Formatter, Reasoning};
pub use source::{ChatMemory, DataSource, Redact};

/// Names of the procedural tasks: a `dataset` that is none of them is a path.
pub const PROCEDURAL: [&str; 4] = ["arithmetic", "countdown", "letter_count", "countries"];

/// What to do with a row that cannot be read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnBadRow {
    /// Refuse the file, naming the row and the field.
    #[default]
    Stop,
    /// Leave the row out, count it, and report the first few.
    Skip,
}

/// Difficulty of `dataset: arithmetic`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Arithmetic {
    /// Digits of the operands, exactly.
    pub digits: u32,
    /// Digits of the second operand, where it has another number of them.
    pub second_digits: Option<u32>,
    /// Any of `+`, `-`, `*`, drawn evenly.
    pub operations: String,
    /// Only sums of which every column carries, of two numbers of `digits` digits.
    pub every_column_carries: bool,
    /// Share of the worked answers (`traces`, and rows to imitate) that forget every carry, to see what the reward is good for.
    pub wrong: f64,
}

impl Default for Arithmetic {
    fn default() -> Self {
        Self { digits: 3, second_digits: None, operations: "+".into(), every_column_carries: false, wrong: 0.0 }
    }
}

/// Difficulty of `dataset: countdown`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Countdown {
    /// How many numbers are given.
    pub num_numbers: u32,
    /// The largest number given.
    pub max_number: u32,
    /// The largest target.
    pub max_target: u32,
}

impl Default for Countdown {
    fn default() -> Self {
        Self { num_numbers: 3, max_number: 20, max_target: 100 }
    }
}

/// Difficulty of `dataset: letter_count`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LetterCount {
    /// How many words the question holds.
    pub num_words: u32,
}

impl Default for LetterCount {
    fn default() -> Self {
        Self { num_words: 1 }
    }
}

/// Difficulty of `dataset: countries`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Countries {
    /// Passages that are needed: 1, where the question names the country, or 2, where it names its capital.
    pub hops: u32,
}

impl Default for Countries {
    fn default() -> Self {
        Self { hops: 1 }
    }
}

/// The section `data`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DataSection {
    /// `arithmetic`, `countdown`, `letter_count`, `countries`, or a path: a file of rows (JSON, JSONL, CSV, Parquet, also as
    /// `.gz` and `.zst`; SQLite with chats), a folder of such files, or a dataset on the hub: `owner/name`, `owner/name@REVISION`, and
    /// `owner/name:PART` for a file or folder of it.
    pub dataset: String,
    /// Several files in the place of `dataset`, mixed by weight.
    pub sources: Vec<DataSource>,
    /// Held-out rows, as `dataset` names rows; none: `eval_fraction` of `dataset` is held out.
    pub eval_dataset: Option<PathBuf>,
    /// Shape of the rows.
    pub format: DataFormat,
    /// What becomes of a row after it was read.
    pub formatter: Formatter,
    /// Where reasoning goes that has a field of its own.
    pub reasoning: Reasoning,
    /// Column that holds the prompt, where it has a name of its own.
    pub prompt_column: Option<String>,
    /// Column that is handed to rewards as `answer`, where it has a name of its own.
    pub answer_column: Option<String>,
    /// Put before every prompt that has no system message; plain prompts become conversations.
    pub system_prompt: Option<String>,
    /// Text in front of every prompt that is plain text: worked examples, for a model that goes on rather than follows.
    pub prompt_prefix: Option<String>,
    /// What to do with a row that cannot be read.
    pub on_bad_row: OnBadRow,
    /// Longest line read, in bytes.
    pub max_line_bytes: u64,
    /// Share of a file's rows that is held out, by a hash of the prompt.
    pub eval_fraction: f64,
    /// Most rows read from a file, or most questions that a rule makes to train on; none: all.
    pub max_rows: Option<u64>,
    /// Which questions are passed over for now.
    pub curriculum: Curriculum,
    /// What is taken of chats that a program kept.
    pub memory: ChatMemory,
    /// Share of the rows whose question is asked over passages: the row's own (`context`, `passages`) among others.
    pub rag_share: f64,
    /// Passages beside the row's own.
    pub rag_passages: u32,
    /// Rows of passages (`contents` or `text`) to take the others from; none: from the other rows.
    pub rag_corpus: Option<PathBuf>,
    /// Asks procedural questions as a conversation in words, for chat models; else in the embedded policy's own form.
    pub chat: bool,
    /// Difficulty of `arithmetic`.
    pub arithmetic: Arithmetic,
    /// Difficulty of `countdown`.
    pub countdown: Countdown,
    /// Difficulty of `letter_count`.
    pub letter_count: LetterCount,
    /// Difficulty of `countries`.
    pub countries: Countries,
}

impl Default for DataSection {
    fn default() -> Self {
        Self {
            dataset: "arithmetic".into(),
            sources: Vec::new(),
            eval_dataset: None,
            format: DataFormat::Auto,
            formatter: Formatter::AsIs,
            reasoning: Reasoning::Inline,
            prompt_column: None,
            answer_column: None,
            system_prompt: None,
            prompt_prefix: None,
            on_bad_row: OnBadRow::Stop,
            max_line_bytes: 16 << 20,
            eval_fraction: 0.1,
            max_rows: None,
            curriculum: Curriculum::default(),
            memory: ChatMemory::default(),
            rag_share: 0.0,
            rag_passages: 3,
            rag_corpus: None,
            chat: false,
            arithmetic: Arithmetic::default(),
            countdown: Countdown::default(),
            letter_count: LetterCount::default(),
            countries: Countries::default(),
        }
    }
}

impl DataSection {
    /// True if questions are made by a rule and not read from a file.
    pub fn is_procedural(&self) -> bool {
        self.sources.is_empty() && PROCEDURAL.contains(&self.dataset.as_str())
    }

    /// Notes what is out of range.
    pub fn check(&self, p: &mut Problems) {
        let names = PROCEDURAL.join(", ");
        p.expect(!self.dataset.trim().is_empty(), "dataset", format!("a path or one of {names}"), "nothing");
        p.expect(
            (0.0..1.0).contains(&self.eval_fraction),
            "eval_fraction",
            "0 or more and below 1",
            self.eval_fraction,
        );
        p.expect(self.max_line_bytes >= 1024, "max_line_bytes", "at least 1024 bytes", self.max_line_bytes);
        if let Some(rows) = self.max_rows {
            p.expect(rows > 0, "max_rows", "at least 1", rows);
        }
        self.check_sources(p);
        self.curriculum.check(p);
        p.range("rag_share", 0.0, 1.0, self.rag_share);
        p.range("rag_passages", 0.0, 64.0, self.rag_passages.into());
        for (key, column) in [("prompt_column", &self.prompt_column), ("answer_column", &self.answer_column)] {
            p.expect(column.as_deref() != Some(""), key, "the name of a column, or null", "an empty text");
        }
        let plain = self.prompt_prefix.is_none() || !self.chat && self.system_prompt.is_none();
        let which = "data.chat=true or data.system_prompt, which make conversations";
        p.expect(plain, "prompt_prefix", "plain prompts", which);
        for (key, date) in [("memory.since", &self.memory.since), ("memory.until", &self.memory.until)] {
            let date = date.as_deref();
            p.expect(
                date.is_none_or(is_date),
                key,
                "a date such as 2026-01-31, or with a time",
                date.unwrap_or_default(),
            );
        }
        let a = &self.arithmetic;
        p.range("arithmetic.digits", 1.0, 9.0, a.digits.into());
        p.range("arithmetic.second_digits", 1.0, 9.0, a.second_digits.unwrap_or(a.digits).into());
        let operations = !a.operations.is_empty() && a.operations.chars().all(|c| "+-*".contains(c));
        p.expect(operations, "arithmetic.operations", "one or more of + - *", format!("{:?}", a.operations));
        p.range("arithmetic.wrong", 0.0, 1.0, a.wrong);
        let plain = a.operations == "+" && a.second_digits.is_none_or(|digits| digits == a.digits);
        let want = "false, unless operations is + and second_digits is digits";
        p.expect(plain || !a.every_column_carries, "arithmetic.every_column_carries", want, "true");
        let c = &self.countdown;
        p.range("countdown.num_numbers", 2.0, 6.0, c.num_numbers.into());
        p.range("countdown.max_number", 4.0, 1000.0, c.max_number.into());
        p.range("countdown.max_target", 10.0, 100_000.0, c.max_target.into());
        p.range("letter_count.num_words", 1.0, 8.0, self.letter_count.num_words.into());
        p.range("countries.hops", 1.0, 2.0, self.countries.hops.into());
    }

    fn check_sources(&self, p: &mut Problems) {
        for (i, source) in self.sources.iter().enumerate() {
            let mut own = Problems::default();
            source.check(&mut own);
            p.nest(&format!("data.sources.{i}"), own);
            let title = source.title();
            let again = self.sources[..i].iter().any(|other| other.title() == title);
            p.expect(!again, "sources", "another name for each source", format!("{title:?} twice"));
        }
        let weighed = self.sources.iter().filter(|source| source.weight.is_some()).count();
        let all = self.sources.len();
        p.expect(
            weighed == 0 || weighed == all,
            "sources",
            "a weight for all or for none",
            format!("{weighed} of {all}"),
        );
        let other = self.sources.is_empty() || self.dataset == Self::default().dataset;
        p.expect(other, "dataset", "nothing beside data.sources", format!("{:?}", self.dataset));
    }
}

/// Whether `text` begins as a date does that orders as text: `2026-01-31`, with more after it or not.
fn is_date(text: &str) -> bool {
    let form = |(i, b): (usize, u8)| if i == 4 || i == 7 { b == b'-' } else { b.is_ascii_digit() };
    text.len() >= 10 && text.bytes().take(10).enumerate().all(form)
}
