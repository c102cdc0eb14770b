-- The signed trust bundles (one row), and the JWT keys that relays told.
CREATE TABLE trust_bundles (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    body BLOB NOT NULL
);

CREATE TABLE relay_jwt_keys (
    name TEXT PRIMARY KEY,
    body BLOB NOT NULL
) WITHOUT ROWID;
