//! A certificate authority that a story starts, stops and instructs: `meshd ca`'s protocol over a Unix socket, with lives of
//! seconds. Not meshd's own CA: that has stories of its own.

use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use futures_util::{Stream, stream};
use mesh_user::ca::proto::istio::istio_certificate_service_server::{
    IstioCertificateService, IstioCertificateServiceServer,
};
use mesh_user::ca::proto::istio::{IstioCertificateRequest, IstioCertificateResponse};
use mesh_user::ca::proto::meshd::trust_server::{Trust, TrustServer};
use mesh_user::ca::proto::meshd::{Bundle, TrustState, WatchRequest};
use prost_types::value::Kind;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertificateSigningRequestParams,
    DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams,
    SanType, SerialNumber,
};
use tokio::net::UnixListener;
use tokio::sync::{mpsc, watch};
use tonic::{Request, Response, Status, Streaming};

/// What it signs with, and for how long.
struct Shared {
    issuer: Issuer<'static, KeyPair>,
    root: rcgen::Certificate,
    life: Duration,
    issued: Mutex<u64>,
    trust: watch::Sender<TrustState>,
}

/// The authority; it answers while it is [`Authority::start`]ed.
pub(crate) struct Authority {
    shared: Arc<Shared>,
    socket: PathBuf,
    running: Option<tokio::runtime::Runtime>,
}

impl Authority {
    /// Not started yet. Certificates live for `life`.
    pub(crate) fn new(folder: &Path, life: Duration) -> anyhow::Result<Self> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "the story's root");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let root = params.self_signed(&key)?;
        let trust = watch::Sender::new(trust(1, &root, Vec::new()));
        let issuer = Issuer::new(params, key);
        let shared = Arc::new(Shared { issuer, root, life, issued: Mutex::new(0), trust });
        Ok(Self { shared, socket: folder.join("ca.sock"), running: None })
    }

    /// What `ca.address` is to be.
    pub(crate) fn address(&self) -> String {
        format!("unix:{}", self.socket.display())
    }

    pub(crate) fn start(&mut self) -> anyhow::Result<()> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let _ = std::fs::remove_file(&self.socket);
        let listener = {
            let _within = runtime.enter();
            UnixListener::bind(&self.socket).with_context(|| self.socket.display().to_string())?
        };
        let incoming = stream::unfold(listener, |listener| async {
            Some((listener.accept().await.map(|(stream, _)| stream), listener))
        });
        let server = tonic::transport::Server::builder()
            .add_service(IstioCertificateServiceServer::from_arc(Arc::clone(&self.shared)))
            .add_service(TrustServer::from_arc(Arc::clone(&self.shared)));
        runtime.spawn(async move { server.serve_with_incoming(Box::pin(incoming)).await });
        self.running = Some(runtime);
        Ok(())
    }

    /// Dies, and its connections with it.
    pub(crate) fn stop(&mut self) {
        if let Some(runtime) = self.running.take() {
            runtime.shutdown_timeout(Duration::from_secs(1));
        }
    }

    /// Certificates signed so far.
    pub(crate) fn issued(&self) -> u64 {
        *self.shared.issued.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a certificate back, by its serial number in hex.
    pub(crate) fn revoke(&self, serial: &str) -> anyhow::Result<()> {
        let digits: Vec<_> = (0..serial.len()).step_by(2).map(|at| serial.get(at..at + 2)).collect();
        let bytes: Vec<u8> = digits
            .into_iter()
            .map(|pair| Ok(u8::from_str_radix(pair.context("an odd serial")?, 16)?))
            .collect::<anyhow::Result<_>>()?;
        let now = time::OffsetDateTime::now_utc();
        let list = CertificateRevocationListParams {
            this_update: now,
            next_update: now + time::Duration::days(1),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: vec![RevokedCertParams {
                serial_number: SerialNumber::from_slice(&bytes),
                revocation_time: now,
                reason_code: None,
                invalidity_date: None,
            }],
            key_identifier_method: KeyIdMethod::Sha256,
        };
        let list = list.signed_by(&self.shared.issuer)?.der().to_vec();
        self.shared
            .trust
            .send_modify(|state| *state = trust(state.version + 1, &self.shared.root, vec![list]));
        Ok(())
    }
}

impl Drop for Authority {
    fn drop(&mut self) {
        self.stop();
        let _ = std::fs::remove_file(&self.socket);
    }
}

fn trust(version: u64, root: &rcgen::Certificate, revocation_lists: Vec<Vec<u8>>) -> TrustState {
    let bundle = Bundle {
        trust_domain: "cluster.local".to_owned(),
        roots: vec![root.der().to_vec()],
        revocation_lists,
        ..Bundle::default()
    };
    TrustState { version, bundles: vec![bundle] }
}

fn sign(shared: &Shared, request: IstioCertificateRequest) -> anyhow::Result<Vec<String>> {
    let id = request.metadata.and_then(|metadata| metadata.fields.get("ImpersonatedIdentity")?.kind.clone());
    let Some(Kind::StringValue(id)) = id else { anyhow::bail!("for whom?") };
    let csr = CertificateSigningRequestParams::from_pem(&request.csr)?;
    let now = SystemTime::now();
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![SanType::URI(id.try_into()?)];
    params.not_before = (now - Duration::from_secs(60)).into();
    params.not_after = (now + shared.life).into();
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
    let certificate = params.signed_by(&csr.public_key, &shared.issuer)?;
    *shared.issued.lock().unwrap_or_else(PoisonError::into_inner) += 1;
    Ok(vec![certificate.pem(), shared.root.pem()])
}

#[tonic::async_trait]
impl IstioCertificateService for Shared {
    async fn create_certificate(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        let cert_chain =
            sign(self, request.into_inner()).map_err(|e| Status::invalid_argument(e.to_string()))?;
        Ok(Response::new(IstioCertificateResponse { cert_chain }))
    }
}

#[tonic::async_trait]
impl Trust for Shared {
    type WatchStream = Pin<Box<dyn Stream<Item = Result<TrustState, Status>> + Send>>;

    async fn watch(
        &self,
        request: Request<Streaming<WatchRequest>>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let mut heard = request.into_inner();
        tokio::spawn(async move { while let Ok(Some(_)) = heard.message().await {} });
        let (tell, told) = mpsc::channel(4);
        let mut trust = self.trust.subscribe();
        trust.mark_changed();
        tokio::spawn(async move {
            while trust.changed().await.is_ok() {
                let state = trust.borrow_and_update().clone();
                if tell.send(Ok(state)).await.is_err() {
                    return;
                }
            }
        });
        let told = stream::unfold(told, |mut told| async { told.recv().await.map(|state| (state, told)) });
        Ok(Response::new(Box::pin(told)))
    }
}
