//! Sets of ports, as rules say them: some, or all but some. Used to know at which ports a policy needs to see
//! HTTP, so that no other port's connections wait to be looked into.

use std::collections::BTreeSet;

/// Which ports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum PortSet {
    Only(BTreeSet<u16>),
    AllBut(BTreeSet<u16>),
}

impl Default for PortSet {
    /// None.
    fn default() -> Self {
        Self::Only(BTreeSet::new())
    }
}

impl PortSet {
    pub(super) fn all() -> Self {
        Self::AllBut(BTreeSet::new())
    }

    pub(super) fn contains(&self, port: u16) -> bool {
        match self {
            Self::Only(ports) => ports.contains(&port),
            Self::AllBut(ports) => !ports.contains(&port),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        matches!(self, Self::Only(ports) if ports.is_empty())
    }

    fn complement(self) -> Self {
        match self {
            Self::Only(ports) => Self::AllBut(ports),
            Self::AllBut(ports) => Self::Only(ports),
        }
    }

    #[must_use]
    pub(super) fn intersection(self, other: Self) -> Self {
        match (self, other) {
            (Self::Only(mut few), other) | (other, Self::Only(mut few)) => {
                few.retain(|port| other.contains(*port));
                Self::Only(few)
            }
            (Self::AllBut(mut some), Self::AllBut(more)) => {
                some.extend(more);
                Self::AllBut(some)
            }
        }
    }

    #[must_use]
    pub(super) fn union(self, other: Self) -> Self {
        self.complement().intersection(other.complement()).complement()
    }
}

#[cfg(test)]
mod tests {
    use super::PortSet;

    #[test]
    fn sets_are_what_their_members_say() {
        let only = |ports: &[u16]| PortSet::Only(ports.iter().copied().collect());
        let all_but = |ports: &[u16]| PortSet::AllBut(ports.iter().copied().collect());
        let sets = [only(&[]), only(&[1]), only(&[1, 2]), all_but(&[]), all_but(&[2]), all_but(&[1, 3])];
        for (a, b) in sets.iter().flat_map(|a| sets.iter().map(move |b| (a, b))) {
            let (both, either) = (a.clone().intersection(b.clone()), a.clone().union(b.clone()));
            for port in 1..5 {
                assert_eq!(both.contains(port), a.contains(port) && b.contains(port), "{a:?} {b:?} {port}");
                assert_eq!(either.contains(port), a.contains(port) || b.contains(port), "{a:?} {b:?} {port}");
            }
        }
    }
}
