//! A call that is written as a JSON object: its name and arguments, told as soon as they are known.

use super::reader::Part;

/// An object on its way to become a call.
#[derive(Clone, Debug, Default)]
pub(super) struct Call {
    /// All of it, until its name is told.
    pub(super) raw: String,
    pub(super) name: String,
    pub(super) named: bool,
    /// Arguments that came before the name, or that are a string.
    early: String,
    /// Arguments were told.
    pub(super) told: bool,
    /// The arguments are JSON within a string.
    quoted: bool,
}

impl Call {
    /// A member's value, or a piece of it.
    pub(super) fn member(&mut self, member: &str, text: &str, ended: bool, told: &mut Vec<Part>) {
        match member {
            "name" if !self.named => {
                self.name.push_str(text);
                if ended && let Ok(name) = serde_json::from_str::<String>(&self.name) {
                    self.named = !name.is_empty();
                    self.name = name;
                    told.push(Part::Call { name: self.name.clone(), id: None });
                    self.tell(told);
                }
            }
            "arguments" | "parameters" => {
                self.quoted |= !self.told && self.early.is_empty() && text.starts_with('"');
                self.early.push_str(text);
                if ended && self.quoted {
                    self.early = serde_json::from_str(&self.early).unwrap_or_default();
                    self.quoted = false;
                }
                self.tell(told);
            }
            _ => {}
        }
    }

    fn tell(&mut self, told: &mut Vec<Part>) {
        if self.named && !self.quoted && !self.early.is_empty() {
            self.told = true;
            told.push(Part::Arguments(std::mem::take(&mut self.early)));
        }
    }
}
