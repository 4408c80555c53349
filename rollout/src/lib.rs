//! Makes trajectories: coordinator, episode worker, environments, generation engine.
