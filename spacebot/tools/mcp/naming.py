"""Names of remote tools as models see them: `{server}_{tool}`, at most 64 characters, never two alike.

Flow:    (server, tool) pairs -> tool_names -> the name of each
Floor:   tools
Source:  tools spec 11; the pattern of names that the model providers accept
"""

import hashlib
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping

LONGEST = 64  # characters; both large providers refuse more
_HASH = 6  # characters of a suffix

_OTHER = re.compile(r"[^a-z0-9]+")

RemoteName = tuple[str, str]  # server, tool, both as they call themselves


def part_of_name(text: str) -> str:
    """A server's or tool's own name made of small letters, digits and single underscores."""
    part = _OTHER.sub("_", text.lower()).strip("_") or "mcp_tool"
    return f"_{part}" if part[0].isdigit() else part


def tool_names(remote: Iterable[RemoteName], taken: Collection[str] = ()) -> Mapping[RemoteName, str]:
    """Give every remote tool its name.

    All whose plain name is too long, taken, or the same as another's get the beginning of a hash of their own names
    behind it: a name means one tool, in whatever order servers connect and list.

    Args:
        taken: names of other tools.
    """
    plain = {pair: f"{part_of_name(pair[0])}_{part_of_name(pair[1])}" for pair in remote}
    counts = Counter(name[:LONGEST] for name in plain.values())
    names: dict[RemoteName, str] = {}
    used = set(taken)
    for pair, name in sorted(plain.items()):
        if len(name) > LONGEST or name in taken or counts[name[:LONGEST]] > 1:
            name = _suffixed(pair, name, used)
        used.add(name)
        names[pair] = name
    return names


def _suffixed(pair: RemoteName, name: str, used: Collection[str]) -> str:
    digest = hashlib.sha256("\0".join(pair).encode(errors="surrogatepass")).hexdigest()
    for length in range(_HASH, LONGEST):
        found = f"{name[: LONGEST - 1 - length].rstrip('_')}_{digest[:length]}"
        if found not in used:
            return found
    raise AssertionError("two tools with the same names of their own")
