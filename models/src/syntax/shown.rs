//! A call as an example, for a model whose template does not tell it of tools: what [`super::Reader`] reads is what it is shown.

use super::{Calls, Section, Syntax, harmony, pairs};

impl Syntax {
    /// A call of the function `name` whose argument `key` has the text `value`; None without calls ([`Syntax::with_calls`]).
    pub fn shown(&self, name: &str, key: &str, value: &str) -> Option<String> {
        let arguments = format!("{{\"{key}\": \"{value}\"}}");
        let object = |field: &str| format!("{{\"name\": \"{name}\", \"{field}\": {arguments}}}");
        Some(match self.calls? {
            Calls::Objects { open, close } => format!("{open}\n{}\n{close}", object("arguments")),
            Calls::List { open } => format!("{open}[{}]", object("arguments")),
            Calls::Bare { .. } => object("parameters"),
            Calls::Inline { open, separator, .. } => format!("{open}{name}{separator}{arguments}"),
            Calls::Section(Section { open, begin, separator, end, close, numbered }) => {
                let (before, behind) = if numbered { ("functions.", ":0") } else { ("", "") };
                format!("{open}{begin}{before}{name}{behind}{separator}{arguments}{end}{close}")
            }
            Calls::Pairs(style) => {
                let (open, close) = (pairs::OPEN, pairs::CLOSE);
                match style {
                    pairs::Style::Function => format!(
                        "{open}\n<function={name}>\n<parameter={key}>\n{value}\n</parameter>\n</function>\n{close}"
                    ),
                    pairs::Style::Keys => format!(
                        "{open}{name}\n<arg_key>{key}</arg_key>\n<arg_value>{value}</arg_value>\n{close}"
                    ),
                }
            }
            Calls::Harmony => format!(
                "{}commentary to=functions.{name} {}json{}{arguments}{}",
                harmony::CHANNEL,
                harmony::CONSTRAIN,
                harmony::MESSAGE,
                harmony::CALL
            ),
        })
    }
}
