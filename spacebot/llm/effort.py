"""How long a model may think, in the words of each family: which models know the setting, and what it is called there.

A model is known by its name, since the owner may reach it through any host. What no rule knows is asked without the
setting: a field that a host does not know is a refused request.

Flow:   Target.effort -> claude_effort | openai_effort -> the body of a request
Floor:  llm; may import config
Source: control spec 2.10; platform.claude.com/docs "effort" and "adaptive thinking", developers.openai.com "reasoning",
        November 2026
"""

import re

from spacebot.config.routing import ThinkingEffort

THINKING_ROOM = 16_000  # tokens; thinking counts towards the limit of an answer, and must not eat it up

_CLAUDE = re.compile(r"(opus|sonnet|haiku|fable|mythos)-(?:(preview)|(\d{1,2})(?:[.-](\d{1,2}))?)(?!\d)")
_ADAPTIVE = (4, 6)  # the first version that decides by itself how long to think
_OPENAI = re.compile(r"(?:^|/)(?:o[134](?:-mini)?(?:$|-\d)|gpt-(?:[5-9]|\d\d)|gpt-oss)")
_OTHERWISE = re.compile(r"-chat|-pro|^o1-(?:mini|preview)")  # no thinking, or only one length of it
_WITHOUT_TOOLS = re.compile(r"gpt-(?:5\.(?:[4-9]|\d\d)|[6-9]|\d\d)")  # chat completions refuse both together


def claude_effort(written: str, sent: str, effort: ThinkingEffort) -> str | None:
    """The output effort for a Claude model that thinks adaptively; None: ask without.

    Args:
        written: the model as the owner names it. A family's bare name is left as it was: quick unless told otherwise.
        sent: the same as the provider reads it.
    """
    if effort is not ThinkingEffort.AUTO:
        return effort.value if _is_adaptive(sent) else None
    if not _is_adaptive(written):
        return None
    return "max" if "opus" in written else "high"


def _is_adaptive(model: str) -> bool:
    found = _CLAUDE.search(model.lower())
    if found is None:
        return False
    _, is_preview, major, minor = found.groups()
    return bool(is_preview) or (int(major), int(minor or 0)) >= _ADAPTIVE


def thinks_like_openai(model: str) -> bool:
    """Whether a model is one of OpenAI's family that thinks, as far as its name tells."""
    model = model.lower()
    return _OPENAI.search(model) is not None and _OTHERWISE.search(model.rpartition("/")[2]) is None


def openai_effort(model: str, effort: ThinkingEffort, *, has_tools: bool, is_chat: bool) -> str | None:
    """The reasoning effort for a model of OpenAI's family; None: ask without, and the vendor decides.

    Args:
        is_chat: asked by chat completions, which take it from newer models only where there are no tools.
    """
    if effort is ThinkingEffort.AUTO or not thinks_like_openai(model):
        return None
    if is_chat and has_tools and _WITHOUT_TOOLS.search(model.lower()):
        return None
    return "high" if effort is ThinkingEffort.MAX else effort.value
