//! External authorizers: what `action: CUSTOM` asks before a request or a connection goes on. Puts the question as Envoy
//! does, over gRPC or HTTP, and says what the answer means. It opens no connection itself: whose network, address and
//! identity are used is its caller's matter. Whatever fails denies, unless the provider says `failOpen`.

mod check;
mod grpc;
mod plain;
mod pool;
mod proto;
#[cfg(test)]
mod tests;

use std::{
    collections::HashMap,
    fmt,
    future::Future,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use http::StatusCode;
use tokio::sync::Semaphore;

pub use check::{Changes, Check, Denied, HeaderPut, HttpCheck, Party, Put};
pub use pool::Io;

use self::{check::Answer, pool::Pool};
use crate::{
    config::ExtensionProvider,
    telemetry::{AuthorizerResult, Metrics},
    world::WorkloadName,
};

/// Checks under way at one provider, as many as Envoy's own bound for a cluster.
const MAX_CHECKS: usize = 1024;

/// Opens connections to authorizers.
pub trait Connector: Send + Sync {
    /// Connects to the service, and proves it where the mesh can. Its words end up in the access log.
    fn connect(&self, service: &ServiceName) -> impl Future<Output = Result<Box<dyn Io>, String>> + Send;
}

/// Where an authorizer is, as a provider names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceName {
    /// What was written before the slash.
    pub namespace: Option<String>,
    /// Address or name.
    pub host: String,
    /// Port of the service.
    pub port: u16,
}

impl ServiceName {
    fn parse(service: &str, port: u16) -> Self {
        let (namespace, host) =
            service.split_once('/').map_or((None, service), |(ns, host)| (Some(ns), host));
        Self { namespace: namespace.map(str::to_owned), host: host.to_owned(), port }
    }

    /// The host as a URL has it.
    fn authority(&self) -> String {
        if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() }
    }
}

impl fmt::Display for ServiceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.authority(), self.port)
    }
}

/// Why an authorizer gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// Nobody is there, or it cannot prove itself.
    #[error("cannot be reached: {0}")]
    Connect(String),
    /// Not HTTP, or broken off.
    #[error("does not answer: {0}")]
    Http(#[from] hyper::Error),
    /// gRPC's own failure.
    #[error("does not answer: gRPC status {}", code(.0))]
    Grpc(#[from] tonic::Status),
    /// More than a page that says why not.
    #[error("its answer is larger than 256 KiB")]
    TooLarge,
    /// The provider's `timeout`.
    #[error("no answer within {0:?}")]
    TimedOut(Duration),
    /// Too many ask at once.
    #[error("{MAX_CHECKS} checks wait for it already")]
    Overloaded,
}

/// Without its message, which may hold anything.
fn code(status: &tonic::Status) -> String {
    format!("{:?}", status.code())
}

/// What comes of a question.
#[derive(Debug)]
pub enum Outcome {
    /// It may go on.
    Allowed {
        /// What the authorizer wants changed.
        changes: Changes,
        /// Why nobody could be asked; none: the authorizer allowed it.
        failed_open: Option<String>,
    },
    /// It ends here.
    Denied {
        /// What the client gets.
        answer: Denied,
        /// Why nobody could be asked, or the answer could not be followed; none: the authorizer denied it.
        error: Option<String>,
    },
}

/// The protocol of a provider.
#[derive(Debug)]
enum Protocol {
    Grpc,
    Plain(plain::Settings),
}

/// One authorizer.
#[derive(Debug)]
pub struct Authorizer {
    name: Arc<str>,
    service: ServiceName,
    protocol: Protocol,
    timeout: Duration,
    fail_open: bool,
    status_on_error: StatusCode,
    places: Semaphore,
    /// A workload's connections are its own: they bear its identity.
    pools: Mutex<HashMap<WorkloadName, Arc<Pool>>>,
}

/// All authorizers of a node's file, with the connections to them. Made anew with each snapshot, so that what was proven
/// before trust or policy changed is proven again.
#[derive(Debug, Default)]
pub struct Authorizers(HashMap<Arc<str>, Authorizer>);

impl Authorizers {
    /// No connection yet.
    pub fn new(providers: &[ExtensionProvider]) -> Self {
        let known = providers.iter().filter_map(Authorizer::new);
        Self(known.map(|authorizer| (Arc::clone(&authorizer.name), authorizer)).collect())
    }

    /// The one that a policy names.
    pub fn get(&self, name: &str) -> Option<&Authorizer> {
        self.0.get(name)
    }
}

impl Authorizer {
    fn new(provider: &ExtensionProvider) -> Option<Self> {
        let common = provider.common()?;
        let plain = provider.envoy_ext_authz_http.as_ref();
        Some(Self {
            name: provider.name.as_str().into(),
            service: ServiceName::parse(common.service, common.port),
            protocol: plain.map_or(Protocol::Grpc, |http| Protocol::Plain(http.into())),
            timeout: common.timeout,
            fail_open: common.fail_open,
            status_on_error: common.status_on_error,
            places: Semaphore::new(MAX_CHECKS),
            pools: Mutex::default(),
        })
    }

    /// Asks, on behalf of the workload whose policy wants it.
    pub async fn ask(
        &self,
        check: &Check,
        workload: &WorkloadName,
        connector: &impl Connector,
        metrics: &Metrics,
    ) -> Outcome {
        let began = Instant::now();
        let asked = self.answer(check, workload, connector).await;
        let (outcome, result) = self.outcome(asked);
        metrics.authorizer_asked(&self.name, result, began.elapsed());
        outcome
    }

    async fn answer(
        &self,
        check: &Check,
        workload: &WorkloadName,
        connector: &impl Connector,
    ) -> Result<Answer, AskError> {
        let _place = self.places.try_acquire().map_err(|_| AskError::Overloaded)?;
        let pool = {
            let mut pools = self.pools.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(pools.entry(workload.clone()).or_default())
        };
        let asked = async {
            match &self.protocol {
                Protocol::Grpc => {
                    let asked = pool.ask_grpc(grpc::request(check), self.timeout, &self.service, connector);
                    asked.await.map(grpc::answer)
                }
                Protocol::Plain(settings) => {
                    let request = match settings.request(check) {
                        Ok(request) => request,
                        Err(why) => return Ok(Answer::Invalid(why.to_owned())),
                    };
                    let (head, body) = pool.ask_plain(request, &self.service, connector).await?.into_parts();
                    Ok(settings.answer(head.status, &head.headers, body))
                }
            }
        };
        let answered = tokio::time::timeout(self.timeout, asked).await;
        answered.unwrap_or_else(|_| {
            pool.forget();
            Err(AskError::TimedOut(self.timeout))
        })
    }

    fn outcome(&self, asked: Result<Answer, AskError>) -> (Outcome, AuthorizerResult) {
        let (error, answer) = match asked {
            Ok(Answer::Allow(changes)) => {
                return (Outcome::Allowed { changes, failed_open: None }, AuthorizerResult::Allowed);
            }
            Ok(Answer::Deny(answer)) => {
                return (Outcome::Denied { answer, error: None }, AuthorizerResult::Denied);
            }
            Ok(Answer::Invalid(error)) => {
                let answer = Denied::bare(StatusCode::INTERNAL_SERVER_ERROR);
                return (Outcome::Denied { answer, error: Some(error) }, AuthorizerResult::Invalid);
            }
            Ok(Answer::Failed(error, answer)) => (error, answer),
            Err(error) => (error.to_string(), None),
        };
        tracing::debug!(provider = %self.name, %error, "an external authorizer could not be asked");
        if self.fail_open {
            let outcome = Outcome::Allowed { changes: Changes::default(), failed_open: Some(error) };
            return (outcome, AuthorizerResult::FailedOpen);
        }
        let answer = answer.unwrap_or_else(|| Denied::bare(self.status_on_error));
        (Outcome::Denied { answer, error: Some(error) }, AuthorizerResult::Failed)
    }
}
