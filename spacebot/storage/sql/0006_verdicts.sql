-- Pairs of similar memories that say different things, and what a model judged of them, so that it is asked once.

CREATE TABLE memory_verdicts (
    newer_id   TEXT NOT NULL REFERENCES memories (id) ON DELETE CASCADE,
    older_id   TEXT NOT NULL REFERENCES memories (id) ON DELETE CASCADE,
    similarity REAL NOT NULL,
    verdict    TEXT,                        -- contradicts, updates, neither; null while nobody has judged
    created_at TEXT NOT NULL,
    judged_at  TEXT,
    PRIMARY KEY (newer_id, older_id),
    CHECK (newer_id <> older_id)
);
CREATE INDEX memory_verdicts_older ON memory_verdicts (older_id);
CREATE INDEX memory_verdicts_waiting ON memory_verdicts (similarity) WHERE verdict IS NULL;

-- SQLite gives the highest place away again once its row is deleted. The cursors that walk over the places
-- step back with it, or what is saved there next would never be looked at.
CREATE TRIGGER memories_cursors AFTER DELETE ON memories
WHEN old.seq > coalesce((SELECT max(seq) FROM memories), 0) BEGIN
    UPDATE settings SET value = CAST(coalesce((SELECT max(seq) FROM memories), 0) AS TEXT)
    WHERE key IN ('association_cursor', 'merge_cursor') AND CAST(value AS INTEGER) >= old.seq;
END;
