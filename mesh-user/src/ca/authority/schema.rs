//! The authority's tables. Times are Unix seconds; serial numbers lower-case hex. No key is ever in them.

/// What is believed of the time (see the authority's `clock`); milliseconds.
pub(in crate::ca) const CLOCK_SCHEMA: &str = "
CREATE TABLE clock (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    -- the start of the machine that boot counts from
    boot_id TEXT NOT NULL,
    boot INTEGER NOT NULL,
    wall INTEGER NOT NULL,
    believed INTEGER NOT NULL,
    steady INTEGER NOT NULL
) STRICT;
";

/// The keys of JWT-SVIDs: those in `jwt.key`, and since when they are what they are.
pub(in crate::ca) const JWT_SCHEMA: &str = "
CREATE TABLE jwt_keys (
    kid TEXT PRIMARY KEY,
    stage TEXT NOT NULL CHECK (stage IN ('trusted', 'active', 'retiring')),
    since INTEGER NOT NULL,
    -- the version of the trust that had it first
    trusted_version INTEGER
) STRICT, WITHOUT ROWID;
";

/// The authority's step of [`crate::ca::state`].
pub(in crate::ca) const SCHEMA: &str = "
CREATE TABLE authorities (
    id TEXT PRIMARY KEY,
    kind TEXT NOT NULL CHECK (kind IN ('root', 'intermediate')),
    source TEXT NOT NULL CHECK (source IN ('own', 'files')),
    certificate BLOB NOT NULL,
    -- DER, one behind the other: what is sent behind a leaf
    chain BLOB NOT NULL,
    parent TEXT,
    -- NULL: only trusted
    key_file TEXT,
    stage TEXT NOT NULL CHECK (stage IN ('prepared', 'trusted', 'active', 'retiring', 'withdrawn')),
    since INTEGER NOT NULL,
    -- the version of the trust that had its root first
    trusted_version INTEGER,
    created INTEGER NOT NULL
) STRICT;
CREATE TABLE issued (
    serial TEXT PRIMARY KEY,
    issuer TEXT NOT NULL REFERENCES authorities (id),
    spiffe_id TEXT NOT NULL,
    not_after INTEGER NOT NULL,
    issued INTEGER NOT NULL,
    caller TEXT NOT NULL,
    node TEXT
) STRICT, WITHOUT ROWID;
CREATE INDEX issued_by_issuer ON issued (issuer, not_after);
CREATE INDEX issued_to ON issued (spiffe_id);
CREATE TABLE revoked (
    issuer TEXT NOT NULL REFERENCES authorities (id),
    serial TEXT NOT NULL,
    at INTEGER NOT NULL,
    reason INTEGER NOT NULL,
    not_after INTEGER NOT NULL,
    PRIMARY KEY (issuer, serial)
) STRICT, WITHOUT ROWID;
CREATE TABLE blocked (
    spiffe_id TEXT PRIMARY KEY,
    since INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE lists (
    issuer TEXT PRIMARY KEY REFERENCES authorities (id),
    number INTEGER NOT NULL,
    der BLOB NOT NULL,
    entries INTEGER NOT NULL,
    signed INTEGER NOT NULL,
    next_update INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE trust (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    -- of what is told to agents
    version INTEGER NOT NULL,
    -- of everything but the register
    revision INTEGER NOT NULL
) STRICT;
CREATE TABLE acknowledged (
    node TEXT PRIMARY KEY,
    version INTEGER NOT NULL,
    at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
";
