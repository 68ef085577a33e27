-- Grains as version 0.4 keeps them: numbered and versioned, with vectors by space, words, and metadata to filter by.

-- Numbers stay through a VACUUM and are never used twice: vectors' indexes and the full text refer to grains by them.
CREATE TABLE numbered_grains (
  number INTEGER PRIMARY KEY AUTOINCREMENT,
  id TEXT NOT NULL UNIQUE,
  text TEXT NOT NULL,
  source TEXT,
  tags TEXT NOT NULL DEFAULT '[]',        -- JSON array of strings
  attributes TEXT NOT NULL DEFAULT '{}',  -- JSON object
  version INTEGER NOT NULL DEFAULT 1,
  text_version INTEGER NOT NULL DEFAULT 1, -- the version that brought the text
  created_at TEXT NOT NULL, updated_at TEXT NOT NULL, -- RFC 3339, UTC, as written
  created_us INTEGER NOT NULL, updated_us INTEGER NOT NULL, -- the same in microseconds since 1970, to sort and compare
  -- What versions before 0.4 stored of this grain, in their bytes. A vector stays here until somebody proves its space.
  old_meta TEXT,
  old_vector BLOB,                        -- little-endian f32
  old_model TEXT,
  old_dimensions INTEGER);

-- Old metadata is one JSON document. Of an object, `source` and `tags` become columns where they have their type, and
-- all other keys are attributes; of anything else only the bytes are kept.
INSERT INTO numbered_grains
  (id, text, source, tags, attributes, created_at, updated_at, created_us, updated_us,
   old_meta, old_vector, old_model, old_dimensions)
SELECT
  id, text,
  CASE WHEN has_source THEN json_extract(object, '$.source') END,
  CASE WHEN has_tags THEN json_extract(object, '$.tags') ELSE '[]' END,
  CASE WHEN object IS NULL THEN '{}'
       WHEN has_source AND has_tags THEN json_remove(object, '$.source', '$.tags')
       WHEN has_source THEN json_remove(object, '$.source')
       WHEN has_tags THEN json_remove(object, '$.tags')
       ELSE json(object) END,
  created_at, updated_at,
  coalesce(CAST(unixepoch(created_at, 'subsec') * 1000000 AS INTEGER), 0),
  coalesce(CAST(unixepoch(updated_at, 'subsec') * 1000000 AS INTEGER), 0),
  meta, vector, embedding_model, embedding_dimensions
FROM (
  SELECT *,
    json_type(object, '$.source') IS 'text' AS has_source,
    json_type(object, '$.tags') IS 'array'
      AND NOT EXISTS (SELECT 1 FROM json_each(object, '$.tags') WHERE type <> 'text') AS has_tags
  FROM (
    SELECT *, CASE WHEN json_valid(meta) THEN CASE json_type(meta) WHEN 'object' THEN meta END END AS object
    FROM grains ORDER BY rowid));

DROP TABLE grains;
ALTER TABLE numbered_grains RENAME TO grains;
CREATE INDEX grains_by_source ON grains (source) WHERE source IS NOT NULL;
CREATE INDEX grains_by_created ON grains (created_us);
CREATE INDEX grains_by_updated ON grains (updated_us);

-- A space that was declared by name has no model: its manifest says so, and it has no canaries.
ALTER TABLE spaces ADD COLUMN declared_name TEXT;
CREATE UNIQUE INDEX declared_spaces ON spaces (declared_name) WHERE declared_name IS NOT NULL;

-- The vectors of grains, at most one in each space.
CREATE TABLE embeddings (
  grain INTEGER NOT NULL REFERENCES grains (number) ON DELETE CASCADE,
  space TEXT NOT NULL REFERENCES spaces (id),
  vector BLOB NOT NULL,                   -- [dimensions] little-endian f32
  text_version INTEGER NOT NULL,          -- the text it was made from: it counts only while the grain has that text
  origin TEXT NOT NULL CHECK (origin IN ('computed', 'supplied', 'adopted')),
  model TEXT,                             -- what made it, as far as that is known
  tokens INTEGER,
  truncated INTEGER,
  PRIMARY KEY (grain, space)
) STRICT;
CREATE INDEX embeddings_by_space ON embeddings (space, grain);

-- A grain is served from the first of these spaces that has a current vector of it. One row.
CREATE TABLE space_order (
  only INTEGER PRIMARY KEY NOT NULL CHECK (only = 1),
  spaces TEXT NOT NULL                    -- JSON array of space ids
) STRICT;
INSERT INTO space_order (only, spaces) VALUES (1, '[]');

-- What filters ask for, kept by the triggers below.
CREATE TABLE grain_tags (
  tag TEXT NOT NULL,
  grain INTEGER NOT NULL REFERENCES grains (number) ON DELETE CASCADE,
  PRIMARY KEY (tag, grain)
) STRICT, WITHOUT ROWID;
CREATE INDEX grain_tags_by_grain ON grain_tags (grain);

-- One row for each attribute that is a string, a number or a boolean, and for each such element of one that is a list.
CREATE TABLE grain_attributes (
  name TEXT NOT NULL,
  kind TEXT NOT NULL,                     -- 'text', 'number' or 'boolean'
  value ANY NOT NULL,
  grain INTEGER NOT NULL REFERENCES grains (number) ON DELETE CASCADE,
  PRIMARY KEY (name, kind, value, grain)
) STRICT, WITHOUT ROWID;
CREATE INDEX grain_attributes_by_grain ON grain_attributes (grain, name);

CREATE VIEW attribute_values AS
SELECT
  name,
  CASE type WHEN 'text' THEN 'text' WHEN 'true' THEN 'boolean' WHEN 'false' THEN 'boolean' ELSE 'number' END AS kind,
  value, grain
FROM (
  SELECT attribute.key AS name, attribute.type, attribute.atom AS value, number AS grain
  FROM grains, json_each(grains.attributes) AS attribute
  UNION ALL
  SELECT list.key, element.type, element.atom, number
  FROM grains, json_each(grains.attributes) AS list,
       json_each(CASE list.type WHEN 'array' THEN list.value ELSE '[]' END) AS element)
WHERE type IN ('text', 'integer', 'real', 'true', 'false');

-- Words. The text itself is not stored twice.
CREATE VIRTUAL TABLE grain_words USING fts5 (
  text, content = 'grains', content_rowid = 'number', tokenize = 'unicode61 remove_diacritics 2');

CREATE TRIGGER grain_inserted AFTER INSERT ON grains BEGIN
  INSERT INTO grain_words (rowid, text) VALUES (new.number, new.text);
  INSERT OR IGNORE INTO grain_tags (tag, grain) SELECT value, new.number FROM json_each(new.tags);
  INSERT OR IGNORE INTO grain_attributes (name, kind, value, grain)
  SELECT name, kind, value, grain FROM attribute_values WHERE grain = new.number;
END;

CREATE TRIGGER grain_text_changed AFTER UPDATE OF text ON grains WHEN new.text IS NOT old.text BEGIN
  INSERT INTO grain_words (grain_words, rowid, text) VALUES ('delete', old.number, old.text);
  INSERT INTO grain_words (rowid, text) VALUES (new.number, new.text);
END;

CREATE TRIGGER grain_tags_changed AFTER UPDATE OF tags ON grains WHEN new.tags IS NOT old.tags BEGIN
  DELETE FROM grain_tags WHERE grain = old.number;
  INSERT OR IGNORE INTO grain_tags (tag, grain) SELECT value, new.number FROM json_each(new.tags);
END;

CREATE TRIGGER grain_attributes_changed AFTER UPDATE OF attributes ON grains WHEN new.attributes IS NOT old.attributes BEGIN
  DELETE FROM grain_attributes WHERE grain = old.number;
  INSERT OR IGNORE INTO grain_attributes (name, kind, value, grain)
  SELECT name, kind, value, grain FROM attribute_values WHERE grain = new.number;
END;

CREATE TRIGGER grain_deleted AFTER DELETE ON grains BEGIN
  INSERT INTO grain_words (grain_words, rowid, text) VALUES ('delete', old.number, old.text);
END;

-- The triggers for the grains that were here before.
INSERT INTO grain_words (grain_words) VALUES ('rebuild');
INSERT OR IGNORE INTO grain_tags (tag, grain) SELECT value, number FROM grains, json_each(grains.tags);
INSERT OR IGNORE INTO grain_attributes (name, kind, value, grain) SELECT name, kind, value, grain FROM attribute_values;

-- Which file this is, and which opening of it: an index file beside it must name both to be believed.
CREATE TABLE identity (
  only INTEGER PRIMARY KEY NOT NULL CHECK (only = 1),
  database TEXT NOT NULL,
  epoch TEXT NOT NULL
) STRICT;
INSERT INTO identity (only, database, epoch) VALUES (1, lower(hex(randomblob(16))), lower(hex(randomblob(16))));

-- Answers of writes that carried an `Idempotency-Key`, for those who send them again.
CREATE TABLE idempotency_keys (
  caller TEXT NOT NULL,
  key TEXT NOT NULL,
  request TEXT NOT NULL,                  -- SHA-256 of what was asked
  answer TEXT NOT NULL,                   -- JSON
  recorded_us INTEGER NOT NULL,           -- microseconds since 1970
  PRIMARY KEY (caller, key)
) STRICT;
CREATE INDEX idempotency_keys_by_age ON idempotency_keys (recorded_us);

INSERT INTO schema_version (version, description, applied_at)
VALUES (5, 'numbered grains; vectors by space; words, tags and attributes', strftime('%Y-%m-%dT%H:%M:%SZ', 'now'));
