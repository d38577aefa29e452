//! One watch per kind: list, then watch, again and again with backoff, until the daemon stops. What it hears goes into one
//! channel; that is bounded, so a slow reader slows the watches.

use std::{fmt::Debug, time::Duration};

use futures_util::StreamExt as _;
use kube::{
    Api, Client, Resource,
    core::{ApiResource, DynamicObject, GroupVersionKind},
    runtime::{
        WatchStreamExt as _,
        watcher::{self, Event, watcher},
    },
};
use serde::de::DeserializeOwned;
use tokio::{sync::mpsc, task::JoinSet, time::sleep};

use super::{
    client::{WATCH_SECONDS, Watches},
    documents::PolicyKind,
    tables::Change,
    wire,
};

/// How often it is looked whether a kind that was not there has come.
const LOOK_AGAIN: Duration = Duration::from_secs(5);
/// Objects that wait to be taken up.
const WAITING: usize = 256;

/// What each watch needs.
#[derive(Clone)]
struct Watch {
    client: Client,
    watches: Watches,
    changes: mpsc::Sender<Change>,
}

/// Begins all watches of the agent on `node`; they end with the set.
pub(super) fn begin(
    client: &Client,
    watches: &Watches,
    node: &str,
    tasks: &mut JoinSet<()>,
) -> mpsc::Receiver<Change> {
    let (changes, heard) = mpsc::channel(WAITING);
    let watch = Watch { client: client.clone(), watches: watches.clone(), changes };
    let all = || watcher::Config::default().timeout(WATCH_SECONDS);
    let core = |kind: &str, plural| {
        ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk("", "v1", kind), plural)
    };
    tasks.spawn(watch.clone().follow(
        core("Namespace", "namespaces"),
        "namespaces",
        all(),
        Change::Namespace,
    ));
    let alive = all().fields("status.phase!=Succeeded,status.phase!=Failed");
    tasks.spawn(watch.clone().follow(core("Pod", "pods"), "pods", alive, Change::Pod));
    tasks.spawn(watch.clone().follow(core("Service", "services"), "services", all(), Change::Service));
    let own = all().fields(&format!("metadata.name={node}"));
    tasks.spawn(watch.clone().follow(core("Node", "nodes"), "nodes", own, Change::Node));
    tasks.spawn(watch.clone().follow_endpoints(all(), core("Endpoints", "endpoints")));
    for kind in PolicyKind::ALL {
        tasks.spawn(watch.clone().follow_policies(kind, all()));
    }
    heard
}

impl Watch {
    /// Follows one kind until it is told that the server does not know it.
    async fn stream<K>(
        &self,
        resource: &ApiResource,
        name: &'static str,
        config: watcher::Config,
        change: impl Fn(Event<K>) -> Change,
    ) where
        K: Resource<DynamicType = ApiResource> + Clone + DeserializeOwned + Debug + Send + 'static,
    {
        let api: Api<K> = Api::all_with(self.client.clone(), resource);
        let mut events = Box::pin(watcher(api, config).default_backoff());
        while let Some(event) = events.next().await {
            match event {
                Ok(event) => {
                    if self.changes.send(change(event)).await.is_err() {
                        return;
                    }
                }
                Err(error) => {
                    let is_unknown = is_unknown_kind(&error);
                    self.watches.failed(name, said(&error));
                    if is_unknown {
                        return;
                    }
                }
            }
        }
    }

    async fn follow<K>(
        self,
        resource: ApiResource,
        name: &'static str,
        config: watcher::Config,
        change: fn(Event<K>) -> Change,
    ) where
        K: Resource<DynamicType = ApiResource> + Clone + DeserializeOwned + Debug + Send + 'static,
    {
        while !self.changes.is_closed() {
            self.stream(&resource, name, config.clone(), change).await;
            sleep(LOOK_AGAIN).await;
        }
    }

    /// Slices where the server has them, else what was before them.
    async fn follow_endpoints(self, config: watcher::Config, endpoints: ApiResource) {
        const NAME: &str = "endpointslices";
        let slices = |version| {
            let kind = GroupVersionKind::gvk("discovery.k8s.io", version, "EndpointSlice");
            ApiResource::from_gvk_with_plural(&kind, NAME)
        };
        while !self.changes.is_closed() {
            match self.served(&[slices("v1"), slices("v1beta1")]).await {
                Ok(Some(resource)) => {
                    self.stream::<wire::SliceObject>(&resource, NAME, config.clone(), Change::Slice).await;
                }
                Ok(None) => {
                    let change = |event| {
                        self.watches.heard(NAME);
                        Change::Endpoints(event)
                    };
                    self.stream::<wire::EndpointsObject>(&endpoints, NAME, config.clone(), change).await;
                }
                Err(why) => self.watches.failed(NAME, why),
            }
            sleep(LOOK_AGAIN).await;
        }
    }

    async fn follow_policies(self, kind: PolicyKind, config: watcher::Config) {
        let resources = kind.resources();
        while !self.changes.is_closed() {
            match self.served(&resources).await {
                Ok(Some(resource)) => {
                    self.watches.found(kind.plural(), &resource);
                    let change = |event| Change::Policy(kind, event);
                    self.stream::<DynamicObject>(&resource, kind.plural(), config.clone(), change).await;
                }
                Ok(None) => {
                    self.watches.heard(kind.plural());
                    if self.changes.send(Change::NoSuchKind(kind)).await.is_err() {
                        return;
                    }
                }
                Err(why) => self.watches.failed(kind.plural(), why),
            }
            sleep(LOOK_AGAIN).await;
        }
    }

    /// The first of `resources` that the server has.
    async fn served(&self, resources: &[ApiResource]) -> Result<Option<ApiResource>, String> {
        for resource in resources {
            match self.client.list_api_group_resources(&resource.api_version).await {
                Ok(list) if list.resources.iter().any(|known| known.name == resource.plural) => {
                    return Ok(Some(resource.clone()));
                }
                Ok(_) => {}
                Err(kube::Error::Api(status)) if status.code == 404 => {}
                Err(error) => return Err(error.to_string()),
            }
        }
        Ok(None)
    }
}

fn is_unknown_kind(error: &watcher::Error) -> bool {
    let (watcher::Error::InitialListFailed(error) | watcher::Error::WatchStartFailed(error)) = error else {
        return false;
    };
    matches!(error, kube::Error::Api(status) if status.code == 404)
}

/// What the API server answered, or the error and its causes, in one line.
fn said(error: &watcher::Error) -> String {
    let status = match error {
        watcher::Error::InitialListFailed(kube::Error::Api(status))
        | watcher::Error::WatchStartFailed(kube::Error::Api(status))
        | watcher::Error::WatchFailed(kube::Error::Api(status))
        | watcher::Error::WatchError(status) => status,
        other => return with_causes(other),
    };
    format!("it answers {} {}: {}", status.code, status.reason, status.message)
}

fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let why = error.to_string();
        if !text.contains(&why) {
            text.push_str(": ");
            text.push_str(&why);
        }
        cause = error.source();
    }
    text
}
