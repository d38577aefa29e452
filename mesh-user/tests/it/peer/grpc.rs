//! A gRPC service and its client, by tonic, without generated code: once, many answers, and both ways; each method is known
//! by its path. A call's end is said with its status and what came in trailers.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use anyhow::{Context as _, bail};
use futures_util::{Stream, StreamExt as _, future::BoxFuture, stream};
use http::uri::PathAndQuery;
use serde_json::{Value, json};
use tonic::body::Body;
use tonic::metadata::MetadataValue;
use tonic::transport::{Channel, Server};
use tonic::{Code, Request, Response, Status, Streaming};
use tonic_prost::ProstCodec;
use tower::{Service, service_fn};

use super::{Args, say};

/// What is asked, and what is answered.
#[derive(Clone, PartialEq, prost::Message)]
struct Words {
    #[prost(string, tag = "1")]
    text: String,
    /// How many answers are wanted.
    #[prost(uint32, tag = "2")]
    count: u32,
    #[prost(bytes = "vec", tag = "3")]
    load: Vec<u8>,
}

type Answers = Pin<Box<dyn Stream<Item = Result<Words, Status>> + Send>>;

/// Comes behind the data of every call that ends in an error of the service's own.
const TRAILER: &str = "x-why";

fn own_error() -> Status {
    let mut status = Status::new(Code::FailedPrecondition, "as asked");
    status.metadata_mut().insert(TRAILER, MetadataValue::from_static("in a trailer"));
    status
}

async fn once(request: Request<Words>) -> Result<Response<Words>, Status> {
    let words = request.into_inner();
    if words.text == "fail" { Err(own_error()) } else { Ok(Response::new(words)) }
}

async fn many(request: Request<Words>) -> Result<Response<Answers>, Status> {
    let words = request.into_inner();
    let last = if words.text == "fail" { Some(Err(own_error())) } else { None };
    let answers = (0..words.count).map(move |count| Ok(Words { count, ..words.clone() })).collect::<Vec<_>>();
    Ok(Response::new(Box::pin(stream::iter(answers.into_iter().chain(last)))))
}

async fn talk(request: Request<Streaming<Words>>) -> Result<Response<Answers>, Status> {
    Ok(Response::new(Box::pin(request.into_inner())))
}

#[derive(Clone)]
struct Shop;

impl tonic::server::NamedService for Shop {
    const NAME: &'static str = "shop.Words";
}

impl Service<http::Request<Body>> for Shop {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        Box::pin(async move {
            let mut grpc = tonic::server::Grpc::new(ProstCodec::<Words, Words>::default());
            let method = request.uri().path().rsplit('/').next().unwrap_or_default().to_owned();
            say(&json!({ "event": "called", "method": method }));
            Ok(match method.as_str() {
                "Many" => grpc.server_streaming(service_fn(many), request).await,
                "Talk" => grpc.streaming(service_fn(talk), request).await,
                _ => grpc.unary(service_fn(once), request).await,
            })
        })
    }
}

fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()
}

/// `grpc-serve ADDRESS`
pub(super) fn serve(args: &Args) -> anyhow::Result<()> {
    let at = args.address()?;
    runtime()?.block_on(async {
        let listener = tokio::net::TcpListener::bind(at).await?;
        say(&json!({ "event": "listening" }));
        let connections = stream::unfold(listener, |listener| async {
            let accepted = listener.accept().await.map(|(stream, _)| stream);
            Some((accepted, listener))
        });
        Server::builder().add_service(Shop).serve_with_incoming(connections).await?;
        Ok(())
    })
}

/// `grpc-call ADDRESS --method NAME [--text TEXT] [--count N] [--kib N] [--token TOKEN]`: one line when it has ended.
pub(super) fn call(args: &Args) -> anyhow::Result<()> {
    let (to, method) = (args.address()?, args.option("--method").context("--method")?.to_owned());
    let kib = usize::try_from(args.number("--kib", 0)?)?;
    let words = Words {
        text: args.option("--text").unwrap_or("hello").to_owned(),
        count: u32::try_from(args.number("--count", 1)?)?,
        load: vec![7; kib * 1024],
    };
    let token = args.option("--token").map(|token| format!("Bearer {token}").parse()).transpose()?;
    runtime()?.block_on(async {
        let endpoint = Channel::from_shared(format!("http://{to}"))?.timeout(Duration::from_secs(30));
        let path: PathAndQuery = format!("/shop.Words/{method}").parse()?;
        let mut client = tonic::client::Grpc::new(endpoint.connect().await?);
        client.ready().await?;
        let ended = match method.as_str() {
            "Many" => {
                let answers = client.server_streaming(with(words, token), path, codec()).await;
                read(answers).await
            }
            "Talk" => {
                let count = words.count;
                let each = stream::iter((0..count).map(move |count| Words { count, ..words.clone() }));
                read(client.streaming(with(each, token), path, codec()).await).await
            }
            "Once" | "Other" => match client.unary(with(words, token), path, codec()).await {
                Ok(answer) => json!({ "code": 0, "answers": 1, "bytes": answer.into_inner().load.len() }),
                Err(status) => failed(&status, 0, 0),
            },
            other => bail!("no such method: {other}"),
        };
        say(&ended);
        Ok(())
    })
}

fn codec() -> ProstCodec<Words, Words> {
    ProstCodec::default()
}

fn with<T>(body: T, token: Option<MetadataValue<tonic::metadata::Ascii>>) -> Request<T> {
    let mut request = Request::new(body);
    if let Some(token) = token {
        request.metadata_mut().insert("authorization", token);
    }
    request
}

async fn read(answers: Result<Response<Streaming<Words>>, Status>) -> Value {
    let mut answers = match answers {
        Ok(answers) => answers.into_inner(),
        Err(status) => return failed(&status, 0, 0),
    };
    let (mut count, mut bytes) = (0, 0);
    while let Some(answer) = answers.next().await {
        match answer {
            Ok(words) => {
                count += 1;
                bytes += words.load.len();
            }
            Err(status) => return failed(&status, count, bytes),
        }
    }
    json!({ "code": 0, "answers": count, "bytes": bytes })
}

fn failed(status: &Status, answers: usize, bytes: usize) -> Value {
    let why = status.metadata().get(TRAILER).and_then(|value| value.to_str().ok());
    json!({
        "code": status.code() as i32, "message": status.message(), "answers": answers, "bytes": bytes, "trailer": why,
    })
}
