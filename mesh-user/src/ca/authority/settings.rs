//! The policy of a CA, as whoever makes its configuration fills it in.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    time::Duration,
};

use crate::{config::KeyKind, identity::TrustDomain};

const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(86_400);

/// What a CA signs, for how long, and how it changes its own keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuthoritySettings {
    /// The folder of its keys and its state.
    pub directory: PathBuf,
    /// The folder of plugged-in files, where that is another one, which may be read-only. None: `directory`.
    pub plugged_in: Option<PathBuf>,
    /// Whose identities it signs.
    pub trust_domain: TrustDomain,
    /// A certificate's life when nobody asks for another.
    pub lifetime: Duration,
    /// No certificate lives longer, whatever is asked for.
    pub max_lifetime: Duration,
    /// Certificates are valid that long before they are issued.
    pub backdate: Duration,
    /// The keys that are certified.
    pub key_kinds: BTreeSet<KeyKind>,
    /// The longest RSA key that is certified; bits.
    pub max_rsa_bits: usize,
    /// Whether its own root signs through an intermediate, which can be revoked and rotated without telling anybody. Has
    /// no say where keys are plugged in.
    pub intermediates: bool,
    /// Life of the roots that it makes.
    pub root_lifetime: Duration,
    /// Life of the intermediates that it makes.
    pub intermediate_lifetime: Duration,
    /// Whether rotations begin by themselves in the last third of an authority's life, and go on when that is safe.
    pub automatic: bool,
    /// How long a new root is in the bundles before it signs, at least: for those who do not acknowledge.
    pub propagation: Duration,
    /// A node that has acknowledged nothing for so long does not hold a rotation up. Nodes acknowledge each new
    /// revocation list, so this is longer than [`Self::list_lifetime`]'s half.
    pub watch_window: Duration,
    /// How wrong the clocks of peers may be: an old authority stays that much longer than what it signed.
    pub clock_skew: Duration,
    /// A revocation list's life; a new one is signed at half of it.
    pub list_lifetime: Duration,
    /// How long a key signs JWT-SVIDs before another one is made by itself.
    pub jwt_key_lifetime: Duration,
    /// How often it is looked whether anything is due, and whether plugged-in files changed.
    pub interval: Duration,
}

impl AuthoritySettings {
    /// A root of its own that signs for a day.
    pub fn new(directory: PathBuf, trust_domain: TrustDomain) -> Self {
        Self {
            directory,
            plugged_in: None,
            trust_domain,
            lifetime: DAY,
            max_lifetime: DAY,
            backdate: Duration::from_secs(60),
            key_kinds: KeyKind::ALL.into(),
            max_rsa_bits: crate::ca::csr::MAX_RSA_BITS,
            intermediates: false,
            root_lifetime: 3650 * DAY,
            intermediate_lifetime: 365 * DAY,
            automatic: true,
            propagation: HOUR,
            watch_window: DAY,
            clock_skew: Duration::from_secs(60),
            list_lifetime: DAY,
            jwt_key_lifetime: 30 * DAY,
            interval: Duration::from_secs(5),
        }
    }

    /// Where certificates and keys are that this CA did not make.
    pub(super) fn material(&self) -> &Path {
        self.plugged_in.as_deref().unwrap_or(&self.directory)
    }
}
