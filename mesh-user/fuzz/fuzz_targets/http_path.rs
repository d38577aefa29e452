//! Paths of requests, and templates of policies. Made normal once more a path stays as it is; no dot segment and, but for
//! the mode without, no backslash is left; templates match what a plain reading of them matches.
//! Input: a path with its query on the first line, a template on the second.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mesh_user::policy::http::{Normalization, NormalizedPath, PathTemplate};

const MODES: [Normalization; 4] = [
    Normalization::None,
    Normalization::Base,
    Normalization::MergeSlashes,
    Normalization::DecodeAndMergeSlashes,
];

fuzz_target!(|input: &str| {
    let (path, template) = input.split_once('\n').unwrap_or((input, ""));
    for mode in MODES {
        if let Ok(normal) = NormalizedPath::new(path, mode) {
            is_normal(path, &normal, mode);
        }
    }
    if let Ok(parsed) = PathTemplate::parse(template) {
        let normal = NormalizedPath::new(path, Normalization::Base);
        for path in [Some(path), normal.as_ref().ok().map(NormalizedPath::path)].into_iter().flatten() {
            let plain = plainly(template.as_bytes(), path.as_bytes());
            assert_eq!(parsed.matches(path), plain, "{template} and {path}");
        }
    }
});

fn is_normal(sent: &str, normal: &NormalizedPath<'_>, mode: Normalization) {
    let whole = normal.as_str();
    assert_eq!(normal.is_changed(), whole != sent, "{mode:?}: {sent} to {whole}");
    assert!(whole.starts_with(normal.path()) && normal.path().starts_with('/'));
    assert!(whole.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#'), "{whole}");
    // The query is nobody's business.
    let query = |path: &str| path.find('?').map(|at| path[at..].to_owned());
    assert_eq!(query(sent), query(whole));
    assert!(!normal.path().contains('?'));
    let again = NormalizedPath::new(whole, mode).expect("what was made normal is accepted");
    assert_eq!(again.as_str(), whole, "{mode:?}: of {sent}");
    if mode == Normalization::None {
        return;
    }
    let path = normal.path();
    assert!(!path.split('/').any(|segment| [".", ".."].contains(&segment)), "{mode:?}: {sent} to {path}");
    // Servers that know path parameters drop them before they look at dots.
    let bare = |segment: &str| segment.split(';').next().is_some_and(|name| [".", ".."].contains(&name));
    assert!(!path.split('/').any(bare), "{mode:?}: {sent} to {path}");
    let escaped_dots = path.to_ascii_lowercase().replace("%2e", ".");
    assert_eq!(escaped_dots, path.to_ascii_lowercase(), "an escaped dot is left");
    assert!(!path.contains('\\') && !path.contains("%00"), "{mode:?}: {sent} to {path}");
    // Of slashes alone Envoy leaves two.
    if mode != Normalization::Base && path != "//" {
        assert!(!path.contains("//"), "{mode:?}: {sent} to {path}");
    }
    if mode == Normalization::DecodeAndMergeSlashes {
        let lower = path.to_ascii_lowercase();
        assert!(!lower.contains("%2f") && !lower.contains("%5c"), "{sent} to {path}");
    }
}

/// `{*}` is what a segment may hold, at least one character; `{**}` the same and slashes, also nothing; all else is itself.
fn plainly(template: &[u8], path: &[u8]) -> bool {
    if let Some(rest) = template.strip_prefix(b"{**}") {
        let run = path.iter().take_while(|byte| **byte == b'/' || may_stand(**byte)).count();
        return (0..=run).any(|at| plainly(rest, &path[at..]));
    }
    if let Some(rest) = template.strip_prefix(b"{*}") {
        let run = path.iter().take_while(|byte| may_stand(**byte)).count();
        return run > 0 && plainly(rest, &path[run..]);
    }
    match (template.split_first(), path.split_first()) {
        (None, None) => true,
        (Some((one, template)), Some((other, path))) => one == other && plainly(template, path),
        _ => false,
    }
}

/// `pchar` (RFC 3986 section 3.3), and `%` wherever it stands.
fn may_stand(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~%!$&'()*+,;=:@".contains(&byte)
}
