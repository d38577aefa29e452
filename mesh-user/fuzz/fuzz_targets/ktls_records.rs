//! Records that are no data, as a peer may send them over kernel TLS after the handshake. What becomes of them
//! is compared with the standard read plainly (RFC 8446 sections 4.6, 5.1, 6) where there is no key schedule,
//! as after a hand-over; with one, nothing may panic and nothing may pile up.
//! Input: whether the kernel can change keys (1 byte), then records: type (1 byte), length (2 bytes), content.
#![no_main]

use std::{cell::RefCell, sync::Arc};

use libfuzzer_sys::fuzz_target;
use mesh_fuzz::{Input, block_on};
use mesh_user::{
    proxy::fuzz::{Control, Told},
    tls::{HandshakeLimits, KernelCipher, TlsContext, TlsSettings},
};
use test_pki::{TestCa, bundles, shared};
use tokio::net::{TcpListener, TcpStream};

use mesh_user as meshd_library;
#[path = "../../src/tls/test_pki.rs"]
#[expect(dead_code, reason = "the library's own tests use the rest")]
mod test_pki;

const ALERT: u8 = 21;
const HANDSHAKE: u8 = 22;
const DATA: u8 = 23;
/// Header and body of the largest message that is waited for.
const KEPT_BYTES: usize = 4 + 64 * 1024;
const RECORD_BYTES: usize = 16 * 1024;

struct Connections {
    handed_over: Control,
    handed_over_12: Control,
    client: Control,
    server: Control,
}

thread_local! {
    static CONNECTIONS: RefCell<Connections> = RefCell::new(block_on(connections()));
}

fuzz_target!(|input: &[u8]| {
    let mut input = Input(input);
    let (can_rekey, mut records) = (input.byte() % 2 == 1, Vec::new());
    while !input.0.is_empty() {
        let (kind, length) = (input.byte(), input.number());
        records.push((kind, input.take(length.into())));
    }
    CONNECTIONS.with_borrow_mut(|connections| {
        let Connections { handed_over, handed_over_12, client, server } = connections;
        let mut model = Model { is_tls13: true, ..Model::default() };
        play(handed_over, false, &records, |kind, body, told| model.check(kind, body, told));
        let mut model = Model { is_tls13: false, ..Model::default() };
        play(handed_over_12, false, &records, |kind, body, told| model.check(kind, body, told));
        for with_session in [client, server] {
            play(with_session, can_rekey, &records, |_, _, _| {});
        }
    });
});

fn play(
    control: &mut Control,
    can_rekey: bool,
    records: &[(u8, &[u8])],
    mut check: impl FnMut(u8, &[u8], &Told),
) {
    control.begin(can_rekey);
    for (kind, body) in records {
        let body = &body[..body.len().min(RECORD_BYTES)];
        let told = control.take(*kind, body);
        check(*kind, body, &told);
        assert!(control.kept_bytes() <= KEPT_BYTES, "{} bytes of messages are kept", control.kept_bytes());
        if matches!(told, Told::Ended(..) | Told::Closed) {
            return;
        }
    }
}

/// A connection without a key schedule.
#[derive(Default)]
struct Model {
    is_tls13: bool,
    message: Vec<u8>,
    warnings: u8,
    empty_records: u8,
}

impl Model {
    fn check(&mut self, kind: u8, body: &[u8], told: &Told) {
        let expected = match (kind, self.message.is_empty()) {
            (DATA, true) if body.is_empty() => {
                self.empty_records += 1;
                if self.empty_records > 32 { refused(10) } else { Told::Taken }
            }
            (DATA, true) => {
                (self.warnings, self.empty_records) = (0, 0);
                Told::Data(body.len())
            }
            (ALERT, true) => self.alert(body),
            (HANDSHAKE, _) => self.handshake(body),
            _ => refused(10),
        };
        assert_eq!(*told, expected, "record {kind} {body:?}");
    }

    fn alert(&mut self, body: &[u8]) -> Told {
        match body {
            [_, 0] => Told::Closed,
            [1, description] if (*description == 90 || !self.is_tls13) && self.warnings < 4 => {
                self.warnings += 1;
                Told::Taken
            }
            [1, 90] => refused(10),
            [_, _] => Told::Ended("wire_protocol", None),
            _ => refused(50),
        }
    }

    fn handshake(&mut self, body: &[u8]) -> Told {
        self.message.extend_from_slice(body);
        if self.message.is_empty() {
            return refused(10);
        }
        while let [kind, high, middle, low, rest @ ..] = &self.message[..] {
            let length = usize::from(*high) << 16 | usize::from(*middle) << 8 | usize::from(*low);
            if length > KEPT_BYTES - 4 {
                return refused(50);
            }
            if rest.len() < length {
                return Told::Taken;
            }
            let (message, after) = rest.split_at(length);
            match (kind, message) {
                (4, _) => {}
                (24, [0 | 1]) if self.is_tls13 && after.is_empty() => {
                    return Told::Ended("key_update_unsupported", Some(20));
                }
                (24, [0 | 1]) if self.is_tls13 => return refused(10),
                (24, [_]) if self.is_tls13 => return refused(47),
                (24, _) if self.is_tls13 => return refused(50),
                _ => return refused(10),
            }
            self.message = after.to_vec();
        }
        Told::Taken
    }
}

fn refused(alert: u8) -> Told {
    Told::Ended("wire_protocol", Some(alert))
}

async fn connections() -> Connections {
    let ca = TestCa::new("cluster.local");
    let (web, db) = ("spiffe://cluster.local/ns/shop/sa/web", "spiffe://cluster.local/ns/shop/sa/db");
    let settings = TlsSettings::new("cluster.local".parse().expect("a trust domain"));
    let context =
        || TlsContext::with_provider(settings.clone(), shared(bundles(&[&ca])), mesh_user::tls::provider());
    let (near, far) = pair().await;
    let (address, limits) = (near.peer_addr().expect("connected").ip(), HandshakeLimits::default());
    let (connecting, accepting, expected) =
        (context(), context(), Arc::new([db.parse().expect("an ID")].into()));
    let (client_svid, server_svid) = (ca.svid(web), ca.svid(db));
    let (client, server) = tokio::join!(
        connecting.connect(near, &client_svid, &expected, address, limits),
        accepting.accept(far, &server_svid, limits)
    );
    let of = async |established| Control::of(established, pair().await.0).expect("a kernel connection");
    Connections {
        handed_over: Control::without_session(KernelCipher::Tls13Aes128Gcm, pair().await),
        handed_over_12: Control::without_session(KernelCipher::Tls12Aes256Gcm, pair().await),
        client: of(client.expect("a handshake")).await,
        server: of(server.expect("a handshake")).await,
    }
}

async fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a listener");
    let (near, far) =
        tokio::join!(TcpStream::connect(listener.local_addr().expect("bound")), listener.accept());
    (near.expect("a client"), far.expect("a server").0)
}
