//! What the programs count. The discriminant is the index in the per-CPU `STATS` array.

macro_rules! counters {
    ($($(#[doc = $doc:literal])+ $name:ident => $label:literal,)+) => {
        /// An event that a program counted.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u32)]
        pub enum Counter { $($(#[doc = $doc])+ $name,)+ }

        impl Counter {
            /// Every counter, in the order of its index.
            pub const ALL: &'static [Self] = &[$(Self::$name,)+];

            /// The name under which metrics show it.
            pub const fn label(self) -> &'static str {
                match self { $(Self::$name => $label,)+ }
            }
        }
    };
}

counters! {
    /// `connect` calls rewritten to meshd's outbound listener.
    Captured => "captured",
    /// SYNs held and told to meshd, retransmissions included.
    Held => "held",
    /// SYNs held that did not fit the ring buffer; the client's TCP sends them again.
    HeldRingFull => "held_ring_full",
    /// SYNs let go to be refused, since no daemon has read what is told for some seconds.
    HeldUnread => "held_unread",
    /// `connect` calls refused because the socket's storage could not be had.
    StorageFailed => "storage_failed",
    /// `connect` calls of an enrolled cgroup from a namespace where meshd has no listener: refused.
    RefusedNoListener => "refused_no_listener",
    /// Original destinations that did not fit the table; the connection is reset by meshd.
    OriginalDstTableFull => "original_dst_table_full",
    /// Accepted sockets whose storage for the real client could not be had.
    PeerStorageFailed => "peer_storage_failed",
    /// Sockets shown their real client.
    PeerShown => "peer_shown",
    /// Host clients that could not be recorded; their probes meet meshd's inbound listener.
    HostClientTableFull => "host_client_table_full",
    /// Connections of the host's own clients to a local workload.
    HostClient => "host_client",
    /// MPTCP sockets refused to enrolled workloads.
    MptcpRefused => "mptcp_refused",
    /// `connect` calls refused because the socket is bound to a device other than loopback.
    DeviceBoundRefused => "device_bound_refused",
    /// Captured connects that another program or a source route led away from loopback again.
    CaptureUndone => "capture_undone",
    /// Sockets refused that TCP capture cannot see: raw ones, SCTP and others.
    UncapturedSocketRefused => "uncaptured_socket_refused",
    /// Datagram sockets refused a port of their own choice.
    UncapturedBindRefused => "uncaptured_bind_refused",
    /// Packets to meshed destinations dropped that TCP capture had no hand in.
    UncapturedDropped => "uncaptured_dropped",
    /// Attempts by others to bind meshd's listener ports.
    BindRefused => "bind_refused",
    /// SYNs dropped of pods that are not enrolled yet; the client's TCP sends them again.
    PodWaited => "pod_waited",
    /// `connect` calls of pods that are not enrolled yet: refused.
    PodRefused => "pod_refused",
    /// Packets dropped that a pod sent past meshd, or that came to one, before it was enrolled.
    PodDropped => "pod_dropped",
    /// Connections on the kernel path.
    KernelPath => "kernel_path",
    /// Connects that left the kernel path for meshd because its table is full.
    KernelPathTableFull => "kernel_path_table_full",
    /// SYNs of connects whose verdict was taken back before they left: dropped, like each that TCP sends again.
    KernelPathWithdrawn => "kernel_path_withdrawn",
    /// Packets dropped that claimed to belong to a connection on the kernel path.
    KernelPathForged => "kernel_path_forged",
    /// Ended connections of the kernel path that did not fit the ring buffer: no line tells of them.
    KernelPathEndLost => "kernel_path_end_lost",
    /// Connections steered to the inbound listener.
    Steered => "steered",
    /// Connections dropped because the inbound listener's slot was empty or unusable.
    DroppedNoListener => "dropped_no_listener",
    /// Inbound connections passed: excluded port.
    PassedExcluded => "passed_excluded",
    /// Inbound connections passed: on the kernel path.
    PassedKernelPath => "passed_kernel_path",
    /// Inbound connections passed: a client of the host.
    PassedHostClient => "passed_host_client",
}

impl Counter {
    /// How many counters there are.
    pub const COUNT: usize = Self::ALL.len();
}
