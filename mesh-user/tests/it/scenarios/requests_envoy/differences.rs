//! The differences between Envoy's answer and meshd's that are meant, each with its reason; `docs/policy.md` has them too.
//! What is not here is a bug of one of the two.

use serde_json::Value;

/// One request that was answered differently.
pub(super) struct Difference<'a> {
    pub(super) documents: &'a [Value],
    pub(super) request: &'a str,
    /// What meshd said.
    pub(super) ours: u16,
}

type Is = fn(&Difference<'_>) -> bool;

const MEANT: [(&str, Is); 3] = [
    (
        "a dot segment with parameters whose dots are escaped, or behind a backslash: Envoy leaves it in the path, servers \
         that know parameters do not",
        has_parameters_on_hidden_dots,
    ),
    (
        "a place of tokens that is there twice: Envoy looks at the first, or at what the order of rules says; to meshd all \
         must be good",
        repeats_a_token,
    ),
    ("X-Forwarded-For: Envoy takes it for remote.ip, meshd believes the connection", is_forwarded),
];

impl Difference<'_> {
    /// Why it is meant, if it is.
    pub(super) fn meant(&self) -> Option<&'static str> {
        MEANT.iter().find(|(_, is)| is(self)).map(|(why, _)| *why)
    }
}

fn has_parameters_on_hidden_dots(difference: &Difference<'_>) -> bool {
    let target = difference.request.split(' ').nth(1).unwrap_or_default();
    let sent = target.split('?').next().unwrap_or_default().to_ascii_lowercase();
    let plain = sent.replace("%2e", ".").replace('\\', "/");
    plain != sent && ["/.;", "/..;"].iter().any(|dots| plain.contains(dots))
}

/// meshd is the stricter one: it never lets pass what Envoy refuses.
fn repeats_a_token(difference: &Difference<'_>) -> bool {
    let lower = difference.request.to_ascii_lowercase();
    let places = ["\r\nauthorization:", "\r\nx-token:", "session=", "access_token="];
    let count = |place: &str| lower.matches(place).count();
    let parameters = count("?token=") + count("&token=");
    difference.ours != 200 && (parameters > 1 || places.iter().any(|place| count(place) > 1))
}

fn is_forwarded(difference: &Difference<'_>) -> bool {
    let asks = |document: &Value| {
        let text = document.to_string();
        ["remoteIpBlocks", "notRemoteIpBlocks", "remote.ip"].iter().any(|name| text.contains(name))
    };
    difference.request.contains("X-Forwarded-For:") && difference.documents.iter().any(asks)
}
