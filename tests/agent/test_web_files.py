"""Files in conversations that no platform delivers: whoever reads the log fetches the copy."""

from pathlib import Path

from trio.testing import MockClock

from spacebot.base.events import EventKind
from spacebot.base.ids import ConversationId, MessageId
from tests.fakes.opened import DIRECT, open_test_agent
from tests.fakes.scripted_model import Call, Calls, ScriptedModel


async def test_a_file_is_logged_and_its_copy_stays_as_long_as_its_message(clock: MockClock, tmp_path: Path) -> None:
    model = ScriptedModel(
        Calls(Call("send_file", file_path="report.txt", caption="the figures"), Call("reply", content="here it is"))
    )
    async with open_test_agent(tmp_path, model) as opened:
        agent, workspace = opened.agent, tmp_path / "agents" / "main" / "workspace"
        (workspace / "report.txt").write_text("42")
        await opened.say("Ann", "send me the report")
        await opened.ended(1)
        file_event, reply_event = await opened.events_of(EventKind.OUTBOUND_MESSAGE, 2)
        assert (file_event.fields["filename"], file_event.fields["size_bytes"]) == ("report.txt", 2)
        assert "filename" not in reply_event.fields
        rows = await agent.conversations.history(ConversationId(DIRECT))
        assert [(row.kind, row.content, row.file and row.file.filename) for row in rows[1:]] == [
            ("file", "the figures", "report.txt"),
            ("text", "here it is", None),
        ]
        (workspace / "report.txt").write_text("43")
        await agent.delivery.sweep(fresh_s=0)
        kept = await agent.conversations.sent_file(ConversationId(DIRECT), rows[1].id)
        assert kept is not None
        assert kept.path.read_text() == "42"
        assert await agent.conversations.sent_file(ConversationId("test:room"), rows[1].id) is None
        assert await agent.conversations.sent_file(ConversationId(DIRECT), MessageId(rows[2].id)) is None
