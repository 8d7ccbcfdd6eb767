//! Which of a repository's files is the model, by the rules users know from llama.cpp.
//!
//! A tag is a whole word of the path, whatever its case. Files of other kinds (`mmproj`, `imatrix`) are never
//! chosen. What is ambiguous is an error that says what there is, not a guess.

use std::collections::BTreeMap;

use super::reference::{Wanted, is_gguf};
use crate::gguf::PartName;

/// The tag when none is given.
const DEFAULT_TAG: &str = "Q4_K_M";

/// Most models that an error lists.
const LISTED_MAX: usize = 40;

/// Why no file was chosen.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the fields are what the messages say")]
pub enum ChoiceError {
    #[error("the repository has no GGUF model")]
    Nothing,
    #[error("no model there is {wanted}; there are: {there}")]
    Unknown { wanted: String, there: String },
    #[error("{wanted} could be any of these, so name the file: {there}")]
    Ambiguous { wanted: String, there: String },
    #[error("the repository lacks {part} of a model in {count} parts")]
    Incomplete { part: String, count: u32 },
}

/// A model's files, parts in order.
type Model<'a> = BTreeMap<u32, &'a str>;

/// The files of the wanted model, its first part first.
pub(super) fn choose<'a>(
    names: impl Iterator<Item = &'a str>,
    wanted: &Wanted,
) -> Result<Vec<&'a str>, ChoiceError> {
    let models = models(names);
    if models.is_empty() {
        return Err(ChoiceError::Nothing);
    }
    let tagged = |tag: &str| -> Vec<&Model<'a>> {
        models.values().filter(|model| model.values().any(|name| has_tag(name, tag))).collect()
    };
    let (asked, found) = match wanted {
        Wanted::Tag(tag) => (tag.as_str(), tagged(tag)),
        Wanted::File(file) => {
            (file.as_str(), models.values().filter(|m| m.values().any(|name| name == file)).collect())
        }
        Wanted::Default => match tagged(DEFAULT_TAG) {
            none if none.is_empty() => (DEFAULT_TAG, models.values().take(1).collect()),
            some => (DEFAULT_TAG, some),
        },
    };
    match found[..] {
        [model] => complete(model),
        [] => Err(ChoiceError::Unknown { wanted: asked.to_owned(), there: list(models.values()) }),
        _ => Err(ChoiceError::Ambiguous { wanted: asked.to_owned(), there: list(found.into_iter()) }),
    }
}

/// The models among files, by folder and name.
fn models<'a>(names: impl Iterator<Item = &'a str>) -> BTreeMap<(&'a str, u32), Model<'a>> {
    let mut models = BTreeMap::<_, Model<'a>>::new();
    for name in names.filter(|name| is_model(name)) {
        let base = name.rfind('/').map_or(0, |at| at + 1);
        let (prefix, count, no) = match PartName::parse(&name[base..]) {
            Some(part) => (&name[..base + part.prefix.len()], part.count, part.no),
            None => (name, 0, 1),
        };
        models.entry((prefix, count)).or_default().insert(no, name);
    }
    models
}

/// Files of images' encoders, of what guided a quantization and of heads that predict further tokens lie beside models.
fn is_model(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    let (folder, base) = name.rsplit_once('/').unwrap_or(("", &name));
    let drafts = folder.split('/').any(|part| part == "mtp")
        || ["mtp-", "dspark-", "dflash-"].iter().any(|head| base.starts_with(head));
    is_gguf(base) && !drafts && !base.contains("mmproj") && !base.contains("imatrix")
}

/// Whether `tag` is a word of the path.
fn has_tag(name: &str, tag: &str) -> bool {
    let (name, tag) = (name.to_ascii_lowercase(), tag.to_ascii_lowercase());
    name.match_indices(&tag).any(|(at, _)| {
        let (before, after) = (&name[..at], &name[at + tag.len()..]);
        (before.is_empty() || before.ends_with(['-', '.', '_', '/'])) && after.starts_with(['-', '.', '/'])
    })
}

fn complete<'a>(model: &Model<'a>) -> Result<Vec<&'a str>, ChoiceError> {
    let files: Vec<&str> = model.values().copied().collect();
    let base = files[0].rfind('/').map_or(0, |at| at + 1);
    if let Some(part) = PartName::parse(&files[0][base..])
        && let Some(no) = (1..=part.count).find(|no| !model.contains_key(no))
    {
        return Err(ChoiceError::Incomplete { part: part.part(no), count: part.count });
    }
    Ok(files)
}

fn list<'a, 'b: 'a>(models: impl Iterator<Item = &'a Model<'b>>) -> String {
    let mut lines: Vec<String> = Vec::new();
    let mut more = 0;
    for model in models {
        let first = model.values().next().unwrap_or(&"");
        match model.len() {
            _ if lines.len() == LISTED_MAX => more += 1,
            1 => lines.push((*first).to_owned()),
            parts => lines.push(format!("{first} ({parts} parts)")),
        }
    }
    let rest = if more > 0 { format!(", and {more} more") } else { String::new() };
    lines.join(", ") + &rest
}

#[cfg(test)]
mod tests {
    use super::*;

    const REPO: [&str; 14] = [
        "BF16/M-BF16-00001-of-00002.gguf",
        "BF16/M-BF16-00002-of-00002.gguf",
        "M-IQ4_NL.gguf",
        "M-Q4_0.gguf",
        "M-Q4_0_4_4.gguf",
        "M-Q4_K_M.gguf",
        "M-UD-Q4_K_XL.gguf",
        "README.md",
        "config.json",
        "imatrix_unsloth.gguf",
        "mmproj-BF16.gguf",
        "MTP/model-Q4_K_M.gguf",
        "mtp-model-Q4_K_M.gguf",
        "old/M.Q5_K_M.GGUF",
    ];

    fn tag(names: &[&'static str], tag: &str) -> Result<Vec<&'static str>, String> {
        choose(names.iter().copied(), &Wanted::Tag(tag.to_owned())).map_err(|e| e.to_string())
    }

    #[test]
    fn tags_are_words_of_any_case() {
        assert_eq!(tag(&REPO, "Q4_K_M").unwrap(), ["M-Q4_K_M.gguf"]);
        assert_eq!(tag(&REPO, "q4_0").unwrap(), ["M-Q4_0.gguf"]);
        assert_eq!(tag(&REPO, "iq4_nl").unwrap(), ["M-IQ4_NL.gguf"]);
        assert_eq!(tag(&REPO, "Q4_K_XL").unwrap(), ["M-UD-Q4_K_XL.gguf"]);
        assert_eq!(tag(&REPO, "UD-Q4_K_XL").unwrap(), ["M-UD-Q4_K_XL.gguf"]);
        assert_eq!(tag(&REPO, "Q5_K_M").unwrap(), ["old/M.Q5_K_M.GGUF"]);
        assert_eq!(tag(&REPO, "bf16").unwrap(), [REPO[0], REPO[1]]);
    }

    #[test]
    fn what_is_unknown_or_ambiguous_is_listed() {
        let unknown = tag(&REPO, "Q4_K").unwrap_err();
        assert_eq!(
            unknown,
            "no model there is Q4_K; there are: BF16/M-BF16-00001-of-00002.gguf (2 parts), M-IQ4_NL.gguf, M-Q4_0.gguf, \
             M-Q4_0_4_4.gguf, M-Q4_K_M.gguf, M-UD-Q4_K_XL.gguf, old/M.Q5_K_M.GGUF"
        );
        let two = ["a-Q8_0.gguf", "b-Q8_0.gguf", "c-Q4_0.gguf"];
        let error = tag(&two, "Q8_0").unwrap_err();
        assert_eq!(error, "Q8_0 could be any of these, so name the file: a-Q8_0.gguf, b-Q8_0.gguf");
        let lacking = tag(&["M-Q8_0-00001-of-00003.gguf", "M-Q8_0-00003-of-00003.gguf"], "Q8_0").unwrap_err();
        assert_eq!(lacking, "the repository lacks M-Q8_0-00002-of-00003.gguf of a model in 3 parts");
        assert_eq!(tag(&["mmproj-Q8_0.gguf"], "Q8_0").unwrap_err(), "the repository has no GGUF model");
        let names: Vec<String> = (0..99).map(|i| format!("m{i:02}.gguf")).collect();
        let error =
            choose(names.iter().map(String::as_str), &Wanted::Tag("x".to_owned())).unwrap_err().to_string();
        assert!(error.ends_with("m39.gguf, and 59 more"), "{error}");
    }

    #[test]
    fn without_a_tag_it_is_q4_k_m_or_the_first() {
        let default = |names: &[&'static str]| choose(names.iter().copied(), &Wanted::Default).unwrap();
        assert_eq!(default(&REPO), ["M-Q4_K_M.gguf"]);
        assert_eq!(default(&["x.md", "m-q8_0.gguf", "m-mxfp4.gguf"]), ["m-mxfp4.gguf"]);
    }

    #[test]
    fn a_file_is_itself_or_all_its_parts() {
        let file = |file: &str| choose(REPO.iter().copied(), &Wanted::File(file.to_owned()));
        assert_eq!(file("M-Q4_0.gguf").unwrap(), ["M-Q4_0.gguf"]);
        assert_eq!(file(REPO[1]).unwrap(), [REPO[0], REPO[1]]);
        assert!(matches!(file("mmproj-BF16.gguf"), Err(ChoiceError::Unknown { .. })));
        assert!(matches!(file("q4_0.gguf"), Err(ChoiceError::Unknown { .. })));
    }
}
