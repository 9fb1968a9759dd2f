"""An embedder without a model: texts that share words are near to each other."""

import hashlib
import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from spacebot.base.errors import EmbeddingError


class FakeEmbedder:
    """Each word is a fixed random direction; a text is the sum of its words, scaled to length 1.

    Args:
        dimensions: length of a vector.

    Set `fails` to make every call fail, as with a missing model.
    """

    def __init__(self, dimensions: int = 384, name: str = "fake") -> None:
        self.name = name
        self.dimensions = dimensions
        self.fails = False
        self.calls: list[tuple[str, ...]] = []

    async def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        self.calls.append(tuple(texts))
        if self.fails:
            raise EmbeddingError("the embedding model is missing; this is a test")
        vectors = np.zeros((len(texts), self.dimensions), np.float32)
        for index, text in enumerate(texts):
            for word in re.findall(r"\w+", text.casefold()) or ["\0"]:
                seed = int.from_bytes(hashlib.sha256(word.encode()).digest()[:8], "big")
                vectors[index] += np.random.default_rng(seed).standard_normal(self.dimensions, np.float32)
            vectors[index] /= np.linalg.norm(vectors[index])
        return vectors
