//! meshd's eBPF programs, linked into one object. One file per hook.
#![no_std]
#![no_main]

use aya_ebpf::{
    btf_maps::SkStorage,
    macros::{btf_map, cgroup_sock_addr},
    programs::SockAddrContext,
};

#[btf_map]
static VIEW: SkStorage<u64> = SkStorage::new();

#[cgroup_sock_addr(connect4)]
pub fn connect4(ctx: SockAddrContext) -> i32 {
    let p = unsafe { VIEW.get_or_insert_ptr_mut(&ctx, None) };
    if p.is_null() {
        return 0;
    }
    1
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    loop {}
}
