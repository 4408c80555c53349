//! The report of `folgore reward test` as text.

use std::fmt::Write as _;

use super::{
    Figures, Report,
    figures::{Agreement, Distribution},
    saved::Saved,
};
use crate::{
    commands::inspect::{number, shortened},
    samples::prompt_text,
};

/// Characters of the longest bar.
const WIDTH: usize = 40;
/// Characters of a prompt or completion.
const TEXT: usize = 160;

/// The whole report. Writing to a `String` does not fail.
pub fn text(report: &Report, saved: &[Saved]) -> String {
    let mut out = String::new();
    let _ = writeln!(out, "{} completions of {}", report.completions, report.source);
    figures(&mut out, &report.first);
    if let Some(recorded) = &report.recorded {
        let _ = match recorded.differ {
            0 => writeln!(out, "recorded    all {} scores are those of the record", recorded.compared),
            differ => writeln!(
                out,
                "recorded    {differ} of {} scores are not those of the record, by up to {}: another reward, or one that \
                 does not give the same score twice",
                recorded.compared,
                number(recorded.largest)
            ),
        };
    }
    if let (Some(second), Some(agreement)) = (&report.second, &report.agreement) {
        let _ = writeln!(out);
        figures(&mut out, second);
        agreed(&mut out, agreement, saved);
    }
    out
}

fn figures(out: &mut String, figures: &Figures) {
    let _ = writeln!(out, "reward      {}", figures.reward);
    match &figures.scores {
        None => drop(writeln!(out, "scored      none")),
        Some(scores) => distribution(out, scores),
    }
    for (name, part) in &figures.parts {
        let _ = writeln!(out, "part        {name:<24} mean {:>9}  std {:>9}", number(part.mean), number(part.std));
    }
    let _ = writeln!(out, "failed      {}", figures.failed());
    for failure in &figures.failures {
        let _ = writeln!(out, "  {:>6}  {:<10}  {}", failure.count, failure.kind, shortened(&failure.reason, TEXT));
    }
    let l = &figures.latency_ms;
    let _ = writeln!(
        out,
        "latency     p50 {:.1} ms  p95 {:.1} ms  max {:.1} ms  ({} requests)",
        l.p50, l.p95, l.max, l.requests
    );
}

fn distribution(out: &mut String, scores: &Distribution) {
    let _ = writeln!(out, "scored      {}  mean {}  std {}", scores.count, number(scores.mean), number(scores.std));
    let quantiles: Vec<String> =
        scores.quantiles.iter().map(|(share, at)| format!("{share}% {}", number(*at))).collect();
    let _ = writeln!(out, "quantiles   {}", quantiles.join("  "));
    let most = scores.histogram.iter().map(|bar| bar.count).max().unwrap_or(1).max(1);
    for bar in &scores.histogram {
        let name =
            if bar.from == bar.to { number(bar.from) } else { format!("{} .. {}", number(bar.from), number(bar.to)) };
        // A bar that is not empty is seen.
        let length = (bar.count * WIDTH / most).max(usize::from(bar.count > 0));
        let _ = writeln!(out, "  {name:>22}  {:<WIDTH$}  {}", "█".repeat(length), bar.count);
    }
}

fn agreed(out: &mut String, agreement: &Agreement, saved: &[Saved]) {
    let correlation = agreement.correlation.map_or_else(|| "-".into(), |r| format!("{r:.3}"));
    let _ =
        writeln!(out, "agreement   correlation {correlation} over {} completions that both scored", agreement.count);
    let share = agreement.opposite_share().map_or_else(|| "-".into(), |share| format!("{:.1} %", share * 100.0));
    let _ = writeln!(out, "  ordered differently  {share} of {} pairs", agreement.pairs);
    for d in &agreement.largest {
        let saved = &saved[d.item];
        let _ = writeln!(out, "  {}: {} here, {} there", saved.place, number(d.first), number(d.second));
        let _ = writeln!(out, "    asked  {}", shortened(&prompt_text(&saved.item.prompt), TEXT));
        let _ = writeln!(out, "    said   {}", shortened(&saved.item.completion, TEXT));
    }
}
