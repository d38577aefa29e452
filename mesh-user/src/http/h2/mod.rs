//! HTTP/2: a server towards the client, a client towards the application, one connection each, and every stream put
//! before the gate on its own. Windows are released only as the other side takes the bytes, so both are bounded.

mod driver;
mod heads;
mod pump;
mod resets;
mod stream;
mod upstream;

pub(super) use driver::drive;
