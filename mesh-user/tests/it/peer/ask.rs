//! Asks a server many HTTP/1.1 requests, one after the other on one connection while it stays, and says what was answered
//! to each. Requests are written as they are given: what a client's library would refuse to send is asked too.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use serde_json::json;
use socket2::{Domain, Socket, Type};

use super::{Args, say};

/// A response's body is read over up to this length.
const MAX_BODY: u64 = 1 << 20;

/// `ask ADDRESS --file FILE`: the file holds a JSON list of requests. One line per answer: its status, and its `server`.
pub(super) fn ask(args: &Args) -> anyhow::Result<()> {
    let (to, file) = (args.address()?, args.option("--file").context("--file")?);
    let requests: Vec<String> = serde_json::from_slice(&std::fs::read(file)?)?;
    let mut connection = None;
    for request in &requests {
        let answer = match connection.take() {
            // A server may have closed it after its last answer.
            Some(open) => once(open, request).or_else(|_| once(connect(to)?, request)),
            None => once(connect(to)?, request),
        };
        let answer = answer.with_context(|| format!("asking {request:?}"))?;
        say(&json!({ "status": answer.status, "server": answer.server }));
        connection = answer.connection;
    }
    Ok(())
}

fn connect(to: SocketAddr) -> anyhow::Result<BufReader<TcpStream>> {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
    socket.connect(&to.into())?;
    socket.set_tcp_nodelay(true)?;
    socket.set_read_timeout(Some(Duration::from_secs(20)))?;
    Ok(BufReader::new(socket.into()))
}

struct Answer {
    status: u16,
    server: Option<String>,
    connection: Option<BufReader<TcpStream>>,
}

fn once(mut connection: BufReader<TcpStream>, request: &str) -> anyhow::Result<Answer> {
    connection.get_mut().write_all(request.as_bytes())?;
    loop {
        let (status, fields) = head(&mut connection)?;
        if status < 200 {
            continue;
        }
        let field = |name: &str| {
            let found = fields.iter().find(|(own, _)| own.eq_ignore_ascii_case(name));
            found.map(|(_, value)| value.as_str())
        };
        let chunked = field("transfer-encoding").is_some();
        let empty = request.starts_with("HEAD ") || matches!(status, 204 | 304);
        let length = field("content-length").map(str::parse::<u64>).transpose()?;
        let mut stays = !field("connection").is_some_and(|value| value.eq_ignore_ascii_case("close"));
        match length.filter(|_| !empty) {
            Some(length) => {
                ensure!(length <= MAX_BODY, "a body of {length} bytes");
                std::io::copy(&mut connection.by_ref().take(length), &mut std::io::sink())?;
            }
            None => stays &= empty && !chunked,
        }
        let server = field("server").map(str::to_owned);
        return Ok(Answer { status, server, connection: stays.then_some(connection) });
    }
}

/// A status, and fields by name.
type Head = (u16, Vec<(String, String)>);

fn head(connection: &mut BufReader<TcpStream>) -> anyhow::Result<Head> {
    let mut line = String::new();
    connection.read_line(&mut line)?;
    let status = line.split(' ').nth(1).with_context(|| format!("{line:?} is no status line"))?.parse()?;
    let mut fields = Vec::new();
    loop {
        line.clear();
        ensure!(connection.read_line(&mut line)? > 0, "the head of a response is cut");
        let Some((name, value)) = line.trim_end().split_once(':') else { return Ok((status, fields)) };
        fields.push((name.to_owned(), value.trim().to_owned()));
    }
}
