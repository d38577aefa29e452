//! Asking the container runtime: `runtime.v1.RuntimeService` over its Unix socket. Its answers are bounded in time and
//! size, and nothing in them is believed that can be looked up.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    time::Duration,
};

use hyper_util::rt::TokioIo;
use tokio::{net::UnixStream, time::timeout};
use tonic::{
    Request, Status,
    transport::{Channel, Endpoint, Uri},
};

use super::{
    NodePod, PodUid,
    info::{self, Whereabouts},
    proto::{
        ListPodSandboxRequest, PodSandbox, PodSandboxFilter, PodSandboxState, PodSandboxStateValue,
        PodSandboxStatusRequest, runtime_service_client::RuntimeServiceClient,
    },
};

/// Where runtimes have their sockets unless they are told otherwise.
pub const DEFAULT_SOCKETS: [&str; 3] =
    ["/run/containerd/containerd.sock", "/run/crio/crio.sock", "/var/run/cri-dockerd.sock"];
/// Until an answer is there.
pub(super) const PATIENCE: Duration = Duration::from_secs(2);
/// A node's sandboxes, a few hundred bytes each.
const MAX_LIST_BYTES: usize = 16 << 20;
const MAX_STATUS_BYTES: usize = 4 << 20;
/// More than any kubelet runs on a node, ended ones that are kept among them.
const MAX_SANDBOXES: usize = 16384;
/// Identifiers are hashes of 64 digits.
const MAX_ID_BYTES: usize = 256;

/// Why a container runtime gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum CriError {
    /// None of the sockets can be reached.
    #[error("no container runtime answers at {0}: mount its socket, or name it in kubernetes.runtimeSockets")]
    NoRuntime(String),
    /// It answered by an error.
    #[error("the container runtime at {path} says: {status}", path = .path.display(), status = .status.message())]
    Refused {
        /// Its socket.
        path: PathBuf,
        /// What it said.
        status: Box<Status>,
    },
    /// It is silent.
    #[error("the container runtime at {path} has not answered for {PATIENCE:?}", path = .0.display())]
    Silent(PathBuf),
    /// It has more sandboxes than a node can have.
    #[error("the container runtime at {path} lists {count} sandboxes, more than {MAX_SANDBOXES}", path = .path.display())]
    TooMany {
        /// Its socket.
        path: PathBuf,
        /// How many.
        count: usize,
    },
}

/// A sandbox that runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Sandbox {
    pub(super) id: String,
    namespace: String,
    name: String,
    created_at: i64,
}

impl Sandbox {
    /// Whether it is the pod's, whose UID it has.
    pub(super) fn is_of(&self, pod: &NodePod) -> bool {
        self.namespace == *pod.namespace && self.name == *pod.name
    }
}

/// A runtime that is reached.
#[derive(Debug)]
pub(super) struct Cri {
    path: PathBuf,
    client: RuntimeServiceClient<Channel>,
}

impl Cri {
    /// Reaches the first of the sockets at which somebody answers.
    pub(super) async fn connect(sockets: &[PathBuf]) -> Result<Self, CriError> {
        for path in sockets {
            if let Ok(Ok(channel)) = timeout(PATIENCE, channel(path)).await {
                let client = RuntimeServiceClient::new(channel).max_decoding_message_size(MAX_LIST_BYTES);
                return Ok(Self { path: path.clone(), client });
            }
        }
        let tried: Vec<_> = sockets.iter().map(|path| path.display().to_string()).collect();
        Err(CriError::NoRuntime(tried.join(", ")))
    }

    /// The sandbox that each pod has now: the newest of those that run.
    pub(super) async fn sandboxes(&mut self) -> Result<HashMap<PodUid, Sandbox>, CriError> {
        let state = PodSandboxStateValue { state: PodSandboxState::SandboxReady.into() };
        let request = ListPodSandboxRequest { filter: Some(PodSandboxFilter { state: Some(state) }) };
        let answer = timeout(PATIENCE, self.client.list_pod_sandbox(Request::new(request))).await;
        let items = self.answered(answer)?.items;
        if items.len() > MAX_SANDBOXES {
            return Err(CriError::TooMany { path: self.path.clone(), count: items.len() });
        }
        Ok(newest(items))
    }

    /// Where a sandbox is; in words why that is not known.
    pub(super) async fn whereabouts(&mut self, id: &str) -> Result<Result<Whereabouts, String>, CriError> {
        let request = PodSandboxStatusRequest { pod_sandbox_id: id.to_owned(), verbose: true };
        let mut client = self.client.clone().max_decoding_message_size(MAX_STATUS_BYTES);
        let answer = timeout(PATIENCE, client.pod_sandbox_status(Request::new(request))).await;
        Ok(info::read(&self.answered(answer)?.info))
    }

    fn answered<T>(
        &self,
        answer: Result<Result<tonic::Response<T>, Status>, tokio::time::error::Elapsed>,
    ) -> Result<T, CriError> {
        let path = || self.path.clone();
        let answer = answer.map_err(|_| CriError::Silent(path()))?;
        let refused = |status| CriError::Refused { path: path(), status: Box::new(status) };
        Ok(answer.map_err(refused)?.into_inner())
    }
}

async fn channel(path: &Path) -> Result<Channel, tonic::transport::Error> {
    let path = path.to_path_buf();
    let connect = tower::service_fn(move |_: Uri| {
        let path = path.clone();
        async move { Ok::<_, std::io::Error>(TokioIo::new(UnixStream::connect(path).await?)) }
    });
    // The name is nobody's: a Unix socket has none.
    Endpoint::from_static("http://localhost").connect_timeout(PATIENCE).connect_with_connector(connect).await
}

fn newest(items: Vec<PodSandbox>) -> HashMap<PodUid, Sandbox> {
    let mut newest: HashMap<PodUid, Sandbox> = HashMap::new();
    for item in items {
        // Some runtimes ignore the filter.
        let ready = item.state == i32::from(PodSandboxState::SandboxReady);
        let Some(metadata) = item.metadata.filter(|_| ready && item.id.len() <= MAX_ID_BYTES) else {
            continue;
        };
        let uid = PodUid(metadata.uid.into());
        if newest.get(&uid).is_none_or(|known| known.created_at < item.created_at) {
            let sandbox = Sandbox {
                id: item.id,
                namespace: metadata.namespace,
                name: metadata.name,
                created_at: item.created_at,
            };
            newest.insert(uid, sandbox);
        }
    }
    newest
}
