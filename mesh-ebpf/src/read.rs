//! Reading a 32-bit field of a kernel context.
//!
//! The verifier wants every access at a constant offset from the context pointer. With plain (even volatile)
//! reads LLVM merges the tails of two branches and adds a variable offset first, which the verifier refuses
//! ("dereference of modified ctx ptr"); an instruction written out stays as it is.

use core::arch::asm;

use mesh_common::AddrNet;

/// Reads the word at a constant offset.
///
/// # Safety
/// `ctx` must be the running program's own context, and the field readable in its hook.
#[inline(always)]
pub(crate) unsafe fn read_u32<const OFFSET: usize, T>(ctx: *const T) -> u32 {
    let value: u64;
    // SAFETY: the caller's promise; a load changes nothing.
    unsafe { asm!("{0} = *(u32 *)({1} + {2})", out(reg) value, in(reg) ctx, const OFFSET, options(nostack)) };
    value as u32
}

/// Reads four words that hold an address, beginning at a constant offset.
macro_rules! read_address_at {
    ($ctx:expr, $kind:ty, $field:ident) => {{
        const AT: usize = core::mem::offset_of!($kind, $field);
        mesh_common::AddrNet {
            words_net: [
                $crate::read::read_u32::<AT, _>($ctx),
                $crate::read::read_u32::<{ AT + 4 }, _>($ctx),
                $crate::read::read_u32::<{ AT + 8 }, _>($ctx),
                $crate::read::read_u32::<{ AT + 12 }, _>($ctx),
            ],
        }
    }};
}

/// Reads one 32-bit field.
macro_rules! read_field {
    ($ctx:expr, $kind:ty, $field:ident) => {
        $crate::read::read_u32::<{ core::mem::offset_of!($kind, $field) }, _>($ctx)
    };
}

pub(crate) use {read_address_at, read_field};

/// The v4-mapped form of a word that holds an IPv4 address.
#[inline(always)]
pub(crate) fn mapped(v4_net: u32) -> AddrNet {
    AddrNet::from_v4_net(v4_net)
}
