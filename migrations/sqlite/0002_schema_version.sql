CREATE TABLE schema_version (
  version INTEGER PRIMARY KEY NOT NULL,
  description TEXT NOT NULL,
  applied_at TEXT NOT NULL);            -- RFC 3339, UTC

-- Which model made `vector`. Grains of version 0.3 keep NULL: nobody wrote down what made theirs.
ALTER TABLE grains ADD COLUMN embedding_model TEXT;
ALTER TABLE grains ADD COLUMN embedding_dimensions INTEGER;

INSERT INTO schema_version (version, description, applied_at)
VALUES (2, 'schema version; model and dimensions of each vector', strftime('%Y-%m-%dT%H:%M:%SZ', 'now'));
