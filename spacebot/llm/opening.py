"""The way to models, put together: the HTTP clients, a dialect for each wire format, the manager above them.

Floor:  llm; may import base, config
"""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from spacebot.config.model import ApiType, LlmConfig
from spacebot.llm.anthropic import AnthropicDialect
from spacebot.llm.copilot import FILE_NAME as COPILOT_FILE
from spacebot.llm.copilot import CopilotTokens
from spacebot.llm.credentials import Credentials
from spacebot.llm.demo import DemoDialect
from spacebot.llm.dialect import Dialect
from spacebot.llm.libraries import Libraries
from spacebot.llm.manager import ModelManager, RecordUsage
from spacebot.llm.oauth import TokenFile
from spacebot.llm.openai_chat import OpenAiChatDialect
from spacebot.llm.openai_responses import OpenAiResponsesDialect
from spacebot.llm.transcription import Transcriber
from spacebot.llm.transport import open_transport


@asynccontextmanager
async def open_models(
    llm: Callable[[], LlmConfig], *, record_usage: RecordUsage | None = None, login: Path | None = None
) -> AsyncIterator[ModelManager]:
    """Open the way to models.

    Args:
        llm: gives the present configuration; asked at each call, so changes count at once.
        record_usage: told of each completion; must not wait.
        login: the file of `spacebot auth login`.

    Owns: the HTTP clients; closes them, also when cancelled.
    """
    async with open_transport() as transport, trio.open_nursery() as nursery:
        tokens = CopilotTokens(transport, None if login is None else login.with_name(COPILOT_FILE))
        chat = OpenAiChatDialect(transport, tokens)
        dialects: dict[ApiType, Dialect] = {
            ApiType.ANTHROPIC: AnthropicDialect(transport),
            ApiType.OPENAI_COMPLETIONS: chat,
            ApiType.OPENAI_CHAT_COMPLETIONS: chat,
            ApiType.GEMINI: chat,
            ApiType.KILO_GATEWAY: chat,
            ApiType.AZURE: chat,
            ApiType.OPENAI_RESPONSES: OpenAiResponsesDialect(transport),
            ApiType.DEMO: DemoDialect(),
        }
        yield ModelManager(
            Libraries(dialects, nursery),
            llm,
            record_usage=record_usage,
            transcriber=Transcriber(transport),
            credentials=Credentials(None if login is None else TokenFile(login), transport),
        )
        nursery.cancel_scope.cancel()
