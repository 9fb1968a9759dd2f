"""How well cosine thresholds tell what two memories are to each other, on the labelled sample with the real model.

    python -m tests.bench thresholds

Prints precision and recall at the design's thresholds and at the best cuts, with and without the comparison of
words, the same per kind of pair, and the chance that two sentences picked at random exceed a threshold.
"""

from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
import trio
from numpy.typing import NDArray

from spacebot.memory.comparison import Difference, differences, says_less
from spacebot.memory.embedding import OnnxEmbedder
from spacebot.memory.linking import DUPLICATE, RELATED, UPDATES
from tests.memory.labelled_pairs import HELD_OUT, PAIRS, Pair, Verdict

Guard = Callable[[Pair], bool]

FLOOR = 0.97  # precision below which a cut is no use
CUTS = tuple(round(0.5 + 0.05 * step, 2) for step in range(10))
LINKED = frozenset(Verdict) - {Verdict.UNRELATED}
UPDATED = frozenset({Verdict.SAME, Verdict.NEWER})
MERGED = frozenset({Verdict.SAME})
NO_UPDATE = frozenset({Difference.SUBJECT, Difference.NAME, Difference.NEGATION})


def anything(_: Pair) -> bool:
    return True


def same_thing(pair: Pair) -> bool:
    return not differences(pair.older, pair.newer) & NO_UPDATE and not says_less(pair.newer, pair.older)


def same_words(pair: Pair) -> bool:
    return not differences(pair.older, pair.newer) - {Difference.DETAIL}


def table(
    name: str,
    pairs: Sequence[Pair],
    scores: Sequence[float],
    wanted: frozenset[Verdict],
    guard: Guard,
    cuts: Sequence[float] = CUTS,
) -> None:
    rows = [(pair, score, guard(pair)) for pair, score in zip(pairs, scores, strict=True)]
    total = sum(pair.verdict in wanted for pair in pairs)
    best: tuple[float, float] | None = None
    for cut in cuts:
        taken = [pair for pair, score, passes in rows if passes and score > cut]
        right = sum(pair.verdict in wanted for pair in taken)
        precision, recall = right / len(taken) if taken else 1.0, right / total
        if precision >= FLOOR:
            best = max(best or (recall, cut), (recall, cut))
        kinds = Counter(str(pair.verdict) for pair in taken)
        print(f"{name} > {cut:.2f}: precision {precision:.2f}, recall {recall:.2f}  {dict(kinds)}")
    if len(cuts) > 1:
        found = "none" if best is None else f"{best[1]:.2f} (recall {best[0]:.2f})"
        print(f"{name}: best cut with precision {FLOOR}: {found}")


def chance(vectors: NDArray[np.float32]) -> None:
    """Sentences of different pairs are mostly unrelated, though persons and places recur."""
    scores = vectors @ vectors.T
    rows, columns = np.triu_indices(len(vectors), 1)
    apart = rows // 2 != columns // 2
    others = scores[rows[apart], columns[apart]]
    for cut in CUTS:
        print(f"two sentences of different pairs > {cut:.2f}: {float(np.mean(others > cut)):.2%} of {len(others)}")


def spread(pairs: Sequence[Pair], scores: Sequence[float]) -> None:
    for verdict in Verdict:
        own = [score for pair, score in zip(pairs, scores, strict=True) if pair.verdict is verdict]
        low, middle, high = np.quantile(own, [0.1, 0.5, 0.9])
        print(f"{verdict}: cosine p10 {low:.2f}, p50 {middle:.2f}, p90 {high:.2f} ({len(own)} pairs)")


async def main() -> None:
    embedder = OnnxEmbedder()

    async def read(pairs: Sequence[Pair]) -> tuple[NDArray[np.float32], list[float]]:
        vectors = await embedder.embed([text for pair in pairs for text in (pair.older, pair.newer)])
        return vectors, [float(score) for score in np.einsum("ij,ij->i", vectors[::2], vectors[1::2])]

    vectors, scores = await read(PAIRS)
    print(f"model {embedder.name}, {len(PAIRS)} pairs; in force: {RELATED}, {UPDATES}, {DUPLICATE}")
    spread(PAIRS, scores)
    table("related", PAIRS, scores, LINKED, anything)
    table("updates, cosine alone", PAIRS, scores, UPDATED, anything)
    table("updates, words compared", PAIRS, scores, UPDATED, same_thing)
    table("merge, cosine alone", PAIRS, scores, MERGED, anything)
    table("merge, words compared", PAIRS, scores, MERGED, same_words)
    chance(vectors)
    _, scores = await read(HELD_OUT)
    for name, wanted, guard, cuts in (
        ("related", LINKED, anything, (RELATED, 0.7)),
        ("updates, cosine alone", UPDATED, anything, (UPDATES, 0.9)),
        ("updates, words compared", UPDATED, same_thing, (UPDATES, 0.9)),
        ("merge, cosine alone", MERGED, anything, (DUPLICATE,)),
        ("merge, words compared", MERGED, same_words, (DUPLICATE,)),
    ):
        table(f"held out ({len(HELD_OUT)} pairs), {name}", HELD_OUT, scores, wanted, guard, cuts)


if __name__ == "__main__":
    trio.run(main)
