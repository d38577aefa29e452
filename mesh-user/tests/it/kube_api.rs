//! Requests to an API server without types, for what kubectl is too slow or too polite to do: objects are as they are sent.

use std::path::{Path, PathBuf};

use futures_util::{StreamExt as _, TryStreamExt as _};
use kube::Client;
use kube::config::{Config, KubeConfigOptions, Kubeconfig};
use serde_json::{Value, json};

use super::kube::Cluster;
use super::process::enter;

/// How many requests of [`create_all`] are under way at once.
const AT_ONCE: usize = 24;

/// A client with an administrator's powers.
#[derive(Clone)]
pub(crate) struct Api(Client);

impl Api {
    /// From a thread that has entered the API server's namespace ([`within`]).
    async fn connect(kubeconfig: &Path) -> anyhow::Result<Self> {
        let kubeconfig = Kubeconfig::read_from(kubeconfig)?;
        let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
        Ok(Self(Client::try_from(config)?))
    }

    pub(crate) async fn get(&self, path: &str) -> anyhow::Result<Value> {
        Ok(self.0.request(http::Request::get(path).body(Vec::new())?).await?)
    }

    /// POST or DELETE with a JSON body.
    pub(crate) async fn send(&self, method: http::Method, path: &str, body: &Value) -> anyhow::Result<Value> {
        self.request(method, path, "application/json", body).await
    }

    /// A merge patch.
    pub(crate) async fn patch(&self, path: &str, body: &Value) -> anyhow::Result<Value> {
        self.request(http::Method::PATCH, path, "application/merge-patch+json", body).await
    }

    async fn request(
        &self,
        method: http::Method,
        path: &str,
        kind: &str,
        body: &Value,
    ) -> anyhow::Result<Value> {
        let request = http::Request::builder().method(method).uri(path).header("content-type", kind);
        Ok(self.0.request(request.body(body.to_string().into_bytes())?).await?)
    }
}

/// Where an API server is reached from.
#[derive(Clone)]
pub(crate) struct Reach {
    netns: PathBuf,
    kubeconfig: PathBuf,
}

impl Reach {
    pub(crate) fn of(cluster: &Cluster) -> Self {
        Self { netns: cluster.place.netns_path(), kubeconfig: cluster.admin() }
    }

    /// Does `work` on this thread, which must be there for nothing else: it stays in the API server's namespace.
    pub(crate) fn within<T, F: Future<Output = anyhow::Result<T>>>(
        &self,
        work: impl FnOnce(Api) -> F,
    ) -> anyhow::Result<T> {
        // Before anything opens a socket.
        enter(&self.netns)?;
        let tokio = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        tokio.block_on(async { work(Api::connect(&self.kubeconfig).await?).await })
    }
}

/// An object, the path it is made at, and the status it gets where it has one.
pub(crate) struct Made {
    pub(crate) path: String,
    pub(crate) object: Value,
    pub(crate) status: Option<Value>,
}

/// Makes many objects at once.
pub(crate) fn create_all(cluster: &Cluster, objects: Vec<Made>) -> anyhow::Result<()> {
    let reach = Reach::of(cluster);
    let create = async |api: &Api, made: Made| -> anyhow::Result<()> {
        let Made { path, object, status } = made;
        api.send(http::Method::POST, &path, &object).await?;
        if let Some(status) = status {
            let name = object["metadata"]["name"].as_str().unwrap_or_default();
            api.patch(&format!("{path}/{name}/status"), &json!({ "status": status })).await?;
        }
        Ok(())
    };
    let all = || {
        reach.within(async |api| {
            let requests = objects.into_iter().map(|made| create(&api, made));
            futures_util::stream::iter(requests).buffer_unordered(AT_ONCE).try_collect::<()>().await
        })
    };
    std::thread::scope(|scope| scope.spawn(all).join())
        .map_err(|_| anyhow::anyhow!("making objects panicked"))?
}
