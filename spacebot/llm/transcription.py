"""From a recording to its words, by a model that hears: a chat completion with `input_audio`.

Flow:   ModelManager.transcribe -> Transcriber.transcribe -> POST …/chat/completions -> text
Floor:  llm; may import base, config
Source: messaging spec 13; process spec 4.7; control spec 2.14
"""

import base64
import json
import secrets
from dataclasses import dataclass
from typing import Any

import trio

from spacebot.base.errors import ModelError, ModelRejectedError, ModelUnavailableError
from spacebot.config.model import LlmConfig
from spacebot.llm.access import CHAT, chat_url, headers
from spacebot.llm.dialect import StreamCutError, Target, count_in, parse_event, to_json_bytes
from spacebot.llm.messages import Usage
from spacebot.llm.routing import resolve
from spacebot.llm.transport import SdkErrors, Transport, status_error, translate

ATTEMPTS = 2
PAUSE_S = 1.0
TOTAL_S = 120.0  # for one recording, retries included
DEFAULT_FORMAT = "ogg"

_FORMATS = {
    "audio/mpeg": "mp3",
    "audio/mp3": "mp3",
    "audio/wav": "wav",
    "audio/x-wav": "wav",
    "audio/wave": "wav",
    "audio/vnd.wave": "wav",
    "audio/flac": "flac",
    "audio/x-flac": "flac",
    "audio/aac": "aac",
    "audio/ogg": "ogg",
    "audio/opus": "ogg",
    "audio/mp4": "m4a",
    "audio/m4a": "m4a",
    "audio/x-m4a": "m4a",
}
_ENDINGS = {"mp3": "mp3", "wav": "wav", "flac": "flac", "aac": "aac", "ogg": "ogg", "oga": "ogg", "opus": "ogg"} | {
    "m4a": "m4a",
    "mp4": "m4a",
}


@dataclass(frozen=True, slots=True)
class Transcript:
    """The words of a recording, and what they cost."""

    text: str
    model: str
    provider: str
    usage: Usage


class _NeverRaised(Exception):
    """No SDK is between us and the wire here."""


def audio_format(media_type: str, filename: str = "") -> str:
    """What the wire calls a recording's format: by its type, else by its name's ending, else Ogg."""
    kind = media_type.partition(";")[0].strip().lower()
    return _FORMATS.get(kind) or _ENDINGS.get(filename.rpartition(".")[2].lower(), DEFAULT_FORMAT)


class Transcriber:
    """Asks models for the words of recordings."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    async def transcribe(
        self, audio: bytes, media_type: str, *, model: str | None, llm: LlmConfig, instruction: str, filename: str = ""
    ) -> Transcript:
        """The words of a recording.

        Args:
            model: `routing.voice`.
            instruction: what the model is told to do.
            filename: its ending tells the format when the type does not.

        Errors: ModelError and its kinds; ModelRejectedError says what to configure when no model can hear.
        """
        if model is None:
            raise ModelRejectedError(
                'no model hears recordings here; set voice = "provider/model" under [defaults.routing]', model="voice"
            )
        target = resolve(model, llm)
        if target.api_type not in CHAT or target.entry.exchanges_key:
            raise ModelRejectedError(
                f"{target.model} cannot hear recordings: its provider takes no audio; name a model of a provider that "
                "speaks chat completions in routing.voice",
                model=target.model,
            )
        body = await trio.to_thread.run_sync(_to_wire, target, audio, audio_format(media_type, filename), instruction)
        with trio.move_on_after(TOTAL_S):
            return await self._ask_patiently(target, body)
        raise ModelUnavailableError(f"{target.model}: no words within {TOTAL_S:g} s", model=target.model)

    async def _ask_patiently(self, target: Target, body: bytes) -> Transcript:
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return await self._ask(target, body)
            except ModelError as error:
                if not error.retryable or attempt == ATTEMPTS:
                    raise
            await trio.sleep(PAUSE_S)
        raise AssertionError("the last attempt returns or raises")

    async def _ask(self, target: Target, body: bytes) -> Transcript:
        own = {"content-type": "application/json", "accept": "application/json"}
        await trio.to_thread.run_sync(self._transport.prepare)
        async with self._transport.shard() as shard:
            with translate(target, SdkErrors(_NeverRaised, _NeverRaised)):
                response = await shard.http.post(
                    chat_url(target),
                    content=body,
                    headers=headers(target) | own,
                )
                if response.status_code >= 400:
                    raise status_error(response.status_code, _tolerant(response.content), target, response.headers)
                answer = parse_event(response.content)
                text = _words_of(answer)
        if not text:
            raise ModelRejectedError(f"{target.model} heard no words in it", model=target.model)
        return Transcript(text, target.model, target.provider, _usage_of(answer))


def _to_wire(target: Target, audio: bytes, kind: str, instruction: str) -> bytes:
    """The request's body. Base64 needs no escaping, and escaping megabytes would hold the interpreter for too long."""
    mark = secrets.token_hex(16)
    content = [
        {"type": "text", "text": instruction},
        {"type": "input_audio", "input_audio": {"data": mark, "format": kind}},
    ]
    body = to_json_bytes(
        {"model": target.wire_model, "temperature": 0, "messages": [{"role": "user", "content": content}]}
    )
    before, _, after = body.partition(mark.encode())
    return b"".join((before, base64.b64encode(audio), after))


def _tolerant(body: bytes) -> object:
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return body


def _words_of(answer: dict[str, Any]) -> str:
    """Errors: StreamCutError."""
    try:
        content = answer["choices"][0]["message"]["content"]
    except (KeyError, IndexError, TypeError) as error:
        raise StreamCutError("it sent an answer of an unknown shape") from error
    if isinstance(content, list):
        content = "".join(str(part.get("text") or "") for part in content if isinstance(part, dict))
    return content.strip() if isinstance(content, str) else ""


def _usage_of(answer: dict[str, Any]) -> Usage:
    usage = answer.get("usage")
    return Usage(input_tokens=count_in(usage, "prompt_tokens"), output_tokens=count_in(usage, "completion_tokens"))
