"""A month of a company's talk is played in; afterwards, and after a restart, questions are answered from memory.

The model is rules (`Clerk`), everything else is real: log, memory, embedding model, search, cortex, upkeep, time.
"""

import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import trio
from trio.testing import MockClock

from spacebot.base.events import EventKind
from spacebot.llm.messages import ModelRequest, ToolResult
from spacebot.memory.embedding import OnnxEmbedder
from spacebot.memory.types import EVERYTHING, Query, SearchMode
from tests.fakes.opened import EPOCH, Opened, open_test_agent
from tests.fakes.scripted_model import NOTHING_TO_SAVE, Call, Calls, Say, ScriptedModel
from tests.flows.month import DAYS, LINES, PLAYBOOK, PRIVATE, QUESTIONS, Question, said

START = datetime(2026, 3, 1, 13, 0, tzinfo=UTC)
CHATTER = 3  # lines a day and room
RELAYED = 5  # memories that an answer may name


class Clerk:
    """Plays the model: keeps what the playbook says, looks up what is asked, answers with what was found."""

    def model(self) -> ScriptedModel:
        return ScriptedModel(
            self._channel,
            branch=self._branch,
            compactor=lambda request: Call("write_summary", summary="they talked about work"),
            cortex=lambda request: Say("The company talks about its launch and its ledger."),
            persistence=self._keep,
        )

    def _channel(self, request: ModelRequest) -> Any:
        if any(isinstance(part, ToolResult) for part in request.messages[-1].parts):
            return Say("")
        text = request.messages[-1].text
        if (found := re.search(r"<result [^>]*>\n(.*?)\n</result>", text, re.DOTALL)) is not None:
            return Call("reply", content=found[1])
        asked = re.search(r": bot, (.+\?)", text)
        if asked is None:
            return Call("skip", reason="they talk to each other")
        return Calls(Call("branch", description=asked[1]), Call("skip", reason="the branch will tell"))

    def _branch(self, request: ModelRequest) -> Any:
        results = _results(request)
        if not results:
            return Call("memory_recall", query=request.messages[-1].text, max_results=RELAYED)
        return Say("\n".join(memory["content"] for memory in results[-1]["memories"]) or "nothing is known")

    def _keep(self, request: ModelRequest) -> Any:
        """Look up what a line makes out of date, save it with that link, report."""
        new = request.messages[0].text.split("New since")[1]
        heard = re.findall(r"^\[[^\]]*\] (?:\w+) \(id (\w+)\): (.*)$", new, re.MULTILINE)
        lines = [(person, PLAYBOOK[text]) for person, text in heard if text in PLAYBOOK]
        if not lines:
            return NOTHING_TO_SAVE
        results = _results(request)
        saved = [result["memory_id"] for result in results if "memory_id" in result]
        if saved:
            return Call("memory_persistence_complete", outcome="saved", saved_memory_ids=saved)
        outdated = [line.replaces for _, line in lines if line.replaces]
        if outdated and not results:
            return Calls(*(Call("memory_recall", query=content) for content in outdated))
        known = {memory["content"]: memory["id"] for result in results for memory in result["memories"]}
        return Calls(*(_save(person, line, known) for person, line in lines))


def _save(person: str, line: Any, known: dict[str, str]) -> Call:
    links = [{"target_id": known[line.replaces], "relation_type": line.relation}] if line.replaces in known else []
    return Call("memory_save", content=line.memory, memory_type=line.kind, person=person, associations=links)


def _results(request: ModelRequest) -> list[dict[str, Any]]:
    parts = [part for message in request.messages for part in message.parts if isinstance(part, ToolResult)]
    return [json.loads(part.text) for part in parts if not part.is_error]


async def play(opened: Opened, lines: Iterator[tuple[datetime, str, str, str]]) -> int:
    """Let everything be said at its time; returns how many lines that were."""
    count = 0
    for moment, channel, author, text in lines:
        now = EPOCH.timestamp() + trio.current_time()
        if (ahead := moment.timestamp() - now) > 0:
            await opened.advance(ahead)
        await opened.say(author, text, conversation=channel, is_direct=channel == PRIVATE, sent_at=moment)
        count += 1
    await opened.advance(3600)
    return count


async def ask(opened: Opened, question: Question) -> str:
    """Ask in the room, and wait for the answer."""
    before = len(opened.of_kind(EventKind.OUTBOUND_MESSAGE))
    is_direct = question.channel == PRIVATE
    text = f"bot, {question.text}"
    await opened.say(question.author, text, conversation=question.channel, is_direct=is_direct)
    for _ in range(20):  # coalescing, the branch, its result's debounce
        await opened.advance(2)
        if len(opened.of_kind(EventKind.OUTBOUND_MESSAGE)) > before:
            break
    return str(opened.of_kind(EventKind.OUTBOUND_MESSAGE)[-1].fields["text"])


async def examine(opened: Opened) -> list[str]:
    """Ask everything; returns what was wrong."""
    wrong = []
    for question in QUESTIONS:
        answer = await ask(opened, question)
        if question.answer not in answer:
            wrong.append(f"{question.text} -> {answer!r} lacks {question.answer!r}")
        elif question.not_before and question.not_before in answer.partition(question.answer)[0]:
            wrong.append(f"{question.text} -> {answer!r} puts the outdated first")
        if question.never and question.never in answer:
            wrong.append(f"{question.text} -> {answer!r} tells {question.never!r}")
    return wrong


async def test_a_month_is_remembered_across_rooms_and_restarts(clock: MockClock, tmp_path: Path) -> None:
    embedder = OnnxEmbedder()
    await embedder.embed(["loaded before time moves"])
    async with open_test_agent(tmp_path, Clerk().model(), embedder=embedder, patience_s=120) as opened:
        count = await play(opened, said(START, chatter=CHATTER))
        assert count > DAYS * CHATTER * 4
        everything = Query(viewer=EVERYTHING, mode=SearchMode.RECENT, limit=50, counts_as_access=False)
        known = {hit.memory.content for hit in (await opened.agent.memory.recall(everything)).hits}
        assert known >= {line.memory for line in LINES}
        assert await examine(opened) == []
    async with open_test_agent(tmp_path, Clerk().model(), embedder=embedder, patience_s=120) as opened:
        assert await examine(opened) == []
