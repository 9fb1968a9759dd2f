-- What models saw: the newest requests of an agent. Their pieces are kept once each, under a hash of their text.

CREATE TABLE prompt_captures (
    id            INTEGER PRIMARY KEY AUTOINCREMENT,  -- never given twice, so that a page's cursor stays right
    created_at    TEXT NOT NULL,
    channel_id    TEXT,
    process_type  TEXT NOT NULL,                -- channel, branch, worker, compactor, cortex
    process_id    TEXT,                         -- of a channel: its turn
    step          INTEGER NOT NULL,             -- model calls of that process, this one included
    model         TEXT NOT NULL,
    usage         TEXT NOT NULL,                -- JSON
    finish_reason TEXT NOT NULL,                -- 'error' when no model answered
    block_count   INTEGER NOT NULL,
    layout        BLOB NOT NULL,                -- hashes of its pieces in order, 16 bytes each
    reply         BLOB NOT NULL                 -- zlib of JSON
);
CREATE INDEX prompt_captures_process ON prompt_captures (process_id);
CREATE INDEX prompt_captures_channel ON prompt_captures (channel_id, id);

CREATE TABLE prompt_blocks (
    hash BLOB PRIMARY KEY,
    body BLOB NOT NULL                          -- zlib of JSON: kind, name, role, form, text, tokens; scrubbed
) WITHOUT ROWID;

CREATE TRIGGER prompt_captures_follow AFTER DELETE ON channels BEGIN
    DELETE FROM prompt_captures WHERE channel_id = OLD.id;
END;

-- Lists of many conversations, and timelines across kinds.
CREATE INDEX channels_listed ON channels (is_active, last_activity_at DESC, id);
CREATE INDEX messages_time ON conversation_messages (channel_id, created_at);
CREATE INDEX memories_accessed ON memories (forgotten, access_count DESC, last_accessed_at DESC, id);
