"""What an Ollama server has: the only provider whose models are its owner's own.

Floor:  llm; may import base
Source: control spec 2.14; `GET /api/tags` of Ollama's API
"""

import json

from spacebot.base.errors import ExternalError
from spacebot.base.fetch import Fetcher
from spacebot.llm.catalogue_data import MAX_NAME, Row

OLLAMA = "ollama"
ASK_S = 2.0
MAX_BYTES = 2**20
MAX_MODELS = 500

_CAPABILITIES = {"tools": "t", "thinking": "r", "vision": "i", "audio": "a"}


async def ollama_models(fetcher: Fetcher, base_url: str) -> list[Row]:
    """The models that are there; without flags where the server does not tell what they can.

    Errors: ExternalError, RefusedError.
    """
    answer = await fetcher.get(f"{base_url}/api/tags", may_be_private=True, max_bytes=MAX_BYTES, timeout_s=ASK_S)
    if answer.status != 200:
        raise ExternalError(f"{answer.host} answered with status {answer.status}")
    try:
        listed = json.loads(answer.body)["models"]
        named = [(str(model.get("model") or model["name"]), model) for model in listed[:MAX_MODELS]]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ExternalError(f"{answer.host} answered with something unreadable; is it an Ollama server?") from error
    return [
        Row(name, name.removesuffix(":latest"), 0, _flags(model.get("capabilities")))
        for name, model in sorted(named, key=lambda pair: pair[0])
        if 0 < len(name) <= MAX_NAME and name.isprintable()
    ]


def _flags(capabilities: object) -> str:
    words = capabilities if isinstance(capabilities, list) else ()
    return "".join(flag for word, flag in _CAPABILITIES.items() if word in words)
