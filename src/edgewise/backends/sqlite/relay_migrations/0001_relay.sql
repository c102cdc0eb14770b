-- What a relay keeps for the hub while the hub is away.
CREATE TABLE observations (
  node TEXT PRIMARY KEY,
  heard TEXT NOT NULL,
  body BLOB NOT NULL
) WITHOUT ROWID;

-- A replaced node counts from one again under another key, so the key is part of the name.
CREATE TABLE receipts (
  arrived INTEGER PRIMARY KEY AUTOINCREMENT,
  node TEXT NOT NULL,
  key_id TEXT NOT NULL,
  sequence INTEGER NOT NULL,
  body BLOB NOT NULL,
  UNIQUE (node, key_id, sequence)
);

-- What it has from the hub and serves to its nodes.
CREATE TABLE channels (fleet TEXT PRIMARY KEY, body BLOB NOT NULL);
CREATE TABLE records (node TEXT PRIMARY KEY, body BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE gone (node TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE cursor (id INTEGER PRIMARY KEY CHECK (id = 1), value INTEGER NOT NULL);

-- Certificates issued to each node by this relay: two users of one key show here.
CREATE TABLE lineages (node TEXT PRIMARY KEY, body BLOB NOT NULL) WITHOUT ROWID;
