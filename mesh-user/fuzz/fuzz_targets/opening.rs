//! Detection on a socket: says what the bytes say, however they come, and takes none of them.
//! Input: where the client pauses (2 bytes), whether it ends (1 byte), what it sends.
#![no_main]

use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use mesh_fuzz::{Input, block_on};
use mesh_user::{
    proxy::fuzz::opening,
    tls::{Detected, MAX_CLIENT_HELLO_BYTES, detect},
};
use tokio::{
    io::AsyncWriteExt,
    net::{TcpListener, TcpStream},
};

/// Longer than anything takes.
const LONG: Duration = Duration::from_secs(30);
const SHORT: Duration = Duration::from_millis(1);

fuzz_target!(|input: &[u8]| {
    let mut input = Input(input);
    let (cut, ends, bytes) = (input.number(), input.byte() % 2 == 1, input.0);
    let bytes = &bytes[..bytes.len().min(2 * MAX_CLIENT_HELLO_BYTES)];
    block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a listener");
        let address = listener.local_addr().expect("its address");
        let (client, server) = tokio::join!(TcpStream::connect(address), listener.accept());
        let (mut client, (server, _)) = (client.expect("a client"), server.expect("a server"));
        // A reset leaves no port waiting.
        mesh_user::sys::socket::reset_on_close(&server);
        let (first, rest) = bytes.split_at(usize::from(cut).min(bytes.len()));
        client.write_all(first).await.expect("room");
        let sending = async {
            client.write_all(rest).await.expect("room");
            if ends {
                client.shutdown().await.expect("open");
            }
        };
        let (expected, patience) = match detect(&bytes[..bytes.len().min(MAX_CLIENT_HELLO_BYTES)]) {
            Detected::Tls(hello) if hello.mesh => ((true, None), LONG),
            Detected::Tls(hello) => ((false, hello.sni), LONG),
            Detected::NotTls => ((false, None), LONG),
            // Whether it waits in vain makes no difference.
            Detected::NeedMore => ((false, None), SHORT),
        };
        let (found, ()) = tokio::join!(opening(&server, patience), sending);
        assert_eq!(found.expect("no reset"), expected);
        let mut left = vec![0; bytes.len() + 1];
        if !bytes.is_empty() {
            let count = server.peek(&mut left).await.expect("open");
            assert_eq!(left[..count], bytes[..count], "detection takes bytes");
        }
    });
});
