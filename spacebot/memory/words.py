"""Words as the search compares them: stop words left out, endings cut, irregular forms brought together.

The full text has its own stemmer; this one is for what is compared outside of it. It need not agree with that
one: question and memory go through the same function.

Floor:   memory
Source:  M. F. Porter, An algorithm for suffix stripping, Program 14(3), 1980: its first steps, shortened
"""

import re
import unicodedata
from collections.abc import Mapping
from types import MappingProxyType

WORD = re.compile(r"[^\W_]+")
KNOWN_STEMS = 20_000  # about 3 MiB
_STOP_WORDS = (
    "a about after again all also am an and any are as at be because been before being between both but by can could "
    "did do does doing done down during each few for from further get got had has have having he her here hers him his "
    "how i if in into is it its itself just let like made make many may me might more most much must my no nor not now "
    "of off on once only or other our out over own same shall she should so some such tell than that the their them "
    "then there these they this those through to too under until up us very was we were what when where which while "
    "who whom whose why will with would you your yours"
)
STOP_WORDS = frozenset(_STOP_WORDS.split())
_IRREGULAR = (
    "become became, begin began begun, bite bit bitten, blow blew blown, break broke broken, bring brought, build "
    "built, burn burnt, buy bought, catch caught, child children, choose chose chosen, come came, deal dealt, dig "
    "dug, draw drew drawn, dream dreamt, drive drove driven, eat ate eaten, fall fell fallen, feel felt, fight "
    "fought, find found, fly flew flown, foot feet, forget forgot forgotten, freeze froze frozen, give gave "
    "given, go went gone goes, grow grew grown, hang hung, hear heard, hide hid hidden, hold held, keep kept, "
    "know knew known, lead led, learn learnt, leave left, lend lent, life lives, lose lost, man men, mean meant, "
    "meet met, pay paid, ride rode ridden, ring rang rung, rise rose risen, run ran, say said, see saw seen, seek "
    "sought, sell sold, send sent, sew sewn, shake shook shaken, shine shone, shoot shot, show shown, sing sang "
    "sung, sink sank sunk, sit sat, sleep slept, speak spoke spoken, spend spent, stand stood, steal stole "
    "stolen, stick stuck, sting stung, strike struck, sweep swept, swim swam swum, swing swung, take took taken, "
    "teach taught, tear tore torn, think thought, throw threw thrown, understand understood, wake woke woken, "
    "wear wore worn, wife wives, win won, woman women, write wrote written"
)
_GROUPS = tuple(tuple(group.split()) for group in _IRREGULAR.split(","))
FORMS: Mapping[str, tuple[str, ...]] = MappingProxyType(  # every form to all forms of the same word
    {form: group for group in _GROUPS for form in group}
)
_SUFFIXES = ("ization", "ations", "ation", "ments", "ment", "ness", "fully", "ful", "ively", "ive", "ions", "ion", "ly")
_ASCII_WORDS = "".join(chr(code).lower() if chr(code).isalnum() else " " for code in range(128)).encode() + bytes(128)
_VOWEL = re.compile(r"[aeiouy]")


def fold(text: str) -> str:
    """Lower case without accents."""
    text = text.lower()
    if text.isascii():
        return text
    return "".join(char for char in unicodedata.normalize("NFKD", text) if not unicodedata.combining(char))


class _Stems(dict[str, str]):
    """Stems of the words met so far; twice as fast as `lru_cache`, of which a recall makes thousands of calls."""

    def __missing__(self, word: str) -> str:
        if len(self) >= KNOWN_STEMS:
            self.clear()
        self[word] = found = _stem(word)
        return found


_stems = _Stems()


def stem(word: str) -> str:
    """What is left of a folded word without its ending; the first form of an irregular word."""
    return _stems[word]


def _stem(word: str) -> str:
    if (forms := FORMS.get(word)) is not None:
        return forms[0]
    if len(word) < 4 or not word.isalpha():
        return word
    if word.endswith("ies"):
        word = word[:-3] + "y"
    elif word.endswith("s") and not word.endswith(("ss", "us")):
        word = word.removesuffix("s")
    if (forms := FORMS.get(word)) is not None:
        return forms[0]
    for ending in ("ing", "ed"):
        rest = word.removesuffix(ending)
        if rest != word and _VOWEL.search(rest) and (len(rest) > 2 or rest in FORMS):
            word = rest[:-1] if rest[-1] == rest[-2] and rest[-1] not in "lsz" else rest
            break
    else:
        for ending in _SUFFIXES:
            if word.endswith(ending) and len(word) - len(ending) > 3:
                word = word.removesuffix(ending)
                break
    for form in (word, word + "e"):
        if form in FORMS:
            return FORMS[form][0]
    return word[:-1] + "i" if word.endswith("y") else word.removesuffix("e")


def words_of(text: str) -> list[str]:
    """The folded words of a text, in order."""
    if text.isascii():  # as bytes: seven times as fast as the expression
        return text.encode().translate(_ASCII_WORDS).decode().split()
    return WORD.findall(fold(text))


def stems(text: str) -> frozenset[str]:
    """The stems of all words of a text."""
    return frozenset(map(_stems.__getitem__, words_of(text)))


STOP_STEMS = frozenset(stem(word) for word in STOP_WORDS)
