//! The relay's copy step: client, relay, wire, relay, server over loopback on one thread, so that elapsed time is
//! CPU time of both relays and both applications together. `direct` is the same without relays.

mod common;

use std::{path::Path, sync::Arc, time::Duration};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use mesh_user::{
    proxy::relay::{LiveStats, RelayKind, RelayOptions, WireLeg, relay},
    tls::{Established, KernelTls, OffloadError},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

const MESSAGE_BYTES: usize = 1024;
const BULK_BYTES: usize = 1 << 20;

/// The two applications' ends of a path.
struct Path2 {
    client: TcpStream,
    server: TcpStream,
}

async fn direct() -> Path2 {
    let (client, server) = common::tcp_pair().await;
    Path2 { client, server }
}

fn spawn(leg: TcpStream, wire: WireLeg) {
    let live = Arc::new(LiveStats::default());
    tokio::spawn(async move { relay(leg, wire, &RelayOptions::default(), &live).await });
}

async fn wire_leg(established: Established, kind: RelayKind, kernel: &KernelTls) -> WireLeg {
    if kind == RelayKind::Userspace {
        return WireLeg::Userspace(Box::new(established));
    }
    match established.offload(kernel, Duration::from_secs(5)).await {
        Ok(wire) => WireLeg::Ktls { wire: Box::new(wire), splice: kind == RelayKind::KtlsSplice },
        Err(OffloadError::NotOffloaded { reason, .. }) => panic!("not offloaded: {reason}"),
        Err(OffloadError::Lost(error)) => panic!("lost: {error}"),
    }
}

async fn relayed(kind: RelayKind, kernel: &KernelTls, folder: &Path) -> Path2 {
    let ((client, client_leg), (server_leg, server)) = tokio::join!(common::tcp_pair(), common::tcp_pair());
    let (near, far) = common::tcp_pair().await;
    let (near, far) = if kind == RelayKind::Plain {
        (WireLeg::Plain(near), WireLeg::Plain(far))
    } else {
        let (client_end, server_end) = common::ends(folder);
        let (near, far) = tokio::join!(client_end.connect(near), server_end.accept(far));
        tokio::join!(wire_leg(near, kind, kernel), wire_leg(far, kind, kernel))
    };
    spawn(client_leg, near);
    spawn(server_leg, far);
    Path2 { client, server }
}

impl Path2 {
    /// One message there and back.
    async fn round_trip(&mut self, buffer: &mut [u8]) {
        self.client.write_all(buffer).await.expect("sent");
        self.server.read_exact(buffer).await.expect("received");
        self.server.write_all(buffer).await.expect("sent");
        self.client.read_exact(buffer).await.expect("received");
    }

    /// Bytes one way.
    async fn bulk(&mut self, sent: &[u8], received: &mut [u8]) {
        let (sent, received) = tokio::join!(self.client.write_all(sent), self.server.read_exact(received));
        sent.expect("sent");
        received.expect("received");
    }
}

/// What this kernel offers.
fn kinds(kernel: &KernelTls) -> Vec<RelayKind> {
    let mut kinds = vec![RelayKind::Plain, RelayKind::Userspace];
    if kernel.ulp.is_ok() && !kernel.ciphers.is_empty() {
        kinds.push(RelayKind::Ktls);
        if kernel.splice.is_ok() {
            kinds.push(RelayKind::KtlsSplice);
        }
    } else if let Err(reason) = &kernel.ulp {
        eprintln!("without the kernel TLS relays: {reason}");
    }
    kinds
}

fn relays(criterion: &mut Criterion) {
    let kernel = KernelTls::probe();
    let paths = std::iter::once(None).chain(kinds(&kernel).into_iter().map(Some));
    let runtime = common::runtime();
    for kind in paths {
        let name = kind.map_or("direct", RelayKind::as_str);
        let folder = tempfile::tempdir().expect("a folder");
        let path = runtime.block_on(async {
            match kind {
                None => direct().await,
                Some(kind) => relayed(kind, &kernel, folder.path()).await,
            }
        });
        let path = std::cell::RefCell::new(path);
        let mut group = criterion.benchmark_group(format!("relay/{name}"));
        let mut message = vec![7; MESSAGE_BYTES];
        group.bench_function("round trip 1 KiB", |b| {
            b.iter(|| runtime.block_on(path.borrow_mut().round_trip(&mut message)));
        });
        let (sent, mut received) = (vec![7; BULK_BYTES], vec![0; BULK_BYTES]);
        group.throughput(Throughput::Bytes(BULK_BYTES as u64));
        group.bench_function("bulk 1 MiB", |b| {
            b.iter(|| runtime.block_on(path.borrow_mut().bulk(&sent, &mut received)));
        });
        group.finish();
    }
}

criterion_group!(benches, relays);
criterion_main!(benches);
