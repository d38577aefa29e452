//! Tells mesh TLS from plaintext where the mode permits both, by peeking at the first bytes. Nothing is
//! consumed, and a silent client is waited for only so long: in a server-first protocol it is the server's turn.

use std::{io, time::Duration};

use tokio::{
    net::TcpStream,
    time::{Instant, sleep, timeout_at},
};

use crate::tls::{Detected, MAX_CLIENT_HELLO_BYTES, detect};

/// How long to wait before looking again at an incomplete `ClientHello`: peeked bytes give no new readiness.
const LOOK_AGAIN: Duration = Duration::from_millis(2);

/// What a client opens with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Opening {
    /// A `ClientHello` of a mesh peer.
    MeshTls,
    /// Anything else, silence included.
    Plaintext {
        /// The server name, where the application speaks TLS of its own.
        sni: Option<String>,
    },
}

/// Looks at the first bytes, for at most `patience` until the first one and as long again for the rest.
pub(super) async fn opening(stream: &TcpStream, patience: Duration) -> io::Result<Opening> {
    let plaintext = Ok(Opening::Plaintext { sni: None });
    let mut buffer = vec![0; MAX_CLIENT_HELLO_BYTES];
    let mut deadline = Instant::now() + patience;
    let mut seen = 0;
    loop {
        let peeked = match timeout_at(deadline, stream.peek(&mut buffer)).await {
            Err(_) => return plaintext,
            Ok(peeked) => peeked?,
        };
        if peeked == 0 {
            return plaintext;
        }
        match detect(&buffer[..peeked]) {
            Detected::NotTls => return plaintext,
            Detected::Tls(hello) if hello.mesh => return Ok(Opening::MeshTls),
            Detected::Tls(hello) => return Ok(Opening::Plaintext { sni: hello.sni }),
            Detected::NeedMore => {}
        }
        if seen == 0 {
            deadline = Instant::now() + patience;
        } else if Instant::now() >= deadline {
            return plaintext;
        }
        seen = peeked;
        sleep(LOOK_AGAIN).await;
    }
}

#[cfg(test)]
mod tests {
    use tokio::{io::AsyncWriteExt, net::TcpListener};

    use super::*;

    async fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        (client, listener.accept().await.unwrap().0)
    }

    #[tokio::test]
    async fn a_silent_client_is_plaintext_after_the_wait() {
        let (_client, server) = pair().await;
        let found = opening(&server, Duration::from_millis(20)).await.unwrap();
        assert_eq!(found, Opening::Plaintext { sni: None });
    }

    #[tokio::test]
    async fn a_client_that_stalls_inside_its_hello_does_not_hold_detection() {
        let (mut client, server) = pair().await;
        client.write_all(&[22, 3, 1, 2, 0, 1]).await.unwrap();
        let found = opening(&server, Duration::from_millis(20)).await.unwrap();
        assert_eq!(found, Opening::Plaintext { sni: None });
    }

    #[tokio::test]
    async fn peeked_bytes_stay_in_the_socket() {
        let (mut client, server) = pair().await;
        client.write_all(b"GET / HTTP/1.1\r\n").await.unwrap();
        let found = opening(&server, Duration::from_secs(5)).await.unwrap();
        assert_eq!(found, Opening::Plaintext { sni: None });
        let mut rest = [0; 32];
        assert_eq!(server.peek(&mut rest).await.unwrap(), 16);
    }
}
