-- What the hub's API keeps for itself: node records and the audit log.
CREATE TABLE node_records (
    name TEXT PRIMARY KEY,
    body BLOB NOT NULL
) WITHOUT ROWID;

CREATE TABLE audit (
    sequence INTEGER PRIMARY KEY,
    body BLOB NOT NULL
);
