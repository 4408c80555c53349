//! The model card: `README.md` of a folder, with the header that hubs read.

use std::fmt::Write as _;

use anyhow::Result;
use serde_json::json;

use super::{Kind, Report, Source};
use crate::summary::Summary;

/// Name of the file.
pub const FILE: &str = "README.md";

/// Writes the card of an export.
pub fn card(source: &Source, report: &Report) -> Result<String> {
    let library = if report.kind == Kind::Peft { "peft" } else { "transformers" };
    let mut text = String::new();
    writeln!(text, "---")?;
    writeln!(text, "base_model: {}", json!(source.base.plain_name()))?;
    writeln!(text, "library_name: {library}")?;
    writeln!(text, "pipeline_tag: text-generation")?;
    writeln!(text, "tags: [folgore, grpo, lora, reinforcement-learning]")?;
    writeln!(text, "---\n\n# {}\n", source.name)?;
    let what = match report.kind {
        Kind::Peft => "A LoRA adapter, to be loaded beside its base",
        Kind::Merged { .. } => "Base and LoRA adapter, merged",
        _ => "A policy",
    };
    writeln!(text, "{what}. Trained with reinforcement learning by Folgore {}.\n", report.version)?;
    writeln!(text, "| | |\n|---|---|")?;
    writeln!(text, "| base | `{}` (sha256 `{}`) |", source.base.name(), &report.base_digest[..12])?;
    if let Some(form) = source.base.form() {
        writeln!(text, "| base held in | {form} |")?;
    }
    let lora = &source.adapter.config;
    writeln!(text, "| adapter | r {}, alpha {}, {} |", lora.r, lora.lora_alpha, lora.target_modules.join(", "))?;
    if let Some((_, config)) = &source.run {
        let rewards: Vec<String> = config.reward.iter().map(|reward| reward.name.clone()).collect();
        writeln!(text, "| data | {} |", config.data.dataset)?;
        writeln!(text, "| rewards | {} |", rewards.join(", "))?;
        writeln!(text, "| learning rate | {} |", config.optim.learning_rate)?;
    }
    evaluations(&mut text, source)?;
    if let Some(verified) = &report.verified {
        writeln!(text, "\n## Is it the policy?\n\nCompared with base and adapter when it was written:\n\n```")?;
        verified.lines().iter().try_for_each(|line| writeln!(text, "{line}"))?;
        writeln!(text, "```")?;
    }
    Ok(text)
}

fn evaluations(text: &mut String, source: &Source) -> Result<()> {
    let Some((run, _)) = &source.run else { return Ok(()) };
    let Some(summary) = Summary::read(run)? else { return Ok(()) };
    if summary.evaluations.is_empty() {
        return Ok(());
    }
    writeln!(
        text,
        "\n## Held-out questions\n\n| when | step | greedy | sampled | mean reward, sampled |\n|---|---|---|---|---|"
    )?;
    let shown = |value: Option<f64>| value.map_or("-".to_owned(), |value| format!("{value:.3}"));
    for e in &summary.evaluations {
        let (greedy, sampled) = (e.greedy.as_ref(), e.sampled.as_ref());
        writeln!(
            text,
            "| {} | {} | {} | {} | {} |",
            e.when,
            e.step,
            shown(greedy.and_then(|m| m.accuracy)),
            shown(sampled.and_then(|m| m.accuracy)),
            shown(sampled.and_then(|m| m.mean_reward))
        )?;
    }
    Ok(())
}
