"""Recordings into words, at the wire."""

import base64
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest

from spacebot.base.errors import ModelBusyError, ModelRejectedError, ModelUnavailableError
from spacebot.config.model import AgentConfig, ApiType
from spacebot.config.routing import RoutingConfig
from spacebot.llm import transcription
from spacebot.llm.manager import ModelManager, UsageRecord
from spacebot.llm.messages import Usage
from spacebot.llm.opening import open_models
from spacebot.llm.transcription import audio_format
from tests.llm.given import KEY, custom
from tests.stand_ins.openai import serve_openai
from tests.stand_ins.serving import Answer, Fault, ModelStandIn, Refusal, Reply

AUDIO = b"OggS\0\1\2"
VOICE = AgentConfig(id="main", routing=RoutingConfig(voice="own/ears/large"))


@asynccontextmanager
async def hearing(
    replies: Sequence[Reply], api_type: ApiType = ApiType.OPENAI_COMPLETIONS
) -> AsyncIterator[tuple[ModelManager, ModelStandIn, list[UsageRecord]]]:
    records: list[UsageRecord] = []
    async with serve_openai(replies) as stand_in:
        llm = custom("own", api_type, stand_in.url)
        async with open_models(lambda: llm, record_usage=records.append) as models:
            yield models, stand_in, records


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transcription, "PAUSE_S", 0.0)


@pytest.mark.parametrize(
    ("api_type", "path"),
    [
        (ApiType.OPENAI_COMPLETIONS, "/v1/chat/completions"),
        (ApiType.OPENAI_CHAT_COMPLETIONS, "/chat/completions"),
    ],
)
async def test_a_recording_is_sent_as_input_audio(api_type: ApiType, path: str) -> None:
    async with hearing([Answer(text=" buy milk \n")], api_type) as (models, stand_in, records):
        model = models.for_agent(lambda: VOICE)
        assert await model.transcribe(AUDIO, "audio/mpeg; codecs=x", instruction="Write it down.") == "buy milk"
    (request,) = stand_in.requests
    assert request.path == path
    assert request.headers["authorization"] == f"Bearer {KEY.get_secret_value()}"
    assert request.json() == {
        "model": "ears/large",
        "temperature": 0,
        "messages": [
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "Write it down."},
                    {"type": "input_audio", "input_audio": {"data": base64.b64encode(AUDIO).decode(), "format": "mp3"}},
                ],
            }
        ],
    }
    assert [(record.model, record.agent_id, record.usage) for record in records] == [
        ("own/ears/large", "main", Usage(input_tokens=10, output_tokens=5))
    ]


async def test_a_failure_that_may_pass_is_tried_again() -> None:
    async with hearing([Refusal(503), Answer(text="words")]) as (models, stand_in, _):
        assert await models.transcribe(AUDIO, "audio/ogg", VOICE, instruction="-") == "words"
    assert len(stand_in.requests) == 2


@pytest.mark.parametrize(
    ("replies", "error", "words"),
    [
        ([Refusal(503)] * 2, ModelUnavailableError, "unavailable"),
        ([Refusal(429)] * 2, ModelBusyError, "wait"),
        ([Refusal(401)], ModelRejectedError, "refused the credentials"),
        ([Refusal(400)], ModelRejectedError, "refused the request"),
        ([Answer(text="  ")], ModelRejectedError, "heard no words"),
        ([Fault.WRONG_TYPE] * 2, ModelUnavailableError, "no JSON"),
        ([Fault.CUT] * 2, ModelUnavailableError, "own/ears/large"),
    ],
)
async def test_failures_are_told_apart(replies: Sequence[Reply], error: type[Exception], words: str) -> None:
    async with hearing(replies) as (models, stand_in, records):
        with pytest.raises(error, match=words):
            await models.transcribe(AUDIO, "audio/ogg", VOICE, instruction="-")
    assert len(stand_in.requests) == len(replies)
    assert records == []


async def test_without_a_model_that_hears_it_says_what_to_set() -> None:
    async with hearing([], ApiType.ANTHROPIC) as (models, stand_in, _):
        with pytest.raises(ModelRejectedError, match=r"set voice = .* under \[defaults\.routing\]"):
            await models.transcribe(AUDIO, "audio/ogg", AgentConfig(id="main"), instruction="-")
        with pytest.raises(ModelRejectedError, match="cannot hear recordings"):
            await models.transcribe(AUDIO, "audio/ogg", VOICE, instruction="-")
    assert stand_in.requests == []


@pytest.mark.parametrize(
    ("media_type", "filename", "expected"),
    [
        ("audio/mpeg", "", "mp3"),
        ("AUDIO/X-WAV", "a.mp3", "wav"),
        ("audio/unknown", "a.M4A", "m4a"),
        ("application/ogg", "voice", "ogg"),
        ("", "a.flac", "flac"),
    ],
)
def test_formats(media_type: str, filename: str, expected: str) -> None:
    assert audio_format(media_type, filename) == expected


def test_an_empty_voice_is_none() -> None:
    assert RoutingConfig.model_validate({"voice": ""}).voice is None
