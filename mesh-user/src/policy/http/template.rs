//! Path templates of `paths`: `{*}` is one segment, `{**}` any number of them. Pure; refuses at parse what
//! Istio's validation refuses, and what Envoy would refuse of what Istio lets through.
//!
//! Sources: istio/istio `pkg/config/security/security.go`, Envoy
//! `source/extensions/path/uri_template_lib/uri_template_internal.cc`.

const ONE: &str = "{*}";
const ANY: &str = "{**}";

/// Why a path in a policy cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    /// Envoy takes no other.
    #[error("a path template starts with one \"/\"")]
    NotAbsolute,
    /// An operator behind `{{**}}`.
    #[error("{{**}} must be the last operator of a path template")]
    AfterAny,
    /// A brace that is not a whole operator.
    #[error("segment {0:?} holds a brace; operators are {{*}} and {{**}}, each a whole segment")]
    Brace(String),
    /// A character that no path segment has.
    #[error("segment {0:?} of the path template is empty or has a character that is not allowed in one")]
    Literal(String),
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Segment {
    Literal(String),
    One,
}

impl Segment {
    fn matches(&self, segment: &str) -> bool {
        match self {
            Self::Literal(literal) => segment == literal,
            Self::One => !segment.is_empty() && segment.bytes().all(is_matched),
        }
    }
}

/// A parsed template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PathTemplate {
    before: Vec<Segment>,
    /// What follows `{**}`, if that is there: literals.
    after_any: Option<Vec<Segment>>,
}

impl PathTemplate {
    /// Whether a path of a policy is a template.
    pub fn is_template(path: &str) -> bool {
        path.contains(ONE) || path.contains(ANY)
    }

    /// Parses a template.
    ///
    /// # Errors
    /// When Istio or Envoy would refuse it.
    pub fn parse(template: &str) -> Result<Self, TemplateError> {
        let path = template.strip_prefix('/').ok_or(TemplateError::NotAbsolute)?;
        let mut parsed = Self { before: Vec::new(), after_any: None };
        let mut segments = path.split('/').peekable();
        while let Some(segment) = segments.next() {
            let last = segments.peek().is_none();
            if segment == ANY {
                if parsed.after_any.replace(Vec::new()).is_some() {
                    return Err(TemplateError::AfterAny);
                }
                continue;
            }
            let segment = match segment {
                ONE if parsed.after_any.is_some() => return Err(TemplateError::AfterAny),
                ONE => Segment::One,
                // One slash at the end is part of the template.
                "" if last => Segment::Literal(String::new()),
                literal => literal_segment(literal)?,
            };
            parsed.after_any.as_mut().unwrap_or(&mut parsed.before).push(segment);
        }
        Ok(parsed)
    }

    /// Whether a normalized path without its query is one that the template means.
    pub fn matches(&self, path: &str) -> bool {
        let Some(mut rest) = path.strip_prefix('/') else { return false };
        let Some(after) = &self.after_any else {
            let mut segments = rest.split('/');
            let all = self.before.iter().all(|s| segments.next().is_some_and(|segment| s.matches(segment)));
            return all && segments.next().is_none();
        };
        for wanted in &self.before {
            match rest.split_once('/') {
                Some((segment, behind)) if wanted.matches(segment) => rest = behind,
                _ => return false,
            }
        }
        for wanted in after.iter().rev() {
            match rest.rsplit_once('/') {
                Some((front, segment)) if wanted.matches(segment) => rest = front,
                _ => return false,
            }
        }
        rest.bytes().all(|b| b == b'/' || is_matched(b))
    }
}

/// Checks a path of a policy that is no template: Istio takes no brace in it.
pub(in crate::policy) fn check_plain(path: &str) -> Result<(), TemplateError> {
    let brace = path.split('/').find(|segment| segment.contains(['{', '}']));
    brace.map_or(Ok(()), |segment| Err(TemplateError::Brace(segment.to_owned())))
}

fn literal_segment(segment: &str) -> Result<Segment, TemplateError> {
    if segment.contains(['{', '}']) {
        return Err(TemplateError::Brace(segment.to_owned()));
    }
    if segment.is_empty() || !segment.bytes().all(is_literal) {
        return Err(TemplateError::Literal(segment.to_owned()));
    }
    Ok(Segment::Literal(segment.to_owned()))
}

/// What may stand in a template: `pchar` (RFC 3986 section 3.3) without `*`.
fn is_literal(b: u8) -> bool {
    b.is_ascii_alphanumeric() || b"-._~%!$&'()+,;:@=".contains(&b)
}

/// What operators match: `pchar`, and nothing else that a path may hold, such as `[`.
fn is_matched(b: u8) -> bool {
    b == b'*' || is_literal(b)
}
