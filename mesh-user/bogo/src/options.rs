//! The runner's command line. What meshd does not have, cannot be told or does not tell is an error, never ignored,
//! except what is another way to call `BoringSSL`'s functions, and what the runner sees for itself on the wire.

use std::{path::PathBuf, slice::Iter};

use rustls::{NamedGroup, ProtocolVersion};

/// TLS 1.2 and 1.3, as on the wire.
const VERSIONS: [u16; 2] = [0x0303, 0x0304];

/// One test's connections.
#[derive(Debug)]
pub(crate) struct Options {
    /// On loopback, where the runner listens.
    pub(crate) port: u16,
    /// Whether the shim is the server of TLS; it connects in any case.
    pub(crate) is_server: bool,
    /// Connections after the first one.
    pub(crate) resume_count: u32,
    /// The versions allowed.
    pub(crate) versions: Vec<ProtocolVersion>,
    /// The groups allowed; none named: meshd's.
    pub(crate) groups: Vec<NamedGroup>,
    /// PEM files of the shim's own certificate and key.
    pub(crate) certificate: PathBuf,
    pub(crate) key: PathBuf,
    /// The application speaks first.
    pub(crate) writes_first: bool,
    /// The application closes right after the handshake.
    pub(crate) shuts_down: bool,
    /// What the first connection must be, then what the later ones must be.
    pub(crate) expected: [Expected; 2],
}

/// What a connection must turn out to be.
#[derive(Debug, Default)]
pub(crate) struct Expected {
    /// The version negotiated.
    pub(crate) version: Option<ProtocolVersion>,
    /// The cipher suite negotiated.
    pub(crate) cipher_suite: Option<u16>,
    /// A later connection does not resume.
    pub(crate) session_miss: bool,
    /// The peer is believed no more.
    pub(crate) is_distrusted: bool,
    /// The peer proves itself with the chain in this file.
    pub(crate) peer_chain: Option<PathBuf>,
}

impl Options {
    /// The flag that is not implemented is the error.
    pub(crate) fn read(arguments: &[String]) -> Result<Self, String> {
        let mut options = Self {
            port: 0,
            is_server: false,
            resume_count: 0,
            versions: Vec::new(),
            groups: Vec::new(),
            certificate: "cert.pem".into(),
            key: "key.pem".into(),
            writes_first: false,
            shuts_down: false,
            expected: Default::default(),
        };
        let mut allowed = VERSIONS.to_vec();
        let mut words = arguments.iter();
        while let Some(flag) = words.next() {
            let understood = options.set(flag, &mut words, &mut allowed);
            understood.ok_or_else(|| flag.clone())?;
        }
        if allowed.is_empty() {
            return Err("a version before TLS 1.2".to_owned());
        }
        options.versions = allowed.into_iter().map(ProtocolVersion::from).collect();
        Ok(options)
    }

    fn set(&mut self, flag: &str, words: &mut Iter<'_, String>, allowed: &mut Vec<u16>) -> Option<()> {
        match flag {
            "-port" => self.port = number(words)?,
            "-server" => self.is_server = true,
            "-resume-count" => self.resume_count = number(words)?,
            "-cert-file" => self.certificate = words.next()?.into(),
            "-key-file" => self.key = words.next()?.into(),
            "-min-version" => {
                let lowest = number::<u16>(words)?;
                allowed.retain(|version| *version >= lowest);
            }
            "-max-version" => {
                let highest = number::<u16>(words)?;
                allowed.retain(|version| *version <= highest);
            }
            "-no-tls12" => allowed.retain(|version| *version != VERSIONS[0]),
            "-no-tls13" => allowed.retain(|version| *version != VERSIONS[1]),
            "-curves" => self.groups.push(NamedGroup::from(number::<u16>(words)?)),
            "-shim-writes-first" => self.writes_first = true,
            "-shim-shuts-down" => self.shuts_down = true,
            // Of meshd it is true always: no version before 1.2, a client's certificate, the extended master secret,
            // close_notify at the end, verification at resumption. The last four are other ways to call BoringSSL.
            "-no-tls1"
            | "-no-tls11"
            | "-verify-peer"
            | "-require-any-client-certificate"
            | "-expect-extended-master-secret"
            | "-check-close-notify"
            | "-reverify-on-resume"
            | "-async"
            | "-implicit-handshake"
            | "-write-different-record-sizes"
            | "-use-custom-verify-callback" => {}
            // The runner allows only one, or sees which it is; the last is the application's own affair.
            "-expect-curve-id"
            | "-on-initial-expect-curve-id"
            | "-on-resume-expect-curve-id"
            | "-expect-peer-signature-algorithm"
            | "-read-size" => drop(words.next()?),
            _ => self.expect(flag, words)?,
        }
        Some(())
    }

    fn expect(&mut self, flag: &str, words: &mut Iter<'_, String>) -> Option<()> {
        let [initial, later] = &mut self.expected;
        let (name, concerned) = if let Some(name) = flag.strip_prefix("-on-initial") {
            (name, vec![initial])
        } else if let Some(name) = flag.strip_prefix("-on-resume") {
            (name, vec![later])
        } else {
            (flag, vec![initial, later])
        };
        let word =
            if matches!(name, "-expect-session-miss" | "-verify-fail") { None } else { Some(words.next()?) };
        for expected in concerned {
            match (name, word) {
                ("-expect-session-miss", _) => expected.session_miss = true,
                ("-verify-fail", _) => expected.is_distrusted = true,
                ("-expect-version", Some(word)) => {
                    expected.version = Some(ProtocolVersion::from(word.parse::<u16>().ok()?));
                }
                ("-expect-cipher", Some(word)) => expected.cipher_suite = Some(word.parse().ok()?),
                ("-expect-peer-cert-file", Some(word)) => expected.peer_chain = Some(word.into()),
                _ => return None,
            }
        }
        Some(())
    }
}

fn number<T: std::str::FromStr>(words: &mut Iter<'_, String>) -> Option<T> {
    words.next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(line: &str) -> Result<Options, String> {
        Options::read(&line.split(' ').map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn versions_are_narrowed_and_what_leaves_none_is_unimplemented() {
        assert_eq!(read("-port 1").unwrap().versions.len(), 2);
        assert_eq!(read("-max-version 771").unwrap().versions, [ProtocolVersion::TLSv1_2]);
        assert_eq!(read("-no-tls12").unwrap().versions, [ProtocolVersion::TLSv1_3]);
        assert!(read("-max-version 770").is_err());
    }

    #[test]
    fn an_expectation_may_concern_the_first_connection_or_the_later_ones() {
        let options = read("-on-resume-verify-fail -expect-version 772").unwrap();
        assert!(!options.expected[0].is_distrusted && options.expected[1].is_distrusted);
        assert!(options.expected.iter().all(|expected| expected.version == Some(ProtocolVersion::TLSv1_3)));
    }

    #[test]
    fn an_unknown_flag_is_named() {
        assert_eq!(read("-server -expect-alpn foo").unwrap_err(), "-expect-alpn");
        assert_eq!(read("-dtls").unwrap_err(), "-dtls");
        assert_eq!(read("-on-retry-verify-fail").unwrap_err(), "-on-retry-verify-fail");
    }
}
