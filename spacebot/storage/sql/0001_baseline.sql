-- Conversations: the durable log, its ledger and the runs of processes.

CREATE TABLE channels (
    id               TEXT PRIMARY KEY,          -- the conversation id
    platform         TEXT NOT NULL,
    display_name     TEXT,
    platform_meta    TEXT,                      -- JSON
    is_direct        INTEGER NOT NULL DEFAULT 0, -- every message so far came from one person alone with the agent
    was_direct       INTEGER NOT NULL DEFAULT 0, -- some message did
    is_active        INTEGER NOT NULL DEFAULT 1,
    last_seq         INTEGER NOT NULL DEFAULT 0,
    created_at       TEXT NOT NULL,
    last_activity_at TEXT NOT NULL
);
CREATE INDEX channels_activity ON channels (is_active, last_activity_at);

CREATE TABLE conversation_messages (
    id            TEXT PRIMARY KEY,
    channel_id    TEXT NOT NULL REFERENCES channels (id) ON DELETE CASCADE,
    seq           INTEGER NOT NULL,             -- per channel, without gaps
    role          TEXT NOT NULL,                -- user, assistant
    sender_id     TEXT,
    sender_name   TEXT,
    content       TEXT NOT NULL,
    metadata      TEXT,                         -- JSON: what the platform said about it
    platform_id   TEXT,                         -- the platform's id; a second delivery is refused
    reply_to      TEXT,                         -- the inbound message that a reply answers
    turn_id       TEXT,
    kind          TEXT NOT NULL DEFAULT 'text', -- text, notice (an error line), reaction
    created_at    TEXT NOT NULL,
    UNIQUE (channel_id, seq)
);
CREATE UNIQUE INDEX messages_platform_id ON conversation_messages (channel_id, platform_id) WHERE platform_id IS NOT NULL;
CREATE INDEX messages_anywhere ON conversation_messages (platform_id) WHERE platform_id IS NOT NULL;
CREATE INDEX messages_turn ON conversation_messages (turn_id) WHERE turn_id IS NOT NULL;
CREATE INDEX messages_reply_to ON conversation_messages (reply_to) WHERE reply_to IS NOT NULL;

-- What became of every inbound message.
CREATE TABLE ledger (
    message_id  TEXT PRIMARY KEY REFERENCES conversation_messages (id) ON DELETE CASCADE,
    channel_id  TEXT NOT NULL,
    state       TEXT NOT NULL,                  -- accepted, in_turn, answered, skipped, failed, observed
    turn_id     TEXT,                           -- the turn that took it; several messages may share one
    reply_id    TEXT,                           -- the first reply of that turn
    reason      TEXT,                           -- why it was skipped or failed
    attempts    INTEGER NOT NULL DEFAULT 0,     -- turns begun with it
    updated_at  TEXT NOT NULL
);
CREATE INDEX ledger_open ON ledger (state) WHERE state IN ('accepted', 'in_turn');
CREATE INDEX ledger_turn ON ledger (turn_id);

CREATE TABLE turns (
    id           TEXT PRIMARY KEY,
    channel_id   TEXT NOT NULL REFERENCES channels (id) ON DELETE CASCADE,
    cause        TEXT NOT NULL,                 -- messages, results
    state        TEXT NOT NULL,                 -- running, done, skipped, failed, interrupted
    detail       TEXT,
    started_at   TEXT NOT NULL,
    completed_at TEXT
);
CREATE INDEX turns_channel ON turns (channel_id, started_at);
CREATE INDEX turns_running ON turns (state) WHERE state = 'running';

CREATE TABLE branch_runs (
    id           TEXT PRIMARY KEY,
    channel_id   TEXT NOT NULL REFERENCES channels (id) ON DELETE CASCADE,
    turn_id      TEXT,
    reply_to     TEXT,
    description  TEXT NOT NULL,
    state        TEXT NOT NULL,
    conclusion   TEXT,
    tool_calls   INTEGER NOT NULL DEFAULT 0,
    attempts     INTEGER NOT NULL DEFAULT 1,    -- lives of the program that it was started in
    started_at   TEXT NOT NULL,
    completed_at TEXT
);
CREATE INDEX branch_runs_channel ON branch_runs (channel_id, started_at);
CREATE INDEX branch_runs_turn ON branch_runs (turn_id);

CREATE TABLE worker_runs (
    id             TEXT PRIMARY KEY,
    channel_id     TEXT REFERENCES channels (id) ON DELETE CASCADE,
    turn_id        TEXT,
    reply_to       TEXT,
    origin         TEXT,                        -- the branch that asked for it
    task           TEXT NOT NULL,
    task_type      TEXT,
    is_interactive INTEGER NOT NULL DEFAULT 0,
    state          TEXT NOT NULL,
    status         TEXT NOT NULL DEFAULT '',
    result         TEXT,
    transcript     TEXT,                        -- JSON of the model messages, to go on after a restart
    tool_calls     INTEGER NOT NULL DEFAULT 0,
    started_at     TEXT NOT NULL,
    completed_at   TEXT
);
CREATE INDEX worker_runs_channel ON worker_runs (channel_id, started_at);
CREATE INDEX worker_runs_turn ON worker_runs (turn_id);
CREATE INDEX worker_runs_live ON worker_runs (state) WHERE completed_at IS NULL;

-- Results that their channel has not told anybody yet.
CREATE TABLE pending_results (
    id           TEXT PRIMARY KEY,
    channel_id   TEXT NOT NULL REFERENCES channels (id) ON DELETE CASCADE,
    process_kind TEXT NOT NULL,                 -- branch, worker
    process_id   TEXT NOT NULL,
    description  TEXT NOT NULL,
    text         TEXT NOT NULL,
    state        TEXT NOT NULL,                 -- the outcome's state
    reply_to     TEXT,
    turn_id      TEXT,                          -- the turn that relayed it
    created_at   TEXT NOT NULL,
    relayed_at   TEXT
);
CREATE INDEX pending_results_open ON pending_results (channel_id) WHERE relayed_at IS NULL;
CREATE INDEX pending_results_reply_to ON pending_results (reply_to) WHERE relayed_at IS NULL;

CREATE TABLE usage (
    id                 INTEGER PRIMARY KEY,
    created_at         TEXT NOT NULL,
    process_kind       TEXT NOT NULL,
    process_id         TEXT,
    channel_id         TEXT,
    model              TEXT NOT NULL,
    input_tokens       INTEGER NOT NULL,
    output_tokens      INTEGER NOT NULL,
    cache_read_tokens  INTEGER NOT NULL,
    cache_write_tokens INTEGER NOT NULL,
    reasoning_tokens   INTEGER NOT NULL
);
CREATE INDEX usage_time ON usage (created_at);

CREATE TABLE settings (
    key   TEXT PRIMARY KEY,
    value TEXT NOT NULL
);
