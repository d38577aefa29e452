//! `cgroup/sock_create`: MPTCP sockets are refused to enrolled workloads, because the hooks see a subflow's
//! socket while the application holds another; programs fall back to TCP on EPROTONOSUPPORT.

use aya_ebpf::{
    helpers::generated::{bpf_get_netns_cookie, bpf_set_retval},
    macros::cgroup_sock,
    programs::SockContext,
};
use mesh_common::Counter;

use crate::{
    enrolment::{Enrolment, enrolment},
    log::log_event,
    maps::count,
};

const IPPROTO_MPTCP: u32 = 262;
const EPROTONOSUPPORT: i32 = 93;

#[cgroup_sock(sock_create)]
pub(crate) fn sock_create(ctx: SockContext) -> i32 {
    // SAFETY: a valid context; the field is readable in this hook.
    let protocol = unsafe { core::ptr::read_volatile(core::ptr::addr_of!((*ctx.sock).protocol)) };
    if protocol != IPPROTO_MPTCP {
        return 1;
    }
    // SAFETY: the helper takes this hook's own context.
    let netns_cookie = unsafe { bpf_get_netns_cookie(ctx.sock.cast()) };
    if matches!(enrolment(netns_cookie), Enrolment::None) {
        return 1;
    }
    count(Counter::MptcpRefused);
    log_event!("MPTCP socket refused", netns_cookie);
    // SAFETY: a constant within [-4095, 0], as the verifier wants.
    unsafe { bpf_set_retval(-EPROTONOSUPPORT) };
    0
}
