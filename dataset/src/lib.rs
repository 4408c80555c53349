//! Rows in: JSON and JSONL in the shapes of the field, detected; procedural tasks with exact verifiers.
