//! `folgore quantize`: a base in NF4, once and for all, as a folder that transformers and every run here can open.

use std::path::Path;

use anyhow::Result;
use folgore_model::export::{self, Precision};

use crate::{
    base::Base,
    cli::export::{Dtype, QuantizeArgs},
    export::Place,
};

/// Runs the command.
pub fn run(args: &QuantizeArgs) -> Result<()> {
    let base = Base::find(&args.model)?;
    let folder = base.path().filter(|path| path.is_dir());
    let precision = match args.dtype {
        Dtype::F32 => Precision::F32,
        Dtype::F16 => Precision::F16,
        Dtype::Bf16 => Precision::Bf16,
    };
    let place = Place::new(&args.out)?;
    let at = place.folder();
    let files = export::write_nf4(&at, &base.files()?, folder, precision, args.nested, args.max_shard_size)?;
    // a folder of which a weight cannot be read is not left
    let read = Base::find(&at.display().to_string())?.files()?;
    read.tensors.names().iter().try_for_each(|name| read.tensors.tensor(name).map(drop))?;
    let bytes =
        |folder: &Path| files.iter().filter_map(|name| Some(folder.join(name).metadata().ok()?.len())).sum::<u64>();
    let (size, out) = (bytes(&at), place.settle()?);
    println!("{}: {} files, {:.2} GB", out.display(), files.len(), size as f64 / 1e9);
    Ok(())
}
