-- Anchors: sampled grains with a vector in every live space, which put the scores of two spaces on one scale. They are not
-- `embeddings`: these decide which space serves a grain, and an anchor serves none.
CREATE TABLE anchors (
  grain INTEGER NOT NULL REFERENCES grains (number) ON DELETE CASCADE,
  space TEXT NOT NULL REFERENCES spaces (id),
  text_version INTEGER NOT NULL,          -- the text it was made from: it counts only while the grain has that text
  vector BLOB NOT NULL,                   -- [dimensions] little-endian f32
  PRIMARY KEY (grain, space)
) STRICT;

INSERT INTO schema_version (version, description, applied_at)
VALUES (7, 'anchors: sampled grains with a vector in every live space', strftime('%Y-%m-%dT%H:%M:%SZ', 'now'));
