-- The ledger's first page: the model the next start begins with. One row, or none before the first start has chosen.
CREATE TABLE active_model (
  only INTEGER PRIMARY KEY NOT NULL CHECK (only = 1),
  name TEXT NOT NULL,
  changed_at TEXT NOT NULL              -- RFC 3339, UTC
) STRICT;

INSERT INTO schema_version (version, description, applied_at)
VALUES (3, 'active model', strftime('%Y-%m-%dT%H:%M:%SZ', 'now'));
