//! `meshd ca` as an operator runs it: a node without Kubernetes joins by a token over the wire, asks for its workload, and
//! what was acknowledged is still so after kill -9.

use std::fs;
use std::future::Future;
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context as _, ensure};
use mesh_user::ca::proto::{
    istio::{IstioCertificateRequest, istio_certificate_service_client::IstioCertificateServiceClient},
    meshd::{RedeemRequest, join_client::JoinClient},
};
use nix::sched::{CloneFlags, setns};
use nix::sys::signal::Signal;
use rcgen::{CertificateParams, KeyPair};
use rustls::RootCertStore;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, pem::PemObject as _};
use serde_json::{Value, json};
use tokio_rustls::TlsConnector;
use tonic::Code;
use tonic::transport::{Channel, Endpoint};

use crate::it::daemon::bin_dir;
use crate::it::ground::Ground;
use crate::it::harness::{Story, stories};
use crate::it::netns::{Place, Wire};
use crate::it::process::{PATIENCE, Program, wait_until};

pub(super) const STORIES: &[Story] = stories![
    Daemon 90:
        a_node_joins_by_a_token_and_gets_certificates_of_its_workloads_only,
        a_join_token_that_was_redeemed_stays_so_after_a_crash;
];

const PORT: u16 = 15012;
const WEB: &str = "spiffe://cluster.local/ns/shop/sa/web";
const TELLER: &str = "spiffe://cluster.local/ns/bank/sa/teller";

/// The service, in a namespace of its own, and a place for nodes.
struct Fleet {
    _wire: Wire,
    ca: Place,
    node: Place,
    dir: PathBuf,
    service: Option<Program>,
}

impl Fleet {
    fn new(ground: &Ground) -> anyhow::Result<Self> {
        let mut wire = Wire::lay(ground)?;
        let [ca, node] = wire.plug(["ca", "node"])?;
        let dir = ground.dir().join("authority");
        fs::DirBuilder::new().mode(0o755).create(&dir)?;
        let mut fleet = Self { _wire: wire, ca, node, dir, service: None };
        let file = json!({
            "trustDomain": "cluster.local",
            "directory": fleet.dir.join("state"),
            "runtimeDir": fleet.run_dir(),
            "listen": [fleet.address()],
            "dnsNames": ["ca.example.com"],
            "nodes": [
                { "name": "n1", "identities": [WEB] },
                { "name": "n2", "identities": [TELLER] },
            ],
            "audit": { "file": fleet.dir.join("audit") },
        });
        fs::write(fleet.config(), file.to_string())?;
        fleet.start()?;
        Ok(fleet)
    }

    fn run_dir(&self) -> PathBuf {
        self.dir.join("run")
    }

    fn config(&self) -> PathBuf {
        self.dir.join("ca.yaml")
    }

    fn address(&self) -> SocketAddr {
        self.ca.at(PORT)
    }

    fn start(&mut self) -> anyhow::Result<()> {
        let (meshd, config) = (bin_dir().join("meshd"), self.config());
        let argv = [meshd.to_string_lossy(), "ca".into(), "--config".into(), config.to_string_lossy()];
        let mut service = self.ca.launch("meshd-ca", &argv).start()?;
        service.wait_to_say("meshd ca is ready", PATIENCE)?;
        self.service = Some(service);
        Ok(())
    }

    fn meshctl(&self, args: &[&str]) -> anyhow::Result<String> {
        let (meshctl, run) = (bin_dir().join("meshctl"), self.run_dir());
        let line: Vec<_> = [meshctl.to_string_lossy().as_ref(), "ca"]
            .into_iter()
            .chain(args.iter().copied())
            .chain(["--ca-runtime-dir", run.to_string_lossy().as_ref()])
            .map(str::to_owned)
            .collect();
        let line: Vec<_> = line.iter().map(String::as_str).collect();
        Ok(self.ca.run(&line)?.succeeded()?.trim().to_owned())
    }

    fn audit(&self) -> anyhow::Result<Vec<Value>> {
        let text = fs::read_to_string(self.dir.join("audit"))?;
        text.lines().map(|line| Ok(serde_json::from_str(line)?)).collect()
    }

    fn wait_audit(&self, what: &str, wanted: impl Fn(&Value) -> bool) -> anyhow::Result<()> {
        wait_until(PATIENCE, what, || Ok(self.audit()?.iter().any(&wanted)))
    }

    /// Runs what asks the service, on the node.
    fn on_node<T: Send>(&self, work: impl AsyncFnOnce() -> anyhow::Result<T> + Send) -> anyhow::Result<T> {
        let netns = fs::File::open(self.node.netns_path())?;
        let run = || {
            setns(&netns, CloneFlags::CLONE_NEWNET)?;
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async { tokio::time::timeout(PATIENCE, work()).await? })
        };
        let thread = std::thread::scope(|scope| scope.spawn(run).join());
        thread.map_err(|_| anyhow::anyhow!("the thread on the node panicked"))?
    }

    fn roots(&self) -> anyhow::Result<RootCertStore> {
        let mut store = RootCertStore::empty();
        for root in CertificateDer::pem_file_iter(self.dir.join("state/ca.crt"))? {
            store.add(root?)?;
        }
        Ok(store)
    }

    fn redeem(&self, token: &str) -> anyhow::Result<Result<Own, Code>> {
        let (roots, address) = (self.roots()?, self.address());
        self.on_node(async move || {
            let key = KeyPair::generate()?;
            let request = RedeemRequest { token: token.to_owned(), csr: csr(&key)? };
            let answer = JoinClient::new(connect(roots, address, None).await?).redeem(request).await;
            Ok(answer.map(|answer| Own { key, chain: answer.into_inner().cert_chain }).map_err(|s| s.code()))
        })
    }

    fn obtain(&self, own: &Own, id: &str) -> anyhow::Result<Result<Own, Code>> {
        let (roots, address) = (self.roots()?, self.address());
        self.on_node(async move || {
            let key = KeyPair::generate()?;
            let value =
                prost_types::Value { kind: Some(prost_types::value::Kind::StringValue(id.to_owned())) };
            let metadata =
                prost_types::Struct { fields: [("ImpersonatedIdentity".to_owned(), value)].into() };
            let request =
                IstioCertificateRequest { csr: csr(&key)?, validity_duration: 600, metadata: Some(metadata) };
            let mut client = IstioCertificateServiceClient::new(connect(roots, address, Some(own)).await?);
            let answer = client.create_certificate(request).await;
            Ok(answer.map(|answer| Own { key, chain: answer.into_inner().cert_chain }).map_err(|s| s.code()))
        })
    }
}

/// A key and what was signed for it; the last entry is the roots.
struct Own {
    key: KeyPair,
    chain: Vec<String>,
}

fn csr(key: &KeyPair) -> anyhow::Result<String> {
    Ok(CertificateParams::new(vec!["somebody.else".to_owned()])?.serialize_request(key)?.pem()?)
}

async fn connect(roots: RootCertStore, address: SocketAddr, own: Option<&Own>) -> anyhow::Result<Channel> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots);
    let mut config = match own {
        Some(own) => {
            let (_, leafs) = own.chain.split_last().context("an empty chain")?;
            let chain =
                CertificateDer::pem_slice_iter(leafs.concat().as_bytes()).collect::<Result<_, _>>()?;
            let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(own.key.serialize_der()));
            builder.with_client_auth_cert(chain, key)?
        }
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    let connector = TlsConnector::from(Arc::new(config));
    let connect = tower::service_fn(move |_: http::Uri| {
        let connector = connector.clone();
        Box::pin(async move {
            let stream = tokio::net::TcpStream::connect(address).await?;
            let name = ServerName::try_from("ca.example.com").map_err(std::io::Error::other)?;
            Ok::<_, std::io::Error>(hyper_util::rt::TokioIo::new(connector.connect(name, stream).await?))
        }) as std::pin::Pin<Box<dyn Future<Output = _> + Send>>
    });
    Ok(Endpoint::from_static("https://ca.example.com").connect_with_connector(connect).await?)
}

fn a_node_joins_by_a_token_and_gets_certificates_of_its_workloads_only(
    ground: &Ground,
) -> anyhow::Result<()> {
    let fleet = Fleet::new(ground)?;
    let token = fleet.meshctl(&["token", "create", "--node", "n1", "--ttl", "600"])?;
    ensure!(!fleet.meshctl(&["token", "list"])?.contains(&token), "the list shows the token");
    let node = fleet.redeem(&token)?.map_err(|code| anyhow::anyhow!("the join failed: {code:?}"))?;
    let web = fleet.obtain(&node, WEB)?.map_err(|code| anyhow::anyhow!("no certificate: {code:?}"))?;
    let (leaf, roots) = (fleet.dir.join("leaf.pem"), fleet.dir.join("roots.pem"));
    fs::write(&leaf, &web.chain[0])?;
    fs::write(&roots, web.chain.last().context("an empty chain")?)?;
    let between = fleet.dir.join("between.pem");
    fs::write(&between, web.chain[1..web.chain.len() - 1].concat())?;
    let [leaf, roots, between] = [leaf, roots, between].map(|path| path.to_string_lossy().into_owned());
    let verify = ["openssl", "verify", "-x509_strict", "-CAfile", &roots, "-untrusted", &between, &leaf];
    fleet.ca.run(&verify)?.succeeded()?;
    let names = ["openssl", "x509", "-noout", "-ext", "subjectAltName", "-in", leaf.as_str()];
    let names = fleet.ca.run(&names)?.succeeded()?;
    ensure!(names.contains(&format!("URI:{WEB}")) && !names.contains("somebody"), "{names}");
    // Another node's workload, the token again, and a workload that asks for another one.
    ensure!(fleet.obtain(&node, TELLER)?.err() == Some(Code::PermissionDenied), "n1 got the bank's teller");
    ensure!(fleet.redeem(&token)?.err() == Some(Code::Unauthenticated), "the token was redeemed twice");
    ensure!(fleet.obtain(&web, TELLER)?.err() == Some(Code::PermissionDenied), "a workload got another's");
    for reason in ["not_allowed", "replayed_join_token"] {
        fleet.wait_audit(reason, |line| line["reason"] == reason)?;
    }
    fleet.wait_audit("the certificate", |line| line["outcome"] == "issued" && line["identity"] == WEB)?;
    let service = fleet.service.as_ref().context("it runs")?;
    for text in [fs::read_to_string(fleet.dir.join("audit"))?, service.stderr()] {
        ensure!(!text.contains(&token) && !text.contains("PRIVATE"), "a secret is in {text}");
    }
    let limits = fs::read_to_string(format!("/proc/{}/limits", service.pid()))?;
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap_or_default();
    ensure!(core.split_whitespace().nth(4) == Some("0"), "cores may be written: {core}");
    let mode = fs::metadata(fleet.run_dir().join("ca.sock"))?.permissions().mode() & 0o777;
    ensure!(mode == 0o600, "the admin socket has mode {mode:o}");
    let metrics = fleet.meshctl(&["metrics"])?;
    ensure!(metrics.contains("meshd_ca_refused_total{reason=\"replayed_join_token\"} 1"), "{metrics}");
    ensure!(fleet.meshctl(&["status"])?.contains("cluster.local"), "no status");
    Ok(())
}

fn a_join_token_that_was_redeemed_stays_so_after_a_crash(ground: &Ground) -> anyhow::Result<()> {
    let mut fleet = Fleet::new(ground)?;
    let kept = fleet.meshctl(&["token", "create", "--node", "n2"])?;
    for round in 0..5 {
        let token = fleet.meshctl(&["token", "create", "--node", "n1"])?;
        fleet.redeem(&token)?.map_err(|code| anyhow::anyhow!("round {round}: {code:?}"))?;
        let mut service = fleet.service.take().context("it runs")?;
        service.signal(Signal::SIGKILL)?;
        service.kill_hard()?;
        fleet.start()?;
        let again = fleet.redeem(&token)?.err();
        ensure!(
            again == Some(Code::Unauthenticated),
            "round {round}: redeemed again after a crash: {again:?}"
        );
    }
    // What nobody has redeemed still counts.
    let node = fleet.redeem(&kept)?.map_err(|code| anyhow::anyhow!("{code:?}"))?;
    ensure!(fleet.obtain(&node, TELLER)?.is_ok(), "the node cannot ask");
    let service = fleet.service.take().context("it runs")?;
    service.signal(Signal::SIGTERM)?;
    service.finish(PATIENCE)?.succeeded()?;
    ensure!(!fleet.run_dir().join("ca.sock").exists(), "the admin socket is left");
    Ok(())
}
