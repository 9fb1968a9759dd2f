-- The log made searchable: by words, by meaning, and who spoke where. Triggers keep all of it in step with the log.

-- The texts that are searched; full text and vectors point to `doc`, which grows with time and is never used again.
CREATE TABLE message_docs (
    doc        INTEGER PRIMARY KEY AUTOINCREMENT,
    message_id TEXT NOT NULL UNIQUE,
    channel_id TEXT NOT NULL,               -- this and the number as in the message, so that a search reads less
    seq        INTEGER NOT NULL,
    is_pending INTEGER NOT NULL DEFAULT 1   -- nobody has looked yet whether it needs a vector
);
CREATE INDEX message_docs_pending ON message_docs (doc) WHERE is_pending = 1;

CREATE TABLE message_embeddings (
    doc       INTEGER PRIMARY KEY,
    model     TEXT NOT NULL,
    embedding BLOB NOT NULL                 -- float32 scale, then int8 components: component x scale is about the vector
);
CREATE INDEX message_embeddings_model ON message_embeddings (model);

-- Counts removals, so that a copy of the vectors in memory knows when it is out of date.
CREATE TABLE message_removals (
    count INTEGER NOT NULL
);
INSERT INTO message_removals VALUES (0);

CREATE TABLE channel_people (
    channel_id  TEXT NOT NULL,
    sender_id   TEXT NOT NULL,
    sender_name TEXT,                       -- the last one seen
    messages    INTEGER NOT NULL,
    last_seq    INTEGER NOT NULL,
    PRIMARY KEY (channel_id, sender_id)
) WITHOUT ROWID;

CREATE VIEW message_texts AS
    SELECT d.doc AS doc, m.content AS content, coalesce(m.sender_name, '') AS sender
    FROM message_docs d JOIN conversation_messages m ON m.id = d.message_id;

CREATE VIRTUAL TABLE messages_fts USING fts5 (
    content, sender, content = 'message_texts', content_rowid = 'doc',
    tokenize = 'porter unicode61 remove_diacritics 2'
);

INSERT INTO message_docs (message_id, channel_id, seq)
    SELECT id, channel_id, seq FROM conversation_messages WHERE kind = 'text' AND trim(content) <> ''
    ORDER BY created_at, channel_id, seq;
INSERT INTO messages_fts (messages_fts) VALUES ('rebuild');
INSERT INTO channel_people (channel_id, sender_id, sender_name, messages, last_seq)
    SELECT channel_id, sender_id, sender_name, count(*), max(seq) FROM conversation_messages
    WHERE role = 'user' AND sender_id IS NOT NULL GROUP BY channel_id, sender_id;

CREATE TRIGGER message_docs_insert AFTER INSERT ON conversation_messages
WHEN new.kind = 'text' AND trim(new.content) <> '' BEGIN
    INSERT INTO message_docs (message_id, channel_id, seq) VALUES (new.id, new.channel_id, new.seq);
    INSERT INTO messages_fts (rowid, content, sender)
        SELECT doc, new.content, coalesce(new.sender_name, '') FROM message_docs WHERE message_id = new.id;
END;
CREATE TRIGGER message_docs_delete AFTER DELETE ON conversation_messages BEGIN
    INSERT INTO messages_fts (messages_fts, rowid, content, sender)
        SELECT 'delete', doc, old.content, coalesce(old.sender_name, '') FROM message_docs WHERE message_id = old.id;
    DELETE FROM message_embeddings WHERE doc = (SELECT doc FROM message_docs WHERE message_id = old.id);
    DELETE FROM message_docs WHERE message_id = old.id;
END;
CREATE TRIGGER message_docs_update AFTER UPDATE OF id, channel_id, seq, content, sender_name, kind
ON conversation_messages
WHEN old.id IS NOT new.id OR old.channel_id IS NOT new.channel_id OR old.seq IS NOT new.seq
    OR old.content IS NOT new.content OR old.sender_name IS NOT new.sender_name OR old.kind IS NOT new.kind BEGIN
    INSERT INTO messages_fts (messages_fts, rowid, content, sender)
        SELECT 'delete', doc, old.content, coalesce(old.sender_name, '') FROM message_docs WHERE message_id = old.id;
    DELETE FROM message_embeddings WHERE doc = (SELECT doc FROM message_docs WHERE message_id = old.id);
    DELETE FROM message_docs WHERE message_id = old.id;
    INSERT INTO message_docs (message_id, channel_id, seq)
        SELECT new.id, new.channel_id, new.seq WHERE new.kind = 'text' AND trim(new.content) <> '';
    INSERT INTO messages_fts (rowid, content, sender)
        SELECT doc, new.content, coalesce(new.sender_name, '') FROM message_docs WHERE message_id = new.id;
END;
CREATE TRIGGER message_embeddings_delete AFTER DELETE ON message_embeddings BEGIN
    UPDATE message_removals SET count = count + 1;
END;

CREATE TRIGGER channel_people_insert AFTER INSERT ON conversation_messages
WHEN new.role = 'user' AND new.sender_id IS NOT NULL BEGIN
    INSERT INTO channel_people (channel_id, sender_id, sender_name, messages, last_seq)
        VALUES (new.channel_id, new.sender_id, new.sender_name, 1, new.seq)
        ON CONFLICT (channel_id, sender_id) DO UPDATE SET
            messages = messages + 1,
            sender_name = iif(excluded.last_seq >= last_seq, excluded.sender_name, sender_name),
            last_seq = max(last_seq, excluded.last_seq);
END;
CREATE TRIGGER channel_people_delete AFTER DELETE ON conversation_messages
WHEN old.role = 'user' AND old.sender_id IS NOT NULL BEGIN
    UPDATE channel_people SET messages = messages - 1 WHERE channel_id = old.channel_id AND sender_id = old.sender_id;
    DELETE FROM channel_people
        WHERE channel_id = old.channel_id AND sender_id = old.sender_id AND messages <= 0;
END;
CREATE TRIGGER channel_people_update AFTER UPDATE OF channel_id, role, sender_id, sender_name ON conversation_messages
WHEN old.channel_id IS NOT new.channel_id OR old.role IS NOT new.role OR old.sender_id IS NOT new.sender_id
    OR old.sender_name IS NOT new.sender_name BEGIN
    UPDATE channel_people SET messages = messages - 1
        WHERE old.role = 'user' AND channel_id = old.channel_id AND sender_id = old.sender_id;
    DELETE FROM channel_people
        WHERE channel_id = old.channel_id AND sender_id = old.sender_id AND messages <= 0;
    INSERT INTO channel_people (channel_id, sender_id, sender_name, messages, last_seq)
        SELECT new.channel_id, new.sender_id, new.sender_name, 1, new.seq
        WHERE new.role = 'user' AND new.sender_id IS NOT NULL
        ON CONFLICT (channel_id, sender_id) DO UPDATE SET
            messages = messages + 1,
            sender_name = iif(excluded.last_seq >= last_seq, excluded.sender_name, sender_name),
            last_seq = max(last_seq, excluded.last_seq);
END;
