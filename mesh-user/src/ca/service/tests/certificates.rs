//! Certificates by each way of asking.

use std::collections::BTreeSet;

use rcgen::KeyPair;
use tonic::Code;

use super::ground::*;
use crate::{
    ca::proto::{
        istio::istio_certificate_service_client::IstioCertificateServiceClient,
        meshd::{RedeemRequest, join_client::JoinClient},
    },
    identity::{RevocationList, TrustBundles},
    tls::PeerRole,
};

#[tokio::test]
async fn a_pod_gets_its_own_identity_whatever_its_csr_says() {
    let ground = Ground::new().await;
    let mut client = IstioCertificateServiceClient::new(ground.anonymous().await);
    let key = KeyPair::generate().unwrap();
    let wants = ["spiffe://mesh.test/ns/bank/sa/teller", "spiffe://mesh.test/node/n1"];
    let mut request = ask(csr(&key, &wants), Some("web"), None);
    request.get_mut().validity_duration = 3600;
    let answer = client.create_certificate(request).await.unwrap().into_inner();
    let own = Own::new(key, &answer.cert_chain);
    assert_eq!(names(&own.chain[0]), ["URI(spiffe://mesh.test/ns/shop/sa/web)"]);
    assert_eq!(certificates(answer.cert_chain.last().unwrap()), ground.roots());
    let peer =
        ground.service.verifier.verify(&own.chain, PeerRole::Server, None, std::time::SystemTime::now());
    let peer = peer.unwrap();
    let seconds = peer.not_after.duration_since(std::time::SystemTime::now()).unwrap().as_secs();
    assert!((3500..=3600).contains(&seconds), "{seconds}");
    let line = ground.audited(|line| line["outcome"] == "issued").await;
    assert_eq!(line["identity"], "spiffe://mesh.test/ns/shop/sa/web");
    assert_eq!(line["caller"], "system:serviceaccount:shop:web");
    assert_eq!((&line["pod"], &line["node"]), (&"web-1".into(), &"n1".into()));
    assert_eq!(line["authentication"], "kubernetes_token");
    assert_eq!(line["serial"], peer.serial);
    assert!(line["not_after"].is_string() && line["peer"].as_str().unwrap().starts_with("127.0.0.1:"));
}

#[tokio::test]
async fn openssl_believes_what_is_issued() {
    let ground = Ground::new().await;
    let own = obtain(ground.anonymous().await, Some("web"), None).await.unwrap();
    let write = |name: &str, certificates: &[rustls_pki_types::CertificateDer<'_>]| {
        let text: String =
            certificates.iter().map(|der| pem::encode(&pem::Pem::new("CERTIFICATE", der.to_vec()))).collect();
        let path = ground.folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let (leaf, rest, roots) =
        (write("leaf", &own.chain[..1]), write("rest", &own.chain[1..]), write("roots", &ground.roots()));
    let mut openssl = std::process::Command::new("openssl");
    openssl.args(["verify", "-x509_strict", "-purpose", "sslclient", "-CAfile"]).arg(roots);
    if own.chain.len() > 1 {
        openssl.arg("-untrusted").arg(rest);
    }
    let output = openssl.arg(leaf).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[tokio::test]
async fn a_nodes_agent_gets_what_runs_on_its_node_and_nothing_else() {
    let ground = Ground::new().await;
    let (web, teller) = ("spiffe://mesh.test/ns/shop/sa/web", "spiffe://mesh.test/ns/bank/sa/teller");
    let node = ground.join("n1").await;
    assert_eq!(node.uris(), ["URI(spiffe://mesh.test/node/n1)"]);
    let by_certificate = ground.channel(Some(&node)).await.unwrap();
    let agents = [
        (ground.anonymous().await, Some("ztunnel-n1"), "kubernetes_token"),
        (by_certificate, None, "certificate"),
        (ground.local().await, None, "unix_peer"),
    ];
    for (channel, token, authentication) in agents {
        let own = obtain(channel.clone(), token, Some(web)).await.unwrap();
        assert_eq!(own.uris(), [format!("URI({web})")], "{authentication}");
        let issued = |line: &serde_json::Value| {
            line["outcome"] == "issued" && line["authentication"] == authentication && line["identity"] == web
        };
        assert_eq!(ground.audited(issued).await["node"], "n1");
        for asked in [
            teller,
            "spiffe://mesh.test/node/n2",
            "spiffe://mesh.test/ca",
            "spiffe://other.test/ns/shop/sa/web",
        ] {
            let refused = obtain(channel.clone(), token, Some(asked)).await.err().unwrap();
            assert_eq!(refused.code(), Code::PermissionDenied, "{authentication} {asked}");
            let wanted = |line: &serde_json::Value| {
                line["reason"] == "not_allowed"
                    && line["asked"] == asked
                    && line["authentication"] == authentication
            };
            ground.audited(wanted).await;
        }
    }
}

#[tokio::test]
async fn a_certificate_renews_itself_and_nothing_else() {
    let ground = Ground::new().await;
    let node = ground.join("n1").await;
    let again = obtain(ground.channel(Some(&node)).await.unwrap(), None, None).await.unwrap();
    assert_eq!(again.uris(), node.uris());
    let workload = obtain(ground.anonymous().await, Some("web"), None).await.unwrap();
    let channel = ground.channel(Some(&workload)).await.unwrap();
    let renewed = obtain(channel.clone(), None, None).await.unwrap();
    assert_eq!(renewed.uris(), workload.uris());
    let refused = obtain(channel, None, Some("spiffe://mesh.test/ns/shop/sa/other")).await.err().unwrap();
    assert_eq!(refused.code(), Code::PermissionDenied);
}

#[tokio::test]
async fn a_join_token_is_redeemed_once_of_two_at_once_and_a_bad_csr_does_not_cost_it() {
    let ground = Ground::new().await;
    let tokens = ground.service.join_tokens();
    let hour = std::time::Duration::from_secs(3600);
    let (_, token) = tokens.create("n1", hour, std::time::SystemTime::now()).await.unwrap();
    let (_, expired) = tokens.create("n2", hour, std::time::SystemTime::now() - 2 * hour).await.unwrap();
    let channel = ground.anonymous().await;
    let redeem = |token: &str, csr: String| {
        let request = RedeemRequest { token: token.to_owned(), csr };
        let mut client = JoinClient::new(channel.clone());
        async move { client.redeem(request).await.map(drop).map_err(|status| status.code()) }
    };
    assert_eq!(redeem(&token, forged_csr()).await, Err(Code::InvalidArgument));
    let good = || csr(&KeyPair::generate().unwrap(), &[]);
    let both = tokio::join!(redeem(&token, good()), redeem(&token, good()));
    let both = BTreeSet::from([format!("{:?}", both.0), format!("{:?}", both.1)]);
    assert_eq!(both, BTreeSet::from(["Ok(())".to_owned(), "Err(Unauthenticated)".to_owned()]));
    assert_eq!(redeem(&expired, good()).await, Err(Code::Unauthenticated));
    assert_eq!(redeem("meshd-join-guess", good()).await, Err(Code::Unauthenticated));
    for reason in ["no_possession", "replayed_join_token", "expired_join_token", "unknown_join_token"] {
        ground.audited(|line| line["reason"] == reason && line["call"] == "Redeem").await;
    }
    let joined = ground.audited(|line| line["outcome"] == "issued").await;
    assert_eq!((&joined["identity"], &joined["node"]), (&"spiffe://mesh.test/node/n1".into(), &"n1".into()));
    assert!(!ground.audit_text().contains(&**token) && !ground.audit_text().contains(&**expired));
}

#[tokio::test]
async fn a_revoked_certificate_ends_on_its_open_connection_too() {
    let ground = Ground::new().await;
    let node = ground.join("n1").await;
    let channel = ground.channel(Some(&node)).await.unwrap();
    obtain(channel.clone(), None, None).await.unwrap();
    let list = RevocationList::new(crl(&ground, &node).into()).unwrap();
    let trust = ground.service.trust();
    let domain = trust.bundles.roots.keys().next().unwrap().clone();
    ground
        .authority
        .distribute(TrustBundles { revoked: [(domain.clone(), vec![list])].into(), ..trust.bundles.clone() });
    // The service follows in a task of its own.
    while ground.service.believed.load().revoked[&domain].is_empty() {
        tokio::task::yield_now().await;
    }
    let refused = obtain(channel, None, None).await.err().unwrap();
    assert_eq!((refused.code(), refused.message()), (Code::Unauthenticated, "request authenticate failure"));
    let line = ground.audited(|line| line["reason"] == "bad_certificate").await;
    assert!(line["detail"].as_str().unwrap().contains("revo"), "{line}");
    if let Ok(channel) = ground.channel(Some(&node)).await {
        // TLS 1.3: a client learns of its refusal only when it asks.
        obtain(channel, None, None).await.err().unwrap();
    }
    ground.audited(|line| line["reason"] == "handshake").await;
}

/// A list by the CA's own key that names the certificate.
fn crl(ground: &Ground, revoked: &Own) -> Vec<u8> {
    let directory = ground.folder.path().join("ca");
    let key = KeyPair::from_pem(&std::fs::read_to_string(directory.join("ca.key")).unwrap()).unwrap();
    let issuer = rcgen::Issuer::from_ca_cert_der(&ground.roots()[0], key).unwrap();
    let (_, leaf) = x509_parser::parse_x509_certificate(&revoked.chain[0]).unwrap();
    let now = time::OffsetDateTime::now_utc();
    let params = rcgen::CertificateRevocationListParams {
        this_update: now,
        next_update: now + std::time::Duration::from_secs(3600),
        crl_number: 1_u64.into(),
        issuing_distribution_point: None,
        revoked_certs: vec![rcgen::RevokedCertParams {
            serial_number: rcgen::SerialNumber::from_slice(leaf.raw_serial()),
            revocation_time: now,
            reason_code: None,
            invalidity_date: None,
        }],
        key_identifier_method: rcgen::KeyIdMethod::Sha256,
    };
    params.signed_by(&issuer).unwrap().der().to_vec()
}

#[tokio::test]
async fn another_users_process_is_no_agent() {
    use crate::ca::callers::Peer;
    let ground = Ground::new().await;
    let ask = |uid| {
        let peer = Peer::Local { uid, pid: Some(1) };
        let service = std::sync::Arc::clone(&ground.service);
        async move { service.callers.authenticate(&peer, &http::HeaderMap::new()).await }
    };
    assert_eq!(&*ask(0).await.unwrap().identity.to_string(), "spiffe://mesh.test/node/n1");
    // 65534 stands for every user of another user namespace.
    for uid in [12_345, 65_534] {
        assert_eq!(ask(uid).await.unwrap_err().reason(), "unknown_user");
    }
}

#[tokio::test]
async fn the_services_own_certificate_is_renewed_under_its_listener() {
    let ground = Ground::new().await;
    let serial = async || {
        let stream = ground.tls(ground.client_config(None)).await.unwrap();
        let leaf = stream.get_ref().1.peer_certificates().unwrap()[0].clone();
        assert_eq!(names(&leaf), ["URI(spiffe://mesh.test/ca)", "DNS(ca.test)"]);
        x509_parser::parse_x509_certificate(&leaf).unwrap().1.raw_serial().to_vec()
    };
    let first = serial().await;
    assert_eq!(serial().await, first);
    // Trust changes: the issuing key may have.
    ground.authority.distribute(ground.service.trust().bundles.clone());
    let renewed = async {
        while serial().await == first {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(30), renewed).await.unwrap();
}
