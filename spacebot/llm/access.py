"""Where a provider is asked and how its key is shown: addresses and headers, the same for all who ask.

Flow:   Target -> chat_root, chat_url, credential -> dialects, recordings, the gateway for programs
Floor:  llm; may import base, config
Source: control spec 1.5.2, 2.1, 2.11; pitfall 61
"""

from urllib.parse import urlencode, urlsplit

from spacebot.base.ids import new_uuid
from spacebot.config.model import ApiType
from spacebot.llm.dialect import AuthKind, Target

ANTHROPIC_HOST = "api.anthropic.com"
VERSIONED = frozenset({ApiType.OPENAI_COMPLETIONS, ApiType.OPENAI_RESPONSES})  # their base URL comes without /v1
CHAT = frozenset(
    {
        ApiType.OPENAI_COMPLETIONS,
        ApiType.OPENAI_CHAT_COMPLETIONS,
        ApiType.GEMINI,
        ApiType.KILO_GATEWAY,
        ApiType.AZURE,
    }
)  # they all speak chat completions
_SESSION = str(new_uuid())  # of this run of the program


def openai_root(target: Target) -> str:
    """What `/chat/completions` or `/responses` is appended to."""
    return target.base_url + ("/v1" if target.api_type in VERSIONED else "")


def chat_url(target: Target) -> str:
    """The whole address of chat completions."""
    query = f"?{urlencode(target.query)}" if target.query else ""
    return f"{openai_root(target)}/chat/completions{query}"


def is_lendable(target: Target) -> bool:
    """Whether a program that speaks one of the two common formats can be given this model with its key as it is."""
    return (target.api_type in CHAT or target.api_type is ApiType.ANTHROPIC) and not target.entry.exchanges_key


def credential(target: Target) -> dict[str, str]:
    """The headers that show the key, by lower-case name. Tokens of a login are oauth_identity's.

    Hosts that speak Anthropic's format and are not Anthropic want one form or the other, so they get both.
    """
    key = target.api_key or "none"
    bearer = {"authorization": f"Bearer {key}"}
    if target.auth is AuthKind.BEARER:
        return bearer
    if target.api_type is ApiType.AZURE:
        return {"api-key": key}
    if target.api_type is not ApiType.ANTHROPIC:
        return bearer
    is_own = urlsplit(target.base_url).hostname == ANTHROPIC_HOST
    return {"x-api-key": key} if is_own else {"x-api-key": key} | bearer


def session(target: Target) -> dict[str, str]:
    """The header that some hosts demand beside the key."""
    return {target.entry.session_header: _SESSION} if target.entry.session_header else {}


def headers(target: Target) -> dict[str, str]:
    """All of them together, for who asks without a vendor's library."""
    return {**credential(target), **session(target), **target.entry.headers}
