//! `istio.v1.auth.IstioCertificateService`: a certificate for the caller, or for a workload on the node whose agent it is.
//! What the CSR asks to be is not looked at.

use std::{sync::Arc, time::Duration};

use prost_types::{Struct, value::Kind};
use rustls_pki_types::CertificateDer;
use tonic::{Request, Response, Status};

use super::{Service, Visit};
use crate::{
    ca::{
        callers::{Caller, Refusal},
        csr::Csr,
        proto::istio::{
            IstioCertificateRequest, IstioCertificateResponse,
            istio_certificate_service_server::IstioCertificateService,
        },
        signing::{SignedSvid, SigningRequest},
    },
    identity::SpiffeId,
};

/// The metadata field in which a node's agent names a workload (istio `pkg/security/security.go`).
const IMPERSONATED: &str = "ImpersonatedIdentity";

/// Answers.
pub(super) struct Certificates(pub(super) Arc<Service>);

#[tonic::async_trait]
impl IstioCertificateService for Certificates {
    async fn create_certificate(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        let visit = Visit::begin(&self.0, "CreateCertificate", request.extensions());
        let service = Arc::clone(&self.0);
        // A caller that goes away in the middle does not take along the line of what was signed.
        let answering = tokio::spawn(async move { answer(&service, visit, request).await });
        let cert_chain =
            answering.await.map_err(|_| Status::internal("it failed; the service's log says why"))??;
        Ok(Response::new(IstioCertificateResponse { cert_chain }))
    }
}

async fn answer(
    service: &Arc<Service>,
    mut visit: Visit,
    request: Request<IstioCertificateRequest>,
) -> Result<Vec<String>, Status> {
    match decide(service, &mut visit, request).await {
        Ok((id, svid)) => {
            visit.issued(&id, &svid).await;
            Ok(chain(&svid))
        }
        Err(refusal) => Err(visit.refused(&refusal)),
    }
}

async fn decide(
    service: &Service,
    visit: &mut Visit,
    request: Request<IstioCertificateRequest>,
) -> Result<(SpiffeId, SignedSvid), Refusal> {
    let caller = visit.authenticate(request.metadata()).await?;
    let request = request.into_inner();
    let asked = impersonated(request.metadata.as_ref())?;
    let id = visit.grant(&caller, asked).await?;
    let csr = Csr::from_pem(&request.csr)?;
    // As istiod: what is no time that can be meant is the default.
    let lifetime = u64::try_from(request.validity_duration).ok().filter(|s| *s > 0).map(Duration::from_secs);
    let svid = sign(service, &caller, &id, csr, lifetime).await?;
    Ok((id, svid))
}

/// Has it signed for `caller`.
pub(super) async fn sign(
    service: &Service,
    caller: &Caller,
    id: &SpiffeId,
    csr: Csr,
    lifetime: Option<Duration>,
) -> Result<SignedSvid, Refusal> {
    let (caller, node) = (Arc::clone(&caller.name), caller.node.clone());
    let request = SigningRequest { id: id.clone(), csr, lifetime, caller, node };
    Ok(service.authority.sign(request).await?)
}

/// The workload that a node's agent asks for. An empty name is none, as in istiod.
fn impersonated(metadata: Option<&Struct>) -> Result<Option<&str>, Refusal> {
    let Some(value) = metadata.and_then(|metadata| metadata.fields.get(IMPERSONATED)) else {
        return Ok(None);
    };
    match &value.kind {
        Some(Kind::StringValue(id)) if id.is_empty() => Ok(None),
        Some(Kind::StringValue(id)) => Ok(Some(id)),
        _ => Err(Refusal::BadRequest(format!("metadata.{IMPERSONATED} is no string"))),
    }
}

/// PEM as istiod gives it: the leaf, each intermediate, and last all roots in one text, since Istio's agent takes the last
/// entry alone for the roots.
pub(super) fn chain(svid: &SignedSvid) -> Vec<String> {
    let mut texts: Vec<_> = svid.chain.iter().map(certificate).collect();
    texts.push(svid.roots.iter().map(certificate).collect());
    texts
}

fn certificate(der: &CertificateDer<'_>) -> String {
    let config = pem::EncodeConfig::new().set_line_ending(pem::LineEnding::LF);
    pem::encode_config(&pem::Pem::new("CERTIFICATE", der.to_vec()), config)
}
