"""Where the lists of tables stand in the plain values of a file.

Floor: config
"""

from collections.abc import Iterator
from typing import Any

Tables = dict[str, Any]

SERVER_LISTS = (("mcp_servers",), ("defaults", "mcp"))  # what all agents get


def lists(values: Tables) -> Iterator[list[Any]]:
    """All lists of tables that may change."""
    yield tables_in(values.get("bindings"))
    yield tables_in(values.get("agents"))
    yield from server_lists(values)
    messaging = values.get("messaging")
    for account in messaging.values() if isinstance(messaging, dict) else ():
        yield tables_in(account.get("instances") if isinstance(account, dict) else None)


def server_lists(values: Tables) -> list[list[Any]]:
    return [servers_at(values, path) for path in SERVER_LISTS]


def servers_at(values: Tables, path: tuple[str, ...]) -> list[Any]:
    found: Any = values
    for part in path:
        found = found.get(part) if isinstance(found, dict) else None
    return tables_in(found)


def tables_in(value: Any) -> list[Any]:
    return value if isinstance(value, list) and all(isinstance(entry, dict) for entry in value) else []
