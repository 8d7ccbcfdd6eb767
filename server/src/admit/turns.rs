//! Turns of a conversation that came in pieces, as templates know them.

use serde_json::{Value, json};

/// An assistant's turn: what it said, thought and called, each in order.
#[derive(Debug, Default)]
pub(super) struct Assistant {
    pub(super) texts: Vec<String>,
    pub(super) thoughts: Vec<String>,
    calls: Vec<Value>,
}

impl Assistant {
    /// It called a function.
    pub(super) fn call(&mut self, id: &str, name: &str, arguments: &str) {
        let function = json!({"name": name, "arguments": arguments});
        self.calls.push(json!({"id": id, "type": "function", "function": function}));
    }

    /// As one message; texts are joined by newlines, as chat joins parts. Calls alone have no content, which templates tell from no text.
    pub(super) fn rendered(self) -> Value {
        let mut message = json!({"role": "assistant", "content": self.texts.join("\n")});
        if !self.calls.is_empty() {
            if self.texts.is_empty() {
                message["content"] = Value::Null;
            }
            message["tool_calls"] = self.calls.into();
        }
        if !self.thoughts.is_empty() {
            message["reasoning_content"] = self.thoughts.join("\n").into();
        }
        message
    }
}

/// What a call returned.
pub(super) fn result(id: &str, content: &str) -> Value {
    json!({"role": "tool", "content": content, "tool_call_id": id})
}
