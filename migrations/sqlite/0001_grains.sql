CREATE TABLE grains (
  id TEXT PRIMARY KEY NOT NULL, text TEXT NOT NULL,
  vector BLOB,                          -- little-endian f32, or NULL
  meta TEXT NOT NULL DEFAULT '{}',      -- JSON: source, tags, anything else
  created_at TEXT NOT NULL, updated_at TEXT NOT NULL);   -- RFC 3339, UTC
