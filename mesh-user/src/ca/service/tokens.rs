//! Who may have JWT-SVIDs: those who may have the certificate of the same identity, by the same proofs and at the same rates.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use tonic::{Status, metadata::MetadataMap};

use super::{Service, Visit};
use crate::{ca::jwt_svid::MayMint, identity::SpiffeId};

/// The service as it decides about tokens.
pub(super) struct Tokens(pub(super) Arc<Service>);

impl MayMint for Tokens {
    fn may_mint<'a>(
        &'a self,
        caller: &'a MetadataMap,
        connection: &'a tonic::Extensions,
        id: &'a SpiffeId,
    ) -> BoxFuture<'a, Result<(), Status>> {
        Box::pin(async move {
            let mut visit = Visit::begin(&self.0, "Mint", connection);
            let granted = match visit.authenticate(caller).await {
                Ok(caller) => visit.grant(&caller, Some(&id.to_string())).await,
                Err(refusal) => Err(refusal),
            };
            match granted {
                Ok(_) => {
                    visit.accepted().await;
                    Ok(())
                }
                Err(refusal) => Err(visit.refused(&refusal)),
            }
        })
    }
}
