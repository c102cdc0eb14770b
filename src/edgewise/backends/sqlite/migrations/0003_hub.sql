-- What the hub's API keeps for itself: contacts, receipts, node records and the audit log.
CREATE TABLE sightings (
    name TEXT PRIMARY KEY,
    body BLOB NOT NULL
) WITHOUT ROWID;

CREATE TABLE receipts (
    node TEXT NOT NULL,
    sequence INTEGER NOT NULL,
    release TEXT NOT NULL,
    body BLOB NOT NULL,
    PRIMARY KEY (node, sequence)
) WITHOUT ROWID;
CREATE INDEX receipts_of_release ON receipts (release, node, sequence);

CREATE TABLE node_records (
    name TEXT PRIMARY KEY,
    body BLOB NOT NULL
) WITHOUT ROWID;

CREATE TABLE audit (
    sequence INTEGER PRIMARY KEY,
    body BLOB NOT NULL
);
