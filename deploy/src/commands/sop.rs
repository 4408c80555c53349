//! `folgore sop`: what is in files of procedures, and what a question finds among them.

use anyhow::{Result, bail};
use folgore_config::{Problems, SopSection};
use folgore_retriever::sop::{self, Status};
use serde_json::json;

use crate::{
    cli::sop::{FindArgs, ListArgs, SopCommand},
    commands::index::plain,
    policy,
    sop::{Look, SopMemory},
    stream::quietly,
};

/// Runs the command.
pub fn run(command: &SopCommand) -> Result<()> {
    match command {
        SopCommand::List(args) => list(args),
        SopCommand::Find(args) => find(args),
    }
}

fn list(args: &ListArgs) -> Result<()> {
    let procedures = sop::read(&args.path)?;
    if args.json {
        return quietly(format!("{}\n", json!({ "procedures": procedures })).as_bytes());
    }
    let mut said = String::new();
    for p in &procedures {
        let (name, category, steps) = (plain(&p.name), plain(&p.category), p.steps.len());
        said += &format!("{:<8} {name}  [{category}] {steps} steps\n", p.status.name());
        said += &format!("         {}\n", plain(&p.triggers.join(", ")));
    }
    let active = procedures.iter().filter(|p| p.status == Status::Active).count();
    said += &format!("{} procedures, {active} of them active\n", procedures.len());
    quietly(said.as_bytes())
}

fn find(args: &FindArgs) -> Result<()> {
    let section = SopSection {
        path: args.path.clone(),
        categories: args.category.clone(),
        max_procedures: args.max_procedures,
        max_procedure_tokens: args.max_procedure_tokens,
        min_score: args.min_score,
    };
    let mut problems = Problems::default();
    section.check(problems.section("sop"));
    if let Some(problem) = problems.errors.first() {
        bail!("{problem}");
    }
    let tokenizer = policy::open_tokenizer(&args.model)?;
    // on, because there is a path
    let Some(memory) = SopMemory::of(&section, &tokenizer, None)? else { bail!("--path: expected a path, got none") };
    let Look { found, told } = memory.look(&args.question)?;
    let name = |at: usize| memory.active()[at].name.as_str();
    let tokens = tokenizer.encode_untrusted(&told.text)?.len();
    if args.json {
        let found: Vec<_> =
            found.iter().map(|f| json!({ "name": name(f.at), "score": f.score, "trigger": f.trigger })).collect();
        let all = json!({
            "question": args.question, "found": found, "text": told.text, "tokens": tokens,
            "procedures_told": told.procedures, "steps_left_out": told.left_out,
        });
        return quietly(format!("{all}\n").as_bytes());
    }
    if found.is_empty() {
        return quietly(b"nothing found\n");
    }
    let mut said = String::new();
    for (rank, f) in found.iter().enumerate() {
        let trigger = f.trigger.as_ref().map_or(String::new(), |trigger| format!("  (trigger {:?})", plain(trigger)));
        said += &format!("{}. {}  {:.3}{trigger}\n", rank + 1, plain(name(f.at)), f.score);
    }
    said += &match told.procedures {
        0 => format!("no room for it in {} tokens\n", args.max_procedure_tokens),
        _ => format!("---\n{}\n--- {tokens} tokens\n", plain(&told.text)),
    };
    quietly(said.as_bytes())
}
