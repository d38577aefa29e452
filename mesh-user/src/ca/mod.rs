//! The embedded certificate authority and SVID renewal. A private key leaves this module only inside an [`crate::identity::Svid`].
