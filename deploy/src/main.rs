//! The `folgore` executable.

use std::process::ExitCode;

fn main() -> ExitCode {
    folgore_deploy::Folgore::new().main()
}
