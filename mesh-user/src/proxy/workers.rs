//! One single-threaded tokio runtime per core: a connection lives and dies on one of them, so that its
//! buffers and wake-ups never cross cores. Accepted sockets are dealt out in turn.

use std::{
    convert::Infallible,
    future::Future,
    io,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
    time::Duration,
};

use tokio::{runtime, sync::oneshot, time::sleep};

/// How often a runtime looks at its clock at least. For every timer that ends before all others tokio writes to an event
/// descriptor of its own, and is woken by it; behind this one none of a connection's does.
const PACE: Duration = Duration::from_secs(1);

/// The runtimes that carry connections. Dropping it stops them and every task on them.
#[derive(Debug)]
pub struct Workers {
    workers: Vec<Worker>,
    next: AtomicUsize,
}

#[derive(Debug)]
struct Worker {
    handle: runtime::Handle,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Workers {
    /// Starts `count` runtimes, each on a thread of its own.
    ///
    /// # Errors
    /// When the kernel refuses a thread or an epoll descriptor.
    pub fn start(count: usize) -> io::Result<Self> {
        let workers = (0..count.max(1)).map(Worker::start).collect::<io::Result<Vec<_>>>()?;
        Ok(Self { workers, next: AtomicUsize::new(0) })
    }

    /// How many runtimes there are.
    pub fn count(&self) -> usize {
        self.workers.len()
    }

    /// The runtimes, for a watchdog that wants to see each of them alive.
    pub fn handles(&self) -> Vec<runtime::Handle> {
        self.workers.iter().map(|worker| worker.handle.clone()).collect()
    }

    /// Runs `task` on the next runtime in turn.
    pub fn spawn<F>(&self, task: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let index = self.next.fetch_add(1, Ordering::Relaxed) % self.workers.len();
        self.workers[index].handle.spawn(task);
    }
}

impl Worker {
    fn start(index: usize) -> io::Result<Self> {
        let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        let (stop, stopped) = oneshot::channel::<()>();
        let thread = thread::Builder::new().name(format!("worker-{index}")).spawn(move || {
            // An error means that the sender is gone: stop as well.
            let _ = runtime.block_on(async {
                tokio::select! {
                    stop = stopped => stop,
                    never = keep_pace() => match never {},
                }
            });
            runtime.shutdown_background();
        })?;
        Ok(Self { handle, stop: Some(stop), thread: Some(thread) })
    }
}

async fn keep_pace() -> Infallible {
    loop {
        sleep(PACE).await;
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(());
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tasks_are_dealt_to_every_worker() {
        let workers = Workers::start(2).unwrap();
        let (sender, receiver) = std::sync::mpsc::channel();
        for _ in 0..8 {
            let sender = sender.clone();
            workers.spawn(async move {
                let _ = sender.send(thread::current().id());
            });
        }
        let seen: std::collections::HashSet<_> =
            (0..8).map(|_| receiver.recv_timeout(std::time::Duration::from_secs(5)).unwrap()).collect();
        assert_eq!(seen.len(), 2);
    }
}
