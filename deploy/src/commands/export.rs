//! `folgore export`: makes files of a policy for other software, and verifies them; or verifies those that were made.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

use crate::{
    cli::export::ExportArgs,
    export::{self, Kind, Place, Report, Source, Verified},
};

/// Runs the command.
pub fn run(args: ExportArgs) -> Result<()> {
    match &args.check {
        Some(folder) => check(folder, &args),
        None => make(&args),
    }
}

fn make(args: &ExportArgs) -> Result<()> {
    let (Some(given), Some(target)) = (&args.source, args.to) else { bail!("expected what to export, and --to") };
    let kind = Kind::of(target, args.dtype, args.quant, args.apart);
    let source = Source::find(given, &args.output_dir, args.model.as_deref())?;
    let folder = match &args.out {
        Some(folder) => folder.clone(),
        None => PathBuf::from("exports").join(format!("{}-{}", source.name, kind.name())),
    };
    let place = Place::new(&folder)?;
    let aside = place.folder();
    let mut report = export::write(&source, kind, &aside, args.max_shard_size)?;
    let verified = export::verify(&source, &report, &aside);
    let verified = verified.with_context(|| format!("{}: the export cannot be verified", folder.display()))?;
    report.verified = Some(verified.clone());
    export::write_card(&source, &mut report, &aside)?;
    report.write(&aside)?;
    // what is not the policy does not get its name
    let folder = if verified.passed { place.settle()? } else { place.keep() };
    tell(args, &folder, &report, &verified)
}

/// Verifies an export again, against what it says that it was made of, or against what the arguments name.
fn check(folder: &Path, args: &ExportArgs) -> Result<()> {
    let report = Report::read(folder)?;
    let given = args.source.as_deref().unwrap_or(&report.adapter);
    let model = args.model.as_deref().unwrap_or(&report.base);
    let source = Source::find(given, &args.output_dir, Some(model))
        .with_context(|| format!("{}: what was exported is not here; name it before --check", folder.display()))?;
    for (what, expected, got) in [
        ("adapter", &report.adapter_digest, source.digest.hex()),
        ("base", &report.base_digest, source.files()?.digest.hex()),
    ] {
        if *expected != got {
            bail!("{}: made of another {what}: expected {}, got {}", folder.display(), &expected[..12], &got[..12]);
        }
    }
    let verified = export::verify(&source, &report, folder)?;
    tell(args, folder, &report, &verified)
}

/// Prints what was found; what is not the policy is an error.
fn tell(args: &ExportArgs, folder: &Path, report: &Report, verified: &Verified) -> Result<()> {
    if args.json {
        let mut report = report.clone();
        report.verified = Some(verified.clone());
        println!("{}", serde_json::to_string(&report)?);
    } else {
        let names: Vec<&str> = report.files.iter().map(|file| file.name.as_str()).collect();
        println!("{}: {}", folder.display(), names.join(", "));
        report.notes.iter().for_each(|note| println!("NOTE        {note}"));
        verified.lines().iter().for_each(|line| println!("{line}"));
    }
    match verified.faults.first() {
        None => Ok(()),
        Some(first) => bail!("{}: the export is not the policy: {first}", folder.display()),
    }
}
