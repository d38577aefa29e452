//! Server and client over a real socket. The caller is this process, which is the workload of its own user; that others
//! are not is told by the stories, which have namespaces and cgroups.

mod spiffe_crate;

use std::{
    path::PathBuf,
    process::{Command, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use futures_util::{StreamExt as _, future::BoxFuture, stream};
use hyper_util::rt::TokioIo;
use tokio::{net::UnixListener, sync::watch};
use tokio_util::sync::CancellationToken;
use tonic::{
    Code, Request, Response, Status,
    transport::{Channel, Endpoint, Server},
};

use super::{
    exportable::{ExportableSvid, IssueExportable},
    keeper::Keeper,
    service::Service,
    *,
};
use crate::{
    ca::{
        CaError, SvidSource as _,
        authority::{Authority, AuthoritySettings},
        jwt_svid::JwtAuthority,
        proto::workload::{
            spiffe_workload_api_client::SpiffeWorkloadApiClient,
            spiffe_workload_api_server::{SpiffeWorkloadApi, SpiffeWorkloadApiServer},
            *,
        },
        signing::{CertificateAuthority, SignedSvid, SigningRequest, Trust},
    },
    config::Config,
    identity::{SpiffeId, Svid, TrustBundles, TrustDomain},
    tls::test_pki::{Leaf, TestCa},
    world::World,
};

const WEB: &str = "spiffe://cluster.local/ns/shop/sa/web";
const TILL: &str = "spiffe://cluster.local/ns/shop/sa/till";
type Client = SpiffeWorkloadApiClient<Channel>;

/// A world whose local workloads are users, by name and user.
fn world(workloads: &[(&str, u32)]) -> Arc<World> {
    let workloads: Vec<_> = workloads
        .iter()
        .map(|(name, user)| {
            serde_json::json!({
                "name": name, "namespace": "shop", "serviceAccount": name, "selector": { "user": user.to_string() }
            })
        })
        .collect();
    let config = serde_json::json!({ "node": "a", "workloads": workloads }).to_string();
    let config: Config = serde_saphyr::from_str(&config).unwrap();
    Arc::new(World::build(&config).unwrap())
}

fn own_user() -> u32 {
    nix::unistd::geteuid().as_raw()
}

/// Counts what it issues, and issues anew when told to.
struct Issuing {
    ca: IssueThrough,
    issued: AtomicU64,
    pushed: watch::Sender<u64>,
}

impl IssueExportable for Issuing {
    fn issue_exportable<'a>(&'a self, id: &'a SpiffeId) -> BoxFuture<'a, Result<ExportableSvid, CaError>> {
        self.issued.fetch_add(1, Ordering::Relaxed);
        self.ca.issue_exportable(id)
    }

    fn pushed(&self) -> Option<watch::Receiver<u64>> {
        Some(self.pushed.subscribe())
    }
}

struct Given {
    folder: tempfile::TempDir,
    world: watch::Sender<Arc<World>>,
    trust: watch::Sender<Arc<TrustBundles>>,
    issuing: Arc<Issuing>,
    service: Arc<Service>,
    stop: CancellationToken,
    serving: tokio::task::JoinHandle<Result<(), ServerError>>,
}

/// A server for the workload `web`, which is this process.
fn given(limits: WorkloadApiLimits) -> Given {
    let folder = tempfile::tempdir().unwrap();
    let directory = folder.path().join("ca");
    let domain = TrustDomain::cluster_local();
    let ca = Authority::open(AuthoritySettings::new(directory.clone(), domain.clone())).unwrap();
    let authority = JwtAuthority::open(&directory, domain.clone()).unwrap();
    let mut trust = ca.trust().borrow().bundles.clone();
    trust.jwt_authorities.insert(domain, authority.published());
    let ca = IssueThrough::new(Arc::new(ca), "a".into());
    let (world, worlds) = watch::channel(world(&[("web", own_user())]));
    let (trust, trusted) = watch::channel(Arc::new(trust));
    let issuing = Arc::new(Issuing { ca, issued: AtomicU64::new(0), pushed: watch::Sender::new(0) });
    let parts = WorkloadApiParts {
        world: worlds,
        cgroup_root: folder.path().join("cgroup"),
        trust: trusted,
        issuer: Arc::<Issuing>::clone(&issuing),
        minter: Some(Arc::new(authority)),
        metrics: None,
    };
    let stop = CancellationToken::new();
    let settings = WorkloadApiSettings { socket: folder.path().join("api/workload.sock"), limits };
    let server = WorkloadApiServer::bind(&settings).unwrap();
    let service = Service::new(parts, limits, stop.clone()).unwrap();
    let serving = tokio::spawn(server.serve_service(Arc::clone(&service), stop.clone()));
    Given { folder, world, trust, issuing, service, stop, serving }
}

impl Given {
    fn socket(&self) -> PathBuf {
        self.folder.path().join("api/workload.sock")
    }

    fn address(&self) -> String {
        format!("unix://{}", self.socket().display())
    }

    async fn client(&self) -> Client {
        Client::new(Endpoint::from_shared(self.address()).unwrap().connect().await.unwrap())
    }
}

fn meant<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("workload.spiffe.io", "true".parse().unwrap());
    request
}

fn ids(response: &X509svidResponse) -> Vec<&str> {
    response.svids.iter().map(|svid| svid.spiffe_id.as_str()).collect()
}

#[tokio::test]
async fn our_client_has_from_our_server_what_it_is_registered_for() {
    let given = given(WorkloadApiLimits::default());
    let source = WorkloadApiSource::start(Some(&given.address())).unwrap();
    let svid = source.issue(&WEB.parse().unwrap()).await.unwrap();
    assert_eq!((svid.spiffe_id.to_string().as_str(), svid.serial.len()), (WEB, 32));
    assert!(svid.not_before < SystemTime::now() && SystemTime::now() < svid.not_after);
    let mut trust = source.trust();
    let served = Arc::clone(&given.trust.borrow());
    let known = trust.wait_for(|trust| !trust.jwt_authorities.is_empty()).await.unwrap();
    assert_eq!(known.roots, served.roots);
    let kids = |trust: &TrustBundles| {
        trust.jwt_authorities.values().flat_map(|keys| keys.keys().cloned()).collect::<Vec<_>>()
    };
    assert_eq!(kids(&known), kids(&served));
    drop(known);
    let other = source.issue(&TILL.parse().unwrap()).await.unwrap_err().to_string();
    assert!(other.contains("gave no SVID") && other.contains(TILL), "{other}");

    let mut pushed = source.pushed().unwrap();
    let before = *pushed.borrow_and_update();
    given.issuing.pushed.send_modify(|count| *count += 1);
    pushed.wait_for(|count| *count > before).await.unwrap();
    let renewed = source.issue(&WEB.parse().unwrap()).await.unwrap();
    assert_ne!(renewed.serial, svid.serial);
}

#[tokio::test]
async fn without_the_header_nothing_is_answered() {
    let given = given(WorkloadApiLimits::default());
    let mut client = given.client().await;
    let code = |status: Result<(), Status>| status.unwrap_err().code();
    let bare = client.fetch_x509svid(X509svidRequest {}).await.map(drop);
    assert_eq!(code(bare), Code::InvalidArgument);
    for value in ["false", "True", ""] {
        let mut request = Request::new(X509BundlesRequest {});
        request.metadata_mut().insert("workload.spiffe.io", value.parse().unwrap());
        assert_eq!(
            code(client.fetch_x509_bundles(request).await.map(drop)),
            Code::InvalidArgument,
            "{value}"
        );
    }
    let mut twice = meant(JwtBundlesRequest {});
    twice.metadata_mut().append("workload.spiffe.io", "true".parse().unwrap());
    assert_eq!(code(client.fetch_jwt_bundles(twice).await.map(drop)), Code::InvalidArgument);
    let request = JwtsvidRequest { audience: vec!["a".to_owned()], spiffe_id: String::new() };
    assert_eq!(code(client.fetch_jwtsvid(request).await.map(drop)), Code::InvalidArgument);
    let request = ValidateJwtsvidRequest { audience: "a".to_owned(), svid: "b".to_owned() };
    assert_eq!(code(client.validate_jwtsvid(request).await.map(drop)), Code::InvalidArgument);
    assert_eq!(given.issuing.issued.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn a_stream_tells_what_changes_and_ends_with_the_workload() {
    let given = given(WorkloadApiLimits::default());
    let mut client = given.client().await;
    let mut svids = client.fetch_x509svid(meant(X509svidRequest {})).await.unwrap().into_inner();
    let mut bundles = client.fetch_x509_bundles(meant(X509BundlesRequest {})).await.unwrap().into_inner();
    let first = svids.message().await.unwrap().unwrap();
    assert_eq!(ids(&first), [WEB]);
    let roots: Vec<u8> =
        given.trust.borrow().roots.values().flatten().flat_map(|root| root.to_vec()).collect();
    assert!(first.federated_bundles.is_empty() && first.svids[0].bundle == roots);
    assert_eq!(bundles.message().await.unwrap().unwrap().bundles["spiffe://cluster.local"], roots);

    let other = TestCa::new("other.example");
    given.trust.send_modify(|trust| {
        Arc::make_mut(trust).roots.insert("other.example".parse().unwrap(), vec![other.root()]);
    });
    let second = svids.message().await.unwrap().unwrap();
    assert_eq!(second.federated_bundles["spiffe://other.example"], other.root().to_vec());
    assert_eq!(second.svids[0].x509_svid, first.svids[0].x509_svid, "trust is no reason for another SVID");
    assert_eq!(bundles.message().await.unwrap().unwrap().bundles.len(), 2);

    given.world.send_replace(world(&[("web", own_user()), ("till", own_user())]));
    assert_eq!(ids(&svids.message().await.unwrap().unwrap()), [WEB, TILL]);
    given.world.send_replace(world(&[("web", own_user() + 1)]));
    let ended = svids.message().await.map(drop).unwrap_err();
    assert_eq!((ended.code(), ended.message()), (Code::PermissionDenied, "no identity issued"));
    assert_eq!(bundles.message().await.unwrap_err().code(), Code::PermissionDenied);
    let refused = client.fetch_x509svid(meant(X509svidRequest {})).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
}

#[tokio::test]
async fn tokens_are_for_the_callers_identities_and_verified_for_its_audience() {
    let given = given(WorkloadApiLimits::default());
    let mut client = given.client().await;
    let fetch = |audience: &[&str], id: &str| {
        meant(JwtsvidRequest {
            audience: audience.iter().map(|&one| one.to_owned()).collect(),
            spiffe_id: id.to_owned(),
        })
    };
    let minted = client.fetch_jwtsvid(fetch(&["till", "bank"], "")).await.unwrap().into_inner();
    assert_eq!((minted.svids.len(), minted.svids[0].spiffe_id.as_str()), (1, WEB));
    let svid = minted.svids[0].svid.clone();
    let validate = |audience: &str, svid: &str| {
        meant(ValidateJwtsvidRequest { audience: audience.to_owned(), svid: svid.to_owned() })
    };
    let valid = client.validate_jwtsvid(validate("bank", &svid)).await.unwrap().into_inner();
    assert_eq!(valid.spiffe_id, WEB);
    assert!(valid.claims.unwrap().fields.contains_key("exp"));
    for (audience, svid) in
        [("shop", svid.as_str()), ("bank", &svid[..svid.len() - 4]), ("", &svid), ("bank", "")]
    {
        let refused = client.validate_jwtsvid(validate(audience, svid)).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{audience}");
        assert!(!refused.message().contains("eyJ"));
    }
    for (audience, id, code) in [
        (&["till"][..], TILL, Code::PermissionDenied),
        (&["till"], "web", Code::InvalidArgument),
        (&[], "", Code::InvalidArgument),
        (&["a"; 17], "", Code::InvalidArgument),
    ] {
        assert_eq!(
            client.fetch_jwtsvid(fetch(audience, id)).await.map(drop).unwrap_err().code(),
            code,
            "{audience:?} {id}"
        );
    }
    let long = "a".repeat(100_000);
    let too_long = client.validate_jwtsvid(validate("bank", &long)).await.unwrap_err();
    assert_eq!(too_long.code(), Code::OutOfRange);
    let bundles =
        client.fetch_jwt_bundles(meant(JwtBundlesRequest {})).await.unwrap().into_inner().message().await;
    let bundle = bundles.unwrap().unwrap().bundles.remove("spiffe://cluster.local").unwrap();
    let bundle: serde_json::Value = serde_json::from_slice(&bundle).unwrap();
    assert_eq!((bundle["keys"][0]["kty"].as_str(), bundle["keys"][0].get("use")), (Some("EC"), None));
}

#[tokio::test]
async fn a_caller_has_its_share_of_connections_and_calls_and_no_more() {
    let limits =
        WorkloadApiLimits { connections_per_caller: 2, calls_per_second: 3, ..WorkloadApiLimits::default() };
    let given = given(limits);
    let (mut one, _two) = (given.client().await, given.client().await);
    one.fetch_x509_bundles(meant(X509BundlesRequest {})).await.unwrap();
    let mut three = given.client().await;
    let refused = three.fetch_x509_bundles(meant(X509BundlesRequest {})).await.unwrap_err();
    assert!(
        matches!(refused.code(), Code::Unavailable | Code::Unknown | Code::Internal | Code::Cancelled),
        "{refused:?}"
    );
    let mut exhausted = false;
    for _ in 0..20 {
        let call = one.fetch_x509_bundles(meant(X509BundlesRequest {})).await;
        exhausted |= call.is_err_and(|status| status.code() == Code::ResourceExhausted);
    }
    assert!(exhausted, "calls are not bounded");
}

#[tokio::test]
async fn who_connected_is_who_it_is_whoever_holds_the_connection() {
    let given = given(WorkloadApiLimits::default());
    // Connects, and leaves the connection to another process, through which we use it.
    let through = given.folder.path().join("through");
    let listener = UnixListener::bind(&through).unwrap();
    let program = "
import os,socket,sys,threading
def connect(path):
    s=socket.socket(socket.AF_UNIX); s.connect(path); return s
def pump(a,b):
    while data:=a.recv(65536): b.sendall(data)
    os._exit(0)
api=connect(sys.argv[1])
if os.fork():
    sys.stdin.read()
else:
    us=connect(sys.argv[2])
    threading.Thread(target=pump,args=(us,api)).start()
    pump(api,us)
";
    let mut child = Command::new("python3")
        .args(["-c", program])
        .args([given.socket(), through])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let (passed, _) = listener.accept().await.unwrap();
    let passed = Mutex::new(Some(passed));
    let connector = tower::service_fn(move |_| {
        let stream =
            passed.lock().unwrap().take().ok_or_else(|| std::io::Error::other("it was the only one"));
        std::future::ready(stream.map(TokioIo::new))
    });
    let channel = Endpoint::from_static("http://localhost").connect_with_connector(connector).await.unwrap();
    let mut client = Client::new(channel);
    client.fetch_x509svid(meant(X509svidRequest {})).await.unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    // This process is a workload too, but it is not the one that connected.
    let refused = client.fetch_x509svid(meant(X509svidRequest {})).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    given.client().await.fetch_x509svid(meant(X509svidRequest {})).await.unwrap();
}

#[tokio::test]
async fn it_stops_when_told_and_leaves_no_socket() {
    let given = given(WorkloadApiLimits::default());
    let mut client = given.client().await;
    let mut svids = client.fetch_x509svid(meant(X509svidRequest {})).await.unwrap().into_inner();
    svids.message().await.unwrap().unwrap();
    let mode =
        std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(given.socket()).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o666);
    given.stop.cancel();
    assert_eq!(svids.message().await.map(drop).unwrap_err().code(), Code::Unavailable);
    drop((svids, client));
    given.serving.await.unwrap().unwrap();
    assert!(!given.folder.path().join("api/workload.sock").exists());
}

#[tokio::test]
async fn streams_of_one_identity_share_an_svid() {
    let given = given(WorkloadApiLimits::default());
    let mut client = given.client().await;
    let mut serials = Vec::new();
    for _ in 0..3 {
        let mut svids = client.fetch_x509svid(meant(X509svidRequest {})).await.unwrap().into_inner();
        serials.push(svids.message().await.unwrap().unwrap().svids.remove(0).x509_svid);
    }
    assert!(serials.iter().all(|serial| *serial == serials[0]));
    assert_eq!((given.issuing.issued.load(Ordering::Relaxed), given.service.held()), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn what_nobody_wants_is_forgotten_a_while_later() {
    let keeper = Keeper::new(Arc::new(IssueThrough::new(Arc::new(Signing::new()), "a".into())));
    let id: SpiffeId = WEB.parse().unwrap();
    let mut held = keeper.hold(&id);
    let svid = held.wait_for(|held| held.svid.is_some()).await.unwrap().svid.clone().unwrap();
    let weak = Arc::downgrade(&svid);
    drop((held, svid));
    tokio::time::sleep(Duration::from_secs(10)).await;
    let again = keeper.hold(&id);
    assert!(again.borrow().svid.is_some(), "it is kept for who comes back soon");
    drop(again);
    tokio::time::sleep(Duration::from_secs(40)).await;
    assert_eq!((keeper.held(), weak.strong_count()), (0, 0), "the key is still in memory");
}

#[test]
fn keys_and_tokens_are_never_shown() {
    let ca = IssueThrough::new(Arc::new(Signing::new()), "a".into());
    let svid =
        futures_util::FutureExt::now_or_never(ca.issue_exportable(&WEB.parse().unwrap())).unwrap().unwrap();
    let shown = format!("{svid:?}");
    assert!(shown.ends_with(".. }") && shown.len() < 200, "{shown}");
}

/// Signs what it is asked to, and says for whom that was.
struct Signing {
    ca: TestCa,
    trust: watch::Receiver<Arc<Trust>>,
}

impl Signing {
    fn new() -> Self {
        Self { ca: TestCa::new("cluster.local"), trust: watch::channel(Arc::default()).1 }
    }
}

impl CertificateAuthority for Signing {
    fn trust_domain(&self) -> &TrustDomain {
        &self.ca.trust_domain
    }

    fn sign(&self, request: SigningRequest) -> BoxFuture<'_, Result<SignedSvid, CaError>> {
        let key = rcgen::SubjectPublicKeyInfo::from_der(request.csr.public_key()).unwrap();
        let chain = self.ca.certify(&Leaf::of(&request.id.to_string()), &key);
        let (now, serial) =
            (SystemTime::now().into(), format!("{} {}", request.caller, request.node.unwrap()));
        let not_after = now + Duration::from_secs(1800);
        let signed = SignedSvid { chain, roots: vec![self.ca.root()], serial, not_before: now, not_after };
        Box::pin(std::future::ready(Ok(signed)))
    }

    fn own_svid<'a>(&'a self, _: &'a SpiffeId, _: &'a [String]) -> BoxFuture<'a, Result<Svid, CaError>> {
        unreachable!("nobody asks for it")
    }

    fn trust(&self) -> watch::Receiver<Arc<Trust>> {
        self.trust.clone()
    }

    fn acknowledge(&self, _: &str, _: u64) {}
}

#[tokio::test]
async fn what_an_authority_signs_by_csr_is_of_the_key_that_is_handed_out() {
    let ca = Signing::new();
    let root = ca.ca.root();
    let issue = IssueThrough::new(Arc::new(ca), "a".into());
    let svid = issue.issue_exportable(&WEB.parse().unwrap()).await.unwrap();
    assert_eq!(svid.serial, "workload API a");
    let message = messages::x509_svids(
        &[Arc::new(svid)],
        &TrustBundles {
            roots: [("cluster.local".parse().unwrap(), vec![root])].into(),
            ..TrustBundles::default()
        },
    );
    // The client checks that key, leaf, identity and root belong together.
    client::read(message, SystemTime::now()).unwrap();
}

/// Answers as told, once per call; then it denies.
struct Fake(Mutex<Vec<Result<X509svidResponse, Status>>>);

type Answers<T> = futures_util::stream::BoxStream<'static, Result<T, Status>>;

#[tonic::async_trait]
impl SpiffeWorkloadApi for Fake {
    type FetchX509SVIDStream = Answers<X509svidResponse>;
    type FetchX509BundlesStream = Answers<X509BundlesResponse>;
    type FetchJWTBundlesStream = Answers<JwtBundlesResponse>;

    async fn fetch_x509svid(
        &self,
        request: Request<X509svidRequest>,
    ) -> Result<Response<Self::FetchX509SVIDStream>, Status> {
        assert_eq!(request.metadata().get("workload.spiffe.io").unwrap(), "true");
        let mut answers = self.0.lock().unwrap();
        let denied = || Err(Status::permission_denied("no identity issued"));
        let answer = if answers.is_empty() { denied() } else { answers.remove(0) };
        Ok(Response::new(stream::iter([answer?]).map(Ok).boxed()))
    }

    async fn fetch_x509_bundles(
        &self,
        _: Request<X509BundlesRequest>,
    ) -> Result<Response<Self::FetchX509BundlesStream>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn fetch_jwtsvid(&self, _: Request<JwtsvidRequest>) -> Result<Response<JwtsvidResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn fetch_jwt_bundles(
        &self,
        _: Request<JwtBundlesRequest>,
    ) -> Result<Response<Self::FetchJWTBundlesStream>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn validate_jwtsvid(
        &self,
        _: Request<ValidateJwtsvidRequest>,
    ) -> Result<Response<ValidateJwtsvidResponse>, Status> {
        Err(Status::unimplemented(""))
    }
}

/// As SPIRE's agent sends it: an intermediate behind the leaf.
fn spire_svid(ca: &TestCa, id: &str) -> X509svid {
    let key = rcgen::KeyPair::generate().unwrap();
    let chain = ca.below(|_| {}).certify(&Leaf::of(id), &key);
    X509svid {
        spiffe_id: id.to_owned(),
        x509_svid: chain.iter().flat_map(|certificate| certificate.to_vec()).collect(),
        x509_svid_key: key.serialize_der(),
        bundle: ca.root().to_vec(),
        hint: "internal".to_owned(),
    }
}

fn answer(svids: Vec<X509svid>) -> X509svidResponse {
    X509svidResponse { svids, ..X509svidResponse::default() }
}

#[tokio::test(start_paused = true)]
async fn a_server_that_denies_breaks_off_and_comes_back_is_asked_until_it_answers() {
    let (ca, other) = (TestCa::new("cluster.local"), TestCa::new("other.example"));
    let mut full = answer(vec![spire_svid(&ca, WEB), spire_svid(&ca, TILL)]);
    full.federated_bundles = [("spiffe://other.example".to_owned(), other.root().to_vec())].into();
    full.crl = vec![ca.revocation_list(SystemTime::now(), &[]).der().to_vec()];
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("agent.sock");
    let source = WorkloadApiSource::start(Some(&format!("unix://{}", socket.display()))).unwrap();
    let id: SpiffeId = WEB.parse().unwrap();
    let error = source.issue(&id).await.unwrap_err().to_string();
    assert!(error.contains("cannot be used"), "{error}");

    let fake = Fake(Mutex::new(vec![
        Err(Status::permission_denied("not yet")),
        Ok(full),
        Ok(answer(vec![spire_svid(&ca, WEB)])),
    ]));
    let listener = UnixListener::bind(&socket).unwrap();
    let incoming = stream::unfold(listener, |listener| async move {
        Some((listener.accept().await.map(|(stream, _)| stream), listener))
    });
    let served = Server::builder().add_service(SpiffeWorkloadApiServer::new(fake));
    let serving = tokio::spawn(served.serve_with_incoming(Box::pin(incoming)));
    let mut pushed = source.pushed().unwrap();
    pushed.wait_for(|count| *count == 1).await.unwrap();
    let svid = source.issue(&id).await.unwrap();
    assert_eq!((svid.chain.len(), svid.spiffe_id.to_string().as_str()), (2, WEB));
    source.issue(&TILL.parse().unwrap()).await.unwrap();
    let trust = Arc::clone(&source.trust().borrow());
    assert_eq!((trust.roots.len(), trust.revoked.len()), (2, 1));
    assert!(trust.revoked.contains_key(&ca.trust_domain));

    pushed.wait_for(|count| *count == 2).await.unwrap();
    let renewed = source.issue(&id).await.unwrap();
    assert_ne!(renewed.serial, svid.serial);
    // What it no longer gives is not handed out; what it gave last is, although it denies now.
    let gone = source.issue(&TILL.parse().unwrap()).await.unwrap_err().to_string();
    assert!(gone.contains(TILL) || gone.contains("cannot be used") || gone.contains("no identity"), "{gone}");
    assert!(source.issue(&id).await.is_ok());
    serving.abort();
}

#[test]
fn an_answer_that_does_not_fit_together_is_not_believed() {
    let (ca, other) = (TestCa::new("cluster.local"), TestCa::new("cluster.local"));
    let good = || spire_svid(&ca, WEB);
    let with = |change: &dyn Fn(&mut X509svid)| {
        let mut svid = good();
        change(&mut svid);
        answer(vec![svid])
    };
    let bundles = |domain: &str, bundle: Vec<u8>| X509svidResponse {
        federated_bundles: [(domain.to_owned(), bundle)].into(),
        ..answer(vec![good()])
    };
    client::read(answer(vec![good()]), SystemTime::now()).unwrap();
    for (what, answer) in [
        ("no SVID", answer(Vec::new())),
        ("no SVID", answer(vec![good(); 5000])),
        ("web", with(&|svid| svid.spiffe_id = "web".to_owned())),
        ("not the leaf's", with(&|svid| svid.x509_svid_key = good().x509_svid_key)),
        ("no private key", with(&|svid| svid.x509_svid_key.clear())),
        ("no peer would believe it", with(&|svid| svid.bundle = other.root().to_vec())),
        ("no peer would believe it", with(&|svid| svid.spiffe_id = TILL.to_owned())),
        ("is empty", with(&|svid| svid.bundle.clear())),
        ("cannot be read", with(&|svid| svid.bundle = b"x".to_vec())),
        ("cannot be read", with(&|svid| svid.x509_svid.truncate(200))),
        ("not the leaf's", with(&|svid| svid.x509_svid.clear())),
        ("cannot be read", bundles("spiffe://other.example", vec![0x30])),
        ("bundle of", bundles("spiffe://Other", ca.root().to_vec())),
        ("revocation list", X509svidResponse { crl: vec![b"x".to_vec()], ..answer(vec![good()]) }),
    ] {
        let error = client::read(answer, SystemTime::now()).unwrap_err();
        assert!(error.contains(what), "expected {what:?} in {error:?}");
    }
    let later = SystemTime::now() + Duration::from_secs(86_400);
    assert!(client::read(answer(vec![good()]), later).is_err(), "it has ended");
}
