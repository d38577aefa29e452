//! Path normalization as Istio's `meshConfig.pathNormalization` has Envoy do it, so that a rule on `/admin` sees
//! what the application will. Pure: it never decodes what would change the meaning of a path, and what it cannot
//! normalize is an error, never a guess.
//!
//! Sources: Envoy 1.40 `source/common/http/path_utility.cc` and the URL library under it (each row of the test
//! table is what that Envoy answered), RFC 3986 sections 5.2.4 and 6.2.2.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use crate::config;

/// `meshConfig.pathNormalization.normalization`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Normalization {
    /// As sent.
    None,
    /// Dot segments resolved, `\` to `/`, unreserved characters decoded.
    #[default]
    #[serde(alias = "DEFAULT")]
    Base,
    /// And runs of slashes merged.
    MergeSlashes,
    /// And `%2F` and `%5C` decoded before everything else.
    DecodeAndMergeSlashes,
}

impl From<config::PathNormalization> for Normalization {
    fn from(setting: config::PathNormalization) -> Self {
        match setting {
            config::PathNormalization::None => Self::None,
            config::PathNormalization::Default | config::PathNormalization::Base => Self::Base,
            config::PathNormalization::MergeSlashes => Self::MergeSlashes,
            config::PathNormalization::DecodeAndMergeSlashes => Self::DecodeAndMergeSlashes,
        }
    }
}

/// Why a request's path cannot be judged. The request is to be refused with 400.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// `*`, an authority, or nothing.
    #[error("the path does not start with \"/\": refuse the request with 400")]
    NotAbsolute,
    /// Fragments are not sent (RFC 9110 section 7.1).
    #[error("the path has a fragment (\"#\"): refuse the request with 400")]
    Fragment,
    /// Neither visible ASCII nor escaped (RFC 3986 section 2).
    #[error("the path has a character that must be percent-encoded: refuse the request with 400")]
    Character,
    /// `%00`.
    #[error("the path has an escaped NUL: refuse the request with 400")]
    Nul,
}

/// The path of a request as rules see it, and as the application should get it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NormalizedPath<'a> {
    text: Cow<'a, str>,
    /// Where the query begins, or the length.
    query_at: usize,
}

impl<'a> NormalizedPath<'a> {
    /// Normalizes a path as it was sent, with its query. Copies only what changes.
    ///
    /// # Errors
    /// When the request must be refused with 400.
    pub fn new(as_sent: &'a str, normalization: Normalization) -> Result<Self, PathError> {
        if !as_sent.starts_with('/') {
            return Err(PathError::NotAbsolute);
        }
        // Envoy's codecs refuse the latter, its connection manager the former, in every mode and in the query too.
        if as_sent.contains('#') {
            return Err(PathError::Fragment);
        }
        if !as_sent.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(PathError::Character);
        }
        let (path, query) = as_sent.split_at(as_sent.find('?').unwrap_or(as_sent.len()));
        let changed = match normalization {
            Normalization::None => None,
            Normalization::Base => canonical(path)?,
            Normalization::MergeSlashes => merged(path, canonical(path)?),
            Normalization::DecodeAndMergeSlashes => match decode_slashes(path) {
                None => merged(path, canonical(path)?),
                Some(decoded) => {
                    let canonical = canonical(&decoded)?;
                    Some(merged(&decoded, canonical.clone()).or(canonical).unwrap_or(decoded))
                }
            },
        };
        Ok(match changed.filter(|changed| changed != path) {
            None => Self { text: Cow::Borrowed(as_sent), query_at: path.len() },
            Some(path) => Self { query_at: path.len(), text: Cow::Owned(path + query) },
        })
    }

    /// The same of a request's target, which is empty for `CONNECT`: then there is none.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn of_request(as_sent: &'a str, normalization: Normalization) -> Result<Option<Self>, PathError> {
        match as_sent {
            "" => Ok(None),
            // `OPTIONS *` (RFC 9112 section 3.2.4) is about the server as a whole.
            "*" => Self::new("/*", Normalization::None).map(Some),
            path => Self::new(path, normalization).map(Some),
        }
    }

    /// What `paths` is compared with: without the query.
    pub fn path(&self) -> &str {
        self.text.get(..self.query_at).unwrap_or(&self.text)
    }

    /// With the query: what Envoy would send on.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Whether it differs from what was sent.
    pub fn is_changed(&self) -> bool {
        matches!(self.text, Cow::Owned(_))
    }
}

/// `%2F` to `/`, `%5C` to `\`; none: there are none.
fn decode_slashes(path: &str) -> Option<String> {
    let escapes = [("%2f", "/"), ("%2F", "/"), ("%5c", "\\"), ("%5C", "\\")];
    let found = escapes.iter().any(|(escape, _)| path.contains(escape));
    found.then(|| escapes.iter().fold(path.to_owned(), |path, (escape, slash)| path.replace(escape, slash)))
}

/// One slash for each run of them; `changed` is what became of `path` so far. Envoy's joining leaves `//` of a
/// path that is nothing but slashes.
fn merged(path: &str, changed: Option<String>) -> Option<String> {
    let so_far = changed.as_deref().unwrap_or(path);
    if !so_far.contains("//") {
        return changed;
    }
    let segments: Vec<_> = so_far.split('/').filter(|segment| !segment.is_empty()).collect();
    let end = if so_far.ends_with('/') { "/" } else { "" };
    Some(format!("/{}{end}", segments.join("/")))
}

/// Dot segments, backslashes and escapes; none: it is canonical already.
fn canonical(path: &str) -> Result<Option<String>, PathError> {
    let bytes = path.as_bytes();
    let plain = |b: u8| !matches!(b, b'%' | b'\\') && !must_be_escaped(b);
    if bytes.iter().all(|b| plain(*b)) && !path.contains("/.") {
        return Ok(None);
    }
    let mut out = String::with_capacity(path.len());
    // Where a `%` that starts no escape was copied: what is decoded behind it must not make it one.
    let mut stray = None;
    let mut at = 0;
    while let Some(byte) = bytes.get(at).copied() {
        if out.ends_with('/')
            && let Some((up, next)) = dot_segment(bytes, at)
        {
            if up {
                parent(&mut out);
                stray = stray.filter(|stray| *stray < out.len());
            }
            at = next;
            continue;
        }
        at += 1;
        match byte {
            b'\\' => out.push('/'),
            b'%' => match escaped(bytes, at - 1) {
                None => {
                    stray = Some(out.len());
                    out.push('%');
                }
                Some(0) => return Err(PathError::Nul),
                Some(decoded) if is_unreserved(decoded) => {
                    at += 2;
                    out.push(char::from(decoded));
                    keep_stray(&mut out, stray, bytes.get(at).copied());
                }
                Some(_) => {
                    out.push_str(path.get(at - 1..at + 2).unwrap_or_default());
                    at += 2;
                }
            },
            byte if must_be_escaped(byte) => escape(&mut out, byte),
            byte => out.push(char::from(byte)),
        }
    }
    Ok(Some(out))
}

/// Whether a segment that starts at `at` is `.` or `..` (true), escaped or not, and where the next one starts.
/// Parameters do not make it another segment: servers that know path parameters drop them before they resolve
/// dots. Envoy 1.40 strips them, but only where the dots are not escaped and a `/` is in front.
fn dot_segment(path: &[u8], at: usize) -> Option<(bool, usize)> {
    let dot = |at: usize| match path.get(at)? {
        b'.' => Some(at + 1),
        b'%' => (escaped(path, at)? == b'.').then_some(at + 3),
        _ => None,
    };
    let end = |at: usize| match path.get(at) {
        None => Some(at),
        Some(b'/' | b'\\') => Some(at + 1),
        Some(b';') => {
            let slash = path.iter().skip(at).position(|b| *b == b'/');
            Some(slash.map_or(path.len(), |slash| at + slash + 1))
        }
        Some(_) => None,
    };
    let first = dot(at)?;
    let current = end(first).map(|next| (false, next));
    current.or_else(|| Some((true, end(dot(first)?)?)))
}

/// Drops the last segment of a path that ends with a slash; the root stays.
fn parent(path: &mut String) {
    let before = path.len().saturating_sub(1);
    let slash = path.get(..before).and_then(|path| path.rfind('/')).unwrap_or(0);
    path.truncate(slash + 1);
}

/// The value of the escape at `at`, if there is one.
fn escaped(path: &[u8], at: usize) -> Option<u8> {
    let digit = |at: usize| path.get(at).and_then(|b| char::from(*b).to_digit(16));
    (path.get(at) == Some(&b'%')).then_some(())?;
    u8::try_from(digit(at + 1)? * 16 + digit(at + 2)?).ok()
}

/// After a character was decoded: if it and a stray `%` would read as an escape, the `%` is escaped.
fn keep_stray(out: &mut String, stray: Option<usize>, next: Option<u8>) {
    let Some(stray) = stray else { return };
    let is_hex = |b: Option<u8>| b.is_some_and(|b| b.is_ascii_hexdigit());
    let byte = |at: usize| out.as_bytes().get(at).copied();
    let reads_as_escape = match out.len() - stray {
        2 => is_hex(byte(stray + 1)) && is_hex(next),
        3 => is_hex(byte(stray + 1)) && is_hex(byte(stray + 2)),
        _ => false,
    };
    if reads_as_escape {
        out.insert_str(stray + 1, "25");
    }
}

fn is_unreserved(b: u8) -> bool {
    b.is_ascii_alphanumeric() || b"-._~".contains(&b)
}

fn must_be_escaped(b: u8) -> bool {
    b"\"<>^`{|}".contains(&b)
}

fn escape(out: &mut String, b: u8) {
    let digit = |value: u8| char::from_digit(u32::from(value), 16).unwrap_or('0').to_ascii_uppercase();
    out.extend(['%', digit(b >> 4), digit(b & 15)]);
}
