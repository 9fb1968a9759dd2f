-- Memory: typed rows, a graph of edges, full text, and the vectors from which the vector table can be rebuilt.

CREATE TABLE memories (
    seq              INTEGER PRIMARY KEY,       -- full text points here; a bare rowid may change when the file is compacted
    id               TEXT NOT NULL UNIQUE,
    content          TEXT NOT NULL,
    fingerprint      TEXT NOT NULL,             -- of the folded words: the same thing is not kept twice in one scope
    memory_type      TEXT NOT NULL,
    importance       REAL NOT NULL DEFAULT 0.5,
    base_importance  REAL NOT NULL DEFAULT 0.5,
    centrality       REAL NOT NULL DEFAULT 0,
    access_count     INTEGER NOT NULL DEFAULT 0,
    source           TEXT,
    channel_id       TEXT,
    user_id          TEXT,                      -- the person whom it was learned from
    message_id       TEXT,                      -- the message that it was learned from
    is_private       INTEGER NOT NULL DEFAULT 0, -- learned in a direct chat
    owner            TEXT,                      -- platform:user of a private one; its direct chats may see it too
    permanent        INTEGER NOT NULL DEFAULT 0,
    forgotten        INTEGER NOT NULL DEFAULT 0,
    forget_reason    TEXT,
    created_at       TEXT NOT NULL,
    updated_at       TEXT NOT NULL,
    last_accessed_at TEXT NOT NULL
);
CREATE INDEX memories_kind ON memories (forgotten, memory_type, importance);
CREATE INDEX memories_importance ON memories (forgotten, importance);
CREATE INDEX memories_created ON memories (forgotten, created_at);
CREATE INDEX memories_channel ON memories (channel_id, created_at);
CREATE INDEX memories_fingerprint ON memories (fingerprint);

-- Only memories that are not forgotten have one.
CREATE TABLE embeddings (
    seq       INTEGER PRIMARY KEY REFERENCES memories (seq) ON DELETE CASCADE,
    memory_id TEXT NOT NULL,
    model     TEXT NOT NULL,
    embedding BLOB NOT NULL                     -- float32, little endian, unit length
);

CREATE INDEX embeddings_model ON embeddings (model, memory_id); -- counted and listed without reading the vectors

-- Memories whose row in the vector table has to be looked at; written in the same transaction as the change.
CREATE TABLE vector_outbox (
    seq       INTEGER PRIMARY KEY AUTOINCREMENT,
    memory_id TEXT NOT NULL
);
CREATE TRIGGER embeddings_inserted AFTER INSERT ON embeddings BEGIN
    INSERT INTO vector_outbox (memory_id) VALUES (new.memory_id);
END;
CREATE TRIGGER embeddings_updated AFTER UPDATE ON embeddings BEGIN
    INSERT INTO vector_outbox (memory_id) VALUES (new.memory_id);
END;
CREATE TRIGGER embeddings_deleted AFTER DELETE ON embeddings BEGIN
    INSERT INTO vector_outbox (memory_id) VALUES (old.memory_id);
END;

CREATE TABLE associations (
    id            TEXT PRIMARY KEY,
    source_id     TEXT NOT NULL REFERENCES memories (id) ON DELETE CASCADE,
    target_id     TEXT NOT NULL REFERENCES memories (id) ON DELETE CASCADE,
    relation_type TEXT NOT NULL,
    weight        REAL NOT NULL DEFAULT 0.5,
    origin        TEXT NOT NULL DEFAULT 'llm',  -- llm, auto, merge
    created_at    TEXT NOT NULL,
    UNIQUE (source_id, target_id, relation_type),
    CHECK (source_id <> target_id)
);
CREATE INDEX associations_target ON associations (target_id);

CREATE VIRTUAL TABLE memories_fts USING fts5 (
    content, content = 'memories', content_rowid = 'seq', tokenize = 'porter unicode61 remove_diacritics 2'
);
CREATE TRIGGER memories_fts_insert AFTER INSERT ON memories WHEN new.forgotten = 0 BEGIN
    INSERT INTO memories_fts (rowid, content) VALUES (new.seq, new.content);
END;
CREATE TRIGGER memories_fts_delete AFTER DELETE ON memories WHEN old.forgotten = 0 BEGIN
    INSERT INTO memories_fts (memories_fts, rowid, content) VALUES ('delete', old.seq, old.content);
END;
CREATE TRIGGER memories_fts_update AFTER UPDATE OF content, forgotten ON memories BEGIN
    INSERT INTO memories_fts (memories_fts, rowid, content)
        SELECT 'delete', old.seq, old.content WHERE old.forgotten = 0;
    INSERT INTO memories_fts (rowid, content) SELECT new.seq, new.content WHERE new.forgotten = 0;
END;
