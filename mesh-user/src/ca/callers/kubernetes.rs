//! Bound service-account tokens, judged by the API server that issued them (`TokenReview`). What it believed is remembered for a
//! few seconds, by the token's SHA-256, so that an agent that asks for a thousand workloads costs one review.
//!
//! Sources: the Kubernetes API's `authentication.k8s.io/v1` `TokenReview`, and `k8s.io/apiserver`
//! `pkg/authentication/serviceaccount/util.go` for the names in `extra`.

use std::{
    num::NonZeroUsize,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use aws_lc_rs::digest;
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, UserInfo};
use kube::{Api, Client, api::PostParams};
use lru::LruCache;
use tokio::sync::Semaphore;

use super::Refusal;
use crate::ca::cluster::{PodNode, Pods};

/// As long as an API server itself remembers what it believed (`--authentication-token-webhook-cache-authorized-ttl` of old).
const REMEMBERED: Duration = Duration::from_secs(10);
const MOST_REMEMBERED: NonZeroUsize = NonZeroUsize::new(4096).unwrap();
/// Reviews at once.
const REVIEWS: usize = 32;
const TIMEOUT: Duration = Duration::from_secs(8);
/// Longer than any token of Kubernetes.
const MAX_TOKEN_BYTES: usize = 16 * 1024;

/// Whose token it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceAccount {
    /// The account's namespace.
    pub namespace: String,
    /// The account's name.
    pub name: String,
    /// The pod that the token is bound to.
    pub pod: String,
    /// That pod's uid.
    pub pod_uid: String,
    /// The node that the pod runs on; API servers since 1.29 say so.
    pub node: Option<String>,
}

/// Has tokens reviewed.
pub struct Tokens {
    reviews: Api<TokenReview>,
    pods: Pods,
    audiences: Vec<String>,
    believed: Mutex<LruCache<[u8; 32], (Instant, ServiceAccount)>>,
    slots: Semaphore,
}

impl std::fmt::Debug for Tokens {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokens").field("audiences", &self.audiences).finish_non_exhaustive()
    }
}

impl Tokens {
    /// Asks this API server about tokens for one of `audiences`.
    pub fn new(client: Client, audiences: Vec<String>) -> Self {
        Self {
            reviews: Api::all(client.clone()),
            pods: Pods::new(client),
            audiences,
            believed: Mutex::new(LruCache::new(MOST_REMEMBERED)),
            slots: Semaphore::new(REVIEWS),
        }
    }

    /// The node of a token's pod, where the token does not say.
    ///
    /// # Errors
    /// When that pod is not there any more, or nobody can be asked.
    pub async fn node_of(&self, account: &ServiceAccount) -> Result<String, Refusal> {
        match self.pods.node_of(&account.namespace, &account.pod, &account.pod_uid).await {
            PodNode::On(node) => Ok(node),
            PodNode::Gone(why) => {
                Err(Refusal::Pod { pod: format!("{}/{}", account.namespace, account.pod), why })
            }
            PodNode::CannotAsk(what) => Err(Refusal::CannotAsk(what)),
        }
    }

    /// Whose token it is.
    ///
    /// # Errors
    /// When the API server does not believe it, it is for another audience, no pod is bound to it, or nobody can be asked.
    pub async fn review(&self, token: &str) -> Result<ServiceAccount, Refusal> {
        if token.len() > MAX_TOKEN_BYTES {
            return Err(Refusal::Token("it is too long".to_owned()));
        }
        let mut key = [0; 32];
        key.copy_from_slice(digest::digest(&digest::SHA256, token.as_bytes()).as_ref());
        if let Some(account) = self.remembered(&key) {
            return Ok(account);
        }
        let asked = async {
            let _slot = self.slots.acquire().await;
            let spec = TokenReviewSpec { audiences: Some(self.audiences.clone()), token: token.to_owned() };
            let review = TokenReview { spec, ..TokenReview::default() };
            self.reviews.create(&PostParams::default(), &review).await
        };
        let review = tokio::time::timeout(TIMEOUT, asked)
            .await
            .map_err(|_elapsed| Refusal::CannotAsk("the API server does not answer".to_owned()))?
            .map_err(|error| Refusal::CannotAsk(error.to_string()))?;
        let account = judge(review, &self.audiences)?;
        let mut believed = self.believed.lock().unwrap_or_else(PoisonError::into_inner);
        believed.put(key, (Instant::now(), account.clone()));
        Ok(account)
    }

    fn remembered(&self, key: &[u8; 32]) -> Option<ServiceAccount> {
        let mut believed = self.believed.lock().unwrap_or_else(PoisonError::into_inner);
        let (since, account) = believed.get(key)?;
        (since.elapsed() < REMEMBERED).then(|| account.clone())
    }
}

/// What an answer means.
fn judge(review: TokenReview, audiences: &[String]) -> Result<ServiceAccount, Refusal> {
    let status =
        review.status.ok_or_else(|| Refusal::CannotAsk("the API server gave no status".to_owned()))?;
    if status.authenticated != Some(true) {
        return Err(Refusal::Token(
            status.error.unwrap_or_else(|| "the API server does not say why".to_owned()),
        ));
    }
    // An API server that does not know audiences names none, and then the token is for itself.
    let named = status.audiences.unwrap_or_default();
    if !named.iter().any(|audience| audiences.contains(audience)) {
        return Err(Refusal::Audience(named));
    }
    account(&status.user.unwrap_or_default())
}

fn account(user: &UserInfo) -> Result<ServiceAccount, Refusal> {
    let username = user.username.as_deref().unwrap_or_default();
    let name = username.strip_prefix("system:serviceaccount:").and_then(|rest| rest.split_once(':'));
    let Some((namespace, name)) = name else {
        return Err(Refusal::Token(format!("{username:?} is no service account")));
    };
    let extra = |key: &str| {
        let values = user.extra.as_ref()?.get(&format!("authentication.kubernetes.io/{key}"))?;
        values.first().cloned()
    };
    let (Some(pod), Some(pod_uid)) = (extra("pod-name"), extra("pod-uid")) else {
        return Err(Refusal::Unbound);
    };
    Ok(ServiceAccount {
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        pod,
        pod_uid,
        node: extra("node-name"),
    })
}

#[cfg(test)]
pub(in crate::ca) mod fake {
    //! An API server that knows a few tokens.

    use std::sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    };

    use axum::{
        Json, Router,
        extract::Path,
        routing::{get, post},
    };
    use kube::Config;
    use serde_json::{Value, json};

    use super::*;

    /// Listens on loopback until dropped.
    pub(in crate::ca) struct ApiServer {
        pub(in crate::ca) reviews: Arc<AtomicUsize>,
        address: std::net::SocketAddr,
        serving: tokio::task::JoinHandle<()>,
    }

    impl Drop for ApiServer {
        fn drop(&mut self) {
            self.serving.abort();
        }
    }

    fn status(token: &str, asked: &Value) -> Value {
        let user = |account: &str, extra: Value| json!({ "username": account, "groups": ["system:serviceaccounts"], "extra": extra });
        let bound = |pod: &str, node: &str| {
            json!({
                "authentication.kubernetes.io/pod-name": [pod], "authentication.kubernetes.io/pod-uid": [format!("uid-{pod}")],
                "authentication.kubernetes.io/node-name": [node],
            })
        };
        let good = |user: Value| json!({ "authenticated": true, "audiences": asked, "user": user });
        match token {
            "web" => good(user("system:serviceaccount:shop:web", bound("web-1", "n1"))),
            "ztunnel-n1" => good(user("system:serviceaccount:istio-system:ztunnel", bound("zt-1", "n1"))),
            // Of a pod, and of one that had its name before.
            "nodeless-agent" | "nodeless-old-agent" => {
                let mut extra = bound(if token == "nodeless-agent" { "zt-9" } else { "zt-8" }, "x");
                extra.as_object_mut().unwrap().remove("authentication.kubernetes.io/node-name");
                good(user("system:serviceaccount:istio-system:ztunnel", extra))
            }
            "unbound" => good(user("system:serviceaccount:shop:web", json!({}))),
            "human" => good(user("alice", json!({}))),
            "no-audiences" => {
                json!({ "authenticated": true, "user": user("system:serviceaccount:shop:web", bound("web-1", "n1")) })
            }
            "other-audience" => {
                json!({ "authenticated": false, "error": "token audiences [vault] is invalid" })
            }
            "expired" => json!({ "authenticated": false, "error": "service account token has expired" }),
            _ => json!({ "authenticated": false, "error": "invalid bearer token" }),
        }
    }

    impl ApiServer {
        pub(in crate::ca) async fn start() -> Self {
            let reviews = Arc::new(AtomicUsize::new(0));
            let counted = Arc::clone(&reviews);
            let review = post(move |Json(mut review): Json<Value>| {
                counted.fetch_add(1, SeqCst);
                let token = review["spec"]["token"].as_str().unwrap_or_default().to_owned();
                review["status"] = status(&token, &review["spec"]["audiences"]);
                async move { (http::StatusCode::CREATED, Json(review)) }
            });
            let pod = get(async |Path(name): Path<String>| {
                Json(json!({
                    "apiVersion": "v1", "kind": "Pod", "metadata": { "name": name, "uid": "uid-zt-9" },
                    "spec": { "nodeName": "n1", "containers": [] },
                }))
            });
            let router = Router::new()
                .route("/apis/authentication.k8s.io/v1/tokenreviews", review)
                .route("/api/v1/namespaces/istio-system/pods/{name}", pod);
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            let serving = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
            Self { reviews, address, serving }
        }

        pub(in crate::ca) fn tokens(&self) -> Tokens {
            let config = Config::new(format!("http://{}", self.address).parse().unwrap());
            Tokens::new(Client::try_from(config).unwrap(), vec!["istio-ca".to_owned()])
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering::SeqCst;

    use kube::Config;

    use super::*;

    #[tokio::test]
    async fn a_bound_token_tells_account_pod_and_node_and_is_reviewed_once() {
        let server = fake::ApiServer::start().await;
        let tokens = server.tokens();
        for _ in 0..5 {
            let account = tokens.review("web").await.unwrap();
            assert_eq!((&*account.namespace, &*account.name, &*account.pod), ("shop", "web", "web-1"));
            assert_eq!(account.node.as_deref(), Some("n1"));
        }
        assert_eq!(server.reviews.load(SeqCst), 1);
    }

    #[tokio::test]
    async fn what_proves_nothing_is_refused_and_not_remembered() {
        let server = fake::ApiServer::start().await;
        let tokens = server.tokens();
        let mut wrong = Vec::new();
        for (token, reason) in [
            ("stolen-and-revoked", "bad_token"),
            ("expired", "bad_token"),
            ("other-audience", "bad_token"),
            ("no-audiences", "wrong_audience"),
            ("unbound", "unbound_token"),
            ("human", "bad_token"),
            ("", "bad_token"),
            (&"x".repeat(MAX_TOKEN_BYTES + 1), "bad_token"),
        ] {
            for _ in 0..2 {
                let refused = tokens.review(token).await.unwrap_err().reason();
                if refused != reason {
                    wrong.push(format!("{token:.20} was refused for {refused}"));
                }
            }
        }
        assert!(wrong.is_empty(), "{wrong:?}");
        assert_eq!(server.reviews.load(SeqCst), 14);
    }

    #[tokio::test]
    async fn without_an_api_server_nobody_is_believed() {
        let config = Config::new("http://127.0.0.1:1".parse().unwrap());
        let unreachable = Tokens::new(Client::try_from(config).unwrap(), vec!["istio-ca".to_owned()]);
        assert_eq!(unreachable.review("web").await.unwrap_err().reason(), "cannot_ask");
    }
}
