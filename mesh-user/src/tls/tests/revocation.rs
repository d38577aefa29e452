//! What authorities take back is not believed any more: in a new handshake, in one that resumes, and by connections that
//! are decided again.

use rustls_pki_types::CertificateDer;

use super::*;
use crate::{
    identity::{RevocationList, TrustDomain},
    tls::PeerRole,
};

/// The bundles of `ca`'s domain with lists.
fn with_lists(ca: &TestCa, lists: Vec<RevocationList>) -> Arc<TrustBundles> {
    let mut bundles = bundles(&[ca]);
    bundles.revoked.insert(ca.trust_domain.clone(), lists);
    Arc::new(bundles)
}

fn list_of(ca: &TestCa, since: SystemTime, revoked: &[&CertificateDer<'_>]) -> RevocationList {
    let parsed = revoked.iter().map(|der| x509_parser::parse_x509_certificate(der).unwrap().1);
    let parsed: Vec<_> = parsed.collect();
    let serials: Vec<_> = parsed.iter().map(|certificate| certificate.raw_serial()).collect();
    RevocationList::new(ca.revocation_list(since, &serials).der().clone()).unwrap()
}

fn list(ca: &TestCa, revoked: &[&CertificateDer<'_>]) -> RevocationList {
    list_of(ca, SystemTime::now(), revoked)
}

#[tokio::test]
async fn a_revoked_leaf_is_refused_at_both_ends_and_others_are_not() {
    let ca = TestCa::new("cluster.local");
    let nodes = Nodes::of(&ca);
    let (client, server) = (&nodes.client_svid.chain[0], &nodes.server_svid.chain[0]);
    let stranger = ca.svid(WEB);
    nodes.server_bundles.store(with_lists(&ca, vec![list(&ca, &[&stranger.chain[0], server])]));
    nodes.client_bundles.store(with_lists(&ca, vec![list(&ca, &[client])]));
    nodes.established().await;
    nodes.server_bundles.store(with_lists(&ca, vec![list(&ca, &[client])]));
    assert_eq!(nodes.handshake().await.1.unwrap_err().label(), "revoked");
    nodes.server_bundles.store(with_lists(&ca, Vec::new()));
    nodes.client_bundles.store(with_lists(&ca, vec![list(&ca, &[server])]));
    assert_eq!(nodes.handshake().await.0.unwrap_err().label(), "revoked");
}

#[tokio::test]
async fn of_an_authoritys_several_lists_all_count() {
    let ca = TestCa::new("cluster.local");
    let nodes = Nodes::of(&ca);
    let (client, stranger) = (&nodes.client_svid.chain[0], ca.svid(WEB));
    let (about, other) = (list(&ca, &[client]), list(&ca, &[&stranger.chain[0]]));
    for lists in [vec![about.clone(), other.clone()], vec![other.clone(), about], vec![other.clone(), other]]
    {
        let refused = lists[0] != lists[1];
        nodes.server_bundles.store(with_lists(&ca, lists));
        assert_eq!(nodes.handshake().await.1.is_err(), refused);
    }
}

#[tokio::test]
async fn a_session_is_not_resumed_once_its_certificate_is_revoked() {
    let ca = TestCa::new("cluster.local");
    let nodes = Nodes::of(&ca);
    let (mut client, mut server) = nodes.established().await;
    confirm(&mut client, &mut server).await;
    nodes.server_bundles.store(with_lists(&ca, vec![list(&ca, &[&nodes.client_svid.chain[0]])]));
    assert_eq!(nodes.handshake().await.1.unwrap_err().label(), "revoked");
    let again = nodes.server.verifier().verify_again(
        server.peer().unwrap(),
        PeerRole::Client,
        None,
        SystemTime::now(),
    );
    assert_eq!(again.unwrap_err().label(), "revoked", "a live connection");
}

#[test]
fn a_revoked_authority_takes_all_that_it_signed_with_it() {
    let root = TestCa::new("cluster.local");
    let (good, bad) = (root.below(|_| {}), root.below(|_| {}));
    let (good, bad) = (good.svid(WEB), bad.svid(WEB));
    let verifier = |bundles: Arc<TrustBundles>| {
        let settings = TlsSettings::new("cluster.local".parse().unwrap());
        TlsContext::with_provider(settings, Arc::new(ArcSwap::new(bundles)), provider())
    };
    let tls = verifier(with_lists(&root, vec![list(&root, &[&bad.chain[1]])]));
    let verify = |svid: &Svid| tls.verifier().verify(&svid.chain, PeerRole::Client, None, SystemTime::now());
    verify(&good).unwrap();
    assert_eq!(verify(&bad).unwrap_err().label(), "revoked");
}

#[test]
fn a_list_counts_beyond_its_time_and_only_in_its_own_domain() {
    let (ca, other) = (TestCa::new("cluster.local"), TestCa::new("other.example"));
    let svid = ca.svid(WEB);
    let month = Duration::from_secs(30 * 86_400);
    let old = list_of(&ca, SystemTime::now() - month, &[&svid.chain[0]]);
    let forged = list(&TestCa::new("cluster.local"), &[]);
    let domains: [(TrustDomain, RevocationList, Option<&str>); 4] = [
        (ca.trust_domain.clone(), old.clone(), Some("revoked")),
        (other.trust_domain.clone(), old, None),
        // In the root's name, by another key: nothing that it says can be told.
        (ca.trust_domain.clone(), forged.clone(), Some("revoked")),
        (other.trust_domain.clone(), forged, None),
    ];
    for (domain, list, expected) in domains {
        let mut bundles = bundles(&[&ca, &other]);
        bundles.revoked.insert(domain.clone(), vec![list]);
        let settings = TlsSettings::new("cluster.local".parse().unwrap());
        let tls = TlsContext::with_provider(settings, shared(bundles), provider());
        let outcome = tls.verifier().verify(&svid.chain, PeerRole::Client, None, SystemTime::now());
        assert_eq!(outcome.as_ref().err().map(VerifyError::label), expected, "{domain}");
    }
}

/// Time goes on, trust may not: what has ended since the handshake stays, what is trusted no more goes.
#[test]
fn a_live_peer_is_judged_at_its_handshake_by_the_trust_of_the_moment() {
    let (ca, stranger) = (TestCa::new("cluster.local"), TestCa::new("cluster.local"));
    let believed = shared(bundles(&[&ca]));
    let domain = TrustDomain::cluster_local();
    let algorithms = provider().signature_verification_algorithms;
    let verifier = PeerVerifier::new(domain, Vec::new(), Duration::ZERO, Arc::clone(&believed), algorithms);
    let ago = |seconds| SystemTime::now() - Duration::from_secs(seconds);
    let leaf = Leaf { not_before: ago(600), not_after: ago(60), ..Leaf::of(WEB) };
    let svid = ca.issue(&leaf);
    let peer = verifier.verify(&svid.chain, PeerRole::Client, None, ago(300)).unwrap();
    let label = |verdict: Result<(), VerifyError>| verdict.map_or_else(|error| error.label(), |()| "ok");
    let now = verifier.verify_again(&peer, PeerRole::Client, None, SystemTime::now());
    assert_eq!((label(now), label(verifier.verify_live(&peer, PeerRole::Client))), ("expired", "ok"));
    // A resumed session is judged by its own time.
    let resumed = verifier.verify(&svid.chain, PeerRole::Client, None, ago(120)).unwrap();
    assert!(resumed.proven_at > peer.proven_at);
    believed.store(Arc::new(bundles(&[&stranger])));
    assert_eq!(label(verifier.verify_live(&peer, PeerRole::Client)), "unknown_authority");
    let mut revoked = bundles(&[&ca]);
    revoked.revoked.insert(TrustDomain::cluster_local(), vec![list(&ca, &[&svid.chain[0]])]);
    believed.store(Arc::new(revoked));
    assert_eq!(label(verifier.verify_live(&peer, PeerRole::Client)), "revoked");
}
