"""Texts to unit vectors, locally.

Few texts, which somebody waits for, overtake many, which are embedded in small batches by all cores: a question asked
during an import finds both threads between two batches soon, and a third thread for itself at once.

Flow:    OnnxEmbedder.embed -> worker thread -> tokenizer -> ONNX session -> rows of length 1
Floor:   memory; may import base; the only importer of onnxruntime and tokenizers
Source:  memory spec 3.5; the model is sentence-transformers/all-MiniLM-L6-v2 with pooling and norm in the graph
"""

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import trio

from spacebot.base.allocator import give_memory_back
from spacebot.base.clock import monotonic_s
from spacebot.base.errors import EmbeddingError
from spacebot.base.figures import Spread
from spacebot.base.paths import bundled_model
from spacebot.memory.probe import why_not

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Vectors = NDArray[np.float32]

TIMES = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0)  # bounds of the histogram, seconds
DIMENSIONS = 384
MAX_TOKENS = 256  # what the model was trained to read; its tokenizer file says 128
BATCH = 8  # larger batches cost memory and, with padding, time: 144 texts/s by one thread, 130 with 32
LONG = 512  # characters from which a text goes alone, so that padding stays small
FEW = 8  # texts that somebody waits for; more are taken for an import
BULK_THREADS = 2  # 250 texts/s of 24 words instead of 144; more were not tried
GIVE_WAY_S = 0.5  # a batch of an import waits so long for questions, then it goes on beside them
ASK_AGAIN_S = 600.0  # a runtime that could not be used may have been repaired
GIVE_BACK_AFTER = 64  # batches of an import after which memory is given back


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


class CheckedEmbedder:
    """An embedder that is held to the dimensions that it states, and timed."""

    def __init__(self, embedder: Embedder) -> None:
        self._embedder = embedder
        self.times = Spread(TIMES)  # seconds of each batch
        self.name = embedder.name
        self.dimensions = embedder.dimensions

    async def embed(self, texts: Sequence[str]) -> "Vectors":
        """Turn texts into unit vectors; see `Embedder.embed`."""
        began = monotonic_s()
        vectors = await self._embedder.embed(texts)
        self.times.add(monotonic_s() - began)
        if vectors.shape != (len(texts), self.dimensions):
            raise EmbeddingError(
                f"the embedding model {self.name!r} gave {vectors.shape[-1]} numbers a text where "
                f"{self.dimensions} are stored; install the program anew"
            )
        return vectors


class OnnxEmbedder:
    """The bundled model, loaded at the first text; one session for the whole program.

    Args:
        folder: holds `model.onnx` and `tokenizer.json`; None means the bundled one.
        verdicts: file that says which native libraries run on this machine; None asks a child at each start.

    Limits: 256 tokens of a text are read, the rest is ignored.
    Time:   about 7 ms for 24 words on one core, 60 ms for 256 tokens; loading takes about 0.4 s, once.
    Cancel: running batches of at most 8 are finished, their results dropped.
    """

    def __init__(self, folder: Path | None = None, *, verdicts: Path | None = None) -> None:
        self._folder = folder
        self._verdicts = verdicts
        self._few_limit = trio.CapacityLimiter(1)
        self._bulk_limit = trio.CapacityLimiter(min(BULK_THREADS, _cores()))
        self._load_lock = trio.Lock()
        self._parts: tuple[Any, Any] | None = None
        self._reason: str | None = None  # why the runtime cannot be used
        self._ask_again_at = 0.0
        self._batches = 0
        self._asking = 0  # calls with few texts that are not answered yet
        self._nobody_asks = trio.Event()
        self._nobody_asks.set()
        self.name = "all-minilm-l6-v2"
        self.dimensions = DIMENSIONS

    async def embed(self, texts: Sequence[str]) -> "Vectors":
        """Turn texts into unit vectors; see `Embedder.embed`. Up to 8 texts overtake calls with more."""
        if not texts:
            return await trio.to_thread.run_sync(_restore, [], [], self.dimensions)
        if self._parts is None:
            await self._load_once()
        if len(texts) > FEW:
            return await self._embed_many(texts)
        self._asking += 1
        if self._nobody_asks.is_set():
            self._nobody_asks = trio.Event()
        try:
            return await trio.to_thread.run_sync(self._embed_few, texts, limiter=self._few_limit)
        finally:
            self._asking -= 1
            if not self._asking:
                self._nobody_asks.set()

    async def _embed_many(self, texts: Sequence[str]) -> "Vectors":
        order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
        batches = list(_batches(order, texts))
        pieces: list[Vectors | None] = [None] * len(batches)
        failures: list[EmbeddingError] = []
        waiting = iter(range(len(batches)))  # taken from by all workers

        async def work() -> None:
            for place in waiting:
                if failures:
                    return
                with trio.move_on_after(GIVE_WAY_S):
                    await self._nobody_asks.wait()
                part = [texts[index] for index in batches[place]]
                try:
                    pieces[place] = await trio.to_thread.run_sync(self._embed, part, limiter=self._bulk_limit)
                except EmbeddingError as error:
                    failures.append(error)
                self._batches += 1
                if self._batches % GIVE_BACK_AFTER == 0:
                    await trio.to_thread.run_sync(give_memory_back)

        async with trio.open_nursery() as nursery:
            for _ in range(min(int(self._bulk_limit.total_tokens), len(batches))):
                nursery.start_soon(work)
        if failures:
            raise failures[0]
        return await trio.to_thread.run_sync(_restore, pieces, batches, self.dimensions)

    def _embed_few(self, texts: Sequence[str]) -> "Vectors":
        order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
        batches = list(_batches(order, texts))
        pieces = [self._embed([texts[index] for index in batch]) for batch in batches]
        return _restore(pieces, batches, self.dimensions)

    def _embed(self, texts: list[str]) -> "Vectors":
        assert self._parts is not None
        return _run(self._parts, texts)

    async def _load_once(self) -> None:
        async with self._load_lock:
            if self._parts is not None:
                return
            folder = self._folder or bundled_model()
            if not await trio.to_thread.run_sync(_is_complete, folder):
                raise EmbeddingError(
                    f"the embedding model is missing in {str(folder)!r}; install the program anew, "
                    "or build the model with build/model/export.py"
                )
            if monotonic_s() >= self._ask_again_at:
                self._reason = await why_not("onnxruntime", self._verdicts, [str(folder)])
                self._ask_again_at = monotonic_s() + ASK_AGAIN_S
            if self._reason:
                raise EmbeddingError(f"the embedding model cannot be used: {self._reason}")
            self._parts = await trio.to_thread.run_sync(_load, folder)


def _is_complete(folder: Path) -> bool:
    return (folder / "model.onnx").is_file() and (folder / "tokenizer.json").is_file()


def _load(folder: Path) -> tuple[Any, Any]:
    """Session and tokenizer.

    Errors: EmbeddingError.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # it reads this while it is imported; later is too late
    with _translated():
        import onnxruntime
        from tokenizers import Tokenizer

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1  # several threads on a busy two-core machine were 15 times slower
        options.inter_op_num_threads = 1
        options.enable_cpu_mem_arena = False  # the arena keeps the peak of the longest batch for ever
        options.enable_mem_pattern = False
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"])
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        tokenizer.enable_truncation(MAX_TOKENS)
        tokenizer.enable_padding()
        give_memory_back()
        return session, tokenizer


def _run(parts: tuple[Any, Any], texts: list[str]) -> "Vectors":
    """One batch.

    Errors: EmbeddingError.
    """
    import numpy as np  # a start without embedding must not pay for it

    session, tokenizer = parts
    with _translated():
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


def child_main(words: Sequence[str]) -> int:
    """The trial run: one text through the model in a folder; see `probe.why_not`."""
    try:
        vector = _run(_load(Path(words[0])), ["trial"])[0]
    except EmbeddingError as error:
        print(error, file=sys.stderr)
        return 1
    return 0 if abs(float(vector @ vector) - 1) < 0.01 else 1


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


def _cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _restore(pieces: "Sequence[Vectors | None]", batches: list[list[int]], dimensions: int) -> "Vectors":
    """Put the rows back into the order of the texts."""
    import numpy as np

    vectors = np.zeros((sum(len(batch) for batch in batches), dimensions), np.float32)
    for piece, batch in zip(pieces, batches, strict=True):
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
