-- Who proved what: one machine, one name.
CREATE TABLE evidence (
    evidence TEXT PRIMARY KEY,
    name TEXT NOT NULL UNIQUE REFERENCES enrolments (name) ON DELETE CASCADE
) WITHOUT ROWID;
-- What nodes' TPMs have shown, as JSON.
CREATE TABLE attestations (
    name TEXT PRIMARY KEY,
    body TEXT NOT NULL
) WITHOUT ROWID;
