-- What became of each delta and pack, and the order in which artifact versions came.
CREATE TABLE deltas (
    tree TEXT NOT NULL,
    base TEXT NOT NULL,
    body BLOB NOT NULL,
    PRIMARY KEY (tree, base)
) WITHOUT ROWID;

CREATE TABLE artifact_versions (
    sequence INTEGER PRIMARY KEY AUTOINCREMENT,
    name TEXT NOT NULL,
    version TEXT NOT NULL,
    UNIQUE (name, version)
);
