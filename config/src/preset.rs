//! Configurations that are compiled in: `folgore train demo`.

/// Name and text of every preset.
pub const PRESETS: &[(&str, &str)] = &[
    ("arithmetic", include_str!("../presets/arithmetic.yaml")),
    ("carries", include_str!("../presets/carries.yaml")),
    ("demo", include_str!("../presets/demo.yaml")),
    ("sft-smollm2", include_str!("../presets/sft-smollm2.yaml")),
    ("smollm2", include_str!("../presets/smollm2.yaml")),
    ("two-hops", include_str!("../presets/two-hops.yaml")),
];

/// The text of the preset called `name`.
pub fn preset(name: &str) -> Option<&'static str> {
    PRESETS.iter().find(|(known, _)| *known == name).map(|(_, text)| *text)
}

/// Names of all presets, for messages.
pub fn preset_names() -> String {
    PRESETS.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ")
}
