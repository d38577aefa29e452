//! What a part of meshd asks of the Kubernetes API server, written beside the code that asks. A test holds the roles under
//! `deploy/kubernetes` to these lists, in both directions.

/// Verbs on one resource.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Access {
    /// The API group; empty for the core.
    pub group: &'static str,
    /// The resource, with its subresource: `pods`, `peerauthentications/status`.
    pub resource: &'static str,
    /// What is done.
    pub verbs: &'static [&'static str],
    /// The only object that it is done to; none: any. `create` knows no name.
    pub name: Option<&'static str>,
}

impl Access {
    /// To any object.
    pub const fn new(group: &'static str, resource: &'static str, verbs: &'static [&'static str]) -> Self {
        Self { group, resource, verbs, name: None }
    }

    /// To the object of this name alone.
    #[must_use]
    pub const fn named(self, name: &'static str) -> Self {
        Self { name: Some(name), ..self }
    }
}
