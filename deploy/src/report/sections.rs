//! The sections of the page that are words, tables and facts.

use serde_json::{Map, Value};

use super::{
    Demonstration, ReportData,
    html::{self, duration, escape, grouped, number, percent},
};
use crate::summary::{Measured, hardware::bytes_text};

/// Rows of the table of numbers at most.
const ROWS: usize = 100;
/// Columns of the table of numbers.
const COLUMNS: [(&str, &str); 9] = [
    ("step", "step"),
    ("reward", "reward"),
    ("loss", "loss"),
    ("grad_norm", "grad norm"),
    ("completions/mean_length", "length"),
    ("entropy", "entropy"),
    ("kl", "kl"),
    ("learning_rate", "learning rate"),
    ("step_time", "seconds"),
];

/// Name of the run and what it was.
pub fn header(data: &ReportData) -> String {
    let c = &data.config;
    let steps = data.summary.steps.max(data.series("step").len() as u64);
    let state = match (data.summary.complete, steps >= c.optim.max_steps) {
        (true, _) | (_, true) => "",
        _ => " · not finished",
    };
    let trained = format!(
        "{} · {} of {} steps · {} prompts × {} samples a step{state}",
        c.model.reference(),
        steps,
        c.optim.max_steps,
        c.rollout.num_prompts,
        c.rollout.num_generations
    );
    let control = match data.is_control() {
        true => "<p class=\"banner\">Control run: the learning rate is 0, so nothing may be gained here.</p>\n",
        false => "",
    };
    format!(
        "<header>\n<p class=\"brand\">Folgore <span>reinforcement learning run</span></p>\n<h1>{}</h1>\n<p class=\"lead\">{}</p>\n{control}</header>\n",
        escape(&data.run),
        escape(&trained)
    )
}

/// The few numbers that one looks for first.
pub fn headline(data: &ReportData) -> String {
    let s = &data.summary;
    let graded = s.is_graded();
    let (what, text) = if graded { ("reward", number as fn(f64) -> String) } else { ("accuracy", percent as _) };
    let mut tiles = Vec::new();
    for (way, of) in [
        ("Greedy", (|e| e.greedy.as_ref()) as fn(&crate::summary::Evaluation) -> Option<&Measured>),
        ("Sampled", |e| e.sampled.as_ref()),
    ] {
        let name = &format!("{way} {what}");
        let figure = |when: &str| s.evaluation(when).and_then(of).and_then(|m| m.figure(graded));
        match (figure("before"), figure("after")) {
            (Some(before), Some(after)) => tiles.push(gain(name, before, after, graded)),
            (Some(only), None) => tiles.push(tile(name, &text(only.0), "before training")),
            (None, Some(only)) => tiles.push(tile(name, &text(only.0), "after training")),
            (None, None) => {}
        }
    }
    if s.wall_s > 0.0 {
        let speed = s.tokens_per_s.map(|t| format!("{} tokens/s", grouped(t))).unwrap_or_default();
        tiles.push(tile("Time", &duration(s.wall_s), &speed));
    }
    if let Some(worst) = s.mismatch_logp_abs_max {
        let note = if worst == 0.0 { "equal bit for bit" } else { "largest, sampler to learner" };
        tiles.push(tile("Log-prob gap", &number(worst), note));
    }
    if tiles.is_empty() { String::new() } else { format!("<div class=\"tiles\">\n{}</div>\n", tiles.concat()) }
}

fn tile(name: &str, value: &str, note: &str) -> String {
    format!(
        "<div class=\"tile\"><p class=\"name\">{}</p><p class=\"value\">{}</p><p class=\"note\">{}</p></div>\n",
        escape(name),
        escape(value),
        escape(note)
    )
}

fn gain(name: &str, before: (f64, Option<f64>), after: (f64, Option<f64>), graded: bool) -> String {
    let (text, unit, times) = match graded {
        true => (number as fn(f64) -> String, "", 1.0),
        false => (percent as _, " points", 100.0),
    };
    let change = |value: f64| if graded { number(value) } else { format!("{value:.1}") };
    let gained = times * (after.0 - before.0);
    let sign = if gained < 0.0 { "\u{2212}" } else { "+" };
    let error = before.1.zip(after.1).map(|(b, a)| format!(" ± {}", change(times * b.hypot(a)))).unwrap_or_default();
    format!(
        "<div class=\"tile wide\"><p class=\"name\">{}</p><p class=\"value\"><span class=\"from\">{}</span> \
         <span class=\"arrow\" aria-label=\"to\">→</span> {}</p><p class=\"note\">{sign}{}{error}{unit} on held-out questions</p></div>\n",
        escape(name),
        escape(&text(before.0)),
        escape(&text(after.0)),
        change(gained.abs())
    )
}

/// What the run shows and what it does not.
pub fn reading(data: &ReportData) -> String {
    let Some(Demonstration { shows, not, .. }) = Demonstration::of(&data.config) else { return String::new() };
    let body = format!("<div class=\"reading\">\n<p>{}</p>\n<p>{}</p>\n</div>\n", escape(shows), escape(not));
    html::section("reading", "What this demonstration shows, and what it does not", &body)
}

/// All evaluations as a table.
pub fn evaluations(data: &ReportData) -> String {
    let mut rows = String::new();
    for e in &data.summary.evaluations {
        for (decoding, measured) in [("greedy", &e.greedy), ("sampled", &e.sampled)] {
            if let Some(m) = measured {
                rows.push_str(&evaluation_row(&e.when, e.step, decoding, m));
            }
        }
    }
    if rows.is_empty() {
        return String::new();
    }
    let estimates: String =
        data.summary.evaluations.iter().filter_map(|e| estimate_rows(&e.when, e.sampled.as_ref()?)).collect();
    let heads =
        ["when", "step", "answers", "accuracy", "mean reward", "any of k right", "scored", "cut off", "mean length"];
    let body = format!(
        "<p class=\"lead\">Held-out questions, asked through the same actors as in training. Accuracy is the share of the \
         scored answers whose reward reaches 1; ± is one standard error.</p>\n{}",
        table("Evaluations", &heads, &rows)
    ) + &estimate_table(&estimates);
    html::section("evaluations", "Held-out evaluation", &body)
}

/// avg@k, pass@k and maj@k of several samples of each question.
fn estimate_table(rows: &str) -> String {
    if rows.is_empty() {
        return String::new();
    }
    format!(
        "<p class=\"lead\">pass@k is the chance that k samples hold a right one, maj@k that the answer given most often is right; \
         with 95 % intervals over questions.</p>\n{}",
        table("Several samples of each question", &["when", "figure", "share", "95 % interval", "questions"], rows)
    )
}

/// Its rows; none where each question was answered once, which says nothing that is not said elsewhere.
fn estimate_rows(when: &str, sampled: &Measured) -> Option<String> {
    let row = |(name, e): (String, folgore_learner::evaluation::Estimate)| {
        let interval = format!("{} to {}", percent(e.low), percent(e.high));
        let cells = [name, percent(e.value), interval, e.questions.to_string()];
        let cells: String = cells.iter().map(|c| format!("<td>{}</td>", escape(c))).collect();
        format!("<tr><th scope=\"row\">{}</th>{cells}</tr>\n", escape(when))
    };
    (sampled.estimates.samples > 1).then(|| sampled.estimates.named().map(row).collect())
}

fn evaluation_row(when: &str, step: u64, decoding: &str, m: &Measured) -> String {
    let with = |value: Option<f64>, error: Option<f64>, text: fn(f64) -> String| match (value, error) {
        (Some(v), Some(e)) => format!("{} <span class=\"se\">± {}</span>", escape(&text(v)), escape(&text(e))),
        (Some(v), None) => escape(&text(v)),
        (None, _) => "–".into(),
    };
    let cells = [
        step.to_string(),
        decoding.to_owned(),
        with(m.accuracy, m.accuracy_se, percent),
        with(m.mean_reward, m.mean_reward_se, |v| format!("{v:.3}")),
        with(m.any_correct.filter(|_| m.answers > m.questions), None, percent),
        format!("{} of {}", m.scored, m.answers),
        percent(m.truncated),
        number(m.mean_length),
    ];
    let cells: String = cells.iter().map(|c| format!("<td>{c}</td>")).collect();
    format!("<tr><th scope=\"row\">{}</th>{cells}</tr>\n", escape(when))
}

fn table(caption: &str, heads: &[&str], rows: &str) -> String {
    let heads: String = heads.iter().map(|h| format!("<th scope=\"col\">{}</th>", escape(h))).collect();
    format!(
        "<div class=\"scroll\" tabindex=\"0\" role=\"region\" aria-label=\"{0}\"><table><caption>{0}</caption>\
         <thead><tr>{heads}</tr></thead><tbody>\n{rows}</tbody></table></div>\n",
        escape(caption)
    )
}

/// Where and with what it ran.
pub fn machine(data: &ReportData) -> String {
    let (s, h) = (&data.summary, &data.summary.hardware);
    let memory = h.memory_total.map(bytes_text).unwrap_or_default();
    let facts = html::facts(&[
        ("Processor", h.cpu.clone().unwrap_or_default()),
        ("Threads", if h.cores > 0 { h.cores.to_string() } else { String::new() }),
        ("Kernels", h.isa.clone()),
        ("Memory", memory),
        ("System", format!("{} {}", h.os, h.arch).trim().to_owned()),
        ("Folgore", s.version.clone()),
        ("Base model", [data.config.model.reference().as_str(), s.model_digest.as_str()].join(" ").trim().to_owned()),
        ("Seed", data.config.run.seed.to_string()),
        ("Configuration", s.config_digest.clone()),
        ("Launches", if s.attempts > 1 { s.attempts.to_string() } else { String::new() }),
        ("Command", data.command.clone().unwrap_or_default()),
    ]);
    html::section("machine", "Machine and versions", &facts)
}

/// The resolved configuration.
pub fn configuration(data: &ReportData) -> String {
    let body = format!(
        "<details>\n<summary>config.yaml, with every default</summary>\n<pre class=\"yaml\">{}</pre>\n</details>\n",
        escape(&data.config_yaml)
    );
    html::section("configuration", "Configuration", &body)
}

/// The numbers behind the curves.
pub fn numbers(data: &ReportData) -> String {
    if data.metrics.is_empty() {
        return String::new();
    }
    let columns: Vec<(&str, &str)> =
        COLUMNS.into_iter().filter(|(key, _)| data.metrics.iter().any(|line| line.contains_key(*key))).collect();
    let every = data.metrics.len().div_ceil(ROWS);
    let last = data.metrics.len() - 1;
    let lines = data.metrics.iter().enumerate().filter(|(i, _)| i % every == 0 || *i == last);
    let rows: String = lines.map(|(_, line)| numbers_row(line, &columns)).collect();
    let heads: Vec<&str> = columns.iter().map(|(_, head)| *head).collect();
    let which = if every == 1 { "every step".to_owned() } else { format!("every {every}th step") };
    let body = format!(
        "<details>\n<summary>{which}; all metrics are in metrics.jsonl</summary>\n{}</details>\n",
        table("Metrics by step", &heads, &rows)
    );
    html::section("numbers", "Numbers", &body)
}

fn numbers_row(line: &Map<String, Value>, columns: &[(&str, &str)]) -> String {
    let cell = |(key, _): &(&str, &str)| match line.get(*key).and_then(Value::as_f64) {
        Some(value) if *key == "step" => format!("<th scope=\"row\">{value}</th>"),
        Some(value) => format!("<td>{}</td>", escape(&number(value))),
        None => "<td>–</td>".into(),
    };
    format!("<tr>{}</tr>\n", columns.iter().map(cell).collect::<String>())
}

/// What made the page.
pub fn footer(data: &ReportData) -> String {
    let version = if data.summary.version.is_empty() { env!("CARGO_PKG_VERSION") } else { &data.summary.version };
    format!(
        "<footer><p>Made by Folgore {} from the files of the run; nothing is loaded from elsewhere.</p></footer>\n",
        escape(version)
    )
}
