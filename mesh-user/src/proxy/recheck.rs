//! Live connections are decided again when policy, trust or the world changes; what is no longer allowed is
//! reset at once. What stops being a workload of the mesh keeps the connections that it has: nothing is decided for it any
//! more, but who is trusted. A certificate that has merely expired since its handshake ends no connection, and neither does a wall
//! clock that is set: both are judged at the time of the handshake.

use std::sync::Arc;

use super::{Live, Mesh, Requests, View, destination, kernel_path, relay::CloseReason};
use crate::{
    policy::{DenyReason, L4Request, Mode, Verdict, WorkloadPolicy},
    telemetry::Direction,
    world::Workload,
};

/// Decides all live connections again; returns how many were closed.
pub fn recheck(mesh: &Mesh) -> usize {
    let view = mesh.view();
    let mut closed = 0;
    for live in mesh.connections.list() {
        if let Some(reason) = no_longer_allowed(mesh, &view, &live) {
            live.stats.close(reason);
            closed += 1;
        }
    }
    closed + kernel_path::recheck(mesh, &view)
}

/// Decides those on the kernel path once more: one may have been about to be recorded at the first time.
pub fn recheck_kernel_path(mesh: &Mesh) -> usize {
    kernel_path::recheck(mesh, &mesh.view())
}

/// Decides a connection that has just entered the table: what changed since its verdict counts.
pub(super) fn recheck_one(mesh: &Mesh, live: &Arc<Live>) {
    let view = mesh.view();
    if let Some(reason) = no_longer_allowed(mesh, &view, live) {
        live.stats.close(reason);
    }
}

fn no_longer_allowed(mesh: &Mesh, view: &View, live: &Live) -> Option<CloseReason> {
    if let Some((peer, role)) = &live.peer
        && let Err(cause) = mesh.tls.verifier().verify_live(peer, *role)
    {
        return Some(CloseReason::Trust(cause));
    }
    let world = view.world();
    let workload = world.by_name(&live.workload.namespace, &live.workload.name)?;
    match live.record.direction {
        Direction::Inbound => inbound_denied(view, workload, live),
        Direction::Outbound => destination::denied(view, workload, live),
    }
}

fn inbound_denied(view: &View, workload: &Workload, live: &Live) -> Option<CloseReason> {
    let policy = view.snapshot.policies.for_workload(workload.id);
    let port = live.record.destination.address.port();
    let allowed_by = match &live.requests {
        Requests::Inspected if live.peer.is_none() && policy.mode(port) == Mode::Strict => {
            return Some(CloseReason::Policy(DenyReason::StrictPlaintext.to_string()));
        }
        // Each of its requests is decided anew, but in a tunnel none is seen.
        Requests::Inspected => {
            let normalization = view.snapshot.config.path_normalization.normalization.into();
            return live.tunnel_denied(policy, normalization).map(CloseReason::Policy);
        }
        Requests::Uninspected if policy.inspects_requests(port) => {
            return Some(CloseReason::Policy("its requests have to be read from now on".to_owned()));
        }
        Requests::Uninspected => &[][..],
        Requests::None { allowed_by } => allowed_by,
    };
    if let Some(reason) = not_asked(policy, &live.request(), allowed_by) {
        return Some(CloseReason::Policy(reason.to_string()));
    }
    match policy.decide_authorized(&live.request(), None) {
        Verdict::Allow { .. } => None,
        Verdict::Deny { reason } => Some(CloseReason::Policy(reason.to_string())),
    }
}

/// An external authorizer is asked once, when the connection begins, as Envoy asks it. One that would have to be asked
/// now and was not has not allowed the connection: its client may come again.
fn not_asked(
    policy: &WorkloadPolicy,
    request: &L4Request<'_>,
    allowed_by: &[Arc<str>],
) -> Option<DenyReason> {
    let mut asked = None;
    while let Some((provider, rule)) = policy.authorizer_after(asked.as_deref(), request, None) {
        if !allowed_by.contains(&provider) {
            return Some(DenyReason::CustomUnavailable(rule));
        }
        asked = Some(provider);
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{config::Config, policy::CompiledPolicies, policy::PolicySet, world::World};

    #[test]
    fn a_connection_stays_while_whom_it_needs_has_allowed_it() {
        let node = "node: n\nworkloads:\n- {name: a, namespace: shop, selector: {netns: /n}, addresses: [10.0.0.1]}\n";
        let world = World::build(&Config::parse(node, "n.yaml").unwrap()).unwrap();
        let custom = |name: &str, provider: &str, port: u16| {
            format!(
                "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: {name}, namespace: shop}}\nspec: {{action: CUSTOM, provider: {{name: {provider}}}, rules: [{{to: [{{operation: {{ports: ['{port}']}}}}]}}]}}\n"
            )
        };
        let request = L4Request {
            peer: None,
            src: "10.0.0.2:1".parse().unwrap(),
            dst: "10.0.0.1:80".parse().unwrap(),
            sni: None,
        };
        for (policies, allowed_by, stays) in [
            (custom("a", "one", 80), &["one"][..], true),
            (custom("a", "one", 80), &[], false),
            (custom("a", "one", 81), &[], true),
            (custom("a", "one", 80) + &custom("b", "two", 80), &["one"], false),
            (custom("a", "one", 80) + &custom("b", "two", 80), &["one", "two"], true),
        ] {
            let set = PolicySet::parse([("p.yaml", policies.as_str())]).unwrap();
            let compiled = CompiledPolicies::compile(&world, &set);
            let policy = compiled.for_workload(world.workloads()[0].id);
            let allowed_by: Vec<Arc<str>> = allowed_by.iter().map(|name| Arc::from(*name)).collect();
            assert_eq!(
                not_asked(policy, &request, &allowed_by).is_none(),
                stays,
                "{policies} {allowed_by:?}"
            );
        }
    }
}
