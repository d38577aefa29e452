//! `meshd.ca.v1.Join`: a one-time token and a CSR become a node's own certificate.

use std::{sync::Arc, time::SystemTime};

use tonic::{Request, Response, Status};

use super::{
    Service, Visit,
    certificates::{chain, sign},
};
use crate::{
    ca::{
        callers::{Proof, Refusal},
        csr::Csr,
        proto::meshd::{RedeemRequest, RedeemResponse, join_server::Join},
        signing::SignedSvid,
    },
    identity::SpiffeId,
};

/// Answers.
pub(super) struct NodesJoin(pub(super) Arc<Service>);

#[tonic::async_trait]
impl Join for NodesJoin {
    async fn redeem(&self, request: Request<RedeemRequest>) -> Result<Response<RedeemResponse>, Status> {
        let visit = Visit::begin(&self.0, "Redeem", request.extensions());
        let service = Arc::clone(&self.0);
        // A token that was spent is spent: what it bought is recorded whoever still waits for it.
        let answering = tokio::spawn(async move { answer(&service, visit, request.into_inner()).await });
        let cert_chain =
            answering.await.map_err(|_| Status::internal("it failed; the service's log says why"))??;
        Ok(Response::new(RedeemResponse { cert_chain }))
    }
}

async fn answer(
    service: &Arc<Service>,
    mut visit: Visit,
    request: RedeemRequest,
) -> Result<Vec<String>, Status> {
    match redeem(service, &mut visit, request).await {
        Ok((id, svid)) => {
            visit.issued(&id, &svid).await;
            Ok(chain(&svid))
        }
        Err(refusal) => Err(visit.refused(&refusal)),
    }
}

async fn redeem(
    service: &Service,
    visit: &mut Visit,
    request: RedeemRequest,
) -> Result<(SpiffeId, SignedSvid), Refusal> {
    // First, so that a mistake in it does not cost the token.
    let csr = Csr::from_pem(&request.csr)?;
    let node = service.join_tokens.redeem(&request.token, SystemTime::now()).await?;
    let caller = service.callers.node_agent(&node, Proof::JoinToken)?;
    visit.known(&caller);
    let svid = sign(service, &caller, &caller.identity, csr, None).await?;
    Ok((caller.identity, svid))
}
