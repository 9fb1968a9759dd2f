"""How hard a person's words are, judged by counting: which of three tiers of models should answer.

Words of the user alone are scored, never prompts, history or results. Seven dimensions in -1..1, weighted; English
lists which the owner may replace or add to. A wrong downgrade costs more than it saves, so whatever hints at work
forbids the light tier.

Flow:    Turn -> classify -> Complexity -> ModelRequest -> routing.choose
Floor:   llm; may import base, config
Source:  control spec 2.5 and 2.6: dimensions, figures, guards
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from types import MappingProxyType

from spacebot.config.routing import Dimension, PromptRoutingConfig

MAX_CHARACTERS = 16_000  # of a message are searched for words; its length counts whole
CHARACTERS_PER_TOKEN = 4
SHORT, MIDDLE, LONG = 12, 60, 500  # tokens at which length scores -1, 0 and +1
STEPS = (0.4, 0.7, 1.0)  # of one, two, three and more distinct signs
_SCORERS_KEPT = 64


class Tier(StrEnum):
    """Classes of prompts, in order."""

    LIGHT = "light"
    STANDARD = "standard"
    HEAVY = "heavy"

    @property
    def rank(self) -> int:
        """Its place from the bottom, from 0."""
        return _ORDER.index(self)


_ORDER = tuple(Tier)

_WORDS: Mapping[Dimension, tuple[str, ...]] = MappingProxyType(
    {
        "code_presence": (
            "function", "class", "import", "async", "await", "def", "return", "struct", "regex", "regexp", "compile",
            "compiles", "refactor", "refactoring", "null pointer", "sql select", "segfault", "stack trace", "traceback",
            "unit test", "unit tests", "pull request", "git commit", "typescript", "javascript", "stylesheet",
        ),
        "reasoning": (
            "prove", "proof", "theorem", "derive", "step by step", "chain of thought", "why does", "trade off",
            "trade offs", "tradeoff", "tradeoffs", "compare", "root cause", "analyse", "analyze", "analysis",
            "contradiction", "hypothesis", "pros and cons",
        ),
        "simple": (
            "what is", "what's", "who is", "who's", "when is", "define", "translate", "hello", "hi", "hey", "thanks",
            "thank you", "good morning", "good night", "how are you",
        ),
        "technical": (
            "algorithm", "algorithms", "architecture", "distributed", "kubernetes", "consensus", "concurrency",
            "encryption", "latency", "database schema", "optimise", "optimize", "migration", "protocol", "compiler",
            "microservice", "microservices", "throughput",
        ),
        "multi_step": ("after that", "afterwards", "finally", "once that is done"),
        "constraints": (
            "at most", "at least", "no more than", "no less than", "within", "maximum", "minimum", "must not",
        ),
    }
)  # fmt: skip
_ONE_WORDERS = frozenset({"yes", "no", "yep", "yeah", "nope", "ok", "okay", "sure", "cool", "nice", "great", "lol"})
_ASSENTS = frozenset(
    {
        "yes", "yep", "yeah", "ok", "okay", "sure", "yes please", "please do", "do it", "do that", "yes do it",
        "go on", "go ahead", "continue", "carry on", "proceed", "sounds good", "please continue", "yes go ahead",
    }
)  # fmt: skip
_FORBIDS_LIGHT: tuple[Dimension, ...] = ("code_presence", "reasoning", "technical", "multi_step", "constraints")

_TOKENS = re.compile(r"[^\W_]+(?:'[^\W_]+)*")
_Sign = tuple[str, str, re.Pattern[str]]  # its name, what must be in the text at least, how it looks; in lower case
_CODE_SIGNS: tuple[_Sign, ...] = (
    ("`…`", "`", re.compile(r"`[^`\n]+`")),
    (
        "file of code",
        ".",
        re.compile(r"(?<=[\w-])\.(?:py|js|ts|tsx|jsx|rs|go|java|c|h|cpp|cs|rb|php|sh|sql|html|css|toml|ya?ml|json)\b"),
    ),
    ("stack trace", "\n", re.compile(r"\n[ \t]+at \S+ ?\(|\n[ \t]*file \"[^\"\n]+\", line \d+")),
)
_STEP_SIGNS: tuple[_Sign, ...] = (
    ("first … then", "first", re.compile(r"\bfirst(?:ly)?\b.{1,200}?\bthen\b", re.DOTALL)),
    ("step N", "step ", re.compile(r"\bstep \d")),
)
_LIST_ITEM = re.compile(r"[ \t]*(?:[-*•]|\d{1,3}[.)])[ \t]+\S")
_UNITS = r"(?:ms|s|sec|seconds|minutes|kb|mb|gb|tokens|words|lines)\b"
_CONSTRAINT_SIGNS: tuple[_Sign, ...] = (
    ("O(…)", "o(", re.compile(r"\bo\([^)\n]{1,20}\)")),
    *(
        (f"{word} N", f"{word} ", re.compile(rf"\b{word} \d[\d.,]* ?{_UNITS}"))
        for word in ("under", "below", "less than")
    ),
    ("exactly N", "exactly ", re.compile(r"\bexactly \d")),
)
_NOTHING: Mapping[str, tuple[str, ...]] = MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True)
class Complexity:
    """What was found in a person's words.

    Args:
        score: weighted sum; about -0.25 to 0.85 with the usual weights.
        values: -1..1 by dimension.
        signs: what was found, by dimension.
        guards: why the tier is not the one that the score alone would give.
    """

    score: float
    tier: Tier
    values: Mapping[Dimension, float] = field(default_factory=lambda: MappingProxyType({}))
    signs: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: _NOTHING)
    guards: tuple[str, ...] = ()


def classify(
    config: PromptRoutingConfig,
    texts: Sequence[str],
    *,
    has_attachments: bool = False,
    previous: Tier | None = None,
) -> Complexity | None:
    """Judge what people said in one turn; of several messages the hardest counts. None without any words.

    Args:
        texts: their bare words: no names, times, quotes or file notes.
        has_attachments: pictures, recordings or files came along.
        previous: the class of the turn before, which a bare "go on" is about.
    """
    if not texts:
        return None
    scorer = _scorer(config)
    found = max((scorer.score(text) for text in texts), key=lambda one: (one.tier.rank, one.score))
    guards = list(found.guards)
    tier = found.tier
    if tier is Tier.LIGHT and has_attachments:
        tier = Tier.STANDARD
        guards.append("attachments are never light")
    if previous is not None and previous.rank > tier.rank and all(_is_assent(text) for text in texts):
        tier = previous
        guards.append(f"an assent is about what was said before, which was {previous}")
    return replace(found, tier=tier, guards=tuple(guards))


_scorers: dict[int, tuple[PromptRoutingConfig, "_Scorer"]] = {}


def _scorer(config: PromptRoutingConfig) -> "_Scorer":
    """The compiled form of a table; holding the table keeps its identity its own."""
    kept = _scorers.get(id(config))
    if kept is None:
        if len(_scorers) >= _SCORERS_KEPT:
            _scorers.clear()
        kept = _scorers[id(config)] = (config, _Scorer(config))
    return kept[1]


class _Words:
    """A list of words and phrases; each counts once."""

    def __init__(self, words: Iterable[str]) -> None:
        normal = {" ".join(_tokens(word)): None for word in words}
        self._single = frozenset(word for word in normal if word and " " not in word)
        self._phrases = tuple((f" {word} ", word) for word in normal if " " in word)

    def found(self, tokens: frozenset[str], line: str) -> list[str]:
        hits = sorted(self._single & tokens)
        hits += [word for padded, word in self._phrases if padded in line]
        return hits


class _Scorer:
    """Weights, boundaries and lists of one table, ready to be used."""

    def __init__(self, config: PromptRoutingConfig) -> None:
        self._boundaries = config.boundaries
        self._weights: Mapping[str, float] = config.weights.model_dump()
        self._words = {
            dimension: _Words((*config.keywords.get(dimension, words), *config.keywords_extra.get(dimension, ())))
            for dimension, words in _WORDS.items()
        }

    def score(self, text: str) -> Complexity:
        """Judge one message."""
        tokens = len(text) / CHARACTERS_PER_TOKEN
        low = text[:MAX_CHARACTERS].lower()
        words = _tokens(low)
        line, distinct = f" {' '.join(words)} ", frozenset(words)
        signs = {dimension: each.found(distinct, line) for dimension, each in self._words.items()}
        has_fence = "```" in low
        signs["code_presence"] += ["```"] if has_fence else []
        signs["code_presence"] += _matching(_CODE_SIGNS, low)
        signs["constraints"] += _matching(_CONSTRAINT_SIGNS, low)
        signs["multi_step"] += _matching(_STEP_SIGNS, low)
        items = sum(_LIST_ITEM.match(each) is not None for each in low.splitlines()) if "\n" in low else 0
        if len(words) == 1 and words[0] in _ONE_WORDERS:
            signs["simple"].append(words[0])
        values: dict[Dimension, float] = {
            "token_count": _length_value(tokens),
            "code_presence": 1.0 if has_fence else _stepped(len(signs["code_presence"])),
            "reasoning": (0.0, 0.6, 1.0)[min(2, len(signs["reasoning"]))],
            "simple": (-0.5 if tokens > MIDDLE else -1.0) if signs["simple"] else 0.0,
            "technical": _stepped(len(signs["technical"])),
            "multi_step": _steps_value(len(signs["multi_step"]), items),
            "constraints": _stepped(len(signs["constraints"])),
        }
        if items >= 2:
            signs["multi_step"].append(f"{items} list items")
        total = round(sum(self._weights[dimension] * value for dimension, value in values.items()), 6)
        tier, guards = self._tier(total), tuple[str, ...]()
        if tier is Tier.LIGHT and (work := [name for name in _FORBIDS_LIGHT if values[name] > 0]):
            tier, guards = Tier.STANDARD, (f"{' and '.join(work)} forbid light",)
        return Complexity(
            score=total,
            tier=tier,
            values=values,
            signs={dimension: tuple(found) for dimension, found in signs.items() if found},
            guards=guards,
        )

    def _tier(self, score: float) -> Tier:
        if score < self._boundaries.light_standard:
            return Tier.LIGHT
        return Tier.HEAVY if score > self._boundaries.standard_heavy else Tier.STANDARD


def _tokens(text: str) -> list[str]:
    return _TOKENS.findall(text.lower().replace("’", "'"))


def _matching(signs: Iterable[_Sign], text: str) -> list[str]:
    return [name for name, least, pattern in signs if least in text and pattern.search(text) is not None]


def _stepped(count: int) -> float:
    return STEPS[min(count, len(STEPS)) - 1] if count else 0.0


def _steps_value(kinds: int, items: int) -> float:
    kinds += items >= 2
    if kinds >= 2 or items >= 3:
        return 1.0
    return 0.5 if kinds else 0.0


def _length_value(tokens: float) -> float:
    if tokens <= SHORT:
        return -1.0
    if tokens <= MIDDLE:
        return (tokens - MIDDLE) / (MIDDLE - SHORT)
    return min(1.0, (tokens - MIDDLE) / (LONG - MIDDLE))


def _is_assent(text: str) -> bool:
    return len(text) <= 40 and " ".join(_tokens(text)) in _ASSENTS
