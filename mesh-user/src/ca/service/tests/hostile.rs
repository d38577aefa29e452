//! What is refused, and what is bounded.

use std::{sync::Arc, time::Duration};

use rcgen::KeyPair;
use tokio::io::AsyncReadExt;
use tonic::Code;

use super::ground::*;
use crate::ca::proto::istio::istio_certificate_service_client::IstioCertificateServiceClient;

#[tokio::test]
async fn whoever_proves_nothing_gets_nothing_and_each_has_a_line() {
    let ground = Ground::new().await;
    let channel = ground.anonymous().await;
    let good = || csr(&KeyPair::generate().unwrap(), &[]);
    let web = "spiffe://mesh.test/ns/shop/sa/web";
    let mut wrong = Vec::new();
    for (csr, token, asked, code, reason) in [
        (good(), None, None, Code::Unauthenticated, "anonymous"),
        (good(), Some("stolen-and-revoked"), None, Code::Unauthenticated, "bad_token"),
        (good(), Some("other-audience"), None, Code::Unauthenticated, "bad_token"),
        (good(), Some("no-audiences"), None, Code::Unauthenticated, "wrong_audience"),
        (good(), Some("expired"), None, Code::Unauthenticated, "bad_token"),
        (good(), Some("unbound"), None, Code::Unauthenticated, "unbound_token"),
        (
            good(),
            Some("web"),
            Some("spiffe://mesh.test/ns/shop/sa/other"),
            Code::PermissionDenied,
            "not_allowed",
        ),
        (
            good(),
            Some("ztunnel-n1"),
            Some("spiffe://mesh.test/ns/bank/sa/teller"),
            Code::PermissionDenied,
            "not_allowed",
        ),
        (good(), Some("nodeless-old-agent"), Some(web), Code::Unauthenticated, "unknown_pod"),
        (good(), Some("ztunnel-n1"), Some("not a SPIFFE ID"), Code::InvalidArgument, "bad_request"),
        (forged_csr(), Some("web"), None, Code::InvalidArgument, "no_possession"),
        (String::new(), Some("web"), None, Code::InvalidArgument, "bad_csr"),
        ("x".repeat(60_000), Some("web"), None, Code::InvalidArgument, "bad_csr"),
    ] {
        let before = ground.audit().len();
        let request = ask(csr, token, asked);
        let answer = IstioCertificateServiceClient::new(channel.clone()).create_certificate(request).await;
        let told = answer.err().map(|status| status.code());
        // One request, one line.
        let wanted = async {
            while ground.audit().len() <= before {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), wanted).await.unwrap();
        let line = ground.audit().pop().unwrap();
        if told != Some(code) || line["reason"] != reason || ground.audit().len() != before + 1 {
            wrong.push(format!("{token:?} {asked:?} was told {told:?}: {line}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    let audit = ground.audit_text();
    assert!(!audit.contains("stolen-and-revoked") && !audit.contains("\"issued\""), "{audit}");
}

#[tokio::test]
async fn a_token_that_is_not_believed_is_not_made_good_by_a_certificate() {
    let ground = Ground::new().await;
    let node = ground.join("n1").await;
    let channel = ground.channel(Some(&node)).await.unwrap();
    let refused = obtain(channel, Some("stolen"), None).await.err().unwrap();
    assert_eq!(refused.code(), Code::Unauthenticated);
}

#[tokio::test]
async fn what_is_too_long_is_refused_before_it_is_read() {
    let ground = Ground::new().await;
    let request = ask("x".repeat(4 << 20), Some("web"), None);
    let answer =
        IstioCertificateServiceClient::new(ground.anonymous().await).create_certificate(request).await;
    let code = answer.err().unwrap().code();
    assert!(matches!(code, Code::OutOfRange | Code::ResourceExhausted), "{code:?}");
    ground.audited(|line| line["reason"] == "too_long" && line["call"] == "CreateCertificate").await;
    let mut request = ask(String::new(), None, None);
    request
        .metadata_mut()
        .insert("authorization", format!("Bearer {}", "t".repeat(100_000)).parse().unwrap());
    let answer =
        IstioCertificateServiceClient::new(ground.anonymous().await).create_certificate(request).await;
    answer.err().unwrap();
    assert!(!ground.audit_text().contains("tttt"));
}

#[tokio::test]
async fn a_request_that_never_ends_is_ended() {
    let ground = Ground::with("limits: { requestTimeoutMs: 200 }\n").await;
    let stream = ground.tls(ground.client_config(None)).await.unwrap();
    let (mut client, connection) = h2::client::handshake(stream).await.unwrap();
    tokio::spawn(connection);
    let request =
        http::Request::post("https://ca.test/istio.v1.auth.IstioCertificateService/CreateCertificate")
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(())
            .unwrap();
    let (answer, mut body) = client.send_request(request, false).unwrap();
    // The head of a message of 1000 bytes, of which one comes.
    body.send_data(bytes::Bytes::from_static(&[0, 0, 0, 3, 232, 1]), false).unwrap();
    let answer = tokio::time::timeout(Duration::from_secs(30), answer).await.unwrap().unwrap();
    assert_eq!(answer.headers()["grpc-status"], (Code::DeadlineExceeded as i32).to_string());
    ground.audited(|line| line["reason"] == "timeout" && line["call"] == "CreateCertificate").await;
}

#[tokio::test]
async fn a_connection_that_says_nothing_is_closed() {
    let ground =
        Ground::with("limits: { handshakeTimeoutMs: 200, idleTimeoutMs: 200, connectionsPerAddress: 2 }\n")
            .await;
    let mut silent = tokio::net::TcpStream::connect(ground.address).await.unwrap();
    let mut idle = ground.tls(ground.client_config(None)).await.unwrap();
    // The third of one address finds no place.
    let mut third = tokio::net::TcpStream::connect(ground.address).await.unwrap();
    let mut rest = Vec::new();
    // A reset is an end too.
    let closed = async {
        let _reset = third.read_to_end(&mut rest).await;
        let _reset = silent.read_to_end(&mut rest).await;
        let _reset = idle.read_to_end(&mut rest).await;
    };
    tokio::time::timeout(Duration::from_secs(60), closed).await.unwrap();
    ground.audited(|line| line["call"] == "handshake" && line["reason"] == "timeout").await;
    ground.audited(|line| line["call"] == "connect" && line["reason"] == "busy").await;
}

#[tokio::test]
async fn only_tls_1_3_is_spoken() {
    let ground = Ground::new().await;
    let mut config = ground.client_config(None);
    let stream = ground.tls(config.clone()).await.unwrap();
    assert_eq!(stream.get_ref().1.protocol_version(), Some(rustls::ProtocolVersion::TLSv1_3));
    config = rustls::ClientConfig::builder_with_provider(Arc::new(super::super::provider()))
        .with_protocol_versions(&[&rustls::version::TLS12])
        .unwrap()
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    ground.tls(config).await.unwrap_err();
    ground.audited(|line| line["reason"] == "handshake").await;
}

#[tokio::test]
async fn ten_thousand_requests_of_one_caller_leave_others_served() {
    let more = "limits: { callerPerSecond: 50, callerBurst: 50, addressPerSecond: 100000, addressBurst: 100000, requestsPerSecond: 100000 }\naudit: { refusalsPerSecond: 10 }\n";
    let ground = Ground::with(more).await;
    let channel = ground.anonymous().await;
    let text = csr(&KeyPair::generate().unwrap(), &[]);
    let flood = async {
        let mut served = 0;
        for _ in 0..100 {
            let hundred =
                (0..100).map(|_| {
                    let mut client = IstioCertificateServiceClient::new(channel.clone());
                    let request = ask(text.clone(), Some("web"), None);
                    async move {
                        client.create_certificate(request).await.map(drop).map_err(|status| status.code())
                    }
                });
            for outcome in futures_util::future::join_all(hundred).await {
                match outcome {
                    Ok(()) => served += 1,
                    Err(code) => assert_eq!(code, Code::ResourceExhausted),
                }
            }
        }
        served
    };
    let began = std::time::Instant::now();
    let others = async {
        let channel = ground.anonymous().await;
        for _ in 0..10 {
            obtain(channel.clone(), Some("ztunnel-n1"), None).await.unwrap();
        }
    };
    let (served, ()) = tokio::join!(flood, others);
    let most = 51 + 50 * (began.elapsed().as_secs() + 1);
    assert!((50..=most).contains(&served), "{served} of 10000 were served");
    ground.audited(|line| line["reason"] == "rate_limit").await;
    let count =
        |outcome: &str| ground.audit().iter().filter(|line| line["outcome"] == outcome).count() as u64;
    // The audit is written by a thread of its own.
    let written = async {
        while count("issued") < served + 10 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let _ = tokio::time::timeout(Duration::from_secs(30), written).await;
    assert_eq!(count("issued"), served + 10);
    let refused = count("refused");
    assert!(refused <= 20 + 10 * (began.elapsed().as_secs() + 1), "{refused} lines");
}

#[tokio::test]
async fn an_address_is_bounded_before_anybody_is_asked() {
    let ground = Ground::with("limits: { addressPerSecond: 1, addressBurst: 5 }\n").await;
    let channel = ground.anonymous().await;
    let mut refused = 0;
    for _ in 0..50 {
        let code = obtain(channel.clone(), Some("stolen"), None).await.err().unwrap().code();
        refused += u32::from(code == Code::ResourceExhausted);
    }
    assert!(refused > 30, "{refused}");
    ground.audited(|line| line["reason"] == "rate_limit" && line["caller"].is_null()).await;
}

#[tokio::test]
async fn unknown_calls_are_refused_and_recorded() {
    let ground = Ground::new().await;
    let stream = ground.tls(ground.client_config(None)).await.unwrap();
    let (mut client, connection) = h2::client::handshake(stream).await.unwrap();
    tokio::spawn(connection);
    let request =
        http::Request::post("https://ca.test/x.y/Z").header("content-type", "application/grpc").body(());
    let answer = client.send_request(request.unwrap(), true).unwrap().0.await.unwrap();
    assert_eq!(answer.headers()["grpc-status"], (Code::Unimplemented as i32).to_string());
    ground.audited(|line| line["reason"] == "unknown_call" && line["call"] == "other").await;
}
