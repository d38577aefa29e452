//! One CA as it is called: a connection that is made anew when it is gone or who we are has changed, and what is wrong with
//! it at the moment.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::SystemTime,
};

use arc_swap::ArcSwap;
use tonic::transport::Channel;

use super::{
    RemoteError,
    answer::Answer,
    channel::{Connector, MAX_ANSWER_BYTES},
};
use crate::{
    ca::proto::istio::{
        IstioCertificateRequest, istio_certificate_service_client::IstioCertificateServiceClient,
    },
    identity::{Svid, TrustBundles},
    tls::{PeerVerifier, provider},
};

pub(super) struct Client {
    connector: Arc<Connector>,
    channel: ArcSwap<Channel>,
    /// Judges what the CA answers, as peers will.
    pub(super) verifier: PeerVerifier,
    trouble: Mutex<Option<(SystemTime, String)>>,
}

impl Client {
    /// Must be made within a tokio runtime.
    pub(super) fn new(
        connector: Connector,
        bundles: Arc<ArcSwap<TrustBundles>>,
    ) -> Result<Self, RemoteError> {
        let algorithms = provider().signature_verification_algorithms;
        let (domain, skew) = (connector.trust_domain.clone(), connector.clock_skew);
        let verifier = PeerVerifier::new(domain, Vec::new(), skew, bundles, algorithms);
        let connector = Arc::new(connector);
        let channel = ArcSwap::from_pointee(connector.channel()?);
        Ok(Self { connector, channel, verifier, trouble: Mutex::default() })
    }

    pub(super) fn channel(&self) -> Channel {
        Channel::clone(&self.channel.load())
    }

    pub(super) fn address(&self) -> String {
        self.connector.address.to_string()
    }

    /// The node's own certificate, shown from the next connection on.
    pub(super) fn own(&self) -> Option<Arc<Svid>> {
        Option::clone(&self.connector.own.load())
    }

    pub(super) fn set_own(&self, svid: Arc<Svid>) -> Result<(), RemoteError> {
        self.connector.own.store(Arc::new(Some(svid)));
        self.channel.store(Arc::new(self.connector.channel()?));
        Ok(())
    }

    /// One that has ended would be refused where none is asked for.
    pub(super) fn forget_own(&self) -> Result<(), RemoteError> {
        if self.connector.own.swap(Arc::new(None)).is_some() {
            self.channel.store(Arc::new(self.connector.channel()?));
        }
        Ok(())
    }

    /// `CreateCertificate`.
    pub(super) async fn create(
        &self,
        subject: &str,
        request: tonic::Request<IstioCertificateRequest>,
    ) -> Result<Answer, RemoteError> {
        let mut client =
            IstioCertificateServiceClient::new(self.channel()).max_decoding_message_size(MAX_ANSWER_BYTES);
        let answer = self.told(client.create_certificate(request).await)?;
        Answer::read(subject, &answer.into_inner().cert_chain)
    }

    /// Remembers whether the CA can be reached.
    pub(super) fn told<T>(&self, answer: Result<T, tonic::Status>) -> Result<T, RemoteError> {
        let answer = answer.map_err(|status| RemoteError::of(&self.address(), &status));
        let mut trouble = self.trouble.lock().unwrap_or_else(PoisonError::into_inner);
        match &answer {
            Err(error @ RemoteError::Unreachable { .. }) => {
                let since = trouble.as_ref().map_or_else(SystemTime::now, |(since, _)| *since);
                *trouble = Some((since, error.to_string()));
            }
            _ => *trouble = None,
        }
        answer
    }

    /// What is wrong, and for how long it has been.
    pub(super) fn trouble(&self) -> Option<String> {
        let trouble = self.trouble.lock().unwrap_or_else(PoisonError::into_inner);
        let (since, what) = trouble.as_ref()?;
        Some(format!("{what} (for {} s)", since.elapsed().unwrap_or_default().as_secs()))
    }
}
