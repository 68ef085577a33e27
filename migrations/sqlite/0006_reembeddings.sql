-- Re-embeddings: jobs that give grains vectors in another space, and what could not be embedded.

CREATE TABLE reembeddings (
  id TEXT PRIMARY KEY NOT NULL,           -- a UUIDv7: jobs in their order
  model TEXT NOT NULL,                    -- what makes the vectors
  space TEXT NOT NULL REFERENCES spaces (id), -- the space they are in: a model that makes another one stops the job
  selection TEXT NOT NULL,                -- JSON: the filter that the grains meet
  throttle REAL NOT NULL,                 -- the share of the time that the job may work
  state TEXT NOT NULL,
  reason TEXT,                            -- why it is in this state, where that needs words
  done INTEGER NOT NULL,                  -- grains that the job gave vectors
  total INTEGER NOT NULL,                 -- `done` and those that were left when it was last counted
  previous_model TEXT,                    -- the active model that the same request replaced
  previous_order TEXT,                    -- JSON array: the order of spaces before the cut-over
  old_vectors TEXT NOT NULL CHECK (old_vectors IN ('kept', 'purging', 'purged')),
  created_us INTEGER NOT NULL,            -- microseconds since 1970, as all times here
  changed_us INTEGER NOT NULL,
  cut_over_us INTEGER
) STRICT;

-- Grains that the model could not embed, in the version of their text that was tried.
CREATE TABLE reembedding_failures (
  reembedding TEXT NOT NULL REFERENCES reembeddings (id) ON DELETE CASCADE,
  grain INTEGER NOT NULL REFERENCES grains (number) ON DELETE CASCADE,
  text_version INTEGER NOT NULL,
  reason TEXT NOT NULL,
  tries INTEGER NOT NULL,
  PRIMARY KEY (reembedding, grain)
) STRICT, WITHOUT ROWID;
CREATE INDEX reembedding_failures_by_grain ON reembedding_failures (grain);

INSERT INTO schema_version (version, description, applied_at)
VALUES (6, 're-embeddings', strftime('%Y-%m-%dT%H:%M:%SZ', 'now'));
