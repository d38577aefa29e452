//! A peer whose every socket call goes through `io_uring`: accept, connect, receive and send, one after the other.

use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};

use anyhow::ensure;
use io_uring::{IoUring, opcode, squeue, types::Fd};
use nix::sys::socket::{SockaddrLike as _, SockaddrStorage};
use serde_json::json;
use socket2::{Domain, Protocol, SockRef, Socket, Type};

use super::{Args, say};

/// Waits for the one entry submitted.
fn done(ring: &mut IoUring, entry: &squeue::Entry) -> io::Result<i32> {
    // SAFETY: what the entry points to outlives this call, which returns when the kernel is done with it.
    unsafe { ring.submission().push(entry) }.map_err(io::Error::other)?;
    ring.submit_and_wait(1)?;
    let result = ring.completion().next().ok_or_else(|| io::Error::other("nothing is complete"))?.result();
    if result < 0 { Err(io::Error::from_raw_os_error(-result)) } else { Ok(result) }
}

fn receive(ring: &mut IoUring, socket: Fd, buffer: &mut [u8]) -> io::Result<usize> {
    let entry = opcode::Recv::new(socket, buffer.as_mut_ptr(), u32::try_from(buffer.len()).unwrap_or(0));
    Ok(usize::try_from(done(ring, &entry.build())?).unwrap_or(0))
}

fn send(ring: &mut IoUring, socket: Fd, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        let entry = opcode::Send::new(socket, bytes.as_ptr(), u32::try_from(bytes.len()).unwrap_or(0));
        let count = usize::try_from(done(ring, &entry.build())?).unwrap_or(0);
        bytes = &bytes[count..];
    }
    Ok(())
}

/// Echoes one connection after the other.
pub(super) fn serve(args: &Args) -> anyhow::Result<()> {
    let (at, mut ring, mut buffer) = (args.address()?, IoUring::new(8)?, vec![0; 16_384]);
    let listener = Socket::new(Domain::for_address(at), Type::STREAM, Some(Protocol::TCP))?;
    listener.bind(&at.into())?;
    listener.listen(16)?;
    say(&json!({ "event": "listening" }));
    loop {
        let accept =
            opcode::Accept::new(Fd(listener.as_raw_fd()), std::ptr::null_mut(), std::ptr::null_mut());
        let accepted = done(&mut ring, &accept.build())?;
        // SAFETY: the kernel gave this descriptor just now, to nobody else.
        let socket = unsafe { OwnedFd::from_raw_fd(accepted) };
        let peer = SockRef::from(&socket).peer_addr()?.as_socket();
        say(&json!({ "event": "accepted", "peer": peer }));
        loop {
            let count = receive(&mut ring, Fd(socket.as_raw_fd()), &mut buffer)?;
            if count == 0 {
                break;
            }
            send(&mut ring, Fd(socket.as_raw_fd()), &buffer[..count])?;
        }
    }
}

/// Sends `--send` and says what comes back.
pub(super) fn probe(args: &Args) -> anyhow::Result<()> {
    let (to, mut ring) = (args.address()?, IoUring::new(8)?);
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, Some(Protocol::TCP))?;
    let (fd, address) = (Fd(socket.as_raw_fd()), SockaddrStorage::from(to));
    let connect = opcode::Connect::new(fd, address.as_ptr().cast(), address.len());
    done(&mut ring, &connect.build())?;
    let text = args.option("--send").unwrap_or_default().as_bytes();
    send(&mut ring, fd, text)?;
    let mut back = vec![0; text.len()];
    let mut read = 0;
    while read < back.len() {
        let count = receive(&mut ring, fd, &mut back[read..])?;
        ensure!(count > 0, "the echo ended after {read} bytes");
        read += count;
    }
    let (peer, local) = (socket.peer_addr()?.as_socket(), socket.local_addr()?.as_socket());
    say(&json!({ "text": String::from_utf8_lossy(&back), "peer": peer, "local": local }));
    Ok(())
}
