//! Paths as Envoy 1.40 leaves them in each mode, and templates as its `uri_template` matcher takes them: the rows
//! are what it answered, but for those that are marked.

use proptest::prelude::*;

use crate::policy::http::{Normalization, NormalizedPath, PathError, PathTemplate, TemplateError};

const MODES: [Normalization; 4] = [
    Normalization::None,
    Normalization::Base,
    Normalization::MergeSlashes,
    Normalization::DecodeAndMergeSlashes,
];

fn normalized(path: &str, mode: Normalization) -> String {
    NormalizedPath::new(path, mode).map_or_else(|_| "400".to_owned(), |path| path.as_str().to_owned())
}

#[test]
fn paths_become_what_envoy_makes_of_them() {
    // as sent, BASE, MERGE_SLASHES, DECODE_AND_MERGE_SLASHES
    for (path, base, merged, decoded) in [
        ("/", "/", "/", "/"),
        ("/a/../b", "/b", "/b", "/b"),
        ("/a/./b", "/a/b", "/a/b", "/a/b"),
        ("/..", "/", "/", "/"),
        ("/../a", "/a", "/a", "/a"),
        ("/a/.", "/a/", "/a/", "/a/"),
        ("/a/..", "/", "/", "/"),
        ("/a/b/../../..", "/", "/", "/"),
        ("/a/.../b", "/a/.../b", "/a/.../b", "/a/.../b"),
        ("/a/..a/b", "/a/..a/b", "/a/..a/b", "/a/..a/b"),
        // slashes
        ("//a//b//", "//a//b//", "/a/b/", "/a/b/"),
        ("//", "//", "//", "//"),
        ("///", "///", "//", "//"),
        ("/a//../b", "/a/b", "/a/b", "/a/b"),
        ("/a/..//b", "//b", "/b", "/b"),
        ("/.//a", "//a", "/a", "/a"),
        ("/a\\b", "/a/b", "/a/b", "/a/b"),
        ("/a\\..\\b", "/b", "/b", "/b"),
        ("/a\\\\b\\", "/a//b/", "/a/b/", "/a/b/"),
        ("/a%2fb", "/a%2fb", "/a%2fb", "/a/b"),
        ("/a%5Cb", "/a%5Cb", "/a%5Cb", "/a/b"),
        ("/a%2f%2Fb%5C%5cc", "/a%2f%2Fb%5C%5cc", "/a%2f%2Fb%5C%5cc", "/a/b/c"),
        ("/a/..%2fb", "/a/..%2fb", "/a/..%2fb", "/b"),
        ("/a%2f%2e%2e%2fb", "/a%2f..%2fb", "/a%2f..%2fb", "/b"),
        ("/%2f%2f..", "/%2f%2f..", "/%2f%2f..", "//"),
        // escapes: only unreserved characters are decoded, once; the case of the others stays
        ("/%2e%2E/a", "/a", "/a", "/a"),
        ("/a/.%2e/b", "/b", "/b", "/b"),
        ("/%61%41%7e%2d%5f", "/aA~-_", "/aA~-_", "/aA~-_"),
        ("/%7B%7b%25%20", "/%7B%7b%25%20", "/%7B%7b%25%20", "/%7B%7b%25%20"),
        ("/a/%252e%252e/b", "/a/%252e%252e/b", "/a/%252e%252e/b", "/a/%252e%252e/b"),
        ("/%c3%A4%ff", "/%c3%A4%ff", "/%c3%A4%ff", "/%c3%A4%ff"),
        ("/a%3fb%23c", "/a%3fb%23c", "/a%3fb%23c", "/a%3fb%23c"),
        (
            "/a\"<>^`{|}",
            "/a%22%3C%3E%5E%60%7B%7C%7D",
            "/a%22%3C%3E%5E%60%7B%7C%7D",
            "/a%22%3C%3E%5E%60%7B%7C%7D",
        ),
        ("/a[b]!$&'()*+,;=:@", "/a[b]!$&'()*+,;=:@", "/a[b]!$&'()*+,;=:@", "/a[b]!$&'()*+,;=:@"),
        // what is no escape stays, and does not become one
        ("/a%zz", "/a%zz", "/a%zz", "/a%zz"),
        ("/a%2", "/a%2", "/a%2", "/a%2"),
        ("/%%32%66", "/%252f", "/%252f", "/%252f"),
        ("/%2%66", "/%252f", "/%252f", "/%252f"),
        ("/%%366", "/%2566", "/%2566", "/%2566"),
        ("/%%36g", "/%6g", "/%6g", "/%6g"),
        ("/%%41%", "/%A%", "/%A%", "/%A%"),
        ("/a/%%2e%2e/b", "/a/%../b", "/a/%../b", "/a/%../b"),
        ("/%00", "400", "400", "400"),
        ("/a%00/../b", "400", "400", "400"),
        // the query is left alone
        ("/a/../b?x=//y/../%2e\\", "/b?x=//y/../%2e\\", "/b?x=//y/../%2e\\", "/b?x=//y/../%2e\\"),
        ("/a?%00", "/a?%00", "/a?%00", "/a?%00"),
        ("/a/.?x", "/a/?x", "/a/?x", "/a/?x"),
        // path parameters on dot segments
        ("/a/b/..;x=y/c", "/a/c", "/a/c", "/a/c"),
        ("/a/b/..;", "/a/", "/a/", "/a/"),
        ("/a/b/.;/c", "/a/b/c", "/a/b/c", "/a/b/c"),
        ("/a/b/..;\\c", "/a/", "/a/", "/a/"),
        ("/a/b/..;%2fc", "/a/", "/a/", "/a/c"),
        ("/a/b/...;/c", "/a/b/...;/c", "/a/b/...;/c", "/a/b/...;/c"),
        ("/a/b/;..;/c", "/a/b/;..;/c", "/a/b/;..;/c", "/a/b/;..;/c"),
        ("/a/b/..%3b/c", "/a/b/..%3b/c", "/a/b/..%3b/c", "/a/b/..%3b/c"),
        // ours: Envoy leaves `..;` of these, which a server that knows parameters would still resolve
        ("/a/b/%2e%2e;/c", "/a/c", "/a/c", "/a/c"),
        ("/a\\b\\..;/c", "/a/c", "/a/c", "/a/c"),
    ] {
        assert_eq!(normalized(path, Normalization::None), path);
        let all = MODES.map(|mode| normalized(path, mode));
        assert_eq!(all[1..], [base, merged, decoded], "{path}");
    }
}

#[test]
fn what_cannot_be_a_path_is_refused_in_every_mode() {
    for (path, error) in [
        ("", PathError::NotAbsolute),
        ("*", PathError::NotAbsolute),
        ("?a", PathError::NotAbsolute),
        ("a/b", PathError::NotAbsolute),
        ("http://h/a", PathError::NotAbsolute),
        ("/a#b", PathError::Fragment),
        ("/a?b#c", PathError::Fragment),
        ("/a b", PathError::Character),
        ("/a\u{e4}", PathError::Character),
        ("/a\0", PathError::Character),
        ("/a?b\u{7f}", PathError::Character),
        ("/a\n", PathError::Character),
    ] {
        for mode in MODES {
            assert_eq!(NormalizedPath::new(path, mode), Err(error), "{path:?} {mode:?}");
        }
    }
}

#[test]
fn a_canonical_path_is_not_copied_and_its_query_is_no_part_of_it() {
    let path = NormalizedPath::new("/a/b;c?d=/e", Normalization::DecodeAndMergeSlashes).unwrap();
    assert!(!path.is_changed());
    for (looked_at, mode) in
        MODES.into_iter().flat_map(|mode| ["/a%", "/a/.b", "//", "/a/%zz/..;"].map(|path| (path, mode)))
    {
        let path = NormalizedPath::new(looked_at, mode).unwrap();
        assert_eq!(path.is_changed(), path.as_str() != looked_at, "{looked_at} {mode:?}");
    }
    assert_eq!((path.path(), path.as_str()), ("/a/b;c", "/a/b;c?d=/e"));
    let path = NormalizedPath::new("/x/../a?d", Normalization::Base).unwrap();
    assert!(path.is_changed());
    assert_eq!((path.path(), path.as_str()), ("/a", "/a?d"));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 20_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_normalized_path_has_nothing_left_to_normalize(
        parts in prop::collection::vec(prop::sample::select(vec![
            "/", "//", ".", "..", "a", "%2e", "%2f", "%5C", "\\", "%", "%2", "2", "5", "%32", "%35", "%66", "f", ";", "?", "..;x", "%25", "{",
        ]), 0..12),
        mode in prop::sample::select(MODES.to_vec()),
    ) {
        let path = format!("/{}", parts.concat());
        let once = NormalizedPath::new(&path, mode).unwrap();
        let twice = NormalizedPath::new(once.as_str(), mode).unwrap();
        prop_assert_eq!(once.as_str(), twice.as_str());
        if mode != Normalization::None {
            let segments = once.path().split('/').map(|s| s.split(';').next().unwrap_or_default());
            prop_assert!(!segments.into_iter().any(|s| [".", ".."].contains(&s)), "{}", once.as_str());
        }
    }
}

#[test]
fn templates_match_whole_segments() {
    for (template, matching, others) in [
        (
            "/a/{*}",
            &["/a/b", "/a/*", "/a/b=c%20"][..],
            &["/a", "/a/", "/a/b/", "/a/b/c", "/a/[", "/a/\""][..],
        ),
        ("/{*}", &["/a"], &["/", "/a/", "/a/b", ""]),
        ("/{*}/", &["/a/"], &["/", "/a", "//"]),
        ("/{**}", &["/", "/a", "/a/b/", "//"], &["/[", ""]),
        ("/a/{**}", &["/a/", "/a/b", "/a/b/c"], &["/a", "/ab", "/b/a/"]),
        ("/{**}/b", &["//b", "/a/b", "/a/c/b"], &["/b", "/a/b/", "/ab"]),
        ("/{**}/a/b", &["/x/a/b", "//a/b"], &["/a/b", "/a/x/b"]),
        ("/{*}/b/{**}", &["/a/b/", "/a/b/c/d"], &["/a/b", "/b/", "/a/c/b/"]),
        ("/a/{*}/b/{*}", &["/a/x/b/y"], &["/a/x/b", "/a/x/c/y", "/a/x/b/y/z"]),
        ("/{*}/{**}/x.y", &["/a/b/x.y", "/a//x.y"], &["/a/x.y", "/a/b/xzy"]),
        ("/{**}/", &["//", "/a/"], &["/", "/a"]),
        ("/foo/{*}/bar/{**}", &["/foo/1/bar/2/3"], &["/foo/bar/2"]),
    ] {
        let parsed = PathTemplate::parse(template).unwrap();
        for path in matching {
            assert!(parsed.matches(path), "{template} {path}");
        }
        for path in others {
            assert!(!parsed.matches(path), "{template} {path}");
        }
    }
}

#[test]
fn templates_that_istio_or_envoy_refuse_are_refused() {
    let brace = |segment: &str| TemplateError::Brace(segment.to_owned());
    let literal = |segment: &str| TemplateError::Literal(segment.to_owned());
    for (template, error) in [
        ("{*}/a", TemplateError::NotAbsolute),
        ("{**}", TemplateError::NotAbsolute),
        ("/{**}/{*}", TemplateError::AfterAny),
        ("/{**}/a/{**}", TemplateError::AfterAny),
        ("/{*}/{name}", brace("{name}")),
        ("/{*}/{}", brace("{}")),
        ("/{*}.html", brace("{*}.html")),
        ("/{*}{*}", brace("{*}{*}")),
        ("/{*}/{", brace("{")),
        ("/{*}/a*", literal("a*")),
        ("/{*}/*", literal("*")),
        ("/{*}//a", literal("")),
        ("//{*}", literal("")),
        ("/{**}//", literal("")),
        ("/{*}/a b", literal("a b")),
        ("/{*}/[a]", literal("[a]")),
    ] {
        assert_eq!(PathTemplate::parse(template), Err(error), "{template}");
    }
}
