//! Requests that are due at fixed times, spread over keep-alive connections; a latency begins when the request was
//! due, not when it could be sent, so that a stall is counted against everyone it made late (Gil Tene's "coordinated
//! omission", as wrk2 avoids it). A thread per connection: no timer wheel rounds the due times.

use std::{
    io::Write as _,
    net::TcpStream,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow};
use hdrhistogram::Histogram;

use super::{Report, Target, histogram, http, record};

const TIMEOUT: Duration = Duration::from_secs(10);

pub(super) fn run(target: &Target, connections: u32, per_second: u32, seconds: u32) -> Result<Report> {
    let interval = Duration::from_secs_f64(f64::from(connections) / f64::from(per_second));
    // Everybody connects first.
    let begun = Instant::now() + Duration::from_millis(300);
    let end = begun + Duration::from_secs(seconds.into());
    let threads: Vec<_> = (0..connections)
        .map(|index| {
            let target = target.clone();
            let first = begun + interval.mul_f64(f64::from(index) / f64::from(connections));
            thread::spawn(move || on_time(&target, first, interval, end))
        })
        .collect();
    let (mut times, mut failures) = (histogram()?, 0);
    for thread in threads {
        let (of_thread, failed) = thread.join().map_err(|_| anyhow!("a client thread panicked"))??;
        times.add(of_thread)?;
        failures += failed;
    }
    Ok(Report::of(&times, failures, begun.elapsed()))
}

fn on_time(
    target: &Target,
    mut due: Instant,
    interval: Duration,
    end: Instant,
) -> Result<(Histogram<u64>, u64)> {
    // By default the kernel lets a sleeper oversleep by 50 us (prctl(2), PR_SET_TIMERSLACK).
    nix::sys::prctl::set_timerslack(1).context("asking for exact timers")?;
    let mut times = histogram()?;
    let (request, mut buffer) = (http::request(&target.path, true), vec![0; http::BUFFER_BYTES]);
    let mut stream = TcpStream::connect_timeout(&target.to, TIMEOUT)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_nodelay(true)?;
    while due < end {
        thread::sleep(due.saturating_duration_since(Instant::now()));
        let answered = stream.write_all(&request).and_then(|()| http::read_answer(&mut stream, &mut buffer));
        if answered.is_err() {
            return Ok((times, 1));
        }
        record(&mut times, due.elapsed());
        due += interval;
    }
    Ok((times, 0))
}
