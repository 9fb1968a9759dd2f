"""Names of people and rooms as they may stand in prompts, logs and pages.

Floor: messaging
"""

import unicodedata

LONGEST = 100  # characters; platforms allow 32 to 100


def clean_name(text: str, *, fallback: str = "somebody") -> str:
    """A name on one line: no control or direction characters, no runs of blanks, at most `LONGEST` characters."""
    kept = "".join(
        " " if character.isspace() else character
        for character in text
        if character.isspace() or unicodedata.category(character) not in ("Cc", "Cf", "Cs", "Co", "Cn")
    )
    return " ".join(kept.split())[:LONGEST].strip() or fallback
