//! A connection per request, a thread for each of those at once: what is timed begins before `connect` and ends
//! with the last byte.

use std::{
    io::{Result as IoResult, Write as _},
    thread,
    time::{Duration, Instant},
};

use anyhow::Result;

use super::{Outcome, Report, Target, connect, gather, histogram, http, record};

pub(super) fn run(target: &Target, at_once: u32, seconds: u32) -> Result<Report> {
    let begun = Instant::now();
    let end = begun + Duration::from_secs(seconds.into());
    let threads: Vec<_> = (0..at_once)
        .map(|_| {
            let target = target.clone();
            thread::spawn(move || one_after_the_other(&target, end))
        })
        .collect();
    gather(threads, begun)
}

fn one_after_the_other(target: &Target, end: Instant) -> Result<Outcome> {
    let (mut times, mut failures) = (histogram()?, 0);
    let (request, mut buffer) = (http::request(&target.path, false), vec![0; http::BUFFER_BYTES]);
    while Instant::now() < end {
        let begun = Instant::now();
        match once(target, &request, &mut buffer) {
            Ok(()) => record(&mut times, begun.elapsed()),
            Err(_) => failures += 1,
        }
    }
    Ok((times, failures))
}

fn once(target: &Target, request: &[u8], buffer: &mut [u8]) -> IoResult<()> {
    let mut stream = connect(target)?;
    stream.write_all(request)?;
    http::read_answer(&mut stream, buffer)
}
