//! Requests that are due at fixed times, spread over keep-alive connections; a latency begins when the request was
//! due, not when it could be sent, so that a stall is counted against everyone it made late (Gil Tene's "coordinated
//! omission", as wrk2 avoids it). A thread per connection: no timer wheel rounds the due times.

use std::{
    io::Write as _,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};

use super::{Outcome, Report, Target, connect, gather, histogram, http, record};

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
    gather(threads, begun)
}

fn on_time(target: &Target, mut due: Instant, interval: Duration, end: Instant) -> Result<Outcome> {
    // By default the kernel lets a sleeper oversleep by 50 us (prctl(2), PR_SET_TIMERSLACK).
    nix::sys::prctl::set_timerslack(1).context("asking for exact timers")?;
    let mut times = histogram()?;
    let (request, mut buffer) = (http::request(&target.path, true), vec![0; http::BUFFER_BYTES]);
    let mut stream = connect(target)?;
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
