//! Which workloads a caller is: what the kernel says of its process, held against the selectors of this node's workloads.
//! A caller in a workload's own network namespace is that workload; one in the node's namespace is those whose cgroup or
//! user it has, as for capture.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use nix::unistd::User;
use tokio::sync::watch;

use crate::{
    config::Selector,
    identity::SpiffeId,
    sys::{
        cgroup,
        peer::{FileId, Peer, Process},
    },
    world::World,
};

/// Finds out who callers are, by the world in force.
pub(super) struct Attestor {
    world: watch::Receiver<Arc<World>>,
    host: Host,
}

/// What is the node's own.
struct Host {
    /// Its network namespace.
    netns: FileId,
    /// Where systemd's units have their cgroups.
    cgroup_root: PathBuf,
}

/// Whose share of the server a connection is of: a network namespace, or in the node's own a user.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Share {
    Netns(FileId),
    User(u32),
}

/// The process as selectors see it.
struct Seen {
    netns: FileId,
    /// The deepest first.
    cgroups: Vec<FileId>,
    /// None: it runs for a user with the rights of another one.
    user: Option<u32>,
}

/// How closely a selector names a caller; the smallest is the most specific.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    Netns,
    /// Levels above the caller's own.
    Cgroup(usize),
    User,
}

impl Attestor {
    /// For callers of this process's node.
    pub(super) fn new(world: watch::Receiver<Arc<World>>, cgroup_root: PathBuf) -> io::Result<Self> {
        let netns = FileId::of(Path::new("/proc/self/ns/net"))?;
        Ok(Self { world, host: Host { netns, cgroup_root } })
    }

    /// Tells when the world has changed.
    pub(super) fn world(&self) -> watch::Receiver<Arc<World>> {
        self.world.clone()
    }

    /// Whose share of the server a new connection is of.
    pub(super) fn share(&self, peer: &Peer) -> io::Result<Share> {
        let netns = peer.look()?.netns;
        Ok(if netns == self.host.netns { Share::User(peer.uid()) } else { Share::Netns(netns) })
    }

    /// The caller's identities now, the most specific first. Empty: it is no workload.
    ///
    /// # Errors
    /// When its process has ended or cannot be looked at.
    pub(super) fn identities(&self, peer: &Peer) -> io::Result<Vec<SpiffeId>> {
        let seen = Seen::of(&peer.look()?, peer.uid())?;
        let world = Arc::clone(&self.world.borrow());
        Ok(identities(&world, &seen, &self.host))
    }
}

impl Seen {
    fn of(process: &Process, connected_as: u32) -> io::Result<Self> {
        let cgroups = match &process.cgroup {
            Some(path) => cgroup::lineage(path)?,
            None => Vec::new(),
        };
        let (real, effective) = process.users;
        let user = (real == effective && real == connected_as).then_some(real);
        Ok(Self { netns: process.netns, cgroups, user })
    }
}

fn identities(world: &World, seen: &Seen, host: &Host) -> Vec<SpiffeId> {
    let selected = world.local_workloads().filter_map(|workload| {
        let local = workload.local.as_ref()?;
        Some((rank(&local.selector, seen, host)?, &workload.spiffe_id))
    });
    let mut found: Vec<_> = selected.collect();
    // Among equals in the file's order.
    found.sort_by_key(|(rank, _)| *rank);
    let mut ids: Vec<SpiffeId> = Vec::new();
    for (_, id) in found {
        if !ids.contains(id) {
            ids.push(id.clone());
        }
    }
    ids
}

/// None: the selector is about others, or about what is not there.
fn rank(selector: &Selector, seen: &Seen, host: &Host) -> Option<Rank> {
    let in_cgroup = |path: &Path| {
        let selected = FileId::of(path).ok()?;
        seen.cgroups.iter().position(|own| *own == selected).map(Rank::Cgroup)
    };
    match selector {
        Selector::Netns(path) if seen.netns != host.netns => {
            (FileId::of(path).ok()? == seen.netns).then_some(Rank::Netns)
        }
        Selector::Cgroup(path) if seen.netns == host.netns => in_cgroup(path),
        Selector::Unit(unit) if seen.netns == host.netns => {
            in_cgroup(&cgroup::of_unit(&host.cgroup_root, unit).ok()??)
        }
        Selector::User(user) if seen.netns == host.netns => (uid(user)? == seen.user?).then_some(Rank::User),
        _ => None,
    }
}

fn uid(user: &str) -> Option<u32> {
    user.parse().ok().or_else(|| Some(User::from_name(user).ok()??.uid.as_raw()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    /// Files stand for namespaces and cgroups: both are told apart by device and inode.
    struct Places(tempfile::TempDir);

    impl Places {
        fn new() -> Self {
            let places = Self(tempfile::tempdir().unwrap());
            for name in ["host", "pod", "other", "root", "batch", "deep"] {
                std::fs::write(places.0.path().join(name), "").unwrap();
            }
            std::fs::create_dir_all(places.0.path().join("units/system.slice/web.service")).unwrap();
            places
        }

        fn id(&self, name: &str) -> FileId {
            FileId::of(&self.0.path().join(name)).unwrap()
        }

        fn seen(&self, netns: &str, cgroups: &[&str], user: Option<u32>) -> Seen {
            Seen { netns: self.id(netns), cgroups: cgroups.iter().map(|name| self.id(name)).collect(), user }
        }

        fn world(&self) -> World {
            let path = |name: &str| self.0.path().join(name).display().to_string();
            let workloads = [
                ("user", serde_json::json!({ "user": "65534" })),
                ("named", serde_json::json!({ "user": "root" })),
                ("batch", serde_json::json!({ "cgroup": path("batch") })),
                ("deep", serde_json::json!({ "cgroup": path("deep") })),
                ("gone", serde_json::json!({ "cgroup": path("gone") })),
                ("pod", serde_json::json!({ "netns": path("pod") })),
                ("unit", serde_json::json!({ "unit": "web.service" })),
                ("stopped", serde_json::json!({ "unit": "stopped.service" })),
            ];
            let workloads = workloads.map(|(name, selector)| {
                serde_json::json!({ "name": name, "namespace": "shop", "serviceAccount": name, "selector": selector })
            });
            let text = serde_json::json!({ "node": "a", "workloads": workloads }).to_string();
            let config: Config = serde_saphyr::from_str(&text).unwrap();
            World::build(&config).unwrap()
        }

        fn names(&self, seen: &Seen) -> Vec<String> {
            let host = Host { netns: self.id("host"), cgroup_root: self.0.path().join("units") };
            let ids = identities(&self.world(), seen, &host);
            ids.iter().map(|id| id.service_account().unwrap().1.to_owned()).collect()
        }
    }

    #[test]
    fn a_caller_is_every_workload_that_selects_it_and_no_other() {
        let places = Places::new();
        for (netns, cgroups, user, names) in [
            ("pod", &["deep", "batch", "root"][..], Some(65534), &["pod"][..]),
            ("other", &["deep", "batch", "root"], Some(65534), &[]),
            ("host", &["deep", "batch", "root"], Some(65534), &["deep", "batch", "user"]),
            ("host", &["batch", "root"], Some(1), &["batch"]),
            ("host", &["root"], Some(65534), &["user"]),
            ("host", &["root"], Some(0), &["named"]),
            ("host", &["root"], None, &[]),
            ("host", &[], Some(7), &[]),
            ("host", &["units/system.slice/web.service", "root"], Some(1), &["unit"]),
            ("other", &["units/system.slice/web.service"], Some(1), &[]),
        ] {
            assert_eq!(
                places.names(&places.seen(netns, cgroups, user)),
                names,
                "{netns} {cgroups:?} {user:?}"
            );
        }
    }

    #[test]
    fn rights_of_another_user_are_nobodys() {
        let netns = FileId::of(Path::new("/proc/self/ns/net")).unwrap();
        for (users, connected_as, user) in [
            ((7, 7), 7, Some(7)),
            // A program that a user started and that runs with another one's rights, or did when it connected.
            ((7, 8), 8, None),
            ((7, 8), 7, None),
            ((7, 7), 8, None),
        ] {
            let process = Process { netns, cgroup: None, users };
            assert_eq!(Seen::of(&process, connected_as).unwrap().user, user, "{users:?} {connected_as}");
        }
    }

    #[test]
    fn a_cgroup_is_found_with_those_above_it() {
        let Some(own) = std::fs::read_to_string("/proc/self/cgroup").ok().and_then(|text| {
            text.lines().find_map(|line| line.strip_prefix("0::")).map(std::path::PathBuf::from)
        }) else {
            return;
        };
        let Ok(directory) = cgroup::own() else { return };
        let lineage = cgroup::lineage(&own).unwrap();
        assert_eq!(lineage.len(), own.ancestors().count());
        let metadata = directory.dir.metadata().unwrap();
        assert!(
            format!("{:?}", lineage[0]).contains(&std::os::unix::fs::MetadataExt::ino(&metadata).to_string())
        );
        assert_eq!(cgroup::lineage(Path::new("/../outside")).unwrap(), []);
    }
}
