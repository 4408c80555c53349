//! Turns trajectories into adapters: replay, objectives, packing, optimiser, checkpoints.
