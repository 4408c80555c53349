//! `python: file.py:function`: the command that runs a function as TRL calls it.

/// What the interpreter runs: it reads requests, calls the function and writes replies.
pub(super) const SHIM: &str = include_str!("../../../examples/rewards/folgore_reward.py");

/// The command for `function` of `file`. The shim travels as an argument: no file has to be written that somebody else
/// could change.
pub(super) fn command(file: &str, function: &str) -> Vec<String> {
    ["python3", "-c", SHIM, file, function].map(str::to_owned).to_vec()
}
