"""What a question names: words worth looking for, people, days, and what kind of answer it wants.

Nothing here knows a store; who of the capitalised words is a person, the caller finds out and says.

Flow:    read -> Question; known people -> Question.about -> meaning, subject
Floor:   memory
Source:  measured on LoCoMo: `python -m tests.bench recall`
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import date, timedelta

from spacebot.memory.words import FORMS, STOP_WORDS, WORD, fold, stem

MAX_TERMS = 32  # of a question; a pasted page is no question
MAX_NAMES = 4
_MONTH_NAMES = "(January|February|March|April|May|June|July|August|September|October|November|December)"
_MONTH = {name: place for place, name in enumerate(_MONTH_NAMES.strip("()").split("|"), start=1)}
_SEASONS = {"spring": (3, 5), "summer": (6, 8), "autumn": (9, 11), "fall": (9, 11)}
_DATES = (
    re.compile(r"\b(?P<y>(?:19|20)\d\d)-(?P<m>\d\d)-(?P<d>\d\d)\b"),
    re.compile(rf"\b(?P<d>\d{{1,2}})(?:st|nd|rd|th)?(?: of)? (?P<m>{_MONTH_NAMES})\b(?:,? ?(?P<y>\d{{4}}))?"),
    re.compile(rf"\b(?P<m>{_MONTH_NAMES}) (?P<d>\d{{1,2}})(?:st|nd|rd|th)?\b(?:,? ?(?P<y>\d{{4}}))?"),
    re.compile(rf"\b(?P<m>{_MONTH_NAMES}),? (?P<y>\d{{4}})\b"),
    re.compile(rf"(?<=\s)(?P<m>{_MONTH_NAMES})\b"),  # not as the first word: "May I ask"
    re.compile(r"\b(?P<s>spring|summer|autumn|fall)(?: of)? (?P<y>\d{4})\b", re.IGNORECASE),
)
_RELATIVE = re.compile(r"\b(today|yesterday|last week|last month|this week|this month)\b", re.IGNORECASE)
_ASKS_WHEN = re.compile(r"when\b|how long\b|(?:on |in )?(?:what|which) (?:year|month|day|date|week)\b", re.IGNORECASE)
_ASKS_NAME = re.compile(
    r"(?:where|who|whose|which)\b|what\b.*\b(?:names?|titles?|country|countries|city|cities|state|states)\b",
    re.IGNORECASE,
)
_EXACT_DAYS, _NEAR_DAYS = 1, 10  # a talk about a thing is seldom on its very day


@dataclass(frozen=True, slots=True)
class Span:
    """A day, or several; `year` None means any year. Both ends belong to it."""

    year: int | None
    first: tuple[int, int]  # month, day
    last: tuple[int, int]

    def fits(self, day: date) -> float:
        """1 on the very day, 0.5 near it or anywhere in a longer span, else 0."""
        if self.first == self.last:
            month, number = self.first
            start = date(day.year if self.year is None else self.year, month, 1)
            away = abs((start + timedelta(days=number - 1) - day).days)  # 29 February of any year is a day, too
            return 1.0 if away <= _EXACT_DAYS else 0.5 if away <= _NEAR_DAYS else 0.0
        is_inside = self.first <= (day.month, day.day) <= self.last
        return 0.5 if is_inside and self.year in (None, day.year) else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A question, taken apart. `terms` are for the full text, `stems` are compared with the texts of memories."""

    text: str
    meaning: str  # what is embedded
    terms: tuple[str, ...]
    names: tuple[str, ...]  # words in lower case that may name people, until `about` was told who does
    subject: str | None = None  # the person asked about, when people are named
    spans: tuple[Span, ...] = ()
    asks_when: bool = False
    asks_name: bool = False

    @property
    def stems(self) -> tuple[str, ...]:
        """Stems of the terms that name nobody; of all terms when nothing else is there."""
        others = [term for term in self.terms if term not in self.names]
        return tuple(dict.fromkeys(stem(fold(term)) for term in others or self.terms))

    def about(self, people: Sequence[str], *, keep_names: bool = False) -> "Question":
        """The question, knowing which of its names are people.

        Their names leave what is embedded: texts that address a person would win by the name alone.

        Args:
            people: those of `names` that name somebody.
            keep_names: leave the meaning as it is.
        """
        people = tuple(name for name in self.names if name in people)
        meaning = self.text if keep_names else without(self.text, people)
        return replace(self, names=people, subject=_subject(self.text, people), meaning=meaning)


def read(text: str, today: date) -> Question:
    """Take a question apart.

    Args:
        today: what "yesterday" and "last week" count from.
    """
    return Question(
        text=text,
        meaning=text,
        terms=tuple(terms_of(text)),
        names=tuple(_possible_names(text)),
        spans=tuple(spans_of(text, today)),
        asks_when=_ASKS_WHEN.match(text) is not None,
        asks_name=_ASKS_NAME.match(text) is not None,
    )


def terms_of(text: str) -> list[str]:
    """The words of a question that are worth looking for, in order, without repeats.

    Stop words are left out, except where a capital inside the sentence says that they are names ("Will", "May").
    When nothing else is there, the stop words are what was asked for.
    """
    words = [match.group() for match in WORD.finditer(text)]
    kept = [
        word
        for place, word in enumerate(words)
        if word.lower() not in STOP_WORDS or (place > 0 and len(word) > 1 and word.istitle())
    ]
    return list(dict.fromkeys(word.lower() for word in kept or words))[:MAX_TERMS]


def match_expression(text: str) -> str:
    """A full-text expression: any of the words of a question; empty when it has none.

    Each word is quoted and consists of letters and digits only, so nothing in `text` can be an operator.
    """
    return " OR ".join(term_expression(term) for term in terms_of(text))


def term_expression(term: str) -> str:
    """One word of `terms_of` in full-text syntax, with its irregular forms: the stemmer does not know them."""
    return " OR ".join(f'"{form}"' for form in FORMS.get(term, (term,)))


def without(text: str, names: Sequence[str]) -> str:
    """A question without people's names; unchanged when nothing worth looking for would be left."""
    if not names:
        return text
    shorter = re.sub(
        rf"\b(?:{'|'.join(re.escape(name) for name in names)})(?:['\u2019]s)?(?!\w)", "", text, flags=re.IGNORECASE
    )
    shorter = " ".join(shorter.split())
    left = [word for word in WORD.findall(shorter) if word.lower() not in STOP_WORDS]
    return shorter if left else text


def spans_of(text: str, today: date) -> list[Span]:
    """The days, months and seasons that a text names; what is no date of the calendar is left out."""
    taken: list[tuple[int, int]] = []
    spans = []
    for pattern in _DATES:
        for match in pattern.finditer(text):
            if any(match.start() < end and start < match.end() for start, end in taken):
                continue
            if (span := _span(match.groupdict())) is not None:
                taken.append(match.span())
                spans.append(span)
    spans += [_relative(match[0].lower(), today) for match in _RELATIVE.finditer(text)]
    return spans


def _span(parts: dict[str, str | None]) -> Span | None:
    year = int(text) if (text := parts.get("y")) else None
    if parts.get("s"):
        first, last = _SEASONS[str(parts["s"]).lower()]
        return Span(year, (first, 1), (last, 31))
    word = str(parts["m"])
    month = int(word) if word.isdigit() else _MONTH[word]
    if not parts.get("d"):
        return Span(year, (month, 1), (month, 31))
    day = int(str(parts["d"]))
    try:
        date(2000 if year is None else year, month, day)
    except ValueError:
        return None
    return Span(year, (month, day), (month, day))


def _relative(word: str, today: date) -> Span:
    if word == "today":
        return _days(today, today)
    if word == "yesterday":
        return _days(today - timedelta(days=1), today - timedelta(days=1))
    if word.endswith("week"):
        monday = today - timedelta(days=today.weekday() + (7 if word.startswith("last") else 0))
        return _days(monday, monday + timedelta(days=6))
    last = today.replace(day=1) - timedelta(days=1) if word.startswith("last") else today
    return Span(last.year, (last.month, 1), (last.month, 31))


def _days(first: date, last: date) -> Span:
    if first.year != last.year:  # around New Year a week is cut to the part that its first day lies in
        last = date(first.year, 12, 31)
    return Span(first.year, (first.month, first.day), (last.month, last.day))


def _possible_names(text: str) -> list[str]:
    """Words with a capital that are no stop words, in lower case; all words when a question has no capitals at all."""
    words = [match.group() for match in WORD.finditer(text)]
    rest = words[1:]
    names = [
        word
        for place, word in enumerate(words)
        if word[0].isupper() and (word.lower() not in STOP_WORDS or (place > 0 and len(word) > 1 and word.istitle()))
    ]
    if not names and not any(word[0].isupper() and word != "I" for word in rest):
        names = [word for word in words if word.lower() not in STOP_WORDS]
    return list(dict.fromkeys(name.lower() for name in names))[: 2 * MAX_NAMES]


def _subject(text: str, people: Sequence[str]) -> str | None:
    """The first person who does not only own something: "What did Jon say about Gina's shop?" asks about Jon."""
    if len(people) < 2:
        return people[0] if people else None
    for name in people:
        if not re.search(rf"\b{re.escape(name)}['\u2019]s", text, re.IGNORECASE):
            return name
    return people[0]
