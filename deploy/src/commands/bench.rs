//! `folgore bench`: how fast this machine makes and learns tokens, and how far that is from what it could do. [`scale`],
//! [`mod@telemetry`] and [`memory`] are other benches, of the fleet, of tracing and of memory instead of the engine.
//!
//! Everything else runs in this process, on the engine and the learner that training uses. Each figure is set against two
//! ceilings measured here as well ([`ceiling`]): arithmetic and reading. What the work is counted as is in [`cost`]; the
//! ceilings are measured before and after all else, and the better of the two counts, because machines are shared.

mod ceiling;
mod cost;
mod generate;
mod learn;
mod memory;
mod meter;
mod result;
mod scale;
mod solo;
mod subject;
mod telemetry;

use std::{io::Write as _, num::NonZeroUsize};

use anyhow::{Result, bail};

use self::{ceiling::Ceilings, result::Report, subject::Subject};
use crate::cli::bench::{BenchArgs, BenchWorkerArgs, OtherBench};

/// The parts, in the order in which they run.
const PARTS: [&str; 7] = ["ceilings", "decode", "prefill", "rollout", "train", "recompute", "step"];
/// Sequences that decode together.
const DECODE_BATCHES: [usize; 3] = [1, 8, 32];

/// Runs the command.
pub fn run(args: BenchArgs) -> Result<()> {
    match args.other {
        Some(OtherBench::Scale(args)) => return scale::run(&args),
        Some(OtherBench::Telemetry(args)) => return telemetry::run(&args),
        Some(OtherBench::Memory(args)) => return memory::run(&args),
        None => {}
    }
    check(&args)?;
    let wanted = |part: &str| args.only.is_empty() || args.only.iter().any(|o| o == part);
    let say = |what: &str| {
        if !args.json {
            eprintln!("measuring {what} ...");
        }
    };
    say("ceilings");
    let before = Ceilings::measure(args.threads);
    let mut results = Vec::new();
    if PARTS[1..].iter().any(|part| wanted(part)) {
        say(&format!("on {}: loading", args.model));
        let subject = Subject::load(&args.model, args.threads)?;
        if wanted("decode") {
            for batch in DECODE_BATCHES {
                say(&format!("decode at batch {batch}"));
                results.push(generate::decode(&subject, batch, args.repeat)?);
            }
        }
        if wanted("prefill") {
            say("prefill");
            results.push(generate::prefill(&subject, args.repeat)?);
        }
        if wanted("rollout") {
            say("rollouts");
            results.push(generate::rollout(&subject, args.repeat)?);
        }
        for (part, recompute) in [("train", None), ("recompute", Some(NonZeroUsize::MIN))] {
            if wanted(part) {
                say(&format!("LoRA training ({part})"));
                results.push(learn::train(&subject, args.repeat, recompute)?);
            }
        }
        if wanted("step") {
            say("a whole GRPO step");
            results.push(learn::step(&subject, args.repeat, args.prompt_tokens)?);
        }
    }
    let after = Ceilings::measure(args.threads);
    let report = Report::new(&args, before, after, results);
    let text = if args.json { format!("{}\n", serde_json::to_string(&report)?) } else { report.to_string() };
    std::io::stdout().lock().write_all(text.as_bytes())?;
    Ok(())
}

/// Runs the hidden command: a worker of `bench scale`.
pub fn worker(args: BenchWorkerArgs) -> Result<()> {
    scale::worker::run(&args)
}

fn check(args: &BenchArgs) -> Result<()> {
    if let Some(other) = args.only.iter().find(|o| !PARTS.contains(&o.as_str())) {
        bail!("--only {other}: expected some of {}", PARTS.join(", "));
    }
    for (name, value) in
        [("--threads", args.threads), ("--repeat", args.repeat), ("--prompt-tokens", args.prompt_tokens)]
    {
        if value == 0 {
            bail!("{name}: expected at least 1, got 0");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(only: &[&str]) -> BenchArgs {
        let only = only.iter().map(|o| (*o).to_owned()).collect();
        BenchArgs {
            other: None,
            model: crate::embedded::NAME.into(),
            threads: 2,
            repeat: 1,
            prompt_tokens: 64,
            only,
            json: true,
        }
    }

    #[test]
    fn arguments_are_refused_by_name() {
        let error = check(&args(&["decode", "speed"])).unwrap_err().to_string();
        assert!(error.contains("speed") && error.contains("prefill"), "{error}");
        let error = check(&BenchArgs { threads: 0, ..args(&[]) }).unwrap_err().to_string();
        assert!(error.contains("--threads"), "{error}");
        assert!(check(&args(&PARTS)).is_ok());
    }

    /// Every part on the embedded policy, shortened to what its context holds.
    #[test]
    fn every_part_runs_and_counts_its_tokens() {
        let subject = Subject::load(crate::embedded::NAME, 2).unwrap();
        let decode = generate::decode(&subject, 4, 1).unwrap();
        assert!(decode.tokens > 200.0 && decode.best() > 0.0, "{decode:?}");
        let prefill = generate::prefill(&subject, 1).unwrap();
        assert_eq!(prefill.tokens, 255.0);
        let rollout = generate::rollout(&subject, 1).unwrap();
        assert_eq!(rollout.tokens, 64.0 * 64.0);
        let train = learn::train(&subject, 1, None).unwrap();
        let recompute = learn::train(&subject, 1, Some(NonZeroUsize::MIN)).unwrap();
        assert_eq!([train.tokens, recompute.tokens], [4.0 * 256.0; 2]);
        let step = learn::step(&subject, 1, 64).unwrap();
        assert_eq!(step.tokens, 32.0 * 128.0);
        assert_eq!(step.detail["mismatch/logp_abs_max"], 0.0);
        assert_eq!(step.detail["tokens_trained"], 4.0 * 64.0 + 32.0 * 63.0);
        for result in [decode, prefill, rollout, train, recompute, step] {
            assert!(result.work.iter().all(|call| call.flops > 0.0 && call.bytes > 0.0), "{result:?}");
        }
    }
}
