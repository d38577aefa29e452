//! Who may use the admin socket: root and the daemon's own user, as the kernel says (`SO_PEERCRED`,
//! unix(7)), never as the client says. The socket's file mode is a second wall, not the only one.

use tokio::net::UnixStream;

/// Why a client is refused.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// A user that may not.
    #[error("user {uid} may not use the admin socket; only root and the daemon's user {daemon_uid} may")]
    User {
        /// The client's.
        uid: u32,
        /// The daemon's.
        daemon_uid: u32,
    },
    /// The kernel gave no credentials.
    #[error("the client's credentials cannot be read: {0}")]
    Unreadable(String),
}

/// Decides by user ids alone.
pub fn permitted(uid: u32, daemon_uid: u32) -> Result<(), Refused> {
    if uid == 0 || uid == daemon_uid { Ok(()) } else { Err(Refused::User { uid, daemon_uid }) }
}

/// Decides for a connected stream.
pub fn check(stream: &UnixStream, daemon_uid: u32) -> Result<(), Refused> {
    let credentials = stream.peer_cred().map_err(|error| Refused::Unreadable(error.to_string()))?;
    permitted(credentials.uid(), daemon_uid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_root_and_the_daemons_user_pass() {
        assert_eq!(permitted(0, 0), Ok(()));
        assert_eq!(permitted(0, 998), Ok(()));
        assert_eq!(permitted(998, 998), Ok(()));
        assert_eq!(permitted(1000, 998), Err(Refused::User { uid: 1000, daemon_uid: 998 }));
        // The overflow user stands for every user of another user namespace.
        assert_eq!(permitted(65534, 0), Err(Refused::User { uid: 65534, daemon_uid: 0 }));
    }
}
