-- People: accounts, their logins and API tokens (hashes only), and the bindings in force.
CREATE TABLE accounts (
    name TEXT PRIMARY KEY,
    body BLOB NOT NULL
) WITHOUT ROWID;

CREATE TABLE logins (
    id TEXT PRIMARY KEY,
    user TEXT NOT NULL,
    body BLOB NOT NULL
) WITHOUT ROWID;
CREATE INDEX logins_of ON logins (user);

CREATE TABLE api_tokens (
    id TEXT PRIMARY KEY,
    owner TEXT NOT NULL,
    body BLOB NOT NULL
) WITHOUT ROWID;
CREATE INDEX api_tokens_of ON api_tokens (owner);

CREATE TABLE role_bindings (
    name TEXT PRIMARY KEY,
    body BLOB NOT NULL
) WITHOUT ROWID;
