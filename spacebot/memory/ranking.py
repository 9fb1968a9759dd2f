"""From what the searches found to one order: fusion by rank or by score, and what a memory's surroundings say.

A memory of a talk is understood by its neighbours: "Yes, twice!" answers what was asked before it. So each
candidate is judged with the memories next to it (three before, two after, of the same conversation and day), as
far as the searches found them. Everything is computed from candidates that the viewer may see.

Pure functions: no store, no clock.

Flow:    Candidate per memory -> shortlist -> features -> weighted sum; or fuse -> boosts
Floor:   memory; may import base
Source:  weights: softmax regression over LoCoMo's turns and facts; `python -m tests.bench recall`.
         Cormack, Clarke, Büttcher, Reciprocal Rank Fusion, SIGIR 2009
"""

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime

from spacebot.base.clock import from_text
from spacebot.base.ids import MemoryId
from spacebot.memory.question import Question
from spacebot.memory.words import STOP_STEMS, WORD, fold, stems

RRF_K = 10  # measured on LoCoMo: evidence recall@10 .678 against .654 with the usual 60
BEFORE, AFTER = 3, 2  # neighbours; one before and one after cost 0.5 points, four and three 0.5
SHORTLIST = 100  # candidates whose words are looked at
SEEDS = 30  # whose neighbours become candidates
DIVERSITY = 0.1  # what each memory taken from a talk costs the others of it; the best reaches about 12
DIVERSE = 40  # places within which that is done
_STEPS = (*range(-BEFORE, 0), *range(1, AFTER + 1))
SPEAKER_BOOST, DATE_BOOST = 1.25, 1.3  # with fusion by rank
_NAME = re.compile(r"[^\W\d_][\w.'\u2019-]*(?: [^\W\d_][\w.'\u2019-]*){0,2}")
_SPEAKER = re.compile(rf"({_NAME.pattern}):\s")
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
    day: float = 4.74  # of the very day that the question names
    near: float = 4.52  # near that day, or in the month
    size: float = 0.68  # log(1 + words that mean something)
    question: float = -0.89  # ends with a question mark
    time: float = 1.33  # names a time, and the question asks when
    proper: float = 1.30  # holds a name or a title, and the question asks for one
    linked: float = 0.1  # share of a full walk's score


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
        return from_text(self.said_at)

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
        return people_of(self.content, self.source, (self.subject,))


def people_of(content: str, source: str | None, ids: Iterable[str | None] = ()) -> frozenset[str]:
    """Folded words of the name of who says a text: "Ann: text", or a source that looks like a name.

    Args:
        ids: of people, as platforms write them, `platform:user` or `user`.
    """
    names = []
    if match := _SPEAKER.match(content):
        names.append(match[1])
    elif source and _NAME.fullmatch(source):
        names.append(source)
    names += [user.rpartition(":")[2] for user in ids if user]
    return frozenset(word for name in names for word in WORD.findall(fold(name)))


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
    """Normalised scores of candidates and of their neighbours.

    Args:
        uses_neighbours: False judges each memory alone.
    """

    def __init__(self, candidates: Iterable[Candidate], *, uses_neighbours: bool = True) -> None:
        self.candidates = list(candidates)
        cosines = [c.cosine for c in self.candidates if c.cosine is not None]
        self.floor, ceiling = min(cosines, default=0.0), max(cosines, default=0.0)
        most = max((c.bm25 for c in self.candidates), default=0.0)
        spread = ceiling - self.floor
        self.words = {c.id: c.bm25 / most if most else 0.0 for c in self.candidates}
        self.cosines = {c.id: self.floor if c.cosine is None else c.cosine for c in self.candidates}
        self.meaning = {key: (cosine - self.floor) / spread if spread else 0.0 for key, cosine in self.cosines.items()}
        self.base = {key: self.words[key] + self.meaning[key] for key in self.words}
        if spread == 0 and cosines:  # a single one found by meaning, or all alike
            self.meaning = {c.id: float(c.cosine is not None) for c in self.candidates}
        self.talks = {c.id: c.talk for c in self.candidates}
        places = {(self.talks[c.id], c.place): c for c in self.candidates if uses_neighbours and c.place is not None}
        self._before: dict[MemoryId, Candidate] = {}
        self._around: dict[MemoryId, list[Candidate]] = {c.id: [] for c in self.candidates}
        for (talk, place), candidate in places.items():
            for step in _STEPS:
                if (near := places.get((talk, (place or 0) + step))) is not None:
                    self._around[candidate.id].append(near)
                    if step == -1:
                        self._before[candidate.id] = near

    def around(self, candidate: Candidate) -> list[Candidate]:
        """The known neighbours."""
        return self._around[candidate.id]

    def before(self, candidate: Candidate) -> Candidate | None:
        """The one just before, if it is known."""
        return self._before.get(candidate.id)

    def shortlist(self, limit: int) -> list[Candidate]:
        """The most promising by scores alone, ties by id; what a walk found always stays."""
        promise = {}
        for candidate in self.candidates:
            near = self.around(candidate)
            words = 2 * self.words[candidate.id] + sum(self.words[other.id] for other in near)
            meaning = self.meaning[candidate.id] + sum(self.meaning[other.id] for other in near)
            promise[candidate.id] = self.base[candidate.id] + words / 4 + meaning / (1 + len(near)) + candidate.walk
        ordered = sorted(self.candidates, key=lambda c: (-promise[c.id], c.id))
        return ordered[:limit] + [c for c in ordered[limit:] if c.walk]


def score(
    question: Question, surroundings: Surroundings, rarity: Mapping[str, float], weights: Weights
) -> dict[MemoryId, float]:
    """Weighted sums of features over the shortlist.

    Args:
        rarity: per stem of the question how much it says, such as an inverse document frequency.
    """
    found = features(question, surroundings, rarity)
    return {
        key: sum(getattr(weights, name) * value for name, value in values.items() if value)
        for key, values in found.items()
    }


def features(
    question: Question, surroundings: Surroundings, rarity: Mapping[str, float]
) -> dict[MemoryId, dict[str, float]]:
    """What speaks for and against each memory of the shortlist, by the names of `Weights`."""
    listed = surroundings.shortlist(SHORTLIST)
    texts = {candidate.id: candidate for candidate in listed}
    texts |= {near.id: near for candidate in listed for near in surroundings.around(candidate)}
    known = {key: stems(candidate.content) for key, candidate in texts.items()}
    talks: dict[tuple[object, ...], float] = defaultdict(float)
    for candidate in listed:
        talk = surroundings.talks[candidate.id]
        talks[talk] = max(talks[talk], surroundings.base[candidate.id])
    wanted = frozenset(rarity)
    hits = {key: wanted & words for key, words in known.items()}
    total = sum(rarity.values()) or 1.0
    full_walk = max((candidate.walk for candidate in listed), default=0.0) or 1.0
    result = {}
    for candidate in listed:
        key = candidate.id
        near = surroundings.around(candidate)
        together = hits[key].union(*(hits[other.id] for other in near))
        before = surroundings.before(candidate)
        cosines = [surroundings.cosines[key], *(surroundings.cosines[other.id] for other in near)]
        result[key] = {
            "words": surroundings.words[key],
            "meaning": surroundings.meaning[key],
            "cosine": surroundings.cosines[key],
            "around": sum(cosines) / len(cosines),
            "coverage": sum(rarity[stem] for stem in sorted(together)) / total,
            "talk": talks[surroundings.talks[key]] / 2,
            "answers": surroundings.base[before.id] / 2 if before and before.content.rstrip().endswith("?") else 0.0,
            **_people(question, candidate),
            **_date_features(question, candidate),
            **_form(question, candidate, known[key]),
            "linked": candidate.walk / full_walk,
        }
    return result


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
    return fold(name) in (candidate.people or WORD.findall(fold(candidate.content)))


def _people(question: Question, candidate: Candidate) -> dict[str, float]:
    if not question.names:
        return {}
    people = candidate.people or frozenset(WORD.findall(fold(candidate.content)))
    if question.subject and fold(question.subject) in people:
        return {"subject" if len(question.names) == 1 else "chosen_subject": 1.0}
    return {} if any(fold(name) in people for name in question.names) else {"stranger": 1.0}


def fits_date(question: Question, candidate: Candidate) -> float:
    """How well the memory's day fits the days that the question names, 0 to 1."""
    if not question.spans:
        return 0.0
    day = candidate.day
    return max(span.fits(day) for span in question.spans)


def _date_features(question: Question, candidate: Candidate) -> dict[str, float]:
    fit = fits_date(question, candidate)
    return {"day": float(fit >= 1), "near": float(fit > 0)} if fit else {}


def _form(question: Question, candidate: Candidate, words: frozenset[str]) -> dict[str, float]:
    text = candidate.content
    if match := _SPEAKER.match(text):
        text = text[match.end() :]
    values = {"size": math.log1p(len(words - STOP_STEMS)), "question": float(text.rstrip().endswith("?"))}
    if question.asks_when:
        values["time"] = float(not words.isdisjoint(_TIME))
    if question.asks_name:
        values["proper"] = float(_PROPER.search(text) is not None)
    return values
