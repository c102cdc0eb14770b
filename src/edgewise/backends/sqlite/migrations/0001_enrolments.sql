CREATE TABLE enrolments (
    name TEXT PRIMARY KEY,
    body TEXT NOT NULL
) WITHOUT ROWID;

CREATE TABLE tokens (
    identifier TEXT PRIMARY KEY,
    expires REAL NOT NULL,
    body TEXT NOT NULL
) WITHOUT ROWID;

CREATE INDEX tokens_by_expiry ON tokens (expires);

CREATE TABLE token_keys (
    identifier TEXT NOT NULL REFERENCES tokens ON DELETE CASCADE,
    key_sha256 TEXT NOT NULL,
    name TEXT NOT NULL,
    PRIMARY KEY (identifier, key_sha256)
) WITHOUT ROWID;

CREATE TABLE lineages (
    name TEXT PRIMARY KEY,
    body TEXT NOT NULL
) WITHOUT ROWID;
