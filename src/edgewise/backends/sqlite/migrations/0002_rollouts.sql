CREATE TABLE rollout_fleets (name TEXT PRIMARY KEY, body BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE rollout_members (
    fleet TEXT NOT NULL, node TEXT NOT NULL, body BLOB NOT NULL,
    PRIMARY KEY (fleet, node)
) WITHOUT ROWID;
CREATE TABLE rollout_proposals (
    fleet TEXT NOT NULL, release TEXT NOT NULL, body BLOB NOT NULL,
    PRIMARY KEY (fleet, release)
);
CREATE TABLE rollouts (
    number INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, fleet TEXT NOT NULL,
    plan BLOB NOT NULL, head BLOB, course BLOB, ended TEXT
);
CREATE INDEX rollouts_by_fleet ON rollouts (fleet, number);
CREATE TABLE rollout_rows (
    rollout TEXT NOT NULL, node INTEGER NOT NULL, body BLOB NOT NULL,
    PRIMARY KEY (rollout, node)
) WITHOUT ROWID;
CREATE TABLE rollout_log (
    number INTEGER PRIMARY KEY AUTOINCREMENT, rollout TEXT NOT NULL, body BLOB NOT NULL
);
CREATE INDEX rollout_log_by_rollout ON rollout_log (rollout, number);
CREATE TABLE rollout_announcements (fleet TEXT PRIMARY KEY, sequence INTEGER NOT NULL, body BLOB NOT NULL);
CREATE TABLE rollout_notices (
    number INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, body BLOB NOT NULL
);
CREATE TABLE rollout_receipts (
    node TEXT NOT NULL, sequence INTEGER NOT NULL, release TEXT NOT NULL, body BLOB NOT NULL,
    PRIMARY KEY (node, sequence)
) WITHOUT ROWID;
CREATE INDEX rollout_receipts_by_release ON rollout_receipts (release, node, sequence);
CREATE TABLE rollout_held_changes (
    number INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, body BLOB NOT NULL
);
CREATE TABLE rollout_node_states (
    node TEXT PRIMARY KEY, heard REAL NOT NULL, via TEXT NOT NULL, observation BLOB
) WITHOUT ROWID;
