-- Words as Granary cuts them, which knows more scripts than FTS5 does: `terms` are a text's, with a space after each.
-- Granary puts them in. It keeps them, so that what it takes out again is what it put in, whatever the rules are by then.
DROP TRIGGER grain_inserted;
DROP TRIGGER grain_text_changed;
DROP TRIGGER grain_deleted;
DROP TABLE grain_vocabulary;
DROP TABLE grain_words;

CREATE VIRTUAL TABLE grain_words USING fts5 (terms, tokenize = 'ascii');
CREATE VIRTUAL TABLE grain_vocabulary USING fts5vocab (grain_words, 'row');

-- By which version of the rules the words of all grains were cut; 0 when they are not in the index yet.
CREATE TABLE word_rules (
  only INTEGER PRIMARY KEY NOT NULL CHECK (only = 1),
  version INTEGER NOT NULL);
INSERT INTO word_rules (only, version) VALUES (1, 0);

CREATE TRIGGER grain_inserted AFTER INSERT ON grains BEGIN
  INSERT OR IGNORE INTO grain_tags (tag, grain) SELECT value, new.number FROM json_each(new.tags);
  INSERT OR IGNORE INTO grain_attributes (name, kind, value, grain)
  SELECT name, kind, value, grain FROM attribute_values WHERE grain = new.number;
END;

CREATE TRIGGER grain_deleted AFTER DELETE ON grains BEGIN
  DELETE FROM grain_words WHERE rowid = old.number;
END;

INSERT INTO schema_version (version, description, applied_at)
VALUES (10, 'words of scripts without spaces', strftime('%Y-%m-%dT%H:%M:%SZ', 'now'));
