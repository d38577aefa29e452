//! What the Workload API says, from what is held. Pure.
//!
//! Source: SPIFFE Workload API sections 5 and 6.

use std::collections::HashMap;

use prost_types::{ListValue, Struct, Value as ProtoValue, value::Kind};
use rustls_pki_types::CertificateDer;
use serde_json::{Map, Value};

use super::exportable::ExportableSvid;
use crate::{
    ca::{
        jwt_svid,
        proto::workload::{JwtBundlesResponse, X509BundlesResponse, X509svid, X509svidResponse},
    },
    identity::{TrustBundles, TrustDomain},
};

/// The default identity, the first one, first.
pub(super) fn x509_svids(svids: &[impl AsRef<ExportableSvid>], trust: &TrustBundles) -> X509svidResponse {
    let message = |svid: &ExportableSvid| X509svid {
        spiffe_id: svid.spiffe_id.to_string(),
        x509_svid: concatenated(&svid.chain),
        x509_svid_key: svid.key.to_vec(),
        bundle: trust
            .roots
            .get(svid.spiffe_id.trust_domain())
            .map(|roots| concatenated(roots))
            .unwrap_or_default(),
        hint: String::new(),
    };
    let own =
        |domain: &TrustDomain| svids.iter().any(|svid| svid.as_ref().spiffe_id.trust_domain() == domain);
    let federated = bundles(trust).filter(|(domain, _)| !own(domain));
    X509svidResponse {
        svids: svids.iter().map(|svid| message(svid.as_ref())).collect(),
        crl: revocation_lists(trust),
        federated_bundles: federated.map(|(domain, bundle)| (id(domain), bundle)).collect(),
    }
}

pub(super) fn x509_bundles(trust: &TrustBundles) -> X509BundlesResponse {
    let bundles = bundles(trust).map(|(domain, bundle)| (id(domain), bundle)).collect();
    X509BundlesResponse { crl: revocation_lists(trust), bundles }
}

pub(super) fn jwt_bundles(trust: &TrustBundles) -> JwtBundlesResponse {
    let bundles = trust.jwt_authorities.iter().map(|(domain, keys)| {
        let mut set = jwt_svid::key_set(keys);
        for key in set["keys"].as_array_mut().into_iter().flatten().filter_map(Value::as_object_mut) {
            // A plain JWK set, as SPIRE's: libraries for tokens do not know this use.
            key.shift_remove("use");
        }
        (id(domain), set.to_string().into_bytes())
    });
    JwtBundlesResponse { bundles: bundles.collect::<HashMap<_, _>>() }
}

fn bundles(trust: &TrustBundles) -> impl Iterator<Item = (&TrustDomain, Vec<u8>)> {
    trust.roots.iter().map(|(domain, roots)| (domain, concatenated(roots)))
}

fn revocation_lists(trust: &TrustBundles) -> Vec<Vec<u8>> {
    trust.revoked.values().flatten().map(|list| list.der().to_vec()).collect()
}

/// A trust domain's own SPIFFE ID names it in maps.
fn id(domain: &TrustDomain) -> String {
    format!("spiffe://{domain}")
}

fn concatenated(certificates: &[CertificateDer<'_>]) -> Vec<u8> {
    certificates.iter().flat_map(|certificate| certificate.iter().copied()).collect()
}

/// Claims as protobuf's `Struct` has them, whose numbers are doubles.
pub(super) fn claims(claims: Map<String, Value>) -> Struct {
    Struct { fields: claims.into_iter().map(|(name, claim)| (name, value(claim))).collect() }
}

/// The claims' depth was bounded when the token was read.
fn value(value: Value) -> ProtoValue {
    let kind = match value {
        Value::Null => Kind::NullValue(0),
        Value::Bool(value) => Kind::BoolValue(value),
        Value::Number(number) => Kind::NumberValue(number.as_f64().unwrap_or_default()),
        Value::String(text) => Kind::StringValue(text),
        Value::Array(values) => {
            Kind::ListValue(ListValue { values: values.into_iter().map(self::value).collect() })
        }
        Value::Object(members) => Kind::StructValue(claims(members)),
    };
    ProtoValue { kind: Some(kind) }
}
