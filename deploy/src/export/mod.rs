//! Exports: a trained policy as files for other software, and the proof that the files are the policy.
//!
//! `source.rs` finds what is exported, `write.rs` makes the files in a [`Place`], `reopen.rs` reads them as their users will, and
//! `verify/` compares. What was found is in `export.json` beside the files, which also tells a later check what to compare with.

mod card;
mod ollama;
mod place;
mod reopen;
mod report;
mod seal;
mod source;
mod verify;
mod write;

use std::path::Path;

use anyhow::Result;
use folgore_model::files::atomic::write_atomic;

pub use place::Place;
pub use report::{Kind, Report, Verified};
pub use source::Source;
pub use verify::verify;
pub use write::write;

/// Writes the model card where the export is a folder that hubs take.
pub fn write_card(source: &Source, report: &mut Report, folder: &Path) -> Result<()> {
    if matches!(report.kind, Kind::Peft | Kind::Merged { .. }) {
        write_atomic(&folder.join(card::FILE), card::card(source, report)?.as_bytes())?;
        report.files.push(seal::Sealed::of(folder, card::FILE)?);
    }
    Ok(())
}
