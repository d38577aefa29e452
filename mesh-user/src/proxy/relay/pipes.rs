//! Empty pipes lent to splicing relays: a small pool per thread. A pipe that still holds bytes is closed, not
//! pooled, so that no connection ever sees another's.

use std::{cell::RefCell, io};

use crate::sys::splice::{PIPE_BYTES, Pipe};

/// Pipes kept per thread.
const KEPT: usize = 8;

thread_local! {
    static POOL: RefCell<Vec<Pipe>> = const { RefCell::new(Vec::new()) };
}

/// An empty pipe.
pub(super) fn borrow() -> io::Result<Pipe> {
    match POOL.with_borrow_mut(Vec::pop) {
        Some(pipe) => Ok(pipe),
        None => Pipe::new(PIPE_BYTES),
    }
}

/// Keeps the pipe for the next relay; one that is dropped instead is closed.
pub(super) fn give_back(pipe: Pipe) {
    if pipe.filled() > 0 {
        return;
    }
    POOL.with_borrow_mut(|pool| {
        if pool.len() < KEPT {
            pool.push(pipe);
        }
    });
}
