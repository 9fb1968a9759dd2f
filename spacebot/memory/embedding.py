"""Texts to unit vectors, locally.

Flow:    OnnxEmbedder.embed -> worker thread -> tokenizer -> ONNX session -> rows of length 1
Floor:   memory; may import base; the only importer of onnxruntime and tokenizers
Source:  memory spec 3.5; the model is sentence-transformers/all-MiniLM-L6-v2 with pooling and norm in the graph
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import trio

from spacebot.base.allocator import give_memory_back
from spacebot.base.errors import EmbeddingError
from spacebot.base.paths import bundled_model

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Vectors = NDArray[np.float32]

DIMENSIONS = 384
MAX_TOKENS = 256  # what the model was trained to read; its tokenizer file says 128
BATCH = 8  # larger batches cost memory and, with padding, time: two cores embed one by one as fast
LONG = 512  # characters from which a text goes alone, so that padding stays small


class Embedder(Protocol):
    """Turns texts into vectors whose cosine says how near their meanings are."""

    @property
    def name(self) -> str:
        """Names model and version; stored vectors of another name are computed anew."""
        ...

    @property
    def dimensions(self) -> int:
        """Length of a vector."""
        ...

    async def embed(self, texts: Sequence[str]) -> "Vectors":
        """Turn texts into unit vectors.

        Shapes: n texts give (n, dimensions) float32, each row of length 1; n = 0 gives (0, dimensions).
        Errors: EmbeddingError.
        """
        ...


class OnnxEmbedder:
    """The bundled model, loaded at the first text; one session for the whole program.

    Args:
        folder: holds `model.onnx` and `tokenizer.json`; None means the bundled one.

    Limits: 256 tokens of a text are read, the rest is ignored.
    Time:   about 10 ms for a short text on one core, 60 ms for 256 tokens; loading takes about 0.4 s, once.
    Cancel: a running batch of at most 8 is finished, its result dropped.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder
        self._limiter = trio.CapacityLimiter(1)
        self._parts: tuple[Any, Any] | None = None
        self.name = "all-minilm-l6-v2"
        self.dimensions = DIMENSIONS

    async def embed(self, texts: Sequence[str]) -> "Vectors":
        """Turn texts into unit vectors; see `Embedder.embed`."""
        order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
        batches = list(_batches(order, texts))
        pieces = [
            await trio.to_thread.run_sync(self._embed, [texts[index] for index in batch], limiter=self._limiter)
            for batch in batches or [[]]
        ]
        return await trio.to_thread.run_sync(_restore, pieces, batches, self.dimensions)

    def _embed(self, texts: list[str]) -> "Vectors":
        import numpy as np  # a start without embedding must not pay for it

        if not texts:
            return np.zeros((0, self.dimensions), np.float32)
        with _translated():
            session, tokenizer = self._parts = self._parts or self._load()
            encoded = tokenizer.encode_batch(texts)
            ids = np.array([item.ids for item in encoded], np.int64)
            given = {
                "input_ids": ids,
                "attention_mask": np.array([item.attention_mask for item in encoded], np.int64),
                "token_type_ids": np.zeros_like(ids),
            }
            wanted = {node.name: given[node.name] for node in session.get_inputs()}
            (vectors,) = session.run(["embedding"], wanted)
            if len(texts[-1]) >= LONG:
                give_memory_back()
        result: Vectors = np.ascontiguousarray(vectors, np.float32)
        return result

    def _load(self) -> tuple[Any, Any]:
        """Runs in the one thread that the limiter lets through, so the model is never loaded twice."""
        folder = self._folder or bundled_model()
        model, words = folder / "model.onnx", folder / "tokenizer.json"
        if not (model.is_file() and words.is_file()):
            raise EmbeddingError(
                f"the embedding model is missing in {str(folder)!r}; install the program anew, "
                "or build the model with build/model/export.py"
            )
        os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # it reads this while it is imported; later is too late
        import onnxruntime
        from tokenizers import Tokenizer

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1  # several threads on a busy two-core machine were 15 times slower
        options.inter_op_num_threads = 1
        options.enable_cpu_mem_arena = False  # the arena keeps the peak of the longest batch for ever
        options.enable_mem_pattern = False
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
        tokenizer = Tokenizer.from_file(str(words))
        tokenizer.enable_truncation(MAX_TOKENS)
        tokenizer.enable_padding()
        give_memory_back()
        return session, tokenizer


def _batches(order: Sequence[int], texts: Sequence[str]) -> Iterator[list[int]]:
    """Neighbours in length together, long texts alone."""
    batch: list[int] = []
    for index in order:
        if batch and (len(batch) == BATCH or len(texts[index]) >= LONG):
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def _restore(pieces: "list[Vectors]", batches: list[list[int]], dimensions: int) -> "Vectors":
    """Put the rows back into the order of the texts."""
    import numpy as np

    vectors = np.zeros((sum(len(piece) for piece in pieces), dimensions), np.float32)
    for piece, batch in zip(pieces, batches, strict=False):
        vectors[batch] = piece
    return vectors


@contextmanager
def _translated() -> Iterator[None]:
    """Errors of the runtime as ours."""
    try:
        yield
    except EmbeddingError:
        raise
    except Exception as error:  # boundary: embedding runtime
        raise EmbeddingError(
            f"the embedding model failed ({type(error).__name__}); install the program anew if it goes on"
        ) from error
