//! Whether the questions fit into the policy's context: looked at before a run begins, since a question that does not fit would
//! be drawn in vain again and again.

use anyhow::{Context as _, Result, bail};
use folgore_config::{Config, data::OnBadRow};
use folgore_dataset::{Dataset, Tasks};
use folgore_protocol::Task;

use crate::policy::Policy;

/// Questions looked at where a rule makes them: they are all of one form.
const LOOKED_AT: u64 = 8;

/// Refuses questions that are too long, or leaves them out where `data.on_bad_row` says so. Returns what to warn of.
pub fn check(config: &Config, policy: &Policy, dataset: &mut Dataset) -> Result<Vec<String>> {
    let limits = Limits {
        config,
        policy,
        max_prompt_length: config.rollout.max_prompt_length as usize,
        context: policy.config().max_position_embeddings,
    };
    let mut warnings = Vec::new();
    if config.data.is_procedural() {
        for index in 0..LOOKED_AT {
            limits.fits(&dataset.train.task(index))?;
        }
    } else {
        let sources: Vec<String> = config.data.sources.iter().map(|source| source.title()).collect();
        let train = if sources.is_empty() { config.data.dataset.clone() } else { sources.join(", ") };
        let eval = config.data.eval_dataset.as_ref().map_or_else(|| train.clone(), |path| path.display().to_string());
        warnings.extend(limits.side(&train, &mut dataset.train)?);
        warnings.extend(limits.side(&eval, &mut dataset.eval)?);
        if dataset.train.is_empty() {
            bail!("{train}: no question fits: raise rollout.max_prompt_length ({})", limits.max_prompt_length);
        }
    }
    let (longest, most) = (limits.max_prompt_length, config.rollout.most_after_prompt() as usize);
    if longest.saturating_add(most) > limits.context {
        let context = limits.context;
        warnings.push(format!(
            "rollout.max_prompt_length {longest} and {most} tokens after it ({}) together exceed the model's context of \
             {context} tokens: completions end there",
            config.rollout.lengths()
        ));
    }
    Ok(warnings)
}

struct Limits<'a> {
    config: &'a Config,
    policy: &'a Policy,
    max_prompt_length: usize,
    context: usize,
}

impl Limits<'_> {
    /// What is said of a question that may be too long for what stands before it.
    fn procedures(&self) -> String {
        let sop = &self.config.sop;
        let said = || format!("; up to sop.max_procedure_tokens {} of them are procedures", sop.max_procedure_tokens);
        sop.is_on().then(said).unwrap_or_default()
    }

    /// Checks that `task` fits.
    fn fits(&self, task: &Task) -> Result<()> {
        let ids = self.policy.tokenizer.encode_prompt(&task.prompt, &self.config.rollout.chat_template_kwargs);
        let (id, tokens) = (&task.id, ids.with_context(|| format!("question {}", task.id))?.len());
        let (max, context) = (self.max_prompt_length, self.context);
        if tokens >= context {
            let procedures = self.procedures();
            bail!("question {id} has {tokens} tokens, the model's context holds {context}: shorten it{procedures}");
        }
        if tokens > max {
            bail!(
                "question {id} has {tokens} tokens, more than rollout.max_prompt_length {max}: raise that, or shorten it{}",
                self.procedures()
            );
        }
        Ok(())
    }

    /// Checks the questions of the file `path`; a warning tells of those left out.
    fn side(&self, path: &str, tasks: &mut Tasks) -> Result<Option<String>> {
        if matches!(tasks, Tasks::Made(_) | Tasks::Changed(..)) {
            return Ok(None);
        }
        let (before, mut first) = (tasks.len(), None);
        match self.config.data.on_bad_row {
            OnBadRow::Stop => {
                if let Some(error) = (0..before).find_map(|i| self.fits(&tasks.task(i)).err()) {
                    bail!("{path}: {error:#}; data.on_bad_row=skip leaves such rows out");
                }
            }
            OnBadRow::Skip => {
                let kept = tasks.retain(|task| match self.fits(task) {
                    Ok(()) => true,
                    Err(error) => {
                        first.get_or_insert(error);
                        false
                    }
                });
                if let Err(why) = kept {
                    let longest = self.max_prompt_length;
                    bail!("{why}: no question of it fits: raise rollout.max_prompt_length ({longest})");
                }
            }
        }
        let left_out = before - tasks.len();
        Ok(first.map(|error| format!("{path}: {left_out} of {before} questions are left out; the first: {error:#}")))
    }
}
