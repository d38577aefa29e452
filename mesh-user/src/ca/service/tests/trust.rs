//! Watching trust.

use std::time::Duration;

use tokio::sync::mpsc;
use tonic::{Code, Request, Streaming, transport::Channel};

use super::ground::*;
use crate::{
    ca::proto::meshd::{TrustState, WatchRequest, trust_client::TrustClient},
    identity::TrustBundles,
};

async fn watch(
    channel: Channel,
    token: Option<&str>,
) -> Result<(mpsc::Sender<WatchRequest>, Streaming<TrustState>), tonic::Status> {
    let (say, said) = mpsc::channel(8);
    let messages = futures_util::stream::unfold(said, async |mut said| said.recv().await.map(|m| (m, said)));
    let mut request = Request::new(messages);
    if let Some(token) = token {
        request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
    }
    say.send(WatchRequest { node: "a-lie".to_owned(), version: 0 }).await.unwrap();
    Ok((say, TrustClient::new(channel).watch(request).await?.into_inner()))
}

#[tokio::test]
async fn an_agent_is_told_at_once_and_of_each_change_and_is_counted_by_its_own_node() {
    let ground = Ground::new().await;
    let node = ground.join("n1").await;
    let (say, mut states) = watch(ground.channel(Some(&node)).await.unwrap(), None).await.unwrap();
    let first = states.message().await.unwrap().unwrap();
    assert_eq!((first.version, &*first.bundles[0].trust_domain), (1, "mesh.test"));
    assert_eq!(first.bundles[0].roots, ground.roots().iter().map(|r| r.to_vec()).collect::<Vec<_>>());
    say.send(WatchRequest { node: "n2".to_owned(), version: 1 }).await.unwrap();
    let mut roots = ground.service.trust().bundles.roots.clone();
    roots.insert("a.other.test".parse().unwrap(), ground.roots());
    ground.authority.distribute(TrustBundles { roots, ..TrustBundles::default() });
    let second = states.message().await.unwrap().unwrap();
    // Its own domain first, though the other's name comes before it.
    let domains: Vec<_> = second.bundles.iter().map(|bundle| &*bundle.trust_domain).collect();
    assert_eq!((second.version, &*domains), (2, &["mesh.test", "a.other.test"][..]));
    say.send(WatchRequest { node: String::new(), version: 2 }).await.unwrap();
    // A version that never was is not believed.
    say.send(WatchRequest { node: String::new(), version: 77 }).await.unwrap();
    say.send(WatchRequest { node: String::new(), version: 1 }).await.unwrap();
    let all = async {
        while ground.authority.acknowledged.lock().unwrap().len() < 3 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), all).await.unwrap();
    let acknowledged = ground.authority.acknowledged.lock().unwrap().clone();
    assert_eq!(acknowledged, [1, 2, 1].map(|version| ("n1".to_owned(), version)));
    assert_eq!(ground.service.watching(), 1);
    drop((say, states));
    while ground.service.watching() > 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_workload_may_watch_and_is_no_node_and_a_stranger_may_not() {
    let ground = Ground::new().await;
    let (say, mut states) = watch(ground.anonymous().await, Some("web")).await.unwrap();
    states.message().await.unwrap().unwrap();
    say.send(WatchRequest { node: "n1".to_owned(), version: 1 }).await.unwrap();
    drop(say);
    ground.authority.distribute(ground.service.trust().bundles.clone());
    assert_eq!(states.message().await.unwrap().unwrap().version, 2);
    assert!(ground.authority.acknowledged.lock().unwrap().is_empty());
    for token in [None, Some("stolen")] {
        let refused = watch(ground.anonymous().await, token).await.err().unwrap();
        assert_eq!(refused.code(), Code::Unauthenticated);
    }
    ground.audited(|line| line["call"] == "Watch" && line["reason"] == "anonymous").await;
    ground.audited(|line| line["call"] == "Watch" && line["reason"] == "bad_token").await;
    ground.audited(|line| line["call"] == "Watch" && line["outcome"] == "accepted").await;
}

#[tokio::test]
async fn there_is_a_bound_on_watchers() {
    let ground = Ground::with("limits: { watchers: 1 }\n").await;
    let channel = ground.anonymous().await;
    let _one = watch(channel.clone(), Some("web")).await.unwrap();
    let refused = watch(channel, Some("web")).await.err().unwrap();
    assert_eq!(refused.code(), Code::ResourceExhausted);
    ground.audited(|line| line["reason"] == "busy").await;
}
