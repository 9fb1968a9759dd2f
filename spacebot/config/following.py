"""The owner's text made to follow a change of its values: comments, order and spelling stay.

Flow:   ConfigEditor -> follow -> Layout
Floor:  config
Source: control spec 1.11
"""

import tomllib
from collections.abc import Mapping

from spacebot.config.layout import Layout, LayoutError
from spacebot.config.lists import SERVER_LISTS, Tables, servers_at, tables_in

_OWN_WAYS = (("messaging",), ("bindings",), ("agents",), *SERVER_LISTS)


def follow(text: str, before: Tables, after: Tables, places: Mapping[int, int]) -> str | None:
    """The text with the change that was made to its values; None when its layout cannot be followed.

    Args:
        places: where elements of lists stood before, by `id`.
    """
    layout = Layout(text)
    try:
        _follow_accounts(layout, before.get("messaging", {}), after.get("messaging", {}), places)
        _follow_tables(layout, before, after)
        _follow_agents(layout, tables_in(before.get("agents")), tables_in(after.get("agents")), places)
        _follow_list(layout, ("bindings",), before.get("bindings", []), after.get("bindings", []), places)
        for path in SERVER_LISTS:
            _follow_list(layout, path, servers_at(before, path), servers_at(after, path), places)
        if _normal(tomllib.loads(layout.text)) == _normal(after):
            return layout.text
    except (LayoutError, tomllib.TOMLDecodeError):
        pass  # the caller tells
    return None


def _follow_accounts(layout: Layout, before: Tables, after: Tables, places: Mapping[int, int]) -> None:
    for platform in [*after, *(platform for platform in before if platform not in after)]:
        old, new, path = before.get(platform), after.get(platform), ("messaging", platform)
        if old == new:
            continue
        if new is None:
            layout.remove_table(path)
            continue
        keys, gone = _difference(old or {}, new)
        if keys or gone or (old is None and not new.get("instances")):
            layout.set_keys(path, keys, gone)
        _follow_list(layout, (*path, "instances"), (old or {}).get("instances", []), new.get("instances", []), places)


def _follow_tables(layout: Layout, before: Tables, after: Tables, path: tuple[str, ...] = ()) -> None:
    """Follow tables that are no lists and have no way of their own."""
    for name in dict.fromkeys((*after, *before)):
        old, new, place = before.get(name), after.get(name), (*path, name)
        if old == new or place in _OWN_WAYS or not isinstance(old if new is None else new, dict):
            continue
        if new is None:
            layout.remove_table(place)
            continue
        was = old if isinstance(old, dict) else {}
        keys, gone = _plain_difference(was, new)
        if keys or gone or (old is None and not new):
            layout.set_keys(place, keys, gone)
        _follow_tables(layout, was, new, place)


def _follow_agents(layout: Layout, before: list[Tables], after: list[Tables], places: Mapping[int, int]) -> None:
    """Follow agents, the tables inside those that stay too."""
    plain = [_without_tables(entry) for entry in before]
    kept = [entry for entry in after if id(entry) in places]
    flat = [_without_tables(entry) if id(entry) in places else entry for entry in after]
    inside = {id(new): places[id(old)] for new, old in zip(flat, after, strict=True) if id(old) in places}
    _follow_list(layout, ("agents",), plain, flat, inside)
    for number, entry in enumerate(kept):
        _follow_inside(layout, number, before[places[id(entry)]], entry)


def _follow_inside(layout: Layout, number: int, before: Tables, after: Tables, path: tuple[str, ...] = ()) -> None:
    for name, old in before.items():
        if isinstance(old, dict) and name not in after:
            layout.remove_below(("agents",), number, (*path, name))
    for name, new in after.items():
        old = before.get(name)
        if isinstance(new, dict) and old != new:
            was = old if isinstance(old, dict) else {}
            keys, gone = _plain_difference(was, new)
            if keys or gone:
                layout.set_below(("agents",), number, (*path, name), keys, gone)
            _follow_inside(layout, number, was, new, (*path, name))


def _plain_difference(before: Tables, after: Tables) -> tuple[Tables, list[str]]:
    """Values with a new value, and those that are gone; tables are left out."""
    old, new = _without_tables(before), _without_tables(after)
    keys = {name: value for name, value in new.items() if name not in old or old[name] != value}
    return keys, [name for name in old if name not in new]


def _without_tables(values: Tables) -> Tables:
    """The plain values: no tables, and no lists of tables, which are followed one by one or not at all."""
    return {name: value for name, value in values.items() if not isinstance(value, dict) and not tables_in(value)}


def _follow_list(
    layout: Layout, path: tuple[str, ...], before: list[Tables], after: list[Tables], places: Mapping[int, int]
) -> None:
    kept = {places[id(entry)]: entry for entry in after if id(entry) in places}
    for i in reversed(range(len(before))):
        if i not in kept:
            layout.remove_element(path, i)
    for number, entry in enumerate(kept.values()):
        keys, gone = _difference(before[places[id(entry)]], entry)
        if keys or gone:
            layout.set_element(path, number, keys, gone)
    for entry in after:
        if id(entry) not in places:
            layout.add_element(path, entry)


def _difference(before: Tables, after: Tables) -> tuple[Tables, list[str]]:
    """Keys with a new value, and keys that are gone; an equal list keeps its comments."""
    keys = {name: value for name, value in after.items() if name != "instances" and before.get(name) != value}
    return keys, [name for name in before if name not in after and name != "instances"]


def _normal(values: Tables) -> Tables:
    """Without tables that hold nothing: their header may stay or go."""
    if values.get("defaults") == {}:
        values = {name: value for name, value in values.items() if name != "defaults"}
    messaging = values.get("messaging")
    if not isinstance(messaging, dict):
        return values
    kept = {platform: account for platform, account in messaging.items() if account != {}}
    return {name: value for name, value in values.items() if name != "messaging"} | (
        {"messaging": kept} if kept else {}
    )
