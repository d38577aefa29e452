//! Texts of a peer's choice, cut to a bound before they are kept for a report.

/// The start of `text`, at most `max` bytes, cut at a character.
pub(super) fn bounded(text: &str, max: usize) -> &str {
    let mut end = text.len().min(max);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_cut_at_a_character() {
        for (text, max, expected) in [("abc", 5, "abc"), ("abc", 2, "ab"), ("aé", 2, "a"), ("", 0, "")] {
            assert_eq!(bounded(text, max), expected);
        }
    }
}
