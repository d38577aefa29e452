//! One connection: meshd's handshake over the socket to the runner, then meshd's userspace relay between it and an
//! application that gives back what it reads, every bit turned, as the runner wants it.

use std::{
    collections::BTreeSet,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
};

use anyhow::{Context, Result, bail, ensure};
use arc_swap::ArcSwap;
use mesh_user::{
    identity::{SpiffeId, Svid, TrustBundles},
    proxy::relay::{EndedBy, LiveStats, RelayOptions, WireLeg, relay},
    tls::{Established, HandshakeLimits, TlsContext, TlsSettings, provider},
};
use rustls::crypto::CryptoProvider;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use crate::{
    certificates::{self, bundles, runner, trust_domain},
    options::{Expected, Options},
};

/// What an application that speaks first says.
const GREETING: &[u8] = b"hello";
/// Names the slot of the tickets: every connection of one test goes to the same server.
const DESTINATION: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// What of meshd lives longer than a connection.
pub(crate) struct Meshd {
    tls: TlsContext,
    bundles: Arc<ArcSwap<TrustBundles>>,
    svid: Svid,
    expected: Arc<BTreeSet<SpiffeId>>,
}

impl Meshd {
    /// As the daemon has it, but for the versions and groups that the runner takes away.
    pub(crate) fn new(options: &Options) -> Result<Self> {
        let bundles = Arc::new(ArcSwap::from_pointee(bundles()?));
        let settings = TlsSettings::new(trust_domain()?);
        let tls = TlsContext::with_provider(settings, Arc::clone(&bundles), narrowed(options));
        let svid = certificates::svid(&options.certificate, &options.key)?;
        Ok(Self { tls, bundles, svid, expected: Arc::new(BTreeSet::from([runner()?])) })
    }

    /// From the connect to the runner to the end of both directions.
    pub(crate) async fn connection(&self, options: &Options, is_later: bool) -> Result<()> {
        let expected = &options.expected[usize::from(is_later)];
        let trusted = if expected.is_distrusted { TrustBundles::default() } else { bundles()? };
        self.bundles.store(Arc::new(trusted));
        let stream = dial(options.port).await?;
        let limits = HandshakeLimits::default();
        let established = if options.is_server {
            self.tls.accept(stream, &self.svid, limits).await
        } else {
            self.tls.connect(stream, &self.svid, &self.expected, DESTINATION, limits).await
        };
        let established = established.map_err(|error| anyhow::anyhow!("{error} ({error:?})"))?;
        check(&established, expected, is_later)?;
        exchange(established, options).await
    }
}

fn narrowed(options: &Options) -> CryptoProvider {
    let mut provider = provider();
    provider.cipher_suites.retain(|suite| options.versions.contains(&suite.version().version));
    if !options.groups.is_empty() {
        provider.kx_groups.retain(|group| options.groups.contains(&group.name()));
    }
    provider
}

/// The runner listens on one of the two.
async fn dial(port: u16) -> io::Result<TcpStream> {
    match TcpStream::connect(SocketAddr::from((Ipv6Addr::LOCALHOST, port))).await {
        Ok(stream) => Ok(stream),
        Err(_) => TcpStream::connect(SocketAddr::from((Ipv4Addr::LOCALHOST, port))).await,
    }
}

fn check(established: &Established, expected: &Expected, is_later: bool) -> Result<()> {
    let facts = established.facts();
    let should_resume = is_later && !expected.session_miss;
    ensure!(facts.resumed == should_resume, "resumed is {}, not {should_resume}", facts.resumed);
    if let Some(version) = expected.version {
        ensure!(facts.version == version, "it is {:?}, not {version:?}", facts.version);
    }
    if let Some(suite) = expected.cipher_suite {
        let negotiated = u16::from(facts.cipher_suite.suite());
        ensure!(negotiated == suite, "the cipher suite is {negotiated:04x}, not {suite:04x}");
    }
    if let Some(file) = &expected.peer_chain {
        let chain = certificates::chain(file)?;
        ensure!(established.peer().is_some_and(|peer| *peer.chain == chain[..]), "another chain");
    }
    Ok(())
}

/// Relays until both ends have closed.
async fn exchange(established: Established, options: &Options) -> Result<()> {
    let (app, application) = pair().await?;
    let live = LiveStats::default();
    let relay_options = RelayOptions::default();
    let relay = relay(app, WireLeg::Userspace(Box::new(established)), &relay_options, &live);
    let (outcome, application) = tokio::join!(relay, application_at(application, options));
    match outcome.ended_by {
        EndedBy::Finished => application.context("the application failed"),
        // The runner closes its socket as soon as it has what it wants: what it reads no more is no failure.
        EndedBy::WireReset if application.is_ok() => Ok(()),
        ended_by => bail!("{} ({ended_by:?})", ended_by.label()),
    }
}

async fn pair() -> Result<(TcpStream, TcpStream)> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let (application, accepted) =
        tokio::try_join!(TcpStream::connect(listener.local_addr()?), async { listener.accept().await })?;
    Ok((accepted.0, application))
}

/// Ends well only when its peer has closed in order.
async fn application_at(mut stream: TcpStream, options: &Options) -> io::Result<()> {
    if options.writes_first {
        stream.write_all(GREETING).await?;
    }
    let mut bytes = vec![0; 16 * 1024];
    if options.shuts_down {
        stream.shutdown().await?;
    }
    loop {
        let read = stream.read(&mut bytes).await?;
        if read == 0 {
            break;
        }
        if !options.shuts_down {
            bytes[..read].iter_mut().for_each(|byte| *byte ^= 0xff);
            stream.write_all(&bytes[..read]).await?;
        }
    }
    stream.shutdown().await
}
