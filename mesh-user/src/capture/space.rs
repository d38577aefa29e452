//! A namespace in which meshd listens, with its own `sk_lookup` program.

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener},
    os::fd::{AsFd, AsRawFd, OwnedFd},
    sync::Arc,
};

use mesh_common::{LISTENER_SLOT_V4, LISTENER_SLOT_V6, LookupConfig, PortKey, lookup_mode};

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
const PORTS: usize = 1024;

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
        let net = WorkloadNet::new(netns, shared.clone(), settings.outbound_port, settings.inbound_port);
        let net = Arc::new(net);
        let outbound = match settings.form {
            Form::Listener => listen(&net, workload, settings.outbound_port)?,
            // Nobody listens: a SYN that is not held is refused.
            Form::Hold => Vec::new(),
        };
        let inbound = listen(&net, workload, settings.inbound_port)?;
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
            Self { net, shared_by_port, ports, program, link: None },
            EnrolledListeners { outbound, inbound },
        ))
    }

    /// The ports that are steered (shared namespace) or passed (a workload's own).
    pub(super) fn set_ports(&mut self, ports: impl IntoIterator<Item = u16>) -> Result<(), CaptureError> {
        let wanted: HashMap<_, _> =
            ports.into_iter().map(|port| (PortKey { port_host: port.into() }, 1)).collect();
        if wanted.len() > PORTS {
            return Err(CaptureError::OverCapacity {
                what: "ports in one namespace",
                count: wanted.len(),
                limit: PORTS,
                setting: "nothing (it is fixed)",
            });
        }
        self.ports.sync(&wanted)
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

fn listen(net: &WorkloadNet, workload: &str, port: u16) -> Result<Vec<TcpListener>, CaptureError> {
    let mut listeners = Vec::with_capacity(2);
    for ip in [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)] {
        let address = SocketAddr::new(ip, port);
        match net.listen(address, BACKLOG) {
            Ok(listener) => listeners.push(listener),
            Err(error) if ip.is_ipv6() && lacks_ipv6(&error) => {}
            Err(source) => {
                return Err(CaptureError::Listen { workload: workload.to_owned(), address, source });
            }
        }
    }
    Ok(listeners)
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
