-- How many grains have a word: what most of them have says nothing of any. It stores nothing itself.
CREATE VIRTUAL TABLE grain_vocabulary USING fts5vocab (grain_words, 'row');

INSERT INTO schema_version (version, description, applied_at)
VALUES (8, 'vocabulary: how many grains have a word', strftime('%Y-%m-%dT%H:%M:%SZ', 'now'));
