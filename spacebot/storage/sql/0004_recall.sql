-- Recall: who or what a memory came from is searched with its words, and memories know their order within a talk.

-- Running number among the memories of one conversation that the same people may see. Neighbours in it explain one
-- another; no text of a neighbour is kept with a memory, so that nobody finds a memory by words hidden from him.
ALTER TABLE memories ADD COLUMN place INTEGER;
UPDATE memories SET place = p.place FROM (
    SELECT seq, row_number() OVER (PARTITION BY channel_id, is_private, owner ORDER BY seq) AS place FROM memories
) p WHERE p.seq = memories.seq;
CREATE INDEX memories_place ON memories (channel_id, is_private, owner, place);
CREATE TRIGGER memories_placed AFTER INSERT ON memories WHEN new.place IS NULL BEGIN
    UPDATE memories SET place = 1 + coalesce((
        SELECT max(place) FROM memories
        WHERE channel_id IS new.channel_id AND is_private = new.is_private AND owner IS new.owner
    ), 0) WHERE seq = new.seq;
END;

DROP TRIGGER memories_fts_insert;
DROP TRIGGER memories_fts_delete;
DROP TRIGGER memories_fts_update;
DROP TABLE memories_fts;
CREATE VIRTUAL TABLE memories_fts USING fts5 (
    content, source, content = 'memories', content_rowid = 'seq', tokenize = 'porter unicode61 remove_diacritics 2'
);
INSERT INTO memories_fts (rowid, content, source) SELECT seq, content, source FROM memories WHERE forgotten = 0;
CREATE TRIGGER memories_fts_insert AFTER INSERT ON memories WHEN new.forgotten = 0 BEGIN
    INSERT INTO memories_fts (rowid, content, source) VALUES (new.seq, new.content, new.source);
END;
CREATE TRIGGER memories_fts_delete AFTER DELETE ON memories WHEN old.forgotten = 0 BEGIN
    INSERT INTO memories_fts (memories_fts, rowid, content, source)
        VALUES ('delete', old.seq, old.content, old.source);
END;
CREATE TRIGGER memories_fts_update AFTER UPDATE OF content, source, forgotten ON memories BEGIN
    INSERT INTO memories_fts (memories_fts, rowid, content, source)
        SELECT 'delete', old.seq, old.content, old.source WHERE old.forgotten = 0;
    INSERT INTO memories_fts (rowid, content, source)
        SELECT new.seq, new.content, new.source WHERE new.forgotten = 0;
END;
