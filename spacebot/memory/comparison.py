"""In what two similar memories differ: what embeddings hardly see.

A cosine does not tell "costs 5 euros" from "costs 7 euros", nor "likes" from "does not like". Before anything
is concluded from a similarity, the words are compared. The lists are English with the commonest negations of
a few other languages; whatever is not understood counts as a difference, so that doubt keeps both memories.

Flow:    differences -> words -> numbers, dates, polarity, names, subject, wording -> set of Difference
Floor:   memory; imports nothing of the program
Source:  memory spec 6, 9.6; figures in tests/bench/bench_thresholds.py
"""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache


class Difference(StrEnum):
    """One respect in which two texts say different things."""

    NUMBER = "number"
    DATE = "date"
    NEGATION = "negation"
    SUBJECT = "subject"  # another person or thing is spoken of
    NAME = "name"  # another name occurs
    WORDING = "wording"  # each has a significant word that the other lacks
    DETAIL = "detail"  # only one of them has


STEM = 6  # letters; enough to take allergic and allergy as one word, too many for builds and buildbot
LONG = 4000  # characters; a page is not compared word by word while the writer waits
HEAD = 8  # words of a sentence among which its subject ends


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_SYMBOL = r"[^\w\s.,;:!?'\"()\[\]{}’‘“”„‚«»–—…·-]"  # a flag, a face, a currency: they may be all that differs
_WORD = re.compile(rf"(?:(?<![\w.])[-−])?\d+(?:[.,:/-]\d+)*|[^\W\d_]+(?:['’][^\W\d_]+)*|{_SYMBOL}")
_NUMBERS = {
    word: str(value)
    for value, word in enumerate(
        ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
         "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen")
    )
} | {
    word: str(value)
    for word, value in (
        ("twenty", 20), ("thirty", 30), ("forty", 40), ("fifty", 50), ("sixty", 60), ("seventy", 70), ("eighty", 80),
        ("ninety", 90), ("hundred", 100), ("thousand", 1000), ("million", 1_000_000), ("dozen", 12), ("half", 0.5),
        ("twice", 2), ("double", 2), ("second", 2), ("third", 3), ("fourth", 4), ("fifth", 5), ("sixth", 6),
        ("seventh", 7), ("eighth", 8), ("ninth", 9), ("tenth", 10),
    )
}  # fmt: skip
_DATES = _words(
    "monday tuesday wednesday thursday friday saturday sunday january february march april may june july august "
    "september october november december jan feb mar apr jun jul aug sep sept oct nov dec mon tue tues wed thu thur "
    "thurs fri sat sun today tomorrow yesterday tonight morning noon midday afternoon evening night midnight spring "
    "summer autumn winter weekend weekday daily weekly monthly yearly hourly nightly next last"
)
_SAME_DATE = {"midday": "noon", "tonight": "evening", "nightly": "night", "thursday": "thu", "thursdays": "thu"}
_NEGATIONS = _words(
    "not no never none nobody nothing nowhere neither nor without cannot cant dont doesnt didnt isnt arent wasnt wont "
    "wouldnt shouldnt couldnt hasnt havent hadnt hardly barely stopped quit refuses refused lacks lack fails "
    "nicht kein keine keinen keiner nie niemals ohne pas jamais sans nunca geen niet nooit"
)
_OPPOSITES = (
    ("like love enjoy prefer adore", "dislike hate detest avoid"),
    ("open public", "closed shut private confidential secret"),
    ("allow allowed permit", "forbid forbidden prohibit ban deny denied"),
    ("enable activate on", "disable deactivate off"),
    ("accept agree approve", "reject decline refuse disagree"),
    ("join hire enter", "left leave fired quit exit"),
    ("pass succeed", "fail"),
    ("win won", "lose lost"),
    ("fast faster quick", "slow slower"),
    ("more increase rose up higher", "less fewer decrease fell down lower"),
    ("big bigger large larger", "small smaller"),
    ("early earlier before", "late later after"),
    ("always", "never rarely seldom"),
    ("start begin began", "stop end ended"),
    ("true right correct", "false wrong incorrect"),
    ("cheap cheaper", "expensive"),
    ("good better best", "bad worse worst"),
    ("with", "without"),
    ("married", "divorced single unmarried"),
    ("alive", "dead died"),
    ("full", "empty"),
    ("meat", "vegetarian vegan"),
    ("first", "last"),
    ("buy bought", "sell sold"),
    ("works working working", "broken"),
)
_NEGATIVE_PREFIXES = ("un", "in", "im", "ir", "il", "dis", "non")
_STOP = _words(
    "a an the this that these those my our your his her its their i we you he she it they me us him them is are was "
    "were be been being am do does did have has had having will would shall should can could may might must to of in "
    "on at by for from with into onto over than as and or but also too very so just now then there here who whom "
    "which what when where how all every each any some both such own s already currently still again team user each "
    "once if because about per st nd rd th"
)
_VERBS = _words(
    "is are was were am be been has have had will would shall should can could may might must do does did isn't "
    "aren't wasn't doesn't don't didn't won't can't cannot hasn't haven't likes like prefers prefer wants want uses "
    "use lives live works work runs run meets meet needs need owns own plays play speaks speak drives drive eats eat "
    "drinks drink costs cost takes take holds hold leaves leave moves moved asked asks closes opens starts ends hangs "
    "sits sit studies study sings enjoys enjoy loves love hates hate plans plan thinks think said says knows know "
    "goes go went came comes come got gets get made makes make bought buys sold chose chooses decided decides agreed "
    "rejected accepted declined joined left won lost passed failed visited visits reads read writes write wrote "
    "collects collect launches ships deploys deploy expires belongs contains contain serves supports handles stores "
    "keeps keep reports manages leads leaded led called named born married became becomes feels felt hopes tends "
    "learns learned learning started stopped finished booked planned broke repaired pays paid sends sent receives"
)
_FIRST_PERSON = _words("i my me mine myself i'm i've i'd i'll ich mein mich je mon yo")
_MONTH_OR_VERB = frozenset({"may", "march", "mar", "sat", "sun"})  # a date only beside a number or inside a sentence
_BARE_START = frozenset(word for word in _VERBS if word not in {"may", "will", "can"})  # "Likes tea": no subject named


@lru_cache(maxsize=512)
def _read(text: str) -> "_Text":
    return _Text.of(text)


def differences(one: str, other: str) -> frozenset[Difference]:
    """In what two texts differ; symmetric. Long texts that are not equal speak of different things."""
    if one == other:
        return frozenset()
    if max(len(one), len(other)) > LONG:
        return frozenset({Difference.SUBJECT, Difference.WORDING})
    a, b = _read(one), _read(other)
    found = set()
    if a.numbers != b.numbers:
        found.add(Difference.NUMBER)
    if a.dates != b.dates:
        found.add(Difference.DATE)
    if a.negations != b.negations or _are_opposed(a.words, b.words):
        found.add(Difference.NEGATION)
    if _swapped(a.head, b.stems, b.head, a.stems):
        found.add(Difference.SUBJECT)
    if _swapped(a.names, b.stems, b.names, a.stems):
        found.add(Difference.NAME)
    only_a, only_b = a.stems - b.stems, b.stems - a.stems
    if only_a and only_b:
        found.add(Difference.WORDING)
    elif only_a or only_b:
        found.add(Difference.DETAIL)
    return frozenset(found)


def is_first_person(text: str) -> bool:
    """Whether the speaker speaks of himself, so that the same words of another mean another thing."""
    return not _FIRST_PERSON.isdisjoint(_read(text[:LONG]).words)


def says_less(one: str, other: str) -> bool:
    """Whether one text has only a part of the significant words of the other."""
    return max(len(one), len(other)) <= LONG and _read(one).stems < _read(other).stems


@dataclass(frozen=True, slots=True)
class _Text:
    words: frozenset[str]
    stems: frozenset[str]  # significant words
    numbers: Counter[str]
    dates: frozenset[str]
    negations: int
    head: frozenset[str]  # stems of the subject
    names: frozenset[str]  # stems of capitalised words inside the sentence

    @classmethod
    def of(cls, text: str) -> "_Text":
        tokens = [match.group().replace("’", "'") for match in _WORD.finditer(text)]
        folded = [token.casefold() for token in tokens]
        words = frozenset(folded)
        return cls(
            words=words,
            stems=_stems(folded),
            numbers=Counter(number for word in folded if (number := _number(word)) is not None),
            dates=frozenset(date for word in _dated(tokens) if (date := _date(word)) is not None),
            negations=sum(_is_negation(word) for word in folded),
            head=_stems(_head(tokens, folded)),
            names=_stems(_names(tokens, text)),
        )


def _number(word: str) -> str | None:
    """A number in one form: thousands marks gone, words as digits; "one" may be an article."""
    if word in _NUMBERS:
        return None if word == "one" else _NUMBERS[word]
    digits = word.lstrip("-−")
    if not digits[:1].isdigit():
        return None
    sign = "-" if digits != word else ""
    if re.fullmatch(r"\d{1,3}(?:,\d{3})+(?:\.\d+)?", digits):
        digits = digits.replace(",", "")
    return sign + (digits.lstrip("0") or "0")


def _date(word: str) -> str | None:
    singular = word.removesuffix("'s").removesuffix("s")
    for form in (word, singular):
        if form in _DATES:
            form = _SAME_DATE.get(form, form)
            return form[:3] if form not in {"noon", "weekend", "weekday", "weekly"} else form
    return None


def _dated(tokens: list[str]) -> list[str]:
    """The words that may be dates: "May" may also be a verb and "sat" no Saturday."""
    return [
        token.casefold()
        for index, token in enumerate(tokens)
        if token.casefold() not in _MONTH_OR_VERB or (token[0].isupper() and index > 0)
    ]


def _is_negation(word: str) -> bool:
    return word in _NEGATIONS or word.endswith("n't")


def _stem(word: str) -> str:
    word = word.removesuffix("'s")
    return word if len(word) <= 3 else word.removesuffix("s")[:STEM]


def _stems(words: Iterable[str]) -> frozenset[str]:
    return frozenset(
        _stem(word)
        for word in words
        if word not in _STOP and not _is_negation(word) and _number(word) is None and _date(word) is None
    )


def _head(tokens: list[str], folded: list[str]) -> list[str]:
    """The words before the first verb; what follows a name counts as one. Without a verb: the first significant."""
    if folded and folded[0] in _BARE_START:
        return []
    for index, word in enumerate(folded[:HEAD]):
        after_name = index > 0 and tokens[index - 1][0].isupper() and not tokens[index - 1].endswith("'s")
        is_plain = tokens[index][0].islower()
        if index and (
            word in _VERBS or (after_name and is_plain and index - 1 > 0) or (_is_finite(word) and after_name)
        ):
            return folded[:index]
    return next(([word] for word in folded if word not in _STOP), [])


def _is_finite(word: str) -> bool:
    return word.endswith(("s", "ed")) and word not in _STOP


def _names(tokens: list[str], text: str) -> list[str]:
    starts = {match.start() for match in re.finditer(r"(?:^|(?<=[.!?]\s))\S", text)}
    found = []
    for match, token in zip(_WORD.finditer(text), tokens, strict=True):
        if token[0].isupper() and match.start() not in starts and token not in {"I", "I'm", "I've", "I'd"}:
            found.append(token.casefold())
    return found


def _swapped(a: frozenset[str], all_b: frozenset[str], b: frozenset[str], all_a: frozenset[str]) -> bool:
    """Whether each names something that the other does not speak of."""
    return bool(a - all_b) and bool(b - all_a)


def _are_opposed(a: frozenset[str], b: frozenset[str]) -> bool:
    only_a, only_b = a - b, b - a
    sides_a, sides_b = _sides(only_a), _sides(only_b)
    if any((pair, not side) in sides_b for pair, side in sides_a):
        return True
    return _is_negated(only_a, only_b) or _is_negated(only_b, only_a)


def _sides(words: Iterable[str]) -> set[tuple[int, bool]]:
    return {side for word in words for form in _forms(word) for side in _SIDES.get(form, ())}


def _forms(word: str) -> tuple[str, ...]:
    """A word and what it may be an inflection of."""
    return (word, *(word.removesuffix(ending) for ending in ("s", "es", "d", "ed", "ing") if word.endswith(ending)))


def _is_negated(plain: Iterable[str], other: frozenset[str]) -> bool:
    return any(prefix + word in other for word in plain if len(word) > 2 for prefix in _NEGATIVE_PREFIXES)


def _opposite_sides() -> dict[str, frozenset[tuple[int, bool]]]:
    sides: dict[str, set[tuple[int, bool]]] = {}
    for index, pair in enumerate(_OPPOSITES):
        for side, words in enumerate(pair):
            for word in words.split():
                sides.setdefault(word, set()).add((index, bool(side)))
    return {word: frozenset(found) for word, found in sides.items()}


_SIDES = _opposite_sides()
