//! What the nodes of each grammar mean to us.

use tree_sitter::Node;

use crate::Language;

/// What is done with a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rule {
    /// A part of what encloses it; looked into if it is too large for a chunk.
    Part,
    /// A part of what encloses it; looked into.
    Through,
    /// A comment or attribute: goes with the definition that follows.
    Leading,
    /// Begins the definition that it holds: `export`, decorators, `template<...>`.
    Wrapper,
    /// A definition; looked into if it is too large for a chunk.
    Leaf,
    /// A definition with definitions in it; looked into.
    Container,
}

/// The grammar of a language. TSX is another one than TypeScript; `text` decides.
pub(super) fn grammar(language: Language, text: &str) -> tree_sitter::Language {
    let grammar = match language {
        Language::C => tree_sitter_c::LANGUAGE,
        Language::Cpp => tree_sitter_cpp::LANGUAGE,
        Language::Go => tree_sitter_go::LANGUAGE,
        Language::Java => tree_sitter_java::LANGUAGE,
        Language::JavaScript => tree_sitter_javascript::LANGUAGE,
        Language::Python => tree_sitter_python::LANGUAGE,
        Language::Rust => tree_sitter_rust::LANGUAGE,
        Language::TypeScript if text.contains("/>") || text.contains("</") => tree_sitter_typescript::LANGUAGE_TSX,
        Language::TypeScript => tree_sitter_typescript::LANGUAGE_TYPESCRIPT,
    };
    grammar.into()
}

/// What is done with `node`.
pub(super) fn rule(language: Language, node: Node<'_>) -> Rule {
    if node.is_error() {
        return Rule::Through;
    }
    if !node.is_named() {
        return Rule::Part;
    }
    let kind = node.kind();
    match language {
        _ if kind.ends_with("comment") => Rule::Leading,
        Language::C | Language::Cpp => c(kind, node),
        Language::Go => go(kind),
        Language::Java => java(kind),
        Language::JavaScript | Language::TypeScript => script(kind, node),
        Language::Python => python(kind),
        Language::Rust => rust(kind),
    }
}

fn c(kind: &str, node: Node<'_>) -> Rule {
    let defined = || node.child_by_field_name("body").is_some();
    match kind {
        "function_definition" | "type_definition" | "alias_declaration" | "preproc_function_def" => Rule::Leaf,
        "class_specifier" | "struct_specifier" | "union_specifier" | "enum_specifier" if defined() => Rule::Container,
        "namespace_definition" => Rule::Container,
        "template_declaration" => Rule::Wrapper,
        "translation_unit" | "linkage_specification" | "declaration_list" | "field_declaration_list" => Rule::Through,
        _ if kind.starts_with("preproc_if") || kind.starts_with("preproc_el") => Rule::Through,
        _ => Rule::Part,
    }
}

fn go(kind: &str) -> Rule {
    match kind {
        "function_declaration" | "method_declaration" | "type_declaration" => Rule::Leaf,
        "source_file" => Rule::Through,
        _ => Rule::Part,
    }
}

fn java(kind: &str) -> Rule {
    match kind {
        "method_declaration" | "constructor_declaration" | "compact_constructor_declaration" => Rule::Leaf,
        "class_declaration"
        | "interface_declaration"
        | "enum_declaration"
        | "record_declaration"
        | "annotation_type_declaration" => Rule::Container,
        "program"
        | "class_body"
        | "interface_body"
        | "enum_body"
        | "enum_body_declarations"
        | "annotation_type_body" => Rule::Through,
        _ => Rule::Part,
    }
}

fn python(kind: &str) -> Rule {
    match kind {
        "function_definition" => Rule::Leaf,
        "class_definition" => Rule::Container,
        "decorated_definition" => Rule::Wrapper,
        // a class whose body has an error is only blocks
        "module" | "block" => Rule::Through,
        _ => Rule::Part,
    }
}

fn rust(kind: &str) -> Rule {
    match kind {
        "function_item" | "struct_item" | "enum_item" | "union_item" | "macro_definition" => Rule::Leaf,
        "impl_item" | "trait_item" | "mod_item" => Rule::Container,
        "attribute_item" => Rule::Leading,
        "source_file" | "declaration_list" | "foreign_mod_item" => Rule::Through,
        _ => Rule::Part,
    }
}

fn script(kind: &str, node: Node<'_>) -> Rule {
    match kind {
        "function_declaration"
        | "generator_function_declaration"
        | "method_definition"
        | "interface_declaration"
        | "type_alias_declaration"
        | "enum_declaration" => Rule::Leaf,
        "class_declaration" | "abstract_class_declaration" | "class" | "internal_module" | "module" => Rule::Container,
        "lexical_declaration" | "variable_declaration" if binds_function(node) => Rule::Leaf,
        "decorator" => Rule::Leading,
        "export_statement" | "ambient_declaration" => Rule::Wrapper,
        "program" | "class_body" => Rule::Through,
        // a namespace is an expression there
        "expression_statement" if node.named_child(0).is_some_and(|c| c.kind() == "internal_module") => Rule::Through,
        _ => Rule::Part,
    }
}

/// Whether the first name of a declaration stands for a function: `const f = () => ...`.
fn binds_function(node: Node<'_>) -> bool {
    bound_function(node).is_some()
}

/// The function that a declaration gives a name.
pub(super) fn bound_function(node: Node<'_>) -> Option<Node<'_>> {
    let declarator = node.named_child(0).filter(|child| child.kind() == "variable_declarator")?;
    let value = declarator.child_by_field_name("value")?;
    matches!(value.kind(), "arrow_function" | "function_expression" | "generator_function").then_some(value)
}
