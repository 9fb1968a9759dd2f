-- What model calls cost in money, and sums by day that outlive the single calls.

ALTER TABLE usage ADD COLUMN requests      INTEGER NOT NULL DEFAULT 1;  -- more in old rows: those of one process are one
ALTER TABLE usage ADD COLUMN cost_usd      REAL;                        -- NULL where the price is not known
ALTER TABLE usage ADD COLUMN cost_status   TEXT NOT NULL DEFAULT 'unknown';  -- estimated, included, unknown
ALTER TABLE usage ADD COLUMN tier          TEXT;                        -- light, standard, heavy
ALTER TABLE usage ADD COLUMN default_model TEXT;                        -- what would have been asked without a tier
ALTER TABLE usage ADD COLUMN saved_usd     REAL;                        -- against that one; negative: it cost more
ALTER TABLE usage ADD COLUMN is_settled    INTEGER NOT NULL DEFAULT 0;  -- old, and shortened as far as it goes

CREATE TABLE usage_daily (
    day                TEXT NOT NULL,           -- of the owner's zone, such as 2026-03-01
    process_kind       TEXT NOT NULL,
    model              TEXT NOT NULL,
    cost_status        TEXT NOT NULL,
    requests           INTEGER NOT NULL,
    input_tokens       INTEGER NOT NULL,
    output_tokens      INTEGER NOT NULL,
    cache_read_tokens  INTEGER NOT NULL,
    cache_write_tokens INTEGER NOT NULL,
    reasoning_tokens   INTEGER NOT NULL,
    cost_usd           REAL NOT NULL,
    saved_usd          REAL NOT NULL,
    PRIMARY KEY (day, process_kind, model, cost_status)
) WITHOUT ROWID;

INSERT INTO usage_daily
SELECT substr(created_at, 1, 10), process_kind, model, 'unknown', count(*), sum(input_tokens), sum(output_tokens),
       sum(cache_read_tokens), sum(cache_write_tokens), sum(reasoning_tokens), 0, 0
FROM usage GROUP BY 1, 2, 3;
