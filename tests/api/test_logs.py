"""The log in the API: the newest records without secrets, by level and words, and what is written from now on."""

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from spacebot.base.redaction import MASK, register_secret
from spacebot.base.telemetry import LogRing, kv
from tests.api.serving import UNREAD, Reader, open_server

pytestmark = pytest.mark.filterwarnings(UNREAD)
log = logging.getLogger("spacebot.tests.ring")
HUSHED = "ring-secret-6630918827"


@pytest.fixture
def ring() -> Iterator[LogRing]:
    """What `set_up_logging` puts in."""
    register_secret(HUSHED)
    handler = LogRing(size=20)
    logging.getLogger().addHandler(handler)
    log.setLevel(logging.DEBUG)
    yield handler
    logging.getLogger().removeHandler(handler)


async def test_the_newest_records_are_shown_by_level_and_words_without_secrets(tmp_path: Path, ring: LogRing) -> None:
    async with open_server(tmp_path) as served:
        for number in range(15):
            log.info("something happened", extra=kv(number=number))
        log.warning("key refused", extra=kv(key=f"it was {HUSHED}", agent="main"))
        log.debug("a detail")

        async def get(**params: str | int) -> dict[str, list[dict[str, object]]]:
            answer = await served.client.get("/api/logs", params=params)
            assert answer.status_code == 200
            return answer.json()  # type: ignore[no-any-return]

        warned = await get(level="warning")
        words = await get(contains="REFUSED")
        field = await get(contains="main", limit=5)
        secret = await get(contains=HUSHED)
        page = await get(limit=4, contains="happened")
        earlier = await get(limit=100, contains="happened", before=int(str(page["lines"][0]["seq"])))
        odd = await served.client.get("/api/logs?level=loud")
    (line,) = warned["lines"]
    assert (line["message"], line["level"], line["logger"]) == ("key refused", "warning", log.name)
    assert line["fields"] == {"key": f"it was {MASK}", "agent": "main"}
    assert words["lines"] == field["lines"] == [line]
    assert secret["lines"] == []
    assert [one["fields"] for one in page["lines"]] == [{"number": str(number)} for number in range(11, 15)]
    assert (page["has_more"], earlier["has_more"], len(earlier["lines"])) == (True, False, 11)
    assert (odd.status_code, "debug, info" in odd.json()["error"]) == (400, True)


async def test_the_stream_goes_on_where_a_reader_left(tmp_path: Path, ring: LogRing) -> None:
    async with open_server(tmp_path) as served:
        log.info("before")
        async with served.client.stream("GET", "/api/logs/stream?contains=tick") as response:
            reader = Reader(response)
            async for words in reader._lines:
                if words == ": open":
                    break
            log.info("tick one")
            log.info("tock")
            log.info("tick two")
            first, second = await reader.next(), await reader.next()
        assert first is not None
        assert second is not None
        assert (first.name, first.data["message"], second.data["message"]) == ("log", "tick one", "tick two")
        async with served.client.stream(
            "GET", "/api/logs/stream", headers={"last-event-id": first.id or ""}
        ) as response:
            reader = Reader(response)
            assert [(await reader.next()).data["message"] for _ in range(2)] == ["tock", "tick two"]  # type: ignore[union-attr]
        for number in range(30):
            log.info("later", extra=kv(number=number))
        async with served.client.stream(
            "GET", "/api/logs/stream", headers={"last-event-id": first.id or ""}
        ) as response:
            reader = Reader(response)
            lagged, following = await reader.next(), await reader.next()
        assert lagged is not None
        assert following is not None
        assert (lagged.name, following.data["seq"]) == ("lagged", first.data["seq"] + lagged.data["skipped"] + 1)


def test_records_that_name_somebody_are_taken_out(ring: LogRing) -> None:
    log.info("spoke", extra=kv(sender="test:ann"))
    log.info("spoke", extra=kv(sender="test:ben"))
    try:
        raise ValueError("about test:ann")
    except ValueError:
        log.info("failed", exc_info=True)
    assert ring.drop(["test:ann"]) == 2
    assert [line.fields for line in ring.lines()] == [{"sender": "test:ben"}]
    assert ring.last == 3


def test_a_secret_that_a_limit_would_cut_is_taken_out_before(ring: LogRing) -> None:
    """Half a secret would not be known as one any more."""
    value = "cut-in-half-0123456789abcdef"
    register_secret(value)
    words = "x" * 1985 + value
    log.warning(words, extra=kv(detail=words))
    line = ring.lines()[-1].scrubbed()
    assert value[:12] not in line.message
    assert value[:12] not in line.fields["detail"]
