//! Lines of JSON: what is a text, and what is said of those that are none.

use super::*;

fn text<'a>(field: &str, line: &'a str) -> Result<Cow<'a, str>, String> {
    Field::new(field)
        .text(line.as_bytes())
        .map_err(|fault| fault.got)
}

#[test]
fn a_field_is_found_wherever_it_stands() {
    for (field, line, expected) in [
        ("text", r#"{"text": "a b"}"#, "a b"),
        (
            "text",
            r#"{"id": 3, "meta": {"text": "no"}, "text": "yes", "x": [1, {}]}"#,
            "yes",
        ),
        (
            "a.b.c",
            r#" {"c": 1, "a": {"b": {"c": "deep"}, "c": null}} "#,
            "deep",
        ),
        (
            "text",
            r#"{"text": "q\"\n\u00e9\ud83d\ude00"}"#,
            "q\"\n\u{e9}\u{1f600}",
        ),
        ("text", r#"{"text": ""}"#, ""),
        ("t\u{e9}xt", "{\"t\\u00e9xt\": \"named\"}\r", "named"),
    ] {
        assert_eq!(text(field, line).as_deref(), Ok(expected), "{line}");
    }
    // What needs no unescaping is not copied.
    let line = r#"{"text": "as it is"}"#;
    assert!(matches!(text("text", line), Ok(Cow::Borrowed(_))));
}

#[test]
fn what_gives_no_text_is_told() {
    for (field, line, got) in [
        (
            "text",
            r#"{"id": 3, "content": "x"}"#,
            "an object of content, id",
        ),
        ("text", "{}", "an object of no fields"),
        ("a.b", r#"{"a": {"c": "x"}}"#, "an object of a"),
        (
            "text",
            r#"{"text": 3}"#,
            "invalid type: integer `3`, expected a string at column 10",
        ),
        (
            "text",
            r#"{"text": null}"#,
            "invalid type: null, expected a string at column 13",
        ),
        (
            "a.b",
            r#"{"a": "x"}"#,
            "invalid type: string \"x\", expected an object at column 9",
        ),
        (
            "text",
            r#"["text"]"#,
            "invalid type: sequence, expected an object at column 0",
        ),
        ("text", "plain words", "expected value at column 1"),
        (
            "text",
            r#"{"text": "cut"#,
            "EOF while parsing a string at column 13",
        ),
        (
            "text",
            r#"{"text": "x"} {"text": "y"}"#,
            "trailing characters at column 15",
        ),
    ] {
        assert_eq!(text(field, line), Err(got.to_owned()), "{line}");
    }
    let bad = Field::new("text")
        .text(b"{\"text\": \"\xE9\"}")
        .unwrap_err();
    assert_eq!(bad.got, "invalid unicode code point at column 11");
    let many: Vec<String> = (0..30).map(|i| format!("\"f{i:02}\": 0")).collect();
    let got = text("text", &format!("{{{}}}", many.join(", "))).unwrap_err();
    assert!(got.ends_with("f18, f19 and 10 more"), "{got}");
}
