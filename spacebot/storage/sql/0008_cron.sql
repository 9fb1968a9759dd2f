-- Schedules: jobs, and every due time that was taken, so that none is taken twice.

CREATE TABLE cron_jobs (
    id                TEXT PRIMARY KEY,
    source            TEXT NOT NULL,            -- config, conversation, owner (command line, API)
    prompt            TEXT NOT NULL,
    cron_expr         TEXT,                     -- five fields; NULL: the interval counts
    interval_secs     INTEGER,
    timezone          TEXT,                     -- IANA name; NULL: the agent's
    delivery_target   TEXT NOT NULL,            -- origin, home, a conversation's id, or adapter:address
    origin            TEXT,                     -- the conversation that made it
    created_by        TEXT,                     -- platform:user who asked for it
    is_private        INTEGER NOT NULL DEFAULT 0, -- made in a direct chat: nobody else may hear of it
    active_start_hour INTEGER,
    active_end_hour   INTEGER,
    enabled           INTEGER NOT NULL DEFAULT 1,
    disabled_reason   TEXT,
    run_once          INTEGER NOT NULL DEFAULT 0,
    timeout_secs      INTEGER NOT NULL,
    failures          INTEGER NOT NULL DEFAULT 0, -- in a row
    anchor_at         TEXT NOT NULL,            -- where intervals that do not divide a day count from
    next_due_at       TEXT,                     -- NULL: never
    seed              TEXT,                     -- JSON of the configuration's entry that it was made from
    created_at        TEXT NOT NULL,
    CHECK ((cron_expr IS NULL) <> (interval_secs IS NULL))
);
CREATE INDEX cron_jobs_due ON cron_jobs (next_due_at) WHERE enabled = 1 AND next_due_at IS NOT NULL;

-- A row stands here before its run begins; the second taker of a due time fails.
CREATE TABLE cron_runs (
    seq            INTEGER PRIMARY KEY AUTOINCREMENT,
    job_id         TEXT NOT NULL REFERENCES cron_jobs (id) ON DELETE CASCADE,
    due_at         TEXT NOT NULL,
    cause          TEXT NOT NULL,               -- schedule, asked
    state          TEXT NOT NULL,               -- running, done, silent, failed, interrupted, skipped, missed
    claimed_at     TEXT NOT NULL,
    started_at     TEXT,
    completed_at   TEXT,
    channel_id     TEXT,                        -- the conversation that the run was
    summary        TEXT,                        -- what was said
    note           TEXT,                        -- why it failed, or did not happen
    delivered_to   TEXT,
    message_id     TEXT,
    delivery_error TEXT,
    UNIQUE (job_id, due_at)
);
CREATE INDEX cron_runs_job ON cron_runs (job_id, seq);
CREATE INDEX cron_runs_open ON cron_runs (job_id) WHERE state = 'running';
