//! `folgore data check`: files read as a run would read them, both as questions and as rows to imitate, and told.

use std::{fmt::Write as _, path::Path, sync::Arc};

use anyhow::{Context as _, Result, bail};
use folgore_config::{Config, DataSection, preset, sft::Truncation};
use folgore_dataset::{Dataset, DatasetError, Examples, Report, Tasks, count, examples, load};
use folgore_learner::sft::{Encoder, Sequence, Tally};
use folgore_model::tokenizer::Tokenizer;
use folgore_protocol::{Body, Example, Prompt, Task};
use serde_json::{Value, json};

use super::{configured, figures::Lengths, of_path, shown};
use crate::{
    base::{Base, Want},
    cli::data::CheckArgs,
    commands::index::plain,
    rows,
    stream::quietly,
    template::Template,
};

/// Questions that are looked at where there are more, and where a rule makes them without end.
const MOST: u64 = 1_000_000;
const OF_A_RULE: u64 = 1000;

/// Runs the command.
pub fn run(args: &CheckArgs) -> Result<()> {
    let is_path = |given: &&String| Path::new(given.as_str()).exists();
    let (mut paths, mut sources, mut settings) = (Vec::new(), Vec::new(), Vec::new());
    for given in &args.given {
        let yaml = given.ends_with(".yaml") || given.ends_with(".yml") || preset(given).is_some();
        match () {
            () if yaml => sources.push(given.clone()),
            () if given.contains('=') && !is_path(&given) => settings.push(given.clone()),
            () => paths.push(given.clone()),
        }
    }
    let config = configured(&sources, &settings, args.format)?;
    let template = Template::of(&config.model)?;
    let tokenizer = |name| Base::wanted(name, Want::Tokenizer)?.speaking(template.clone()).tokenizer();
    let tokenizer = args.model.as_deref().map(tokenizer).transpose()?;
    let checked: Vec<(String, DataSection)> = match paths.is_empty() {
        true => vec![(sources.join(", "), config.data.clone())],
        false => paths.iter().map(|path| (path.clone(), of_path(path, &config.data))).collect(),
    };
    let mut unusable = Vec::new();
    for (name, mut section) in checked {
        let usable = match rows::here(&mut section) {
            Err(error) => refused(&name, &format!("{error:#}"), args.json)?,
            Ok(section) => {
                Look { args, config: &config, section: &section, tokenizer: tokenizer.clone() }.show(&name)?
            }
        };
        if !usable {
            unusable.push(name);
        }
    }
    if !unusable.is_empty() {
        bail!("{}: no usable row", unusable.join(", "));
    }
    Ok(())
}

/// Says why nothing is usable.
fn refused(name: &str, error: &str, as_json: bool) -> Result<bool> {
    match as_json {
        true => quietly(format!("{}\n", json!({ "path": name, "error": error })).as_bytes())?,
        false => quietly(format!("{}\n", plain(error)).as_bytes())?,
    }
    Ok(false)
}

/// A look at one path.
struct Look<'a> {
    args: &'a CheckArgs,
    config: &'a Config,
    section: &'a DataSection,
    tokenizer: Option<Arc<Tokenizer>>,
}

/// What rows became of.
struct Encoded {
    tally: Tally,
    sequences: Vec<Sequence>,
    refused: Vec<String>,
}

impl Look<'_> {
    /// Shows what is there; false if nothing is usable.
    fn show(&self, name: &str) -> Result<bool> {
        let (asked, said) = (load(self.section), examples(self.section));
        if let (Err(error), Err(_)) = (&asked, &said) {
            return refused(name, &error.to_string(), self.args.json);
        }
        let encoded = match (&said, &self.tokenizer) {
            (Ok(said), Some(tokenizer)) => Some(self.encoded(said, tokenizer)),
            _ => None,
        };
        let text = match self.args.json {
            true => format!("{}\n", self.json(name, &asked, &said, encoded.as_ref())),
            false => self.lines(&asked, &said, encoded.as_ref())?,
        };
        quietly(text.as_bytes())?;
        Ok(match (encoded, asked) {
            (Some(encoded), _) => !encoded.sequences.is_empty(),
            (None, Ok(asked)) => self.prompts(&asked.train).iter().any(Result::is_ok),
            (None, Err(_)) => true,
        })
    }

    /// The questions as the model reads them; of no model, each as if it could be read.
    fn prompts(&self, asked: &Tasks) -> Vec<Result<u64, String>> {
        let variables = &self.config.rollout.chat_template_kwargs;
        let read = |task: &Task| match &self.tokenizer {
            None => Ok(0),
            Some(tokenizer) => tokenizer
                .encode_prompt(&task.prompt, variables)
                .map(|ids| ids.len() as u64)
                .map_err(|error| format!("{}: {error}", task.id)),
        };
        tasks(asked).iter().map(read).collect()
    }

    fn lines(
        &self,
        asked: &Result<Dataset, DatasetError>,
        said: &Result<Examples, DatasetError>,
        encoded: Option<&Encoded>,
    ) -> Result<String> {
        let mut out = String::new();
        let side = |report: &Report| plain(&report.to_string());
        match (asked, said) {
            (Ok(asked), said) => {
                writeln!(out, "{}", side(&asked.report))?;
                match said {
                    Ok(said) => writeln!(out, "{}", tail(&said.report))?,
                    Err(error) => writeln!(out, "no rows to learn from: {}", why(error))?,
                }
            }
            (Err(error), Ok(said)) => {
                writeln!(out, "{}", side(&said.report))?;
                writeln!(out, "no questions to train on: {}", why(error))?;
            }
            (Err(_), Err(_)) => {}
        }
        for (what, lengths) in self.lengths(asked, said, encoded) {
            writeln!(out, "{what:<28} {lengths}")?;
        }
        if let Some(Encoded { tally, refused, .. }) = encoded {
            let Tally { sequences, tokens, learnt, split, endless, .. } = tally;
            writeln!(out, "{}, {tokens} tokens, {learnt} of them learnt", count(*sequences, "sequence"))?;
            if *split > 0 {
                writeln!(out, "  {split} more sequences than rows: the template rewrites earlier turns")?;
            }
            if *endless > 0 {
                writeln!(out, "  {endless} learnt turns end with no token that ends a generation")?;
            }
            if let Some(first) = refused.first() {
                let rows = count(refused.len() as u64, "row");
                writeln!(out, "  {rows} cannot be rendered; the first: {}", plain(first))?;
            }
        }
        if let (Ok(asked), None) = (asked, encoded) {
            let refused: Vec<String> = self.prompts(&asked.train).into_iter().filter_map(Result::err).collect();
            if let Some(first) = refused.first() {
                let questions = count(refused.len() as u64, "question");
                writeln!(out, "  {questions} cannot be rendered; the first: {}", plain(first))?;
            }
        }
        match said {
            Ok(said) => {
                for example in said.train.rows().take(self.args.rows) {
                    out += &self.row(example)?;
                }
            }
            Err(_) => {
                let Ok(asked) = asked else { return Ok(out) };
                for i in 0..(self.args.rows as u64).min(asked.train.len()) {
                    out += &self.question(&asked.train.task(i))?;
                }
            }
        }
        Ok(out)
    }

    /// A row with what is learnt of it: as a model reads it, or by message.
    fn row(&self, example: &Example) -> Result<String> {
        let mut out = format!("{}  [{}]\n", plain(&example.id), plain(&example.source));
        if let Some(tokenizer) = &self.tokenizer {
            match self.encoder(tokenizer).encode(example, &mut Tally::default()) {
                Err(error) => out += &shown::piece("refused", &error.to_string()),
                Ok(sequences) => {
                    for sequence in sequences {
                        out += &shown::runs(tokenizer, &sequence)?;
                    }
                }
            }
            return Ok(out);
        }
        Ok(out + &shown::example(&example.body))
    }

    /// A question, as the model reads it where there is one.
    fn question(&self, task: &Task) -> Result<String> {
        let mut out = format!("{}\n", plain(&task.id));
        match &self.tokenizer {
            None => out += &shown::prompt(&task.prompt),
            Some(tokenizer) => match tokenizer.encode_prompt(&task.prompt, &self.config.rollout.chat_template_kwargs) {
                Ok(ids) => {
                    let text = tokenizer.decode(&ids, false).context("a question cannot be shown")?;
                    out += &shown::piece(&format!("asked  {:>5} t", ids.len()), &text);
                }
                Err(error) => out += &shown::piece("refused", &error.to_string()),
            },
        }
        if let Some(answer) = task.columns.get("answer") {
            out += &shown::piece("answer", &answer.as_str().map_or_else(|| answer.to_string(), str::to_owned));
        }
        Ok(out)
    }

    fn encoder<'a>(&'a self, tokenizer: &'a Tokenizer) -> Encoder<'a> {
        Encoder {
            tokenizer,
            ends: tokenizer.eos_ids(),
            variables: &self.config.rollout.chat_template_kwargs,
            completion_only_loss: true,
            max_length: usize::MAX,
            truncation: Truncation::Stop,
        }
    }

    fn encoded(&self, said: &Examples, tokenizer: &Tokenizer) -> Encoded {
        let (encoder, mut tally) = (self.encoder(tokenizer), Tally::default());
        let (mut sequences, mut refused) = (Vec::new(), Vec::new());
        for example in said.train.rows() {
            match encoder.encode(example, &mut tally) {
                Ok(made) => sequences.extend(made),
                Err(error) => refused.push(error.to_string()),
            }
        }
        Encoded { tally, sequences, refused }
    }

    /// Lengths of questions and of what is learnt: in characters, and in tokens where there is a model.
    fn lengths(
        &self,
        asked: &Result<Dataset, DatasetError>,
        said: &Result<Examples, DatasetError>,
        encoded: Option<&Encoded>,
    ) -> Vec<(&'static str, Lengths)> {
        let mut all = Vec::new();
        let mut add = |what, lengths: Option<Lengths>| all.extend(lengths.map(|lengths| (what, lengths)));
        if let Ok(asked) = asked {
            let tasks = tasks(&asked.train);
            add("questions, characters", Lengths::of(tasks.iter().map(|task| chars(&task.prompt))));
            if self.tokenizer.is_some() {
                add("questions, tokens", Lengths::of(self.prompts(&asked.train).into_iter().flatten()));
            }
        }
        if let Ok(said) = said {
            add("learnt, characters", Lengths::of(said.train.rows().map(|row| learnt_chars(&row.body))));
        }
        if let Some(Encoded { sequences, .. }) = encoded {
            add("learnt, tokens", Lengths::of(sequences.iter().map(|s| s.learnt_tokens() as u64)));
            add("whole sequences, tokens", Lengths::of(sequences.iter().map(|s| s.ids.len() as u64)));
        }
        all
    }

    fn json(
        &self,
        name: &str,
        asked: &Result<Dataset, DatasetError>,
        said: &Result<Examples, DatasetError>,
        encoded: Option<&Encoded>,
    ) -> Value {
        let report = match (asked, said) {
            (Ok(asked), _) => Some(&asked.report),
            (_, Ok(said)) => Some(&said.report),
            _ => None,
        };
        let files: Vec<Value> = report.iter().flat_map(|report| &report.files).map(|file| json!({
            "path": file.detection.path, "container": file.detection.container.to_string(),
            "format": file.detection.format.name(), "reason": file.detection.reason, "fields": file.detection.fields,
            "rows": file.rows, "bad": file.skipped, "repeated": file.repeated,
            "first_bad": file.first_bad.iter().map(ToString::to_string).collect::<Vec<_>>(),
            "left_out": file.left_out, "not_read": file.beside,
        })).collect();
        let lengths: serde_json::Map<String, Value> = self
            .lengths(asked, said, encoded)
            .into_iter()
            .map(|(what, lengths)| (what.to_owned(), json!(lengths)))
            .collect();
        let rows: Vec<&Example> = said.iter().flat_map(|said| said.train.rows()).take(self.args.rows).collect();
        json!({
            "path": name, "files": files, "unreadable": report.map(|report| &report.unreadable), "lengths": lengths, "rows": rows,
            "questions": asked.as_ref().ok().map(|asked| asked.train.len()),
            "examples": said.as_ref().ok().map(|said| said.train.len()),
            "left_out": { "questions": asked.as_ref().ok().map(|a| &a.report.left_out), "examples": said.as_ref().ok().map(|s| &s.report.left_out) },
            "no_questions": asked.as_ref().err().map(ToString::to_string),
            "no_examples": said.as_ref().err().map(ToString::to_string),
            "tokens": encoded.map(|e| e.tally.tokens), "learnt_tokens": encoded.map(|e| e.tally.learnt),
            "refused": encoded.map(|e| e.refused.len()),
        })
    }
}

/// The questions that are looked at.
fn tasks(tasks: &Tasks) -> Vec<Task> {
    let most = if matches!(tasks, Tasks::Made(_) | Tasks::Changed(..)) { OF_A_RULE } else { MOST };
    (0..tasks.len().min(most)).map(|i| tasks.task(i)).collect()
}

fn chars(prompt: &Prompt) -> u64 {
    let count = |text: &str| text.chars().count() as u64;
    match prompt {
        Prompt::Text(text) => count(text),
        Prompt::Messages(messages) => messages.iter().map(|message| count(&message.content)).sum(),
    }
}

fn learnt_chars(body: &Body) -> u64 {
    let count = |text: &str| text.chars().count() as u64;
    match body {
        Body::Text { text } => count(text),
        Body::Completion { completion, .. } => count(completion),
        Body::Conversation { messages, learnt, .. } => {
            let said = std::iter::zip(messages, learnt).filter(|(_, on)| **on).map(|(message, _)| message);
            said.map(|message| {
                count(&message.content) + message.extra.values().map(|v| count(&v.to_string())).sum::<u64>()
            })
            .sum()
        }
    }
}

/// The last line of a report, and what rows of all files were left out for.
fn tail(report: &Report) -> String {
    let left: Vec<String> =
        report.left_out.iter().map(|(reason, count)| format!("; {count} left out: {reason}")).collect();
    let text = report.to_string();
    format!("{}{}", text.lines().last().unwrap_or_default(), left.concat())
}

/// The reason of an error without the path in front.
fn why(error: &DatasetError) -> String {
    let text = error.to_string();
    plain(text.rsplit_once("train on: ").map_or(text.as_str(), |(_, why)| why))
}
