-- How much was said and done, by hour: counted as it happens, so that the owner's overview reads no log.

CREATE TABLE message_hours (
    hour     TEXT PRIMARY KEY,              -- 2026-03-01T12, UTC
    messages INTEGER NOT NULL
) WITHOUT ROWID;
INSERT INTO message_hours SELECT substr(created_at, 1, 13), count(*) FROM conversation_messages GROUP BY 1;
CREATE TRIGGER message_hours_insert AFTER INSERT ON conversation_messages BEGIN
    INSERT INTO message_hours VALUES (substr(new.created_at, 1, 13), 1)
        ON CONFLICT (hour) DO UPDATE SET messages = messages + 1;
END;
CREATE TRIGGER message_hours_delete AFTER DELETE ON conversation_messages BEGIN
    UPDATE message_hours SET messages = messages - 1 WHERE hour = substr(old.created_at, 1, 13);
END;

CREATE INDEX branch_runs_started ON branch_runs (started_at);
