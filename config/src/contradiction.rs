//! What no section can see alone: settings that contradict each other, refused before anything is loaded.

use crate::{
    Config, Problems,
    algo::{AdvantageEstimator, AlgoSection},
};

/// Notes every contradiction of `config`; keys are full names.
pub(crate) fn check(config: &Config, p: &mut Problems) {
    p.section("");
    group(config, p);
    lengths(config, p);
    adapter(config, p);
    questions(config, p);
    others(config, p);
}

/// Members of groups that the policy did not sample.
fn others(config: &Config, p: &mut Problems) {
    let (traces, experience) = (&config.traces, &config.replay.experience);
    let (given, members) = (traces.per_group + u32::from(experience.enabled), config.rollout.num_generations);
    let want =
        format!("below rollout.num_generations = {members}, which leaves a sample of the policy's own in each group");
    p.expect(
        given < members,
        if traces.is_on() { "traces.per_group" } else { "replay.experience.enabled" },
        want,
        given,
    );
    let worked = !traces.is_on() || traces.path.is_some() || !config.data.is_procedural();
    let makes = ["arithmetic", "countries"].contains(&config.data.dataset.as_str());
    p.expect(worked || makes, "traces.path", "a file, with questions that have no worked answers", "none");
    if let Some(most) = experience.max_successes.filter(|_| experience.enabled) {
        p.expect(
            most < members,
            "replay.experience.max_successes",
            format!("below rollout.num_generations = {members}"),
            most,
        );
    }
}

/// The same for a run that imitates: it asks nothing, so that neither samples nor rewards matter.
pub(crate) fn check_sft(config: &Config, p: &mut Problems) {
    p.section("");
    adapter(config, p);
    let (data, eval) = (&config.data, &config.eval);
    let held_out = data.eval_dataset.is_some() || data.eval_fraction > 0.0;
    let patience = config.sft.early_stopping_patience;
    let evaluates = held_out && eval.eval_steps > 0;
    let asked = "off: rows that are imitated are not asked";
    p.expect(!data.curriculum.is_on(), "data.curriculum.mode", asked, "difficulty");
    let want = "0 without eval.eval_steps and rows that are held out";
    let judges = config.sft.min_reward.is_none() || !config.reward.is_empty();
    p.expect(judges, "sft.min_reward", "a `reward` that judges the rows", "none");
    p.expect(patience == 0 || evaluates, "sft.early_stopping_patience", want, patience);
}

fn group(config: &Config, p: &mut Problems) {
    let algo: &AlgoSection = &config.algo;
    let n = config.rollout.num_generations;
    let baseline = match algo.advantage_estimator {
        AdvantageEstimator::Group => "group",
        AdvantageEstimator::Rloo => "rloo",
        AdvantageEstimator::MaxRl => "max_rl",
    };
    let want = format!(
        "at least 2 with algo.advantage_estimator {baseline}: a sample that is its own baseline teaches nothing"
    );
    p.expect(n >= 2, "rollout.num_generations", want, n);
    let (prompts, parts) = (config.rollout.num_prompts, algo.steps_per_generation);
    // Mini-batches are whole groups.
    let divides = parts > 0 && prompts.is_multiple_of(parts);
    let want = format!("a multiple of algo.steps_per_generation = {parts}, which divides the batch into whole groups");
    p.expect(parts == 0 || divides, "rollout.num_prompts", want, prompts);
    let updates = algo.updates_per_batch();
    let staleness = config.rollout.max_staleness;
    p.expect(
        config.lora.use_peft || staleness == 0,
        "rollout.max_staleness",
        "0 with lora.use_peft: false, which trains in lockstep",
        staleness,
    );
    p.warn(
        updates > 16,
        "algo.num_iterations",
        format_args!(
            "{updates} updates are made of every batch; the samples are far from the policy by the last of them"
        ),
    );
}

fn lengths(config: &Config, p: &mut Problems) {
    let r = &config.rollout;
    if let Some(most) = config.model.max_seq_length {
        let longest = u64::from(r.max_prompt_length) + r.most_after_prompt();
        let want = format!("at least rollout.max_prompt_length + {} = {longest}", r.lengths());
        p.expect(u64::from(most) >= longest, "model.max_seq_length", want, most);
    }
    let (told, longest) = (config.sop.max_procedure_tokens, r.max_prompt_length);
    let want = format!("below rollout.max_prompt_length = {longest}, which the question has to fit into as well");
    p.expect(!config.sop.is_on() || told < longest, "sop.max_procedure_tokens", want, told);
}

fn adapter(config: &Config, p: &mut Problems) {
    if let Some(path) = &config.model.adapter {
        let shown = path.display();
        p.expect(config.lora.use_peft, "model.adapter", "none with lora.use_peft: false", shown);
    }
}

fn questions(config: &Config, p: &mut Problems) {
    p.expect(!config.reward.is_empty(), "reward", "a list of at least one rule, each with a name", "an empty list");
    let data = &config.data;
    if data.is_procedural() {
        for (key, set) in [
            ("data.eval_dataset", data.eval_dataset.is_some()),
            ("data.prompt_column", data.prompt_column.is_some()),
            ("data.answer_column", data.answer_column.is_some()),
            ("optim.num_train_epochs", data.max_rows.is_none() && config.optim.num_train_epochs.is_some()),
        ] {
            let want = format!("none with data.dataset {}, which makes its own questions without end", data.dataset);
            p.expect(!set, key, want, "a value");
        }
        let want = "a number with data.curriculum, which is about questions that are asked again";
        p.expect(!data.curriculum.is_on() || data.max_rows.is_some(), "data.max_rows", want, "none");
        let embedded = config.model.is_embedded();
        p.expect(
            !(embedded && data.chat),
            "data.chat",
            "false with model embedded, which has no chat template",
            "true",
        );
    } else {
        let held_out = data.eval_dataset.is_some() || data.eval_fraction > 0.0;
        let want = "above 0, or a data.eval_dataset, while evaluation is on";
        p.expect(!config.eval.is_on() || held_out, "data.eval_fraction", want, data.eval_fraction);
    }
}
