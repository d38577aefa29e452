//! meshd's node-wide eBPF programs, linked into one object. One file per hook.
//!
//! A program never lets traffic pass because something of ours failed: it refuses or drops. What belongs
//! to no enrolled workload is left exactly as it was.
#![no_std]
#![no_main]
#![allow(
    clippy::inline_always,
    clippy::needless_pass_by_value,
    reason = "programs are one function for the verifier, and the macros of aya hand contexts over by value"
)]
#![allow(
    clippy::needless_borrows_for_generic_args,
    reason = "a copy would lie on the stack, of which there are 512 bytes"
)]
#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    reason = "widths and signs are those of the kernel's helpers"
)]
#![feature(asm_experimental_arch)]

mod bind;
mod connect;
mod context;
mod enrolment;
mod getpeername;
mod getsockname;
mod guard;
mod hold;
mod kernel_path;
mod log;
mod maps;
mod meshed;
mod packet;
mod pods;
mod read;
mod sock_create;
mod sock_ops;
mod word;

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    loop {}
}
