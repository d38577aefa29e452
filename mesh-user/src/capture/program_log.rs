//! Forwards what the programs log (aya-log) to tracing. Only started when logging is asked for.

use std::{
    os::fd::AsFd,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use aya::Ebpf;
use aya_log::EbpfLogger;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::CaptureError;

const TARGET: &str = "mesh_ebpf";
const WAIT_MS: u16 = 500;

/// Forwards until dropped.
#[derive(Debug)]
pub(super) struct ProgramLog(Arc<AtomicBool>);

impl ProgramLog {
    pub(super) fn start(ebpf: &mut Ebpf) -> Result<Self, CaptureError> {
        let mut logger =
            EbpfLogger::init_with_logger(ebpf, Forward).map_err(|_| CaptureError::Object("AYA_LOGS"))?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let forward = move || {
            while !stopped.load(Ordering::Relaxed) {
                // Woken or not, there may be lines.
                let _ =
                    poll(&mut [PollFd::new(logger.as_fd(), PollFlags::POLLIN)], PollTimeout::from(WAIT_MS));
                logger.flush();
            }
        };
        thread::Builder::new().name("bpf-log".to_owned()).spawn(forward).map_err(|source| {
            CaptureError::Map { action: "start the thread that reads", map: "AYA_LOGS", source }
        })?;
        Ok(Self(stop))
    }
}

impl Drop for ProgramLog {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

struct Forward;

impl log::Log for Forward {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        tracing::info!(target: TARGET, hook = record.module_path().unwrap_or_default(), "{}", record.args());
    }

    fn flush(&self) {}
}
