-- What a worker is made of beside the built-in one: OpenCode works in a folder, in a session of its own.

ALTER TABLE worker_runs ADD COLUMN worker_type TEXT NOT NULL DEFAULT 'builtin';  -- builtin, opencode
ALTER TABLE worker_runs ADD COLUMN directory   TEXT;    -- of OpenCode: the folder that is its alone
ALTER TABLE worker_runs ADD COLUMN session_id  TEXT;    -- of OpenCode: taken up again after a restart
ALTER TABLE worker_runs ADD COLUMN is_direct   INTEGER NOT NULL DEFAULT 0;  -- begun in a direct chat

CREATE INDEX usage_process ON usage (process_id);
CREATE INDEX worker_runs_started ON worker_runs (started_at);
