//! What a user may choose: one typed YAML tree with dotted overrides.
