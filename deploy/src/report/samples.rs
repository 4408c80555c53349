//! The same questions before and after training, side by side.

use folgore_protocol::StopReason;

use super::{
    ReportData,
    html::{self, escape, number},
};
use crate::samples::Sample;

/// Questions shown.
const SHOWN: usize = 6;
/// Characters of a text shown.
const TEXT: usize = 1200;

/// The section; empty without samples.
pub fn section(data: &ReportData) -> String {
    let pairs = pairs(&data.before, &data.after);
    if !pairs.is_empty() {
        let rows: String = pairs.iter().take(SHOWN).map(|(before, after)| pair(before, after)).collect();
        let how = match pairs[0].0.decoding.as_deref() {
            Some("greedy") => {
                "Greedy answers to the first held-out questions, taken by their place and not by their score."
            }
            _ => "Answers to the first held-out questions, taken by their place and not by their score.",
        };
        return html::section("samples", "Samples before and after", &format!("<p class=\"lead\">{how}</p>\n{rows}"));
    }
    let columns = [("First step", &data.before), ("Last step", &data.after)];
    let columns: String =
        columns.into_iter().filter(|(_, samples)| !samples.is_empty()).map(|(name, s)| column(name, s)).collect();
    if columns.is_empty() {
        return String::new();
    }
    let lead = "<p class=\"lead\">Completions that were trained on, one of each group, taken by their place.</p>\n";
    html::section("samples", "Samples", &format!("{lead}<div class=\"pair\">{columns}</div>\n"))
}

/// Answers to the same question in the same way, greedy ones first where there are any.
fn pairs<'a>(before: &'a [Sample], after: &'a [Sample]) -> Vec<(&'a Sample, &'a Sample)> {
    let greedy = before.iter().any(|s| s.decoding.as_deref() == Some("greedy"));
    let wanted = |s: &&Sample| !greedy || s.decoding.as_deref() == Some("greedy");
    let same = |s: &'a Sample| {
        let other =
            after.iter().find(|o| s.decoding.is_some() && o.task_id == s.task_id && o.decoding == s.decoding)?;
        Some((s, other))
    };
    before.iter().filter(wanted).filter_map(same).collect()
}

fn pair(before: &Sample, after: &Sample) -> String {
    let question = before.prompt.as_deref().or(after.prompt.as_deref()).unwrap_or("(not recorded)");
    format!(
        "<article class=\"sample\">\n<h3><span class=\"id\">{}</span></h3>\n<pre class=\"question\">{}</pre>\n\
         <div class=\"pair\">\n{}{}</div>\n</article>\n",
        escape(&before.task_id),
        escape(&cut(question)),
        answer("Before", before),
        answer("After", after)
    )
}

fn column(name: &str, samples: &[Sample]) -> String {
    let one = |s: &Sample| {
        let question = s.prompt.as_deref().unwrap_or("(not recorded)");
        format!("<pre class=\"question\">{}</pre>\n{}", escape(&cut(question)), answer(&s.task_id, s))
    };
    format!("<div><h3>{}</h3>\n{}</div>\n", escape(name), samples.iter().take(SHOWN).map(one).collect::<String>())
}

fn answer(name: &str, sample: &Sample) -> String {
    let text = if sample.answer().is_empty() { "(nothing)" } else { sample.answer() };
    format!(
        "<div class=\"answer\">\n<p class=\"who\"><span>{}</span>{}</p>\n<pre>{}</pre>\n</div>\n",
        escape(name),
        verdict(sample),
        escape(&cut(text))
    )
}

fn verdict(sample: &Sample) -> String {
    let truncated = match sample.stop_reason {
        StopReason::Length => " · cut off",
        StopReason::Context => " · context full",
        StopReason::Eos | StopReason::StopString => "",
    };
    match (sample.reward, &sample.unscored) {
        (Some(reward), _) => {
            let class = if reward >= folgore_learner::evaluation::CORRECT { "good" } else { "bad" };
            format!("<span class=\"verdict {class}\">reward {}{truncated}</span>", number(reward))
        }
        (None, why) => {
            let why = why.as_deref().unwrap_or("no score");
            format!("<span class=\"verdict\">{}{truncated}</span>", escape(why))
        }
    }
}

fn cut(text: &str) -> String {
    match text.char_indices().nth(TEXT) {
        None => text.to_owned(),
        Some((end, _)) => format!("{}…", &text[..end]),
    }
}
