//! A namespace in which meshd listens, with its own `sk_lookup` program.

use std::{
    collections::HashMap,
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener},
    os::fd::{AsFd, AsRawFd, OwnedFd},
    sync::Arc,
};

use mesh_common::{LISTENER_SLOT_V4, LISTENER_SLOT_V6, LookupConfig, PortKey, lookup_mode};
use socket2::Socket;

use super::{
    CaptureError, CaptureSettings, Form, HeldConnects, WorkloadNet,
    hooks::ensure_link,
    maps::{Shared, Synced},
    objects::LookupObject,
    runtime_dir::RuntimeDir,
};
use crate::sys::{
    bpf::{AttachType, LinkTarget, MapFd},
    netns::NetNs,
};

pub(super) const LINK_PREFIX: &str = "netns-";
const BACKLOG: i32 = 4096;
/// Ports of one namespace that its program knows.
pub(super) const PORTS: usize = 1024;
/// Ports that are tried before a workload counts as one that cannot be enrolled.
const PORT_TRIES: u32 = 16;

/// meshd's listeners in one namespace: non-blocking, close-on-exec, one per address family it has.
#[derive(Debug)]
pub struct EnrolledListeners {
    /// Captured connections of local applications arrive here.
    pub outbound: Vec<TcpListener>,
    /// Connections from outside the workload arrive here; their local address is the original destination.
    pub inbound: Vec<TcpListener>,
}

/// A namespace that is captured from now on. Its listeners must be served until it is among
/// [`super::Applied::removed`]; closing them earlier refuses every connection.
#[derive(Debug)]
pub struct EnrolledNamespace {
    /// For sockets inside.
    pub net: Arc<WorkloadNet>,
    /// To be served.
    pub listeners: EnrolledListeners,
    /// To be served in place of the outbound listeners, in the `hold` form.
    pub held: Option<HeldConnects>,
}

#[derive(Debug)]
pub(super) struct Space {
    pub(super) net: Arc<WorkloadNet>,
    pub(super) shared_by_port: bool,
    ports: Synced<PortKey, u32>,
    /// Until it is attached. The object it came from is dropped at once: parsed ELF and BTF are most of what
    /// a namespace would cost in memory.
    program: Option<OwnedFd>,
    link: Option<OwnedFd>,
    /// Nobody else can have the outbound port of the `hold` form until the programs reserve it.
    placeholders: Vec<Socket>,
}

pub(super) fn link_name(cookie: u64) -> String {
    format!("{LINK_PREFIX}{cookie}")
}

impl Space {
    /// Listens in the namespace and prepares its program, which is not attached yet.
    pub(super) fn open(
        netns: NetNs,
        shared_by_port: bool,
        workload: &str,
        settings: &CaptureSettings,
        shared: &Arc<Shared>,
        dir: &RuntimeDir,
    ) -> Result<(Self, EnrolledListeners), CaptureError> {
        let net = WorkloadNet::new(netns, shared.clone());
        let (outbound_port, outbound) = match settings.form {
            Form::Listener => take_port(workload, settings.outbound_port, |at| net.listen(at, BACKLOG))?,
            // Nobody listens: a SYN that is not held is refused.
            Form::Hold => take_port(workload, settings.outbound_port, |at| net.bind(at))?,
        };
        let (inbound_port, inbound) =
            take_port(workload, settings.inbound_port, |at| net.listen(at, BACKLOG))?;
        let net = Arc::new(net.on_ports(outbound_port, inbound_port));
        let inbound: Vec<TcpListener> = inbound.into_iter().map(TcpListener::from).collect();
        let (outbound, placeholders) = match settings.form {
            Form::Listener => (outbound.into_iter().map(TcpListener::from).collect(), Vec::new()),
            Form::Hold => (Vec::new(), outbound),
        };
        let object = LookupObject::load(&dir.bpf(), &settings.limits)?;
        fill_slots(&object, &inbound)?;
        let mode = if shared_by_port { lookup_mode::LISTED_PORTS } else { lookup_mode::ALL_PORTS };
        let config: MapFd<u32, LookupConfig> = object.map("LOOKUP_CONFIG")?;
        config
            .insert(&0, &LookupConfig { netns_cookie: net.cookie(), mode, reserved: 0 })
            .map_err(|source| CaptureError::Map { action: "write", map: "LOOKUP_CONFIG", source })?;
        let ports = Synced::new("PORTS", PORTS, object.map("PORTS")?);
        let program = Some(object.program()?);
        Ok((
            Self { net, shared_by_port, ports, program, link: None, placeholders },
            EnrolledListeners { outbound, inbound },
        ))
    }

    /// The ports that are steered (shared namespace) or passed (a workload's own).
    pub(super) fn set_ports(&mut self, ports: impl IntoIterator<Item = u16>) -> Result<(), CaptureError> {
        let wanted: HashMap<_, _> =
            ports.into_iter().map(|port| (PortKey { port_host: port.into() }, 1)).collect();
        self.ports.sync(&wanted)
    }

    /// The programs reserve the outbound port now.
    pub(super) fn is_reserved(&mut self) {
        self.placeholders.clear();
    }

    /// Attaches the program, in place of one that an earlier run left.
    pub(super) fn attach(&mut self, dir: &RuntimeDir) -> Result<(), CaptureError> {
        if let Some(program) = &self.program {
            let netns = self.net.netns();
            let target = LinkTarget::Netns(u32::try_from(netns.inode()).unwrap_or(0));
            let name = link_name(netns.cookie());
            let link = ensure_link(dir, &name, target, netns.as_fd(), AttachType::SkLookup, program.as_fd())?;
            self.link = Some(link);
            self.program = None;
        }
        Ok(())
    }
}

/// Takes the wanted port on loopback of each family, or the same other one where somebody has it already: a
/// workload must not be able to keep itself from being enrolled.
fn take_port(
    workload: &str,
    wanted: u16,
    take: impl Fn(SocketAddr) -> io::Result<Socket>,
) -> Result<(u16, Vec<Socket>), CaptureError> {
    let mut port = wanted;
    let mut tries_left = PORT_TRIES;
    loop {
        tries_left -= 1;
        match take_both(port, &take) {
            Ok(taken) => {
                if taken.0 != wanted {
                    tracing::warn!(
                        workload,
                        wanted,
                        port = taken.0,
                        "somebody has meshd's port: another is used"
                    );
                }
                return Ok(taken);
            }
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && tries_left > 0 => port = 0,
            Err(source) => {
                let address = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), wanted);
                return Err(CaptureError::Listen { workload: workload.to_owned(), address, source });
            }
        }
    }
}

fn take_both(port: u16, take: impl Fn(SocketAddr) -> io::Result<Socket>) -> io::Result<(u16, Vec<Socket>)> {
    let v4 = take(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port))?;
    let taken = v4.local_addr()?.as_socket().ok_or(io::ErrorKind::AddrNotAvailable)?.port();
    match take(SocketAddr::new(Ipv6Addr::LOCALHOST.into(), taken)) {
        Ok(v6) => Ok((taken, vec![v4, v6])),
        Err(error) if lacks_ipv6(&error) => Ok((taken, vec![v4])),
        Err(error) => Err(error),
    }
}

fn lacks_ipv6(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EADDRNOTAVAIL | libc::EAFNOSUPPORT))
}

fn fill_slots(object: &LookupObject, inbound: &[TcpListener]) -> Result<(), CaptureError> {
    let slots: MapFd<u32, u32> = object.map("LISTENERS")?;
    let failed =
        |source| CaptureError::Map { action: "put the inbound listener into", map: "LISTENERS", source };
    for listener in inbound {
        let is_v4 = listener.local_addr().map_err(failed)?.is_ipv4();
        let slot = if is_v4 { LISTENER_SLOT_V4 } else { LISTENER_SLOT_V6 };
        slots.insert(&slot, &listener.as_raw_fd().cast_unsigned()).map_err(failed)?;
    }
    Ok(())
}
