//! Proof by doing, at start: the hooks fire, addresses read back right, an empty slot refuses.

/// One thing the canary tried.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Capability {
    /// Its name, stable for scripts.
    pub name: &'static str,
    /// Whether it was seen to work.
    pub proven: bool,
    /// What was seen.
    pub detail: String,
}
