//! The locator against a runtime that lies, is silent, or speaks the truth. Needs root for network namespaces.

use std::collections::HashMap;

use tokio::net::UnixListener;
use tonic::{Request, Response, Status, async_trait};

use super::*;
use crate::runtime::proto::{
    ListPodSandboxRequest, ListPodSandboxResponse, PodSandbox, PodSandboxMetadata, PodSandboxStatusRequest,
    PodSandboxStatusResponse,
    runtime_service_server::{RuntimeService, RuntimeServiceServer},
};

/// What it says of each pod: UID, name, and the info.
struct Fake(Vec<(&'static str, &'static str, String)>);

#[async_trait]
impl RuntimeService for Fake {
    async fn list_pod_sandbox(
        &self,
        _: Request<ListPodSandboxRequest>,
    ) -> Result<Response<ListPodSandboxResponse>, Status> {
        let item = |(uid, name, _): &(&str, &str, String)| PodSandbox {
            id: (*uid).to_owned(),
            metadata: Some(PodSandboxMetadata {
                name: (*name).to_owned(),
                uid: (*uid).to_owned(),
                namespace: "shop".to_owned(),
                attempt: 0,
            }),
            ..PodSandbox::default()
        };
        Ok(Response::new(ListPodSandboxResponse { items: self.0.iter().map(item).collect() }))
    }

    async fn pod_sandbox_status(
        &self,
        request: Request<PodSandboxStatusRequest>,
    ) -> Result<Response<PodSandboxStatusResponse>, Status> {
        let id = request.into_inner().pod_sandbox_id;
        let found = self.0.iter().find(|(uid, ..)| *uid == id);
        let (.., info) = found.ok_or_else(|| Status::not_found("none"))?;
        let info = HashMap::from([("info".to_owned(), info.clone())]);
        Ok(Response::new(PodSandboxStatusResponse { info }))
    }
}

fn pod(uid: &str) -> NodePod {
    NodePod {
        uid: PodUid(uid.into()),
        namespace: "shop".into(),
        name: uid.into(),
        host_network: false,
        wanted: true,
    }
}

#[tokio::test]
async fn what_a_runtime_says_is_believed_only_where_it_can_be() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("cri.sock");
    let netns = NetNs::create().expect("making a network namespace needs root");
    let at = |path: &Path| {
        format!(
            r#"{{"runtimeSpec":{{"linux":{{"namespaces":[{{"type":"network","path":"{}"}}]}}}}}}"#,
            path.display()
        )
    };
    let fifo = dir.path().join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let own_process = format!(r#"{{"pid":{}}}"#, std::process::id());
    let says = vec![
        ("good", "good", at(&netns.path_for_others())),
        ("same", "same", at(&netns.path_for_others())),
        ("renamed", "another", at(&netns.path_for_others())),
        ("host", "host", at(Path::new("/proc/self/ns/net"))),
        ("file", "file", at(Path::new("/etc/hostname"))),
        ("fifo", "fifo", at(&fifo)),
        ("other-kind", "other-kind", at(Path::new("/proc/self/ns/mnt"))),
        ("process", "process", own_process),
        ("junk", "junk", "{".to_owned()),
    ];
    let pods: Vec<NodePod> = says.iter().map(|(uid, ..)| pod(uid)).chain([pod("absent")]).collect();
    let listener = UnixListener::bind(&socket).unwrap();
    let incoming = futures_util::stream::unfold(listener, async |listener| {
        let accepted = listener.accept().await.map(|(stream, _)| stream);
        Some((accepted, listener))
    });
    let server = tonic::transport::Server::builder().add_service(RuntimeServiceServer::new(Fake(says)));
    tokio::spawn(server.serve_with_incoming(incoming));
    let settings = LocatorSettings {
        sockets: vec![dir.path().join("nobody.sock"), socket],
        pods_cgroup: Some(dir.path().join("absent")),
        folder: dir.path().join("pods"),
    };
    let (tell, told) = watch::channel(Arc::new(pods));
    let stop = CancellationToken::new();
    let mut located = Locator::start(settings, told, stop.clone()).unwrap();
    let places = located.places.wait_for(|places| !places.is_empty()).await.unwrap().clone();
    for (uid, place) in places.iter() {
        match place {
            PodPlace::Netns(path) => {
                assert_eq!((&*uid.0, NetNs::open(path).unwrap().cookie()), ("good", netns.cookie()));
            }
            PodPlace::Unknown(why) => assert!(&*uid.0 != "good" && !why.is_empty(), "{uid}: {why}"),
        }
    }
    assert_eq!(places.len(), 10);
    tell.send_replace(Arc::new(Vec::new()));
    located.places.wait_for(|places| places.is_empty()).await.unwrap();
    stop.cancel();
}
