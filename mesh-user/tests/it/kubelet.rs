//! A kubelet and its container runtime, as far as a mesh sees them: a pod is a cgroup named as the kubelet names it, a
//! network namespace on the wire, a first process that holds it, and programs beside that; the runtime says over its
//! socket (CRI) where sandboxes are, in containerd's words.

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use serde_json::json;
use tokio::net::UnixListener;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use super::ground::Ground;
use super::netns::{Place, Wire};
use super::process::{PATIENCE, Program};
use proto::runtime_service_server::{RuntimeService, RuntimeServiceServer};

#[allow(clippy::all, clippy::pedantic, unreachable_pub, dead_code, reason = "generated")]
mod proto {
    include!(concat!(env!("OUT_DIR"), "/runtime.v1.rs"));
}

/// What the runtime has.
#[derive(Debug, Clone)]
struct Sandbox {
    id: String,
    uid: String,
    namespace: String,
    name: String,
    /// None: the host's.
    netns: Option<PathBuf>,
    pid: u32,
    created_at: i64,
}

type Sandboxes = Arc<Mutex<Vec<Sandbox>>>;

/// One node's kubelet, with its runtime's socket.
pub(crate) struct Kubelet {
    cgroup: PathBuf,
    socket: PathBuf,
    sandboxes: Sandboxes,
    made: i64,
    node: String,
    plugged: usize,
    runtime: Option<Runtime>,
}

struct Runtime {
    stop: CancellationToken,
    thread: Option<std::thread::JoinHandle<()>>,
}

/// A pod that runs: its sandbox, which no runtime tells of yet.
pub(crate) struct Pod {
    pub(crate) uid: String,
    pub(crate) name: String,
    pub(crate) namespace: String,
    /// Where its programs start: in its namespace and its cgroup.
    pub(crate) place: Place,
    cgroup: PathBuf,
    pause: Program,
    pub(crate) host_network: bool,
}

impl Kubelet {
    /// On a node of the story, without a runtime that answers.
    pub(crate) fn new(ground: &Ground, node: &str) -> anyhow::Result<Self> {
        let cgroup = ground.cgroup().join(format!("{node}-kubelet")).join("kubepods.slice");
        super::cgroup::make(&cgroup.join("kubepods-burstable.slice"))?;
        let socket = ground.dir().join(format!("{node}-cri.sock"));
        let (sandboxes, node) = (Sandboxes::default(), node.trim_start_matches("node-").to_owned());
        Ok(Self { cgroup, socket, sandboxes, made: 0, node, plugged: 0, runtime: None })
    }

    /// Has the runtime answer.
    pub(crate) fn start_runtime(&mut self) -> anyhow::Result<()> {
        let _ = fs::remove_file(&self.socket);
        let stop = CancellationToken::new();
        let (listening, stopped) = (std::os::unix::net::UnixListener::bind(&self.socket)?, stop.clone());
        listening.set_nonblocking(true)?;
        let service = RuntimeServiceServer::new(Cri(Arc::clone(&self.sandboxes)));
        let tokio = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let serve = move || {
            tokio.block_on(async {
                let Ok(listener) = UnixListener::from_std(listening) else { return };
                let incoming = futures_util::stream::unfold(listener, async |listener| {
                    let accepted = listener.accept().await.map(|(stream, _)| stream);
                    Some((accepted, listener))
                });
                let server = tonic::transport::Server::builder().add_service(service);
                let _ = server.serve_with_incoming_shutdown(incoming, stopped.cancelled_owned()).await;
            });
        };
        self.runtime = Some(Runtime { stop, thread: Some(std::thread::spawn(serve)) });
        Ok(())
    }

    /// Ends the runtime's service.
    pub(crate) fn stop_runtime(&mut self) {
        self.runtime = None;
    }

    /// What the node's file says of it.
    pub(crate) fn settings(&self) -> serde_json::Value {
        json!({ "runtimeSockets": [self.socket], "podsCgroup": self.cgroup })
    }

    /// Makes a pod's cgroup, namespace and sandbox. The runtime tells of it by [`Self::tell`] only.
    pub(crate) fn make(&mut self, wire: &mut Wire, name: &str, uid: &str) -> anyhow::Result<Pod> {
        let cgroup = self.make_cgroup(uid)?;
        let [place] = wire.plug([name])?;
        Self::sandbox(&place, cgroup, ("shop", name), uid, false)
    }

    /// The same for a pod of the API server's; one on its host's network is in that place.
    pub(crate) fn make_named(
        &mut self,
        wire: &mut Wire,
        (namespace, name): (&str, &str),
        uid: &str,
        host: Option<&Place>,
    ) -> anyhow::Result<Pod> {
        let cgroup = self.make_cgroup(uid)?;
        let place = if let Some(host) = host {
            host.clone()
        } else {
            // Interfaces have short names, and a pod that is gone may have had this one's.
            self.plugged += 1;
            let [place] = wire.plug([&*format!("{}p{}", self.node, self.plugged)])?;
            place
        };
        Self::sandbox(&place, cgroup, (namespace, name), uid, host.is_some())
    }

    fn make_cgroup(&self, uid: &str) -> anyhow::Result<PathBuf> {
        let slice = format!("kubepods-burstable-pod{}.slice", uid.replace('-', "_"));
        let cgroup = self.cgroup.join("kubepods-burstable.slice").join(slice);
        super::cgroup::make(&cgroup)?;
        Ok(cgroup)
    }

    fn sandbox(
        place: &Place,
        cgroup: PathBuf,
        (namespace, name): (&str, &str),
        uid: &str,
        host_network: bool,
    ) -> anyhow::Result<Pod> {
        let place = place.in_cgroup(&cgroup)?;
        let pause = place.launch("pause", &["sleep", "infinity"]).start()?;
        let (uid, name, namespace) = (uid.to_owned(), name.to_owned(), namespace.to_owned());
        Ok(Pod { uid, name, namespace, place, cgroup, pause, host_network })
    }

    /// Has the runtime tell of a pod's sandbox from now on.
    pub(crate) fn tell(&mut self, pod: &Pod) {
        self.made += 1;
        let sandbox = Sandbox {
            id: format!("{:064x}", self.made),
            uid: pod.uid.clone(),
            namespace: pod.namespace.clone(),
            name: pod.name.clone(),
            netns: (!pod.host_network).then(|| pod.place.netns_path()),
            pid: pod.pause.pid(),
            created_at: self.made,
        };
        let mut sandboxes = self.sandboxes.lock().unwrap_or_else(PoisonError::into_inner);
        sandboxes.retain(|known| known.uid != pod.uid);
        sandboxes.push(sandbox);
    }

    /// Makes a pod that the runtime tells of.
    pub(crate) fn run(&mut self, wire: &mut Wire, name: &str, uid: &str) -> anyhow::Result<Pod> {
        let pod = self.make(wire, name, uid)?;
        self.tell(&pod);
        Ok(pod)
    }

    /// Ends a pod and takes away all that was made for it.
    pub(crate) fn delete(&mut self, pod: Pod) -> anyhow::Result<()> {
        let mut sandboxes = self.sandboxes.lock().unwrap_or_else(PoisonError::into_inner);
        sandboxes.retain(|known| known.uid != pod.uid);
        drop(sandboxes);
        let cgroup = pod.cgroup.clone();
        Self::lose(pod)?;
        super::cgroup::remove(&cgroup);
        Ok(())
    }

    /// Ends a pod's sandbox and all in it; its cgroup stays, and the runtime has not noticed.
    pub(crate) fn lose(pod: Pod) -> anyhow::Result<()> {
        super::cgroup::kill(&pod.cgroup)?;
        let _ = pod.pause.finish(PATIENCE);
        if !pod.host_network {
            pod.place.remove();
        }
        Ok(())
    }

    /// Where its pods' cgroups are.
    pub(crate) fn cgroup(&self) -> &Path {
        &self.cgroup
    }
}

impl Drop for Runtime {
    fn drop(&mut self) {
        self.stop.cancel();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Cri(Sandboxes);

impl Cri {
    fn sandboxes(&self) -> Vec<Sandbox> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

#[tonic::async_trait]
impl RuntimeService for Cri {
    async fn list_pod_sandbox(
        &self,
        _: Request<proto::ListPodSandboxRequest>,
    ) -> Result<Response<proto::ListPodSandboxResponse>, Status> {
        let item = |sandbox: Sandbox| proto::PodSandbox {
            id: sandbox.id,
            metadata: Some(proto::PodSandboxMetadata {
                name: sandbox.name,
                uid: sandbox.uid,
                namespace: sandbox.namespace,
                attempt: 0,
            }),
            state: proto::PodSandboxState::SandboxReady.into(),
            created_at: sandbox.created_at,
        };
        let items = self.sandboxes().into_iter().map(item).collect();
        Ok(Response::new(proto::ListPodSandboxResponse { items }))
    }

    async fn pod_sandbox_status(
        &self,
        request: Request<proto::PodSandboxStatusRequest>,
    ) -> Result<Response<proto::PodSandboxStatusResponse>, Status> {
        let id = request.into_inner().pod_sandbox_id;
        let sandbox = self.sandboxes().into_iter().find(|sandbox| sandbox.id == id);
        let sandbox = sandbox.ok_or_else(|| Status::not_found("no such sandbox"))?;
        let own = sandbox.netns.iter().map(|path| json!({ "type": "network", "path": path }));
        let info = json!({
            "pid": sandbox.pid, "processStatus": "running", "netNamespaceClosed": false,
            "runtimeSpec": { "linux": { "namespaces": own.collect::<Vec<_>>() } },
        });
        let info = HashMap::from([("info".to_owned(), info.to_string())]);
        Ok(Response::new(proto::PodSandboxStatusResponse { info }))
    }
}
