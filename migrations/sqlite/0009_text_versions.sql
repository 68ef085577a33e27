-- What is asked of all grains at once, which of them lack a vector in a space and from where each is served, is answered
-- by these two. The rows themselves hold texts and vectors: one would read forty times as much.
CREATE INDEX embeddings_by_text_version ON embeddings (grain, text_version, space, model);
CREATE INDEX grains_by_text_version ON grains (number, text_version);

INSERT INTO schema_version (version, description, applied_at)
VALUES (9, 'indexes of text versions', strftime('%Y-%m-%dT%H:%M:%SZ', 'now'));
