-- The newest trust bundles, as the hub signed them.
CREATE TABLE trust_bundles (id INTEGER PRIMARY KEY CHECK (id = 1), body BLOB NOT NULL);
