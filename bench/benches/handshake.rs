//! Mutual TLS handshakes over loopback as the daemon makes them, full and resumed. Times are CPU time of the thread
//! at the end in question (user and kernel), so that their inverse is handshakes per second on one core; setting up
//! the TCP connection is not in them. `both` is the sum.

mod common;

use std::{
    sync::mpsc::{self, Receiver, Sender},
    thread,
    time::Duration,
};

use common::{End, runtime};
use criterion::{Criterion, criterion_group, criterion_main};
use mesh_user::proxy::relay::{LiveStats, RelayOptions, WireLeg, relay};
use mesh_user::tls::Established;
use nix::time::{ClockId, clock_gettime};
use tokio::net::{TcpListener, TcpStream};

/// Which sessions are made.
#[derive(Clone, Copy)]
enum Kind {
    Full,
    Resumed,
}

fn thread_cpu() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).expect("every thread has a CPU clock").into()
}

/// Ends a connection in order, which lets the client receive its session ticket.
async fn finish(established: Established) {
    let (application, leg) = common::tcp_pair().await;
    drop(application);
    let wire = WireLeg::Userspace(Box::new(established));
    relay(leg, wire, &RelayOptions::default(), &LiveStats::default()).await;
}

/// A server on a thread of its own: accepts as many handshakes as it is told, answers with their CPU time.
fn server(end: End) -> (std::net::SocketAddr, Sender<(u64, Kind)>, Receiver<Duration>) {
    let (orders, orders_here) = mpsc::channel::<(u64, Kind)>();
    let (times_here, times) = mpsc::channel();
    let (address_here, address) = mpsc::channel();
    thread::spawn(move || {
        runtime().block_on(async {
            let listener = TcpListener::bind("127.0.0.1:0").await.expect("a listener");
            address_here.send(listener.local_addr().expect("its address")).expect("a client");
            while let Ok((count, kind)) = orders_here.recv() {
                let mut spent = Duration::ZERO;
                for _ in 0..count {
                    let (stream, _) = listener.accept().await.expect("a connection");
                    let begun = thread_cpu();
                    let established = end.accept(stream).await;
                    spent += thread_cpu().saturating_sub(begun);
                    if matches!(kind, Kind::Resumed) {
                        finish(established).await;
                    }
                }
                if times_here.send(spent).is_err() {
                    return;
                }
            }
        });
    });
    (address.recv().expect("the server listens"), orders, times)
}

/// CPU time of the client's and the server's end of `count` handshakes.
fn handshakes(
    client: &End,
    server: &(std::net::SocketAddr, Sender<(u64, Kind)>, Receiver<Duration>),
    count: u64,
    kind: Kind,
) -> (Duration, Duration) {
    let (address, orders, times) = server;
    orders.send((count, kind)).expect("the server runs");
    let spent = runtime().block_on(async {
        let mut spent = Duration::ZERO;
        for _ in 0..count {
            let stream = TcpStream::connect(address).await.expect("a connection");
            let begun = thread_cpu();
            let established = client.connect(stream).await;
            spent += thread_cpu().saturating_sub(begun);
            if matches!(kind, Kind::Resumed) {
                finish(established).await;
            }
        }
        spent
    });
    (spent, times.recv().expect("the server runs"))
}

/// Makes sure that the name says what is measured.
fn check(client: &End, server: &(std::net::SocketAddr, Sender<(u64, Kind)>, Receiver<Duration>), kind: Kind) {
    let (address, orders, times) = server;
    orders.send((1, kind)).expect("the server runs");
    let resumed = runtime().block_on(async {
        let established = client.connect(TcpStream::connect(address).await.expect("a connection")).await;
        let resumed = established.facts().resumed;
        if matches!(kind, Kind::Resumed) {
            finish(established).await;
        }
        resumed
    });
    times.recv().expect("the server runs");
    assert_eq!(resumed, matches!(kind, Kind::Resumed), "another kind of handshake than the name says");
}

fn handshake(criterion: &mut Criterion) {
    for (name, kind) in [("handshake/full", Kind::Full), ("handshake/resumed", Kind::Resumed)] {
        let folder = tempfile::tempdir().expect("a folder");
        let (client, server_end) = common::ends(folder.path());
        let server = server(server_end);
        if matches!(kind, Kind::Resumed) {
            handshakes(&client, &server, 1, kind);
        }
        check(&client, &server, kind);
        let mut group = criterion.benchmark_group(name);
        group.bench_function("client", |b| {
            b.iter_custom(|count| handshakes(&client, &server, count, kind).0);
        });
        group.bench_function("server", |b| {
            b.iter_custom(|count| handshakes(&client, &server, count, kind).1);
        });
        group.bench_function("both", |b| {
            b.iter_custom(|count| {
                let (near, far) = handshakes(&client, &server, count, kind);
                near + far
            });
        });
        group.finish();
    }
}

criterion_group!(benches, handshake);
criterion_main!(benches);
