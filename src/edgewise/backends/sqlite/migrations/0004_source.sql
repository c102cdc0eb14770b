-- Commits that the hub has looked at, in the order in which it saw them first.
CREATE TABLE commits (
  sequence INTEGER PRIMARY KEY AUTOINCREMENT,
  commit_id TEXT NOT NULL UNIQUE,
  good INTEGER NOT NULL,
  body BLOB NOT NULL
);
CREATE INDEX commits_good ON commits (good, sequence);
