-- Curation: what the cortex did and why, its chat, the profile, ingestion, summaries of long conversations.

CREATE TABLE cortex_events (
    seq        INTEGER PRIMARY KEY,
    id         TEXT NOT NULL UNIQUE,
    event_type TEXT NOT NULL,               -- bulletin_generated, memory_merged, maintenance_completed, ...
    summary    TEXT NOT NULL,
    details    TEXT,                        -- JSON
    created_at TEXT NOT NULL
);
CREATE INDEX cortex_events_type ON cortex_events (event_type, created_at);
CREATE INDEX cortex_events_time ON cortex_events (created_at);

CREATE TABLE cortex_chat_messages (
    seq             INTEGER PRIMARY KEY,
    id              TEXT NOT NULL UNIQUE,
    thread_id       TEXT NOT NULL,
    role            TEXT NOT NULL,          -- user, assistant
    content         TEXT NOT NULL,
    tool_calls      TEXT,                   -- JSON: what was called for this answer, and what came of it
    channel_context TEXT,                   -- the conversation that was looked at
    created_at      TEXT NOT NULL
);
CREATE INDEX cortex_chat_thread ON cortex_chat_messages (thread_id, seq);

CREATE TABLE agent_profile (
    agent_id     TEXT PRIMARY KEY,
    display_name TEXT,
    status       TEXT,
    bio          TEXT,
    avatar_seed  TEXT NOT NULL,
    generated_at TEXT NOT NULL,
    updated_at   TEXT NOT NULL
);

CREATE TABLE ingestion_files (
    content_hash    TEXT PRIMARY KEY,       -- SHA-256 of the extracted text; of the bytes where no text could be read
    filename        TEXT NOT NULL,
    file_size       INTEGER NOT NULL,       -- bytes
    total_chunks    INTEGER NOT NULL DEFAULT 0,
    chunk_size      INTEGER NOT NULL DEFAULT 0, -- characters, as it was cut
    status          TEXT NOT NULL,          -- queued, processing, completed, failed, quarantined
    attempts        INTEGER NOT NULL DEFAULT 0,
    next_attempt_at TEXT,
    last_error      TEXT,
    started_at      TEXT NOT NULL,
    completed_at    TEXT
);
CREATE INDEX ingestion_files_started ON ingestion_files (started_at);

CREATE TABLE ingestion_progress (
    content_hash TEXT NOT NULL REFERENCES ingestion_files (content_hash) ON DELETE CASCADE,
    chunk_index  INTEGER NOT NULL,
    completed_at TEXT NOT NULL,
    PRIMARY KEY (content_hash, chunk_index)
);

-- What stands in a channel's history in place of older messages, in order.
CREATE TABLE summaries (
    seq        INTEGER PRIMARY KEY,
    id         TEXT NOT NULL UNIQUE,
    channel_id TEXT NOT NULL REFERENCES channels (id) ON DELETE CASCADE,
    first_seq  INTEGER NOT NULL,            -- messages of the log that it covers, both included
    last_seq   INTEGER NOT NULL,
    kind       TEXT NOT NULL,               -- background, aggressive, emergency
    content    TEXT NOT NULL,
    created_at TEXT NOT NULL
);
CREATE INDEX summaries_channel ON summaries (channel_id, last_seq);

-- Up to where a conversation's messages were looked through for what is worth remembering.
CREATE TABLE persistence_runs (
    id           TEXT PRIMARY KEY,
    channel_id   TEXT NOT NULL REFERENCES channels (id) ON DELETE CASCADE,
    last_seq     INTEGER NOT NULL,
    outcome      TEXT NOT NULL,             -- saved, no_memories, unreported, failed
    reason       TEXT,
    memory_ids   TEXT NOT NULL,             -- JSON: what was really saved
    started_at   TEXT NOT NULL,
    completed_at TEXT NOT NULL
);
CREATE INDEX persistence_runs_channel ON persistence_runs (channel_id, completed_at);

-- The person whom a memory is about, as platform:user; whom it was learned from stands in user_id.
ALTER TABLE memories ADD COLUMN subject TEXT;
CREATE INDEX memories_subject ON memories (subject) WHERE subject IS NOT NULL;
CREATE INDEX memories_user ON memories (user_id) WHERE user_id IS NOT NULL;

-- What was said before this table existed is not gone through at the next start: that could be thousands of model calls.
INSERT INTO persistence_runs (id, channel_id, last_seq, outcome, reason, memory_ids, started_at, completed_at)
    SELECT 'before:' || id, id, last_seq, 'no_memories', 'said before such runs existed', '[]', last_activity_at,
           last_activity_at
    FROM channels;
