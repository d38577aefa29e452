//! Why a CA elsewhere gave nothing that can be used.

use std::path::PathBuf;

use tonic::Code;

use crate::identity::TrustDomain;

/// Of what a CA says in an error, so much is passed on.
const MAX_MESSAGE_CHARS: usize = 300;

/// Why a CA elsewhere gave nothing that can be used.
#[derive(Debug, thiserror::Error)]
pub enum RemoteError {
    /// No connection, or it broke.
    #[error(
        "the CA at {address} cannot be reached: {what}; check ca.address, ca.serverName and ca.rootsFile"
    )]
    Unreachable {
        /// Where it should be.
        address: String,
        /// The cause.
        what: String,
    },
    /// It said no.
    #[error("the CA at {address} refuses ({code:?}): {what}{hint}")]
    Refused {
        /// Which.
        address: String,
        /// gRPC's code.
        code: Code,
        /// What it says, cut to size.
        what: String,
        /// What to do.
        hint: &'static str,
    },
    /// What it gave is not what was asked for.
    #[error("the CA's answer for {subject} is not used: {what}")]
    Answer {
        /// For whom.
        subject: String,
        /// What is wrong.
        what: String,
    },
    /// Nothing to hold answers against yet.
    #[error("no roots of trust domain {0} are known yet: the CA has not told any, and ca.rootsFile has none")]
    NoTrust(TrustDomain),
    /// A token that is to be shown to the CA.
    #[error("{}: {what}", path.display())]
    Token {
        /// The file.
        path: PathBuf,
        /// What is wrong and what to do.
        what: String,
    },
    /// This node is not known to the CA.
    #[error(
        "this node has not joined: {0}; make a token with `meshctl ca token create --node <name>` and put it into \
         ca.joinTokenFile (mode 0600)"
    )]
    NotJoined(String),
    /// A key, a request or a TLS configuration could not be made.
    #[error("cannot ask the CA: {0}")]
    Local(String),
}

impl RemoteError {
    /// What a call's failure means; a transport's causes are told, too.
    pub(super) fn of(address: &str, status: &tonic::Status) -> Self {
        let address = address.to_owned();
        let mut what = clean(status.message());
        let mut cause = std::error::Error::source(status);
        while let Some(error) = cause {
            let text = clean(&error.to_string());
            if !what.contains(&text) {
                what = format!("{what}: {text}");
            }
            cause = error.source();
        }
        let hint = match status.code() {
            // A transport that fails is told as `Unknown` where nobody gave a code.
            Code::Unavailable | Code::Unknown | Code::Cancelled | Code::DeadlineExceeded => {
                return Self::Unreachable { address, what };
            }
            Code::Unauthenticated => {
                "; the token or the node's certificate does not count there: look at its audit"
            }
            Code::PermissionDenied => {
                "; the CA must know that this identity's workload runs on this node: look at its audit"
            }
            Code::ResourceExhausted => "; it limits how often this node may ask",
            Code::Unimplemented => "; is ca.provider right, and is this port the CA's?",
            _ => "",
        };
        Self::Refused { address, code: status.code(), what, hint }
    }
}

/// What others wrote, fit for a log.
fn clean(message: &str) -> String {
    let printable = |c: char| if c.is_control() { ' ' } else { c };
    message.chars().take(MAX_MESSAGE_CHARS).map(printable).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hostile_message_is_cut_and_cleaned() {
        let long = format!("no\n\x1b[2J{}", "x".repeat(5000));
        let error = RemoteError::of("ca:1", &tonic::Status::permission_denied(long)).to_string();
        assert!(error.len() < 600 && !error.contains(['\n', '\x1b']), "{error}");
        assert!(error.contains("audit"));
    }
}
