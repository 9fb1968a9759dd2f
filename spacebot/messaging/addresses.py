"""Addresses of places to send to: `adapter:target`, as people and models write them.

What a target looks like is the adapter's business (`Adapter.resolve`); here the adapter is found. A name in the middle
is an instance only if one of that name is configured: `discord:123:456` is a server and a channel, `discord:ops:456` is
a channel for the account `ops`.

Floor:  messaging; may import base
Source: messaging spec 5 and 19 (7, j, 41)
"""

from collections.abc import Collection

from spacebot.base.errors import NotFoundError, RefusedError


def parse_address(text: str, keys: Collection[str]) -> tuple[str, str]:
    """Split an address into the runtime key of its adapter and the target.

    Args:
        keys: runtime keys of the adapters that are configured.

    Errors: RefusedError when there is no target; NotFoundError when no such adapter is configured.
    """
    rest = _trim(text)
    found: str | None = None
    while (match := _longest(rest, keys)) is not None:
        key, after = match
        if found is None or key.startswith(f"{found}:"):
            found = key
        elif not after or not f"{found}:".startswith(f"{key}:"):
            break  # a target that happens to be called like an adapter
        rest = after
    if found is None:
        known = ", ".join(sorted(keys)) or "none"
        raise NotFoundError(f"no adapter answers to {text[:80]!r}; write adapter:target, the adapters are: {known}")
    if not rest:
        raise RefusedError(f"{text[:80]!r} names an adapter but no target; write {found}:target")
    return found, rest


def _longest(text: str, keys: Collection[str]) -> tuple[str, str] | None:
    """The most exact key that a text begins with, and what follows it."""
    parts = [part.strip() for part in text.split(":")]
    by_parts = {tuple(part.casefold() for part in key.split(":")): key for key in keys}
    for size in range(len(parts), 0, -1):
        if key := by_parts.get(tuple(part.casefold() for part in parts[:size])):
            return key, _trim(":".join(parts[size:]))
    return None


def _trim(text: str) -> str:
    return text.strip().strip(":").strip()
