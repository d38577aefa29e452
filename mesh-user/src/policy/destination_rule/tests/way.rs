//! What a rule and the destination's peer authentication make of each other.

use super::documents::EVERYTHING;
use crate::{
    identity::SpiffeId,
    policy::{
        Mode::{Disable, Permissive, Strict},
        PolicySet,
        destination_rule::{ClientTls, Way, narrowed},
    },
};

#[test]
fn a_rule_and_peer_authentication_make_one_way() {
    let set = PolicySet::parse([("p.yaml", EVERYTHING)]).unwrap();
    let policy = set.destination_rules[0].policy.clone().unwrap();
    let (originate, mutual) = (policy.of_port(1).unwrap(), policy.of_port(80).unwrap());
    let kind = |way: Way<'_>| match way {
        Way::Plaintext => "plaintext",
        Way::Mesh { names: None } => "mesh",
        Way::Mesh { names: Some(_) } => "named",
        Way::Originate(_) => "originate",
        Way::Refused(_) => "refused",
    };
    for (tls, modes, outside) in [
        (None, [(Disable, "plaintext"), (Permissive, "mesh"), (Strict, "mesh")], "plaintext"),
        (
            Some(&ClientTls::Disable),
            [(Disable, "plaintext"), (Permissive, "plaintext"), (Strict, "refused")],
            "plaintext",
        ),
        (Some(mutual), [(Disable, "named"), (Permissive, "named"), (Strict, "named")], "refused"),
        (
            Some(originate),
            [(Disable, "originate"), (Permissive, "originate"), (Strict, "originate")],
            "originate",
        ),
    ] {
        for (mode, expected) in modes {
            assert_eq!(kind(Way::to_workload(tls, mode)), expected, "{tls:?} {mode:?}");
        }
        assert_eq!(kind(Way::to_outside(tls)), outside, "{tls:?}");
    }
}

#[test]
fn names_narrow_who_may_serve_and_never_widen_it() {
    let id = |text: &str| text.parse::<SpiffeId>().unwrap();
    let identities = [id("spiffe://td1/ns/a/sa/x"), id("spiffe://td2/ns/a/sa/x")].into();
    let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    for (given, expected) in [
        (&["spiffe://td1/ns/a/sa/x", "spiffe://td1/ns/a/sa/y"][..], 1),
        (&["spiffe://td1/ns/a/sa/y"][..], 0),
        (&["x.a.svc.cluster.local"][..], 0),
        (&["spiffe://td1/ns/a/sa/x", "spiffe://td2/ns/a/sa/x"][..], 2),
    ] {
        assert_eq!(narrowed(&identities, &names(given)).len(), expected, "{given:?}");
    }
}
