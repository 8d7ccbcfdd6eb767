use proptest::prelude::*;
use serde_json::json;

use super::*;

fn guard(control: &[&str], source: &str) -> Guard {
    Guard::new(control.iter().map(|t| (*t).to_owned()).collect(), source)
}

#[test]
fn a_template_is_cut_into_constants_and_code() {
    let constants = |source: &str| {
        let parts = scan(source);
        let joined: String = parts.iter().map(|(Part::Constant(text) | Part::Code(text))| *text).collect();
        assert_eq!(joined, source);
        let constant = |part| if let Part::Constant(text) = part { Some(text.to_owned()) } else { None };
        parts.into_iter().filter_map(constant).collect::<Vec<_>>()
    };
    assert_eq!(
        constants("a{{ b + 'c\\'}}' }}d{% if x == \"%}'\" %}e{# 'f' {{ #}g"),
        ["a", "c\\'}}", "d", "%}'", "e", "g"]
    );
    assert_eq!(constants("{{ 'open"), ["open"]);
    assert_eq!(constants("{{ open"), Vec::<String>::new());
    assert_eq!(constants("{# open"), Vec::<String>::new());
    assert_eq!(constants("{%"), Vec::<String>::new());
}

#[test]
fn names_are_not_control_tokens() {
    let guard = guard(&["system", "<s>"], "{% if role == 'system' %}<s>{% endif %}");
    let marked = guard.mark_source("{% if role == 'system' %}<s>{% endif %}");
    assert!(marked.contains("'system'") && !marked.contains("<s>"), "{marked:?}");
}

#[test]
fn the_role_makes_tokens_only_between_the_templates_own_constants() {
    let tokens = ["<|user|>", "<|assistant|>", "<|end|>"];
    assert_eq!(guard(&tokens, "{{ '<|' + role + '|>\n' }}").assembled, ["<|user|>", "<|assistant|>"]);
    assert_eq!(guard(&tokens, "<|{{ role }}|>").assembled, ["<|user|>", "<|assistant|>"]);
    assert!(guard(&tokens, "<|user|>{{ content }}<|end|>").assembled.is_empty());
}

#[test]
fn a_placeholder_that_was_cut_up_is_no_token() {
    let guard = guard(&["<s>", "</s>"], "");
    let mark = guard.mark("a</s>b");
    let whole = [Piece::Text("a".into()), Piece::Control("</s>".into()), Piece::Text("b".into())];
    assert_eq!(guard.pieces(&mark), whole);
    for cut in [
        "\u{fdd0}",
        "\u{fdd0}\u{fde1}",
        "\u{fdd0}\u{fdd1}",
        "\u{fdd0}\u{fde9}\u{fdd1}",
        "\u{fde1}\u{fdd1}",
        "\u{fdd2}x",
    ] {
        let pieces = guard.pieces(cut);
        assert!(
            matches!(pieces.as_slice(), [Piece::Text(text)] if text.starts_with('\u{fffd}')),
            "{pieces:?}"
        );
    }
}

proptest! {
    #[test]
    fn shielded_text_comes_back_as_it_was(
        parts in proptest::collection::vec(prop_oneof![
            any::<char>().prop_map(String::from),
            proptest::char::range('\u{fdd0}', '\u{fdef}').prop_map(String::from),
            proptest::sample::select(vec!["<|user|>", "<|", "user", "|>", "<s>", " "]).prop_map(str::to_owned),
        ], 0..12),
        assembled in any::<bool>(),
    ) {
        let source = if assembled { "{{ '<|' + role + '|>' }}" } else { "<|user|>" };
        let guard = guard(&["<|user|>", "<s>"], source);
        prop_assert_eq!(guard.assembled.is_empty(), !assembled);
        let text = parts.concat();
        let shielded = guard.shield(&json!(text));
        let pieces = guard.pieces(shielded.as_str().unwrap());
        let expect = if text.is_empty() { vec![] } else { vec![Piece::Text(text)] };
        prop_assert_eq!(pieces, expect);
    }
}
