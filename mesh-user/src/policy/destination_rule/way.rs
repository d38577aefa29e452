//! How a connection is to be opened: what the rule that applies and the destination's peer authentication make of each
//! other. Also what live connections are held against when either changes.

use std::collections::BTreeSet;

use super::{ClientTls, Origination};
use crate::{identity::SpiffeId, policy::Mode};

/// What a connection's wire leg is to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way<'a> {
    /// As the application wrote it.
    Plaintext,
    /// mTLS of the mesh, with a server that may serve the destination.
    Mesh {
        /// And proves one of these; none: that is enough.
        names: Option<&'a BTreeSet<String>>,
    },
    /// TLS to the server itself.
    Originate(&'a Origination),
    /// Not at all, and why.
    Refused(&'static str),
}

impl<'a> Way<'a> {
    /// To a workload whose port has this mode.
    pub fn to_workload(tls: Option<&'a ClientTls>, mode: Mode) -> Self {
        match (tls, mode) {
            (None, Mode::Disable) | (Some(ClientTls::Disable), Mode::Disable | Mode::Permissive) => {
                Self::Plaintext
            }
            // Its side would reset it; so not a byte is sent.
            (Some(ClientTls::Disable), Mode::Strict) => {
                Self::Refused("a DestinationRule says DISABLE, and the destination is STRICT")
            }
            (None, Mode::Permissive | Mode::Strict) => Self::Mesh { names: None },
            (Some(ClientTls::IstioMutual { names }), _) => Self::Mesh { names: names.as_ref() },
            (Some(ClientTls::Originate(origination)), _) => Self::Originate(origination),
        }
    }

    /// To a server outside the mesh.
    pub fn to_outside(tls: Option<&'a ClientTls>) -> Self {
        match tls {
            None | Some(ClientTls::Disable) => Self::Plaintext,
            Some(ClientTls::IstioMutual { .. }) => Self::Refused(
                "a DestinationRule says ISTIO_MUTUAL, and nobody outside the mesh has an identity of it",
            ),
            Some(ClientTls::Originate(origination)) => Self::Originate(origination),
        }
    }
}

/// Those of `identities` that are among a rule's names.
pub fn narrowed(identities: &BTreeSet<SpiffeId>, names: &BTreeSet<String>) -> BTreeSet<SpiffeId> {
    identities.iter().filter(|identity| names.contains(&identity.to_string())).cloned().collect()
}
