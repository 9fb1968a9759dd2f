-- Platforms: where a conversation lives, what waits to be delivered there, how the agent behaves in it.

ALTER TABLE channels ADD COLUMN adapter TEXT;           -- runtime key of what delivers; NULL: readers follow the log
ALTER TABLE channels ADD COLUMN response_mode TEXT NOT NULL DEFAULT 'active';
ALTER TABLE channels ADD COLUMN backfill TEXT;          -- JSON: what was said before the agent came; NULL: not looked yet

-- What is said goes out in this order, per conversation. A row is written with the message that it delivers.
CREATE TABLE outbox (
    seq          INTEGER PRIMARY KEY,
    message_id   TEXT NOT NULL UNIQUE REFERENCES conversation_messages (id) ON DELETE CASCADE,
    channel_id   TEXT NOT NULL,
    adapter      TEXT NOT NULL,
    state        TEXT NOT NULL DEFAULT 'queued',         -- queued, sending, delivered, undelivered
    sent         TEXT NOT NULL DEFAULT '[]',             -- JSON: the platform's ids of the parts that went out
    draft_id     TEXT,                                   -- the platform's id of a growing draft of it
    attempts     INTEGER NOT NULL DEFAULT 0,
    error        TEXT,
    is_told      INTEGER NOT NULL DEFAULT 0,             -- the model knows that it was not delivered
    created_at   TEXT NOT NULL,
    delivered_at TEXT
);
CREATE INDEX outbox_open ON outbox (channel_id, seq) WHERE state IN ('queued', 'sending');
CREATE INDEX outbox_untold ON outbox (channel_id) WHERE state = 'undelivered' AND is_told = 0;

-- Growing drafts that people see and that no message has taken the place of yet.
CREATE TABLE drafts (
    channel_id TEXT NOT NULL REFERENCES channels (id) ON DELETE CASCADE,
    reply_to   TEXT NOT NULL,
    adapter    TEXT NOT NULL,
    draft_id   TEXT NOT NULL,
    PRIMARY KEY (channel_id, reply_to)
);

-- Files that came with messages, as they were kept.
CREATE TABLE attachments (
    message_id TEXT NOT NULL REFERENCES conversation_messages (id) ON DELETE CASCADE,
    position   INTEGER NOT NULL,
    filename   TEXT NOT NULL,
    saved_name TEXT,                                     -- in the workspace's folder of attachments; NULL: not kept
    media_type TEXT NOT NULL,
    size_bytes INTEGER,
    note       TEXT,
    created_at TEXT NOT NULL,
    PRIMARY KEY (message_id, position)
);
