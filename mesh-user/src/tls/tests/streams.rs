//! TLS connections as streams: nothing is lost, and no end is clean that the peer has not declared.

use super::{Nodes, TestCa};
use crate::tls::TlsStream;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

async fn pair() -> (TlsStream, TlsStream) {
    let (client, mut server) = Nodes::of(&TestCa::new("cluster.local")).established().await;
    server.confirm().await.unwrap();
    (client.into(), server.into())
}

#[tokio::test]
async fn large_amounts_cross_in_both_directions_at_once() {
    let (client, server) = pair().await;
    let one = |stream: TlsStream, seed: u8| async move {
        let sent: Vec<u8> = (0..3_000_000_u32).map(|i| i.to_le_bytes()[0] ^ seed).collect();
        let (mut reader, mut writer) = tokio::io::split(stream);
        let write = async {
            writer.write_all(&sent).await.unwrap();
            writer.shutdown().await.unwrap();
        };
        let mut received = Vec::new();
        let ((), read) = tokio::join!(write, reader.read_to_end(&mut received));
        read.unwrap();
        (sent, received)
    };
    let (of_client, of_server) = tokio::join!(one(client, 1), one(server, 7));
    assert!(of_client.0 == of_server.1 && of_server.0 == of_client.1);
}

#[tokio::test]
async fn an_end_that_was_not_declared_is_an_error() {
    let (client, mut server) = pair().await;
    socket2::SockRef::from(client.socket()).shutdown(std::net::Shutdown::Write).unwrap();
    let ended = server.read_to_end(&mut Vec::new()).await;
    assert_eq!(ended.unwrap_err().kind(), std::io::ErrorKind::UnexpectedEof);
}

#[tokio::test]
async fn after_one_direction_has_ended_the_other_goes_on() {
    let (mut client, mut server) = pair().await;
    client.write_all(b"question").await.unwrap();
    client.shutdown().await.unwrap();
    let mut question = Vec::new();
    server.read_to_end(&mut question).await.unwrap();
    assert_eq!(question, b"question");
    server.write_all(b"answer").await.unwrap();
    server.shutdown().await.unwrap();
    let mut answer = Vec::new();
    client.read_to_end(&mut answer).await.unwrap();
    assert_eq!(answer, b"answer");
    assert!(client.write_all(b"more").await.is_err(), "something was sent after close_notify");
}

#[tokio::test]
async fn a_record_that_does_not_authenticate_ends_both_directions() {
    let (client, mut server) = pair().await;
    let forged = [23, 3, 3, 0, 20, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20];
    client.socket().writable().await.unwrap();
    assert_eq!(client.socket().try_write(&forged).unwrap(), forged.len());
    let read = server.read(&mut [0; 10]).await;
    assert_eq!(read.unwrap_err().kind(), std::io::ErrorKind::InvalidData);
    assert!(server.write_all(b"x").await.is_err());
}
