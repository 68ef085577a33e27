-- The ledger's other pages: what a restart must find again of the models.

-- Models registered over HTTP, as entries of the form that the configuration has.
CREATE TABLE registered_models (
  name TEXT PRIMARY KEY NOT NULL COLLATE NOCASE,
  entry TEXT NOT NULL,                  -- JSON
  registered_at TEXT NOT NULL           -- RFC 3339, UTC
) STRICT;

-- Models that no request may load.
CREATE TABLE disabled_models (
  name TEXT PRIMARY KEY NOT NULL COLLATE NOCASE,
  disabled_at TEXT NOT NULL             -- RFC 3339, UTC
) STRICT;

-- Every space that a model of this server has made, with what proves that a later load still makes it.
CREATE TABLE spaces (
  id TEXT PRIMARY KEY NOT NULL,         -- the first 16 hex digits of the fingerprint
  fingerprint TEXT NOT NULL,            -- SHA-256 of the manifest
  manifest TEXT NOT NULL,               -- canonical JSON
  dimensions INTEGER NOT NULL,
  numeric_class TEXT NOT NULL,          -- what computed the canaries: provider, precision, runtime
  canaries BLOB NOT NULL,               -- [texts][dimensions] little-endian f32
  recorded_at TEXT NOT NULL             -- RFC 3339, UTC
) STRICT;

-- The space that grains of a model are written to. Another one, after a change of its files, waits to be accepted.
CREATE TABLE accepted_spaces (
  model TEXT PRIMARY KEY NOT NULL COLLATE NOCASE,
  space TEXT NOT NULL REFERENCES spaces (id),
  accepted_at TEXT NOT NULL             -- RFC 3339, UTC
) STRICT;

INSERT INTO schema_version (version, description, applied_at)
VALUES (4, 'registered and disabled models; spaces and their canaries', strftime('%Y-%m-%dT%H:%M:%SZ', 'now'));
