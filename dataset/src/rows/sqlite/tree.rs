//! A chat as JSON: a list of messages, or Open WebUI's tree of them, of which the branch counts that its reader saw last.

use serde_json::Value;

/// The messages of a chat in order; none if it is no chat.
pub(super) fn branch(chat: &Value) -> Option<Vec<&Value>> {
    let is_message = |value: &&Value| value.get("role").is_some_and(Value::is_string);
    let history = chat.get("history").unwrap_or(chat);
    if let Some(nodes) = history.get("messages").and_then(Value::as_object) {
        let current = history.get("currentId").or_else(|| chat.get("currentId")).and_then(Value::as_str);
        let mut id = current.or_else(|| nodes.keys().next_back().map(String::as_str));
        let mut found = Vec::new();
        while let Some(node) = id.and_then(|id| nodes.get(id)) {
            // a tree that is a ring ends
            if found.len() > nodes.len() {
                return None;
            }
            found.push(node);
            id = node.get("parentId").and_then(Value::as_str);
        }
        found.reverse();
        if !found.is_empty() {
            return found.iter().all(is_message).then_some(found);
        }
    }
    let list = chat.get("messages").unwrap_or(chat).as_array()?;
    let messages: Vec<&Value> = list.iter().collect();
    (!messages.is_empty() && messages.iter().all(is_message)).then_some(messages)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_branch_that_was_seen_last_is_read() {
        let node = |id: &str, parent: Option<&str>, role: &str| json!({"id": id, "parentId": parent, "role": role, "content": id});
        let chat = json!({"history": {"currentId": "d", "messages": {
            "a": node("a", None, "user"), "b": node("b", Some("a"), "assistant"),
            "c": node("c", Some("a"), "assistant"), "d": node("d", Some("c"), "user"),
        }}, "messages": []});
        let ids = |chat: &Value| {
            branch(chat).map(|m| m.iter().map(|m| m["content"].as_str().unwrap().to_owned()).collect::<String>())
        };
        assert_eq!(ids(&chat).unwrap(), "acd");
        assert_eq!(ids(&json!({"messages": [node("x", None, "user")]})).unwrap(), "x");
        assert_eq!(ids(&json!([node("x", None, "user")])).unwrap(), "x");
        let ring = json!({"history": {"currentId": "a", "messages": {"a": node("a", Some("a"), "user")}}});
        assert_eq!(ids(&ring), None);
        for other in [json!({}), json!([]), json!([1]), json!({"messages": 5}), json!("x")] {
            assert_eq!(ids(&other), None, "{other}");
        }
    }
}
