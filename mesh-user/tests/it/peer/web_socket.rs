//! A WebSocket's two ends, by tungstenite: the server sends back what it is sent; the client tries text, messages much
//! larger than any buffer and a ping, then stays until the other end goes.

use anyhow::ensure;
use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::json;
use tokio::net::TcpListener;
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{accept_async, connect_async};

use super::{Args, say};

fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()
}

/// `ws-serve ADDRESS`
pub(super) fn serve(args: &Args) -> anyhow::Result<()> {
    let at = args.address()?;
    runtime()?.block_on(async {
        let listener = TcpListener::bind(at).await?;
        say(&json!({ "event": "listening" }));
        loop {
            let (stream, _) = listener.accept().await?;
            let Ok(mut socket) = accept_async(stream).await else { continue };
            say(&json!({ "event": "opened" }));
            while let Some(Ok(message)) = socket.next().await {
                if (message.is_text() || message.is_binary()) && socket.send(message).await.is_err() {
                    break;
                }
            }
            say(&json!({ "event": "ended" }));
        }
    })
}

/// `ws-talk ADDRESS --path PATH [--stay]`: what the handshake said, what came back, how it ended.
pub(super) fn talk(args: &Args) -> anyhow::Result<()> {
    let url = format!("ws://{}{}", args.address()?, args.option("--path").unwrap_or("/"));
    runtime()?.block_on(async {
        let mut socket = match connect_async(&url).await {
            Ok((socket, response)) => {
                say(&json!({ "event": "opened", "status": response.status().as_u16() }));
                socket
            }
            Err(Error::Http(response)) => {
                let body = response.body().as_deref().map(String::from_utf8_lossy);
                say(&json!({ "event": "refused", "status": response.status().as_u16(), "body": body }));
                return Ok(());
            }
            Err(error) => return Err(error.into()),
        };
        for size in [5, 70_000, 4 << 20] {
            let sent = Message::binary((0..=250_u8).cycle().take(size).collect::<Vec<_>>());
            socket.send(sent.clone()).await?;
            ensure!(next(&mut socket).await? == sent, "another message of {size} bytes came back");
        }
        socket.send(Message::text("grüße")).await?;
        ensure!(next(&mut socket).await? == Message::text("grüße"), "another text came back");
        socket.send(Message::Ping("once".into())).await?;
        ensure!(next(&mut socket).await? == Message::Pong("once".into()), "no pong");
        say(&json!({ "event": "talked" }));
        if args.flag("--stay") {
            let ended = match socket.next().await {
                None | Some(Ok(Message::Close(_))) => "closed".to_owned(),
                Some(Ok(_)) => "more".to_owned(),
                Some(Err(error)) => error.to_string(),
            };
            say(&json!({ "event": "ended", "how": ended }));
        } else {
            socket.close(None).await?;
        }
        Ok(())
    })
}

type Socket = tokio_tungstenite::WebSocketStream<tokio_tungstenite::MaybeTlsStream<tokio::net::TcpStream>>;

async fn next(socket: &mut Socket) -> anyhow::Result<Message> {
    let message = socket.next().await;
    Ok(message.ok_or_else(|| anyhow::anyhow!("the other end is gone"))??)
}
