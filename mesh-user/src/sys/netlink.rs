//! What every netlink request has in common: its header, and the kernel's acknowledgement.
//! Numbers: `include/uapi/linux/netlink.h`.

use std::io;

const NLMSG_ERROR: u16 = 2;
/// `NLM_F_REQUEST | NLM_F_ACK`.
pub(super) const REQUEST_ACK: u16 = 1 | 4;
const HEADER: usize = 16;

/// A request of one kind with its body.
pub(super) fn message(kind: u16, flags: u16, body: &[u8]) -> io::Result<Vec<u8>> {
    let length = u32::try_from(HEADER + body.len()).map_err(io::Error::other)?;
    let mut message = length.to_ne_bytes().to_vec();
    message.extend(kind.to_ne_bytes());
    message.extend(flags.to_ne_bytes());
    message.extend([0; 8]);
    message.extend(body);
    Ok(message)
}

/// What the kernel said of a request.
pub(super) fn acknowledgement(reply: &[u8]) -> io::Result<()> {
    match reply {
        // type at 4, the error number (negative, 0 for success) after the header
        [_, _, _, _, t0, t1, rest @ ..] if u16::from_ne_bytes([*t0, *t1]) == NLMSG_ERROR => {
            match rest.get(HEADER - 6..HEADER - 2) {
                Some(&[a, b, c, d]) => match i32::from_ne_bytes([a, b, c, d]) {
                    0 => Ok(()),
                    error => Err(io::Error::from_raw_os_error(-error)),
                },
                _ => Err(io::ErrorKind::UnexpectedEof.into()),
            }
        }
        _ => Err(io::Error::other("netlink gave no acknowledgement")),
    }
}
