"""From what the searches found to one order: fusion by rank or by score, and what a memory's surroundings say.

A memory of a talk is understood by its neighbours: "Yes, twice!" answers what was asked before it. So each
candidate is judged with the memories next to it (three before, two after, of the same conversation and day), as
far as the searches found them. Everything is computed from candidates that the viewer may see.

Pure functions: no store, no clock.

Flow:    Candidate per memory -> features -> weighted sum; or fuse -> boosts
Floor:   memory; may import base
Source:  weights: softmax regression over LoCoMo's turns and facts; `python -m tests.bench recall`.
         Cormack, Clarke, Büttcher, Reciprocal Rank Fusion, SIGIR 2009
"""

import math
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import date, datetime
from functools import lru_cache
from typing import NamedTuple

from spacebot.base.clock import from_text
from spacebot.base.ids import MemoryId
from spacebot.memory.question import Question
from spacebot.memory.words import STOP_STEMS, fold, stems, words_of

RRF_K = 10  # measured on LoCoMo: evidence recall@10 .678 against .654 with the usual 60
BEFORE, AFTER = 3, 2  # neighbours; one before and one after cost 0.5 points, four and three 0.5
SEEDS = 30  # whose neighbours become candidates
READ_CHARACTERS = 2000  # of a memory, when its words are compared: a few long ones must not make a recall slow
SHORT_CHARACTERS = 400
DIVERSITY = 0.1  # what each memory taken from a talk costs the others of it; the best reaches about 12
DIVERSE = 40  # places within which that is done
_STEPS = (*range(-BEFORE, 0), *range(1, AFTER + 1))
SPEAKER_BOOST, DATE_BOOST = 1.25, 1.3  # with fusion by rank
_NAME = re.compile(r"[^\W\d_][\w.'\u2019-]*(?: [^\W\d_][\w.'\u2019-]*){0,2}")
_SPEAKER = re.compile(rf"({_NAME.pattern}):\s")
_NOBODY = frozenset[str]()
_TIME = stems(
    "yesterday today tonight tomorrow ago last next week weekend month year monday tuesday wednesday thursday friday "
    "saturday sunday recently soon since morning night summer winter spring fall january february march april may june "
    "july august september october november december"
)
_PROPER = re.compile(r'(?<=[a-z,] )[A-Z][a-z]+|"')


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """What each feature counts for. All features lie in 0..1 but `size`, which is a logarithm."""

    words: float = 1.41  # bm25, the best one as 1
    meaning: float = 1.10  # cosine, stretched over what was found
    cosine: float = 2.92
    around: float = 1.90  # mean cosine with the neighbours
    coverage: float = 2.74  # share of the question's words, weighed by rarity, in the memory or beside it
    talk: float = 1.57  # the best of the same conversation and day
    answers: float = 1.07  # what was found just before is a question, and this comes after it
    subject: float = 0.54  # said by, or about, the one whom the question asks about
    chosen_subject: float = 1.13  # the same where the question names several people
    stranger: float = -0.50  # by and about nobody whom the question names
    begins: float = 0.3  # begins with the name of the one asked about, and nobody is known to have said it
    away: float = -1.2  # of a conversation in which that one neither speaks nor is spoken of
    day: float = 4.74  # of the very day that the question names
    near: float = 4.52  # near that day, or in the month
    size: float = 0.68  # log(1 + words that mean something)
    question: float = -0.89  # ends with a question mark
    time: float = 1.33  # names a time, and the question asks when
    proper: float = 1.30  # holds a name or a title, and the question asks for one
    linked: float = 0.1  # share of a full walk's score


FEATURES = tuple(weight.name for weight in fields(Weights))


@dataclass(slots=True, kw_only=True)
class Candidate:
    """A memory that a search found, or the neighbour of one. Scores: the more, the better."""

    id: MemoryId
    content: str
    said_at: str  # moment in the form that rows keep
    importance: float = 0.5
    conversation: tuple[object, ...] = ()  # who may see it, and where it was said; neighbours share it
    place: int | None = None  # number within the conversation
    source: str | None = None
    subject: str | None = None
    bm25: float = 0.0  # 0: not found by words
    cosine: float | None = None  # None: not found by meaning
    walk: float = 0.0  # 0: not found by links
    found: list[str] = field(default_factory=list)  # names of the searches

    @property
    def created_at(self) -> datetime:
        return _moment(self.said_at)

    @property
    def day(self) -> date:
        """In UTC."""
        return date.fromisoformat(self.said_at[:10])

    @property
    def talk(self) -> tuple[object, ...]:
        """What was said in one conversation on one day."""
        return (self.said_at[:10], *self.conversation)

    @property
    def people(self) -> frozenset[str]:
        """Folded words of who said it, whom it is about."""
        text = reading(self.content)
        people = text.speaker if text.begins else _source_words(self.source or "")
        return people | _name_words(self.subject.rpartition(":")[2]) if self.subject else people


def people_of(content: str, source: str | None, ids: Iterable[str | None] = ()) -> frozenset[str]:
    """Folded words of the name of who says a text: "Ann: text", or a source that looks like a name.

    Args:
        ids: of people, as platforms write them, `platform:user` or `user`.
    """
    people = _name_words(match[1]) if (match := _SPEAKER.match(content)) else _source_words(source or "")
    for user in ids:
        if user:
            people |= _name_words(user.rpartition(":")[2])
    return people


class Reading(NamedTuple):
    """What the words of a text say about it, whatever the question."""

    stems: tuple[str, ...]  # without repeats; a set would take five times the room
    size: float  # log(1 + stems that mean something)
    names_time: bool
    asks: bool  # ends with a question mark
    begins: int  # behind "Name: "; 0 when nobody is said to speak
    speaker: frozenset[str]  # folded words of that name


def reading(text: str) -> Reading:
    """What a text says; its first `READ_CHARACTERS` count."""
    return _read_short(text) if len(text) <= SHORT_CHARACTERS else _read_long(text[:READ_CHARACTERS])


def _read(text: str) -> Reading:
    known = stems(text)
    match = _SPEAKER.match(text)
    return Reading(
        stems=tuple(known),
        size=math.log1p(len(known - STOP_STEMS)),
        names_time=not known.isdisjoint(_TIME),
        asks=text.rstrip().endswith("?"),
        begins=match.end() if match else 0,
        speaker=_name_words(match[1]) if match else _NOBODY,
    )


# The same memories are candidates again and again. A short one takes about 0.7 KiB, a long one up to 6.
_read_short = lru_cache(maxsize=10_000)(_read)
_read_long = lru_cache(maxsize=256)(_read)
_moment = lru_cache(maxsize=4096)(from_text)


@lru_cache(maxsize=1024)
def _name_words(name: str) -> frozenset[str]:
    return frozenset(words_of(name))


@lru_cache(maxsize=1024)
def _source_words(source: str) -> frozenset[str]:
    return _name_words(source) if _NAME.fullmatch(source) else frozenset()


def fuse(
    rankings: Sequence[Sequence[MemoryId]], *, k: int = RRF_K, votes: Sequence[float] | None = None
) -> dict[MemoryId, float]:
    """Combine ranked lists into one score per memory.

    Args:
        rankings: one list per leg, best first, no repeats within a list.
        k: rank offset; the larger, the less the first places stand out.
        votes: weight of each list; None means 1 each.

    Returns:
        Sum over lists of vote / (k + rank), rank from 1.

    Source: Cormack et al. 2009, section 2.
    """
    scores: dict[MemoryId, float] = {}
    for vote, ranking in zip(votes or [1.0] * len(rankings), rankings, strict=True):
        for place, key in enumerate(ranking, start=1):
            scores[key] = scores.get(key, 0.0) + vote / (k + place)
    return scores


def boost(
    question: Question, candidates: Mapping[MemoryId, Candidate], *, speaker: bool, dates: bool
) -> dict[MemoryId, float]:
    """Factors for scores that were fused by rank."""
    factors = {}
    for key, candidate in candidates.items():
        factor = SPEAKER_BOOST if speaker and question.subject and _is_by(candidate, question.subject) else 1.0
        factors[key] = factor * (DATE_BOOST if dates and fits_date(question, candidate) else 1.0)
    return factors


class Surroundings:
    """Normalised scores of candidates and of their neighbours, in lists: everything here is done for hundreds.

    Args:
        uses_neighbours: False judges each memory alone.
    """

    def __init__(self, candidates: Iterable[Candidate], *, uses_neighbours: bool = True) -> None:
        self.candidates = list(candidates)
        cosines = [c.cosine for c in self.candidates if c.cosine is not None]
        floor, ceiling = min(cosines, default=0.0), max(cosines, default=0.0)
        most = max((c.bm25 for c in self.candidates), default=0.0) or 1.0
        spread = (ceiling - floor) or 1.0
        self.words = [c.bm25 / most for c in self.candidates]
        self.cosines = [floor if c.cosine is None else c.cosine for c in self.candidates]
        self.meaning = [(cosine - floor) / spread for cosine in self.cosines]
        self.base = [words + meaning for words, meaning in zip(self.words, self.meaning, strict=True)]
        if ceiling == floor and cosines:  # a single one found by meaning, or all alike
            self.meaning = [float(c.cosine is not None) for c in self.candidates]
        numbers: dict[tuple[object, ...], int] = {}
        self.talks = [numbers.setdefault(c.talk, len(numbers)) for c in self.candidates]  # equal ones have one number
        self.near: list[list[int]] = [[] for _ in self.candidates]  # the known neighbours, as places in this list
        self.before: list[int | None] = [None] * len(self.candidates)
        if uses_neighbours:
            self._find_neighbours()

    def _find_neighbours(self) -> None:
        talks: dict[int, dict[int, int]] = defaultdict(dict)
        for index, candidate in enumerate(self.candidates):
            if candidate.place is not None:
                talks[self.talks[index]][candidate.place] = index
        for places in talks.values():
            if len(places) > 1:
                for place, index in places.items():
                    self.near[index] = [places[place + step] for step in _STEPS if place + step in places]
                    self.before[index] = places.get(place - 1)


def score(
    question: Question, surroundings: Surroundings, rarity: Mapping[str, float], weights: Weights
) -> dict[MemoryId, float]:
    """Weighted sums of the features of all candidates.

    Args:
        rarity: per stem of the question how much it says, such as an inverse document frequency.
    """
    columns = _columns(question, surroundings, rarity)
    scores = [0.0] * len(surroundings.candidates)
    for name in FEATURES:
        if (weight := getattr(weights, name)) and (column := columns.get(name)) is not None:
            scores = [score + weight * value for score, value in zip(scores, column, strict=True)]
    return {candidate.id: score for candidate, score in zip(surroundings.candidates, scores, strict=True)}


def features(
    question: Question, surroundings: Surroundings, rarity: Mapping[str, float]
) -> dict[MemoryId, dict[str, float]]:
    """What speaks for and against each candidate, by the names of `Weights`."""
    none = dict.fromkeys(FEATURES, 0.0)
    columns = _columns(question, surroundings, rarity)
    return {
        candidate.id: none | {name: column[index] for name, column in columns.items()}
        for index, candidate in enumerate(surroundings.candidates)
    }


def _columns(question: Question, surroundings: Surroundings, rarity: Mapping[str, float]) -> dict[str, Sequence[float]]:
    """Features by name, a value for each candidate; those left out are 0 for all of them.

    By columns, because most questions name no day and no person, and what they do not ask for then costs nothing.
    """
    candidates = surroundings.candidates
    texts = [reading(candidate.content) for candidate in candidates]
    columns: dict[str, Sequence[float]] = {
        "words": surroundings.words,
        "meaning": surroundings.meaning,
        "cosine": surroundings.cosines,
        **_beside(surroundings, texts, _Coverage(rarity)),
        "talk": _talks(surroundings),
        **_people(question, candidates),
        **_days(question, candidates),
        **_form(question, candidates, texts),
    }
    if full_walk := max((candidate.walk for candidate in candidates), default=0.0):
        columns["linked"] = [candidate.walk / full_walk for candidate in candidates]
    return columns


def _beside(surroundings: Surroundings, texts: Sequence[Reading], coverage: "_Coverage") -> dict[str, Sequence[float]]:
    """Features `around`, `coverage`, `answers`: each with the neighbours."""
    cosines, base = surroundings.cosines, surroundings.base
    marks = [coverage.mark(text.stems) for text in texts]
    around, shares, answers = list(cosines), [], [0.0] * len(texts)
    for index, near in enumerate(surroundings.near):
        together = marks[index]
        if near:
            total = cosines[index]
            for other in near:
                together |= marks[other]
                total += cosines[other]
            around[index] = total / (1 + len(near))
            if (before := surroundings.before[index]) is not None and texts[before].asks:
                answers[index] = base[before] / 2
        shares.append(coverage.share(together))
    return {"around": around, "coverage": shares, "answers": answers}


def _talks(surroundings: Surroundings) -> list[float]:
    """Feature `talk`."""
    best = [0.0] * (1 + max(surroundings.talks, default=0))
    for talk, value in zip(surroundings.talks, surroundings.base, strict=True):
        if value > best[talk]:
            best[talk] = value
    return [best[talk] / 2 for talk in surroundings.talks]


class _Coverage:
    """Which stems of a question a text has, as bits, and what share of the question they are."""

    def __init__(self, rarity: Mapping[str, float]) -> None:
        self._bits = {stem: 1 << place for place, stem in enumerate(sorted(rarity))}
        self._rarity = {bit: rarity[stem] for stem, bit in self._bits.items()}
        self._wanted = frozenset(rarity)
        self._total = sum(self._rarity.values()) or 1.0
        self._shares: dict[int, float] = {}

    def mark(self, known: Iterable[str]) -> int:
        return sum([self._bits[stem] for stem in self._wanted.intersection(known)])

    def share(self, marks: int) -> float:
        if (share := self._shares.get(marks)) is None:
            share = sum(rarity for bit, rarity in self._rarity.items() if marks & bit) / self._total
            self._shares[marks] = share
        return share


def spread_out(
    ordered: Sequence[MemoryId], scores: Mapping[MemoryId, float], talks: Mapping[MemoryId, object], step: float
) -> dict[MemoryId, float]:
    """Scores under which the first places do not all come from one talk, unless it is the only one.

    Each memory of the first `DIVERSE` places is lowered by `step` for each better one of its talk.
    """
    changed = dict(scores)
    used: dict[object, int] = defaultdict(int)
    alone = len({talks[key] for key in ordered[:DIVERSE]}) < 2
    for key in () if alone else ordered[:DIVERSE]:
        changed[key] = max(0.0, scores[key] - step * used[talks[key]])
        used[talks[key]] += 1
    return changed


def rarity_of(counts: Mapping[str, int], total: int) -> dict[str, float]:
    """Inverse document frequency: ln((N + 1) / (n + 0.5)) per stem, never below a tenth."""
    return {stem: max(0.1, math.log((total + 1) / (count + 0.5))) for stem, count in counts.items()}


def _is_by(candidate: Candidate, name: str) -> bool:
    """Said by this person; a text that nobody said is by whom it names."""
    return fold(name) in (candidate.people or words_of(candidate.content))


def _people(question: Question, candidates: Sequence[Candidate]) -> dict[str, list[float]]:
    """Features `subject` or `chosen_subject`, `stranger`, `begins`, `away`."""
    if not question.names:
        return {}
    names, subject = {fold(name) for name in question.names}, fold(question.subject or "")
    concerned, stranger, begins = [], [], []
    for candidate in candidates:
        people: Collection[str] = candidate.people
        is_first = False
        if not people:
            people = words = _words_if_named(candidate.content, names)
            is_first = words[:1] == [subject]
        is_concerned = subject in people
        concerned.append(float(is_concerned))
        stranger.append(float(not is_concerned and names.isdisjoint(people)))
        begins.append(float(is_first))
    homes = {candidate.conversation for candidate, is_home in zip(candidates, concerned, strict=True) if is_home}
    return {
        "subject" if len(question.names) == 1 else "chosen_subject": concerned,
        "stranger": stranger,
        "begins": begins,
        "away": [float(bool(homes) and candidate.conversation not in homes) for candidate in candidates],
    }


def _words_if_named(content: str, names: Collection[str]) -> list[str]:
    """The folded words of a text, if one of the names may be among them: mostly none is, which is seen much faster."""
    folded = fold(content)
    return words_of(content) if any(name in folded for name in names) else []


def fits_date(question: Question, candidate: Candidate) -> float:
    """How well the memory's day fits the days that the question names, 0 to 1."""
    if not question.spans:
        return 0.0
    day = candidate.day
    return max(span.fits(day) for span in question.spans)


def _days(question: Question, candidates: Sequence[Candidate]) -> dict[str, list[float]]:
    """Features `day`, `near`."""
    if not question.spans:
        return {}
    fits = [fits_date(question, candidate) for candidate in candidates]
    return {"day": [float(fit >= 1) for fit in fits], "near": [float(fit > 0) for fit in fits]}


def _form(question: Question, candidates: Sequence[Candidate], texts: Sequence[Reading]) -> dict[str, list[float]]:
    """Features `size`, `question`, `time`, `proper`."""
    found = {"size": [text.size for text in texts], "question": [float(text.asks) for text in texts]}
    if question.asks_when:
        found["time"] = [float(text.names_time) for text in texts]
    if question.asks_name:
        found["proper"] = [
            float(_PROPER.search(candidate.content, text.begins, READ_CHARACTERS) is not None)
            for candidate, text in zip(candidates, texts, strict=True)
        ]
    return found
