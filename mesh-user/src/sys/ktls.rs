//! Kernel TLS system calls: the ULP, keys, and records other than data. Keys are overwritten in our memory as
//! soon as the kernel has them; nothing here decides when to offload.
//!
//! Sources: Documentation/networking/tls.rst, include/uapi/linux/tls.h.

use std::{
    io,
    mem::size_of,
    os::fd::{AsFd, AsRawFd},
};

use zeroize::Zeroize;

use super::ControlLength;

/// RFC 8446 section 5.1.
pub const RECORD_ALERT: u8 = 21;
/// RFC 8446 section 5.1.
pub const RECORD_HANDSHAKE: u8 = 22;
/// RFC 8446 section 5.1.
pub const RECORD_DATA: u8 = 23;

/// Which way the keys work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// What we send.
    Transmit,
    /// What we receive.
    Receive,
}

/// One `recvmsg` on a kernel TLS socket: bytes of one record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Received {
    /// Content type of the record; none at the end of the stream.
    pub record_type: Option<u8>,
    /// Bytes written to the buffer.
    pub length: usize,
}

/// Attaches the `tls` ULP. Until keys are set the socket behaves as before.
pub fn attach_ulp(socket: &impl AsFd) -> io::Result<()> {
    set_option(socket, libc::SOL_TCP, libc::TCP_ULP, b"tls\0".as_slice())
}

/// Lets the kernel decrypt straight into the reader's buffer, believing that records carry no padding.
pub fn expect_no_padding(socket: &impl AsFd) -> io::Result<()> {
    set_option(socket, libc::SOL_TLS, libc::TLS_RX_EXPECT_NO_PAD, 1_i32.to_ne_bytes().as_slice())
}

/// Keys of one direction, borrowed.
#[derive(Clone, Copy)]
pub struct Keys<'a> {
    /// `TLS_1_3_VERSION` or `TLS_1_2_VERSION`.
    pub version: u16,
    /// `TLS_CIPHER_*`.
    pub cipher: u16,
    /// The AEAD key.
    pub key: &'a [u8],
    /// The 12-byte nonce base.
    pub iv: &'a [u8; 12],
    /// Sequence number of the next record.
    pub sequence: u64,
}

/// Sets the keys of one direction, the first or, where the kernel can, the next ones.
pub fn set_keys(socket: &impl AsFd, direction: Direction, keys: Keys<'_>) -> io::Result<()> {
    let name = match direction {
        Direction::Transmit => libc::TLS_TX,
        Direction::Receive => libc::TLS_RX,
    };
    // `struct tls12_crypto_info_*`: byte arrays without padding after two u16. GCM splits the nonce into a
    // 4-byte salt and 8 bytes; ChaCha20 has no salt.
    let salt_bytes = if keys.cipher == libc::TLS_CIPHER_CHACHA20_POLY1305 { 0 } else { 4 };
    let (salt, iv) = keys.iv.split_at(salt_bytes);
    let mut info = Vec::with_capacity(64);
    info.extend_from_slice(&keys.version.to_ne_bytes());
    info.extend_from_slice(&keys.cipher.to_ne_bytes());
    for part in [iv, keys.key, salt, &keys.sequence.to_be_bytes()] {
        info.extend_from_slice(part);
    }
    let result = set_option(socket, libc::SOL_TLS, name, &info);
    info.zeroize();
    result
}

fn set_option(socket: &impl AsFd, level: i32, name: i32, value: &[u8]) -> io::Result<()> {
    let length = libc::socklen_t::try_from(value.len()).map_err(io::Error::other)?;
    // SAFETY: the descriptor is borrowed for the call, and `value` is readable for `length` bytes.
    let rc =
        unsafe { libc::setsockopt(socket.as_fd().as_raw_fd(), level, name, value.as_ptr().cast(), length) };
    if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Control buffer with the alignment of `cmsghdr` and room for one of a byte.
#[repr(C, align(8))]
struct ControlBuffer([u8; 64]);

/// Sends one record of `record_type` whole, or fails with `WouldBlock`: retry when writable.
pub fn send_record(socket: &impl AsFd, record_type: u8, body: &[u8]) -> io::Result<usize> {
    let mut control = ControlBuffer([0; 64]);
    let mut part = libc::iovec { iov_base: body.as_ptr().cast_mut().cast(), iov_len: body.len() };
    // SAFETY: an all-zero msghdr is valid.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = control.0.as_mut_ptr().cast();
    // SAFETY: CMSG_SPACE and CMSG_LEN only compute; the first header lies in the aligned 64-byte buffer,
    // which has room for a header and one byte.
    unsafe {
        message.msg_controllen = libc::CMSG_SPACE(1) as ControlLength;
        let header = libc::CMSG_FIRSTHDR(&raw const message);
        (*header).cmsg_level = libc::SOL_TLS;
        (*header).cmsg_type = libc::TLS_SET_RECORD_TYPE;
        (*header).cmsg_len = libc::CMSG_LEN(1) as ControlLength;
        libc::CMSG_DATA(header).write(record_type);
    }
    let flags = libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT;
    // SAFETY: all pointers in `message` outlive the call; the kernel only reads through them.
    let sent = unsafe { libc::sendmsg(socket.as_fd().as_raw_fd(), &raw const message, flags) };
    usize::try_from(sent).map_err(|_| io::Error::last_os_error())
}

/// Receives bytes of one record, of whatever type. Never blocks.
pub fn receive_record(socket: &impl AsFd, buffer: &mut [u8]) -> io::Result<Received> {
    let mut control = ControlBuffer([0; 64]);
    let mut part = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    // SAFETY: an all-zero msghdr is valid.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = control.0.as_mut_ptr().cast();
    message.msg_controllen = size_of::<ControlBuffer>() as ControlLength;
    // SAFETY: the kernel writes at most `iov_len` bytes to `buffer` and `msg_controllen` to `control`, both
    // exclusively borrowed here.
    let read = unsafe {
        libc::recvmsg(
            socket.as_fd().as_raw_fd(),
            &raw mut message,
            libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC,
        )
    };
    let length = usize::try_from(read).map_err(|_| io::Error::last_os_error())?;
    // SAFETY: the kernel has set `msg_controllen` to what it wrote; CMSG_FIRSTHDR answers null when that is
    // less than a header, and a TLS record type carries one byte.
    let record_type = unsafe {
        let header = libc::CMSG_FIRSTHDR(&raw const message);
        if !header.is_null()
            && (*header).cmsg_level == libc::SOL_TLS
            && (*header).cmsg_type == libc::TLS_GET_RECORD_TYPE
        {
            Some(libc::CMSG_DATA(header).read())
        } else {
            (length > 0).then_some(RECORD_DATA)
        }
    };
    Ok(Received { record_type, length })
}
