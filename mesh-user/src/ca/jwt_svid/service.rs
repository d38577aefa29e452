//! `meshd.ca.v1.JwtSvid`: JWT-SVIDs for nodes that have no authority of their own. Whether a caller may have a token of an
//! identity is decided by [`MayMint`], as for a certificate; nothing that a caller says is echoed to it.

use std::{
    sync::Arc,
    time::{Duration, UNIX_EPOCH},
};

use futures_util::future::BoxFuture;
use tonic::{
    Request, Response, Status,
    body::Body,
    client::GrpcService,
    codegen::{Body as HttpBody, Bytes, StdError},
    metadata::MetadataMap,
};

use super::{JwtSvid, JwtSvidRequest, MintJwt, check_audiences};
use crate::{
    ca::{
        CaError,
        proto::meshd::{MintRequest, MintResponse, jwt_svid_client::JwtSvidClient, jwt_svid_server},
    },
    identity::SpiffeId,
};

/// Who may have whose token: by the connection's extensions (certificate, addresses) and the request's metadata.
pub trait MayMint: Send + Sync {
    /// Decides.
    ///
    /// # Errors
    /// The status that the caller is told: `UNAUTHENTICATED` or `PERMISSION_DENIED`, or `RESOURCE_EXHAUSTED` where it asks
    /// too often.
    fn may_mint<'a>(
        &'a self,
        caller: &'a MetadataMap,
        connection: &'a tonic::Extensions,
        id: &'a SpiffeId,
    ) -> BoxFuture<'a, Result<(), Status>>;
}

/// The service's side.
pub struct JwtSvidService {
    minter: Arc<dyn MintJwt>,
    callers: Arc<dyn MayMint>,
}

impl JwtSvidService {
    /// Tokens of `minter` for those that `callers` lets have them.
    pub fn new(minter: Arc<dyn MintJwt>, callers: Arc<dyn MayMint>) -> Self {
        Self { minter, callers }
    }
}

#[tonic::async_trait]
impl jwt_svid_server::JwtSvid for JwtSvidService {
    async fn mint(&self, request: Request<MintRequest>) -> Result<Response<MintResponse>, Status> {
        let (metadata, extensions, request) = request.into_parts();
        let id: SpiffeId =
            request.spiffe_id.parse().map_err(|_| Status::invalid_argument("spiffe_id is no SPIFFE ID"))?;
        check_audiences(&request.audiences).map_err(Status::invalid_argument)?;
        self.callers.may_mint(&metadata, &extensions, &id).await?;
        let lifetime = u64::try_from(request.lifetime).ok().filter(|seconds| *seconds > 0);
        let lifetime = lifetime.map(Duration::from_secs);
        let wanted = JwtSvidRequest { id, audiences: request.audiences, lifetime };
        let minted = self.minter.mint(wanted).await.map_err(|error| {
            tracing::warn!(%error, "a JWT-SVID could not be minted");
            Status::unavailable("no JWT-SVID can be minted now")
        })?;
        let expires = minted.expires.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let expires = i64::try_from(expires).unwrap_or(i64::MAX);
        Ok(Response::new(MintResponse { token: minted.token, expires }))
    }
}

/// An agent's side: a channel to the CA, with whatever proves who asks.
#[derive(Debug, Clone)]
pub struct RemoteMinter<T> {
    client: JwtSvidClient<T>,
}

impl<T> RemoteMinter<T>
where
    T: GrpcService<Body> + Clone,
    T::Error: Into<StdError>,
    T::ResponseBody: HttpBody<Data = Bytes> + Send + 'static,
    <T::ResponseBody as HttpBody>::Error: Into<StdError> + Send,
{
    /// Asks by `channel`; an interceptor around it adds credentials.
    pub fn new(channel: T) -> Self {
        Self { client: JwtSvidClient::new(channel).max_decoding_message_size(64 * 1024) }
    }
}

impl<T> MintJwt for RemoteMinter<T>
where
    T: GrpcService<Body> + Clone + Send + Sync + 'static,
    T::Error: Into<StdError>,
    T::Future: Send,
    T::ResponseBody: HttpBody<Data = Bytes> + Send + 'static,
    <T::ResponseBody as HttpBody>::Error: Into<StdError> + Send,
{
    fn mint(&self, request: JwtSvidRequest) -> BoxFuture<'_, Result<JwtSvid, CaError>> {
        let mut client = self.client.clone();
        Box::pin(async move {
            let subject = request.id.to_string();
            let lifetime =
                request.lifetime.map_or(0, |life| i64::try_from(life.as_secs()).unwrap_or(i64::MAX));
            let message = MintRequest { spiffe_id: subject.clone(), audiences: request.audiences, lifetime };
            let answer = client.mint(message).await.map_err(|status| CaError::Sign {
                subject,
                what: format!("the CA refuses a JWT-SVID: {:?}: {}", status.code(), status.message()),
            })?;
            let MintResponse { token, expires } = answer.into_inner();
            let expires = UNIX_EPOCH + Duration::from_secs(u64::try_from(expires).unwrap_or_default());
            Ok(JwtSvid { token, expires })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        ca::proto::meshd::jwt_svid_server::JwtSvidServer, identity::TrustBundles, jwt::verify_jwt_svid,
    };

    struct Only(&'static str);

    impl MayMint for Only {
        fn may_mint<'a>(
            &'a self,
            _: &'a MetadataMap,
            _: &'a tonic::Extensions,
            id: &'a SpiffeId,
        ) -> BoxFuture<'a, Result<(), Status>> {
            let may = id.to_string() == self.0;
            Box::pin(async move { may.then_some(()).ok_or(Status::permission_denied("not yours")) })
        }
    }

    #[tokio::test]
    async fn an_agent_gets_tokens_of_those_it_may_speak_for_and_of_no_other() {
        let folder = tempfile::tempdir().unwrap();
        let authority =
            super::super::JwtAuthority::open(&folder.path().join("ca"), "cluster.local".parse().unwrap())
                .unwrap();
        let jwt_authorities = [("cluster.local".parse().unwrap(), authority.published())].into();
        let bundles = TrustBundles { jwt_authorities, ..TrustBundles::default() };
        let own = "spiffe://cluster.local/ns/shop/sa/web";
        let service = JwtSvidService::new(Arc::new(authority), Arc::new(Only(own)));
        // A server is a client's channel, without a network between them.
        let agent = RemoteMinter::new(JwtSvidServer::new(service));
        let request = |id: &str, audiences: &[&str]| JwtSvidRequest {
            id: id.parse().unwrap(),
            audiences: audiences.iter().map(|&one| one.to_owned()).collect(),
            lifetime: Some(Duration::from_secs(60)),
        };
        let minted = agent.mint(request(own, &["till"])).await.unwrap();
        let expires = minted.expires.duration_since(UNIX_EPOCH).unwrap().as_secs();
        let believed = verify_jwt_svid(&minted.token, "till", &bundles, expires - 60).unwrap();
        assert_eq!(
            (believed.spiffe_id.to_string().as_str(), believed.claims["exp"].as_u64()),
            (own, Some(expires))
        );
        let other = agent.mint(request("spiffe://cluster.local/ns/shop/sa/till", &["till"])).await;
        assert!(other.unwrap_err().to_string().contains("PermissionDenied"));
        let nobody = agent.mint(request(own, &[])).await;
        assert!(nobody.unwrap_err().to_string().contains("at least one audience"));
    }
}
