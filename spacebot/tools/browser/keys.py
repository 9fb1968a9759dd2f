"""Keys by name, as the browser wants them: name, place on the keyboard, number, text.

Floor:  tools
Source: UI Events KeyboardEvent key and code values; Chrome DevTools Protocol Input.dispatchKeyEvent
"""

from dataclasses import dataclass

from spacebot.base.errors import ToolError

ALT, CONTROL, META, SHIFT = 1, 2, 4, 8

_MODIFIERS = {
    "alt": ALT, "option": ALT, "control": CONTROL, "ctrl": CONTROL, "meta": META, "cmd": META, "command": META,
    "super": META, "shift": SHIFT,
}  # fmt: skip
_NAMED = {  # name -> (code, number, text)
    "Enter": ("Enter", 13, "\r"), "Tab": ("Tab", 9, ""), "Escape": ("Escape", 27, ""),
    "Backspace": ("Backspace", 8, ""), "Delete": ("Delete", 46, ""),
    "Insert": ("Insert", 45, ""), "Home": ("Home", 36, ""), "End": ("End", 35, ""),
    "PageUp": ("PageUp", 33, ""), "PageDown": ("PageDown", 34, ""), "ArrowLeft": ("ArrowLeft", 37, ""),
    "ArrowUp": ("ArrowUp", 38, ""), "ArrowRight": ("ArrowRight", 39, ""), "ArrowDown": ("ArrowDown", 40, ""),
    **{f"F{n}": (f"F{n}", 111 + n, "") for n in range(1, 13)},
}  # fmt: skip
_OTHER_NAMES = {
    "return": "Enter", "esc": "Escape", "del": "Delete", "left": "ArrowLeft", "right": "ArrowRight", "up": "ArrowUp",
    "down": "ArrowDown", "pgup": "PageUp", "pgdn": "PageDown", "spacebar": "space",
}  # fmt: skip
_COMMANDS = {"a": "selectAll", "c": "copy", "x": "cut", "v": "paste", "z": "undo", "y": "redo"}


@dataclass(frozen=True, slots=True)
class Key:
    """One stroke.

    Args:
        commands: what an editor does with it; the browser maps no shortcuts to them by itself here.
    """

    key: str
    code: str
    number: int
    text: str
    modifiers: int = 0
    commands: tuple[str, ...] = ()


def key_of(words: str) -> Key:
    """A stroke from its name: `Enter`, `a`, `Control+a`, `Shift+Tab`.

    Errors: ToolError for a key that is not known.
    """
    *held, name = words.split("+") if len(words) > 1 and not words.endswith("++") else [words]
    if words.endswith("++"):
        held, name = words[:-2].split("+"), "+"
    modifiers = 0
    for word in held:
        if word.strip().lower() not in _MODIFIERS:
            raise ToolError(f"{word!r} is no key that is held; use Control, Shift, Alt or Meta")
        modifiers |= _MODIFIERS[word.strip().lower()]
    name = name if name == " " else name.strip()
    name = _OTHER_NAMES.get(name.lower(), name)
    if name.lower() in ("space", " "):
        return Key(" ", "Space", 32, " " if not modifiers & ~SHIFT else "", modifiers)
    known = {key.lower(): key for key in _NAMED}.get(name.lower())
    if known:
        code, number, text = _NAMED[known]
        return Key(known, code, number, text if not modifiers & ~SHIFT else "", modifiers)
    if len(name) != 1:
        raise ToolError(f"there is no key {words!r}; use a character, Enter, Tab, Escape, Backspace, ArrowDown, F5 …")
    if modifiers & (CONTROL | META):
        command = _COMMANDS.get(name.lower())
        return Key(name.lower(), *_place(name), "", modifiers, (command,) if command else ())
    shown = name.upper() if modifiers & SHIFT else name
    return Key(shown, *_place(name), shown, modifiers)


def _place(character: str) -> tuple[str, int]:
    upper = character.upper()
    if len(upper) == 1 and upper.isascii() and upper.isalpha():
        return f"Key{upper}", ord(upper)
    if character.isascii() and character.isdigit():
        return f"Digit{character}", ord(character)
    return "", 0
