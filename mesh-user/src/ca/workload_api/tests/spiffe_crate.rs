//! The `spiffe` crate, which programs in Rust use, as the client of our server.

use ::spiffe::{JwtSvid, WorkloadApiClient, X509Source};

use super::*;

#[tokio::test]
async fn the_spiffe_crate_has_and_believes_what_it_asks_for() {
    let given = given(WorkloadApiLimits::default());
    let client = WorkloadApiClient::connect_to(given.address()).await.unwrap();
    let svid = client.fetch_x509_svid().await.unwrap();
    assert_eq!(svid.spiffe_id().to_string(), WEB);
    let bundles = client.fetch_x509_bundles().await.unwrap();
    let (domain, bundle) = bundles.iter().next().unwrap();
    let authorities: Vec<_> = bundle.authorities().iter().map(|root| root.as_bytes().to_vec()).collect();
    let roots: Vec<_> = given.trust.borrow().roots.values().flatten().map(|root| root.to_vec()).collect();
    assert_eq!((domain.to_string().as_str(), authorities), ("cluster.local", roots));

    let token = client.fetch_jwt_svid(["bank"], None).await.unwrap();
    assert_eq!(token.spiffe_id().to_string(), WEB);
    let keys = client.fetch_jwt_bundles().await.unwrap();
    JwtSvid::parse_and_validate(token.token(), &keys, &["bank"]).unwrap();
    JwtSvid::parse_and_validate(token.token(), &keys, &["shop"]).unwrap_err();
    let told = client.validate_jwt_token("bank", token.token()).await.unwrap();
    assert_eq!(told.spiffe_id().to_string(), WEB);
    client.validate_jwt_token("shop", token.token()).await.unwrap_err();
}

#[tokio::test]
async fn a_source_of_the_spiffe_crate_follows_renewals() {
    let given = given(WorkloadApiLimits::default());
    let source = X509Source::builder().endpoint(given.address()).build().await.unwrap();
    let mut updates = source.updated();
    let before = source.svid().unwrap().leaf().as_bytes().to_vec();
    given.issuing.pushed.send_modify(|count| *count += 1);
    tokio::time::timeout(Duration::from_secs(30), updates.changed()).await.unwrap().unwrap();
    let svid = source.svid().unwrap();
    assert_eq!(svid.spiffe_id().to_string(), WEB);
    assert_ne!(svid.leaf().as_bytes(), before);
}
