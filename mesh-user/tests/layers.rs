//! Holds the layers of `src/lib.rs`: a module names only modules below it or in its own row, and `unsafe` stays in
//! `sys`. Reads the sources as text.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

/// Top first; modules of one row may use each other.
const ROWS: [&[&str]; 9] = [
    &["daemon"],
    &["admin"],
    &["proxy", "http"],
    &["capture"],
    &["discovery", "ca", "ext_authz"],
    &["policy", "jwt", "tls"],
    &["world", "config"],
    &["identity", "runtime"],
    &["telemetry", "sys"],
];

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
}

fn row(module: &str) -> Option<usize> {
    ROWS.iter().position(|row| row.contains(&module))
}

/// Without comments and what is between quotes, so that prose is not taken for code.
fn code(source: &str) -> String {
    let comment = regex::Regex::new(r"(?m)//.*$").unwrap();
    let string = regex::Regex::new(r#""(?:[^"\\\n]|\\.)*""#).unwrap();
    comment.replace_all(&string.replace_all(source, "\"\""), "").into_owned()
}

/// Modules of this crate that the code names, as `crate::x`, `crate::{x, y::z}` or `mesh_user::x`.
fn used(code: &str) -> BTreeSet<String> {
    let path = regex::Regex::new(r"\bcrate::\s*(\w+|\{)").unwrap();
    let mut modules = BTreeSet::new();
    for found in path.captures_iter(code) {
        if &found[1] != "{" {
            modules.insert(found[1].to_owned());
            continue;
        }
        let rest = &code[found.get(0).unwrap().end()..];
        let (mut depth, mut at_name, mut name) = (1, true, String::new());
        for c in rest.chars() {
            match c {
                '{' => depth += 1,
                '}' => depth -= 1,
                c if at_name && (c.is_alphanumeric() || c == '_') => name.push(c),
                _ => {}
            }
            if !(name.is_empty() || c.is_alphanumeric() || c == '_') {
                modules.insert(std::mem::take(&mut name));
                at_name = false;
            }
            if depth == 1 && c == ',' {
                at_name = true;
            }
            if depth == 0 {
                break;
            }
        }
    }
    modules
}

fn modules() -> Vec<(String, PathBuf, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = Vec::new();
    sources(&root, &mut found);
    let of = |path: &PathBuf| {
        let first = path.strip_prefix(&root).unwrap().components().next().unwrap();
        first.as_os_str().to_string_lossy().trim_end_matches(".rs").to_owned()
    };
    found
        .into_iter()
        .map(|p| (of(&p), code(&std::fs::read_to_string(&p).unwrap()), p))
        .map(|(m, c, p)| (m, p, c))
        .collect()
}

#[test]
fn a_module_uses_only_those_below_it() {
    let mut wrong = Vec::new();
    for (module, path, code) in modules() {
        let Some(own) = row(&module) else {
            assert!(["lib", "bin"].contains(&module.as_str()), "{module} has no layer; give it one here");
            continue;
        };
        for other in used(&code) {
            if row(&other).is_some_and(|other| other < own) {
                wrong.push(format!("{}: {module} uses {other}, a layer above it", path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn unsafe_is_only_in_sys() {
    let word = regex::Regex::new(r"\bunsafe\b\s*(\{|fn|impl|trait|extern)").unwrap();
    let wrong: Vec<_> = modules()
        .into_iter()
        .filter(|(module, _, code)| module != "sys" && word.is_match(code))
        .map(|(_, path, _)| path.display().to_string())
        .collect();
    assert!(wrong.is_empty(), "unsafe outside sys: {}", wrong.join(", "));
}

#[test]
fn imports_are_read_as_written() {
    let text = "use crate::{a::{b, c}, d, e::F};\nlet x = crate::g::h();\n// crate::no\nuse super::y;";
    let expected = ["a", "d", "e", "g"].map(str::to_owned);
    assert_eq!(used(&code(text)), expected.into());
}
