//! Finds out what this kernel's TLS can do, by doing it on loopback sockets of its own. What fails here is not
//! used later; nothing outside these sockets is touched.

use std::{
    io::{self, Write},
    net::{Ipv4Addr, TcpListener, TcpStream},
    time::{Duration, Instant},
};

use super::offload::{KernelCipher, KernelTls};
use crate::sys::{
    ktls::{self, Direction, Keys, RECORD_DATA, RECORD_HANDSHAKE, Received},
    splice::Pipe,
};

/// How long loopback may take.
const PATIENCE: Duration = Duration::from_secs(3);
/// Small, and more than one record: the case in which older kernels lost data (kernel TLS to a full pipe).
const SMALL_PIPE_BYTES: usize = 4096;
const RECORD_BYTES: usize = 16 * 1024;
const RECORDS: usize = 8;
/// `KeyUpdate`, `update_not_requested` (RFC 8446 section 4.6.3).
const KEY_UPDATE: [u8; 5] = [24, 0, 0, 1, 0];

impl KernelTls {
    /// Tries everything; takes a few milliseconds, blocking.
    pub fn probe() -> Self {
        let (client, server) = match pair() {
            Ok(pair) => pair,
            Err(error) => return Self::unavailable(&format!("no loopback connection to try it on: {error}")),
        };
        if let Err(error) = ktls::attach_ulp(&client).and_then(|()| ktls::attach_ulp(&server)) {
            let reason = match error.raw_os_error() {
                Some(libc::ENOENT) => "the kernel has no tls module: modprobe tls".to_owned(),
                _ => format!("TCP_ULP is refused: {error}"),
            };
            return Self::unavailable(&reason);
        }
        let ciphers: Vec<_> =
            KernelCipher::ALL.into_iter().filter(|cipher| carries_data(*cipher).is_ok()).collect();
        let Some(&cipher) = ciphers.first() else {
            return Self::unavailable("the kernel has TLS, but no cipher of ours works in it");
        };
        let say = |result: io::Result<()>| result.map_err(|error| error.to_string());
        Self {
            ulp: Ok(()),
            rekey: say(changes_keys(cipher)),
            splice: say(splices(cipher)),
            expect_no_pad: say(keyed_pair(cipher).and_then(|(_, server)| ktls::expect_no_padding(&server))),
            ciphers,
        }
    }
}

fn pair() -> io::Result<(TcpStream, TcpStream)> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let client = TcpStream::connect(listener.local_addr()?)?;
    let (server, address) = listener.accept()?;
    // Another local process may have been faster; only our own client's connection will do.
    if address != client.local_addr()? {
        return Err(io::Error::other("another connection came first"));
    }
    for stream in [&client, &server] {
        stream.set_nonblocking(true)?;
        stream.set_nodelay(true)?;
    }
    Ok((client, server))
}

/// Keys mean nothing here: both ends are ours.
fn set_keys(stream: &TcpStream, direction: Direction, cipher: KernelCipher, fill: u8) -> io::Result<()> {
    let (version, uapi_cipher, key_bytes) = cipher.uapi();
    let keys = Keys {
        version,
        cipher: uapi_cipher,
        key: &[fill; 32][..key_bytes],
        iv: &[fill ^ 0x55; 12],
        sequence: 0,
    };
    ktls::set_keys(stream, direction, keys)
}

fn keyed_pair(cipher: KernelCipher) -> io::Result<(TcpStream, TcpStream)> {
    let (client, server) = pair()?;
    for stream in [&client, &server] {
        ktls::attach_ulp(stream)?;
    }
    set_keys(&client, Direction::Transmit, cipher, 1)?;
    set_keys(&client, Direction::Receive, cipher, 2)?;
    set_keys(&server, Direction::Transmit, cipher, 2)?;
    set_keys(&server, Direction::Receive, cipher, 1)?;
    Ok((client, server))
}

fn retry<T>(mut operation: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    let start = Instant::now();
    loop {
        match operation() {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && start.elapsed() < PATIENCE => {
                std::thread::sleep(Duration::from_micros(200));
            }
            result => return result,
        }
    }
}

fn expect(stream: &TcpStream, record_type: u8, bytes: &[u8]) -> io::Result<()> {
    let mut buffer = vec![0; RECORD_BYTES];
    let Received { record_type: found, length } = retry(|| ktls::receive_record(stream, &mut buffer))?;
    if found == Some(record_type) && buffer[..length] == *bytes {
        Ok(())
    } else {
        Err(io::Error::other("a record came out different"))
    }
}

fn carries_data(cipher: KernelCipher) -> io::Result<()> {
    let (mut client, mut server) = keyed_pair(cipher)?;
    client.write_all(b"probe")?;
    expect(&server, RECORD_DATA, b"probe")?;
    server.write_all(b"answer")?;
    expect(&client, RECORD_DATA, b"answer")
}

fn changes_keys(cipher: KernelCipher) -> io::Result<()> {
    let (mut client, server) = keyed_pair(cipher)?;
    retry(|| ktls::send_record(&client, RECORD_HANDSHAKE, &KEY_UPDATE))?;
    set_keys(&client, Direction::Transmit, cipher, 3)?;
    client.write_all(b"next key")?;
    expect(&server, RECORD_HANDSHAKE, &KEY_UPDATE)?;
    set_keys(&server, Direction::Receive, cipher, 3)?;
    expect(&server, RECORD_DATA, b"next key")
}

/// Records of 16 KiB through a pipe of one page: every byte in its place, none lost.
fn splices(cipher: KernelCipher) -> io::Result<()> {
    let (mut client, server) = keyed_pair(cipher)?;
    let sent: Vec<u8> = (0..RECORD_BYTES * RECORDS).map(|i| (i / 7 + i / 4099).to_le_bytes()[0]).collect();
    let mut written = 0;
    let mut pipe = Pipe::new(SMALL_PIPE_BYTES)?;
    let mut got = Vec::with_capacity(sent.len());
    let mut page = [0; SMALL_PIPE_BYTES];
    let start = Instant::now();
    while got.len() < sent.len() {
        if start.elapsed() > PATIENCE {
            return Err(io::Error::other(format!("bytes are missing after {}", got.len())));
        }
        queue_records(&mut client, &sent, &mut written)?;
        match pipe.fill_from(&server) {
            Ok(0) => return Err(io::Error::other("splice saw an end that is none")),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
            Err(error) => return Err(error),
        }
        while pipe.filled() > 0 {
            let count = pipe.read(&mut page)?;
            got.extend_from_slice(&page[..count]);
        }
        if !sent.starts_with(&got) {
            return Err(io::Error::other("splice from kernel TLS loses or reorders data"));
        }
    }
    Ok(())
}

/// Queues as many whole records as the socket takes, so that several wait at the reader.
fn queue_records(client: &mut TcpStream, sent: &[u8], written: &mut usize) -> io::Result<()> {
    while *written < sent.len() {
        let end = (*written / RECORD_BYTES + 1) * RECORD_BYTES;
        match client.write(&sent[*written..end.min(sent.len())]) {
            Ok(count) => *written += count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
