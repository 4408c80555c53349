//! Scores trajectories: one rule per file.
