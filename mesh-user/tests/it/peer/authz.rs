//! An external authorizer that speaks gRPC, with messages of its own making: what `meshd` sends is read by other hands than
//! those that wrote it. It allows what is below `/open`, and connections of the workload `--only`.

use std::{
    convert::Infallible,
    future::{Ready, ready},
    task::{Context, Poll},
};

use hyper::{Request, body::Incoming, server::conn::http2, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::{Message, Oneof};
use serde_json::json;
use tower_service::Service;

use super::{Args, say};

#[derive(Clone, PartialEq, Message)]
struct Question {
    #[prost(message, optional, tag = "1")]
    attributes: Option<Attributes>,
}

#[derive(Clone, PartialEq, Message)]
struct Attributes {
    #[prost(message, optional, tag = "1")]
    source: Option<Party>,
    #[prost(message, optional, tag = "2")]
    destination: Option<Party>,
    #[prost(message, optional, tag = "4")]
    request: Option<About>,
}

#[derive(Clone, PartialEq, Message)]
struct Party {
    #[prost(string, tag = "4")]
    principal: String,
}

#[derive(Clone, PartialEq, Message)]
struct About {
    #[prost(message, optional, tag = "2")]
    http: Option<Http>,
}

#[derive(Clone, PartialEq, Message)]
struct Http {
    #[prost(string, tag = "4")]
    path: String,
}

#[derive(Clone, PartialEq, Message)]
struct Answer {
    #[prost(message, optional, tag = "1")]
    status: Option<Code>,
    #[prost(oneof = "How", tags = "2, 3")]
    how: Option<How>,
}

#[derive(Clone, PartialEq, Oneof)]
enum How {
    #[prost(message, tag = "2")]
    Denied(Denied),
    #[prost(message, tag = "3")]
    Allowed(Allowed),
}

#[derive(Clone, Copy, PartialEq, Message)]
struct Code {
    #[prost(int32, tag = "1")]
    code: i32,
}

#[derive(Clone, PartialEq, Message)]
struct Denied {
    #[prost(message, optional, tag = "1")]
    status: Option<Code>,
    #[prost(string, tag = "3")]
    body: String,
}

#[derive(Clone, PartialEq, Message)]
struct Allowed {
    #[prost(message, repeated, tag = "2")]
    headers: Vec<HeaderOption>,
    #[prost(message, repeated, tag = "6")]
    response_headers: Vec<HeaderOption>,
}

#[derive(Clone, PartialEq, Message)]
struct HeaderOption {
    #[prost(message, optional, tag = "1")]
    header: Option<Field>,
}

#[derive(Clone, PartialEq, Message)]
struct Field {
    #[prost(string, tag = "1")]
    key: String,
    #[prost(string, tag = "2")]
    value: String,
}

fn header(key: &str, value: &str) -> HeaderOption {
    HeaderOption { header: Some(Field { key: key.to_owned(), value: value.to_owned() }) }
}

/// Says one line for each question.
fn decide(question: Question, only: &str) -> Answer {
    let attributes = question.attributes.unwrap_or_default();
    let principal = |party: Option<Party>| party.unwrap_or_default().principal;
    let (source, destination) = (principal(attributes.source), principal(attributes.destination));
    let path = attributes.request.and_then(|about| about.http).map(|http| http.path);
    say(&json!({ "event": "asked", "source": source, "destination": destination, "path": path }));
    let allowed = match &path {
        Some(path) => path.starts_with("/open"),
        None => source.ends_with(only),
    };
    if allowed {
        let ok = Allowed {
            headers: vec![header("x-team", &source)],
            response_headers: vec![header("x-checked", "yes")],
        };
        return Answer { status: Some(Code { code: 0 }), how: Some(How::Allowed(ok)) };
    }
    let denied = Denied { status: Some(Code { code: 418 }), body: "not for you".to_owned() };
    Answer { status: Some(Code { code: 7 }), how: Some(How::Denied(denied)) }
}

#[derive(Clone)]
struct Authorizer(String);

impl Service<tonic::Request<Question>> for Authorizer {
    type Response = tonic::Response<Answer>;
    type Error = tonic::Status;
    type Future = Ready<Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, question: tonic::Request<Question>) -> Self::Future {
        ready(Ok(tonic::Response::new(decide(question.into_inner(), &self.0))))
    }
}

/// Serves until it is ended.
pub(super) fn serve(args: &Args) -> anyhow::Result<()> {
    let address = args.address()?;
    let authorizer = Authorizer(args.option("--only").unwrap_or_default().to_owned());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::bind(address).await?;
        say(&json!({ "event": "listening" }));
        loop {
            let (stream, from) = listener.accept().await?;
            say(&json!({ "event": "accepted", "from": from }));
            let authorizer = authorizer.clone();
            let service = service_fn(move |request: Request<Incoming>| {
                let authorizer = authorizer.clone();
                async move {
                    let codec = tonic_prost::ProstCodec::default();
                    Ok::<_, Infallible>(tonic::server::Grpc::new(codec).unary(authorizer, request).await)
                }
            });
            let server = http2::Builder::new(TokioExecutor::new());
            tokio::spawn(server.serve_connection(TokioIo::new(stream), service));
        }
    })
}
