//! `folgore data convert`: rows in another shape, as JSON lines; what cannot be said in it is counted with its reason.

use std::{collections::BTreeMap, path::Path};

use anyhow::{Result, bail};
use folgore_config::data::names;
use folgore_dataset::{
    Report,
    convert::{self, Target},
    count, examples, load,
};
use serde_json::Value;

use super::{configured, of_path};
use crate::{
    cli::{
        StreamArgs,
        data::{ConvertArgs, Shape},
    },
    rows,
    stream::Out,
};

/// Runs the command.
pub fn run(args: &ConvertArgs) -> Result<()> {
    let standard = args.output == Path::new("-");
    let name = args.output.display().to_string();
    if !standard && ![".jsonl", ".json", ".ndjson"].iter().any(|ending| name.ends_with(ending)) {
        bail!("{name}: expected a name that ends in .jsonl: rows are written as JSON lines, and as nothing else");
    }
    if !standard && is_read(&args.output, &args.input) {
        bail!("{name}: expected another file than those that are read: what is not written would be lost");
    }
    let config = configured(&[], &args.settings, args.format)?;
    let section = rows::here(&mut of_path(&args.input.display().to_string(), &config.data))?;
    let mut left = BTreeMap::<String, u64>::new();
    let mut note = |result: Result<Value, &'static str>| match result {
        Ok(row) => Some(row),
        Err(reason) => {
            *left.entry(reason.to_owned()).or_default() += 1;
            None
        }
    };
    let (rows, report): (Vec<Value>, Report) = match target(args.to) {
        None => {
            let (read, source) = (load(&section)?, names::title(&section.dataset));
            let rows =
                (0..read.train.len()).filter_map(|i| note(convert::verl(&read.train.task(i), i, &source))).collect();
            (rows, read.report)
        }
        Some(target) => {
            let read = examples(&section)?;
            (read.train.rows().filter_map(|row| note(convert::example(row, target))).collect(), read.report)
        }
    };
    eprintln!("{report}");
    left.iter().for_each(|(reason, rows)| eprintln!("not written, {}: {reason}", count(*rows, "row")));
    if rows.is_empty() {
        bail!("{name}: no row can be written in this shape");
    }
    let output = (!standard).then(|| args.output.clone());
    let mut out = Out::open(&StreamArgs { input: None, output })?;
    rows.iter().try_for_each(|row| out.write(row))?;
    out.finish()?;
    let place = if standard { "standard output" } else { &name };
    eprintln!("{place}: {} written", count(rows.len() as u64, "row"));
    Ok(())
}

/// Whether `output` is the file that is read, or one in the folder that is read.
fn is_read(output: &Path, input: &Path) -> bool {
    let (Ok(output), Ok(input)) = (output.canonicalize(), input.canonicalize()) else { return false };
    output.starts_with(input)
}

/// The shape of rows to imitate; none for questions.
fn target(shape: Shape) -> Option<Target> {
    Some(match shape {
        Shape::Messages => Target::Messages,
        Shape::PromptCompletion => Target::PromptCompletion,
        Shape::Sharegpt => Target::Sharegpt,
        Shape::Alpaca => Target::Alpaca,
        Shape::Text => Target::Text,
        Shape::Verl => return None,
    })
}
