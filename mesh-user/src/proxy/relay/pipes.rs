//! Empty pipes lent to splicing relays: a small pool per thread. A pipe that still holds bytes is closed, not
//! pooled, so that no connection ever sees another's.

use std::{cell::RefCell, io, ops::{Deref, DerefMut}};

use crate::sys::splice::{PIPE_BYTES, Pipe};

/// Pipes kept per thread.
const KEPT: usize = 8;

thread_local! {
    static POOL: RefCell<Vec<Pipe>> = const { RefCell::new(Vec::new()) };
}

/// A pipe on loan.
pub(super) struct Lent(Option<Pipe>);

impl Lent {
    pub(super) fn borrow() -> io::Result<Self> {
        match POOL.with_borrow_mut(Vec::pop) {
            Some(pipe) => Ok(Self(Some(pipe))),
            None => Pipe::new(PIPE_BYTES).map(|pipe| Self(Some(pipe))),
        }
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        let Some(pipe) = self.0.take().filter(|pipe| pipe.filled() == 0) else { return };
        let _ = POOL.try_with(|pool| {
            if let Ok(mut pool) = pool.try_borrow_mut()
                && pool.len() < KEPT
            {
                pool.push(pipe);
            }
        });
    }
}

impl Deref for Lent {
    type Target = Pipe;

    fn deref(&self) -> &Pipe {
        self.0.as_ref().unwrap_or_else(|| unreachable!("taken only by drop"))
    }
}

impl DerefMut for Lent {
    fn deref_mut(&mut self) -> &mut Pipe {
        self.0.as_mut().unwrap_or_else(|| unreachable!("taken only by drop"))
    }
}
