//! Escaping of text that peers or programs influence before it reaches a log line. After it a line holds
//! only printable ASCII: no line break, terminal sequence or bidirectional override can forge another line.

use std::fmt::Write;

/// Longest text taken from an error or a name into one log field, in bytes of the source.
pub const MAX_FIELD_BYTES: usize = 512;

/// Cuts at a character boundary at or before [`MAX_FIELD_BYTES`].
pub fn truncate(text: &str) -> &str {
    let mut end = text.len().min(MAX_FIELD_BYTES);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

/// Makes serialised JSON pure printable ASCII. Everything else can only stand inside its strings, where a
/// `\u` escape means the same (RFC 8259 section 7).
pub fn ascii_json(json: &str) -> String {
    let mut out = String::with_capacity(json.len());
    for c in json.chars() {
        if (' '..='~').contains(&c) {
            out.push(c);
        } else {
            for unit in c.encode_utf16(&mut [0; 2]) {
                let _infallible = write!(out, "\\u{unit:04x}");
            }
        }
    }
    out
}

/// A value of the text format: bare where it is plain, else a quoted string with JSON's escapes.
pub fn text_value(value: &str) -> String {
    let value = truncate(value);
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.:/@+[]%".contains(&b);
    if !value.is_empty() && value.bytes().all(plain) {
        return value.to_owned();
    }
    ascii_json(&serde_json::Value::from(value).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_values_stay_bare_and_others_are_quoted() {
        for (value, want) in [
            ("spiffe://cluster.local/ns/shop/sa/web", "spiffe://cluster.local/ns/shop/sa/web"),
            ("[fd00::1]:80", "[fd00::1]:80"),
            ("", r#""""#),
            ("two words", r#""two words""#),
            ("a=b", r#""a=b""#),
            ("x\" verdict=allow", r#""x\" verdict=allow""#),
        ] {
            assert_eq!(text_value(value), want);
        }
    }

    #[test]
    fn no_line_break_terminal_sequence_or_bidi_override_survives() {
        let hostile = "x\r\n\u{1b}[31m\u{7f}\u{85}\u{2028}\u{202e}\u{9b}é\u{1f600}";
        for out in [text_value(hostile), ascii_json(&serde_json::Value::from(hostile).to_string())] {
            assert!(out.chars().all(|c| (' '..='~').contains(&c)), "{out:?}");
            assert_eq!(serde_json::from_str::<String>(&out).ok().as_deref(), Some(hostile));
        }
    }

    #[test]
    fn long_values_are_cut_at_a_character_boundary() {
        let long = "é".repeat(MAX_FIELD_BYTES);
        assert_eq!(truncate(&long).len(), MAX_FIELD_BYTES);
        assert_eq!(truncate(&format!("x{long}")).len(), MAX_FIELD_BYTES - 1);
    }
}
