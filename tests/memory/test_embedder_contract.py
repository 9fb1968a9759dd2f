"""What every embedder promises, held against the real model and its fake."""

from pathlib import Path

import numpy as np
import pytest
import trio
import trio.testing

from spacebot.base.errors import EmbeddingError
from spacebot.base.paths import bundled_model
from spacebot.memory.embedding import Embedder, OnnxEmbedder
from tests.fakes.fake_embedder import FakeEmbedder

TEXTS = [
    "The cat sleeps on the sofa.",
    "A cat is sleeping on the sofa!",
    "Invoices are due on Friday.",
    "Grüße, 世界 🎉",
]
needs_model = pytest.mark.skipif(
    not (bundled_model() / "model.onnx").is_file(), reason="the model is not built: build/model/export.py"
)


class RealEmbedder(OnnxEmbedder):
    """The bundled model; whether its runtime works is found out once for all tests."""

    trials: Path | None = None

    def __init__(self) -> None:
        super().__init__(verdicts=self.trials)


@pytest.fixture(autouse=True)
def _one_trial(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RealEmbedder, "trials", tmp_path_factory.getbasetemp() / "native.json")


both = pytest.mark.parametrize("make", [FakeEmbedder, pytest.param(RealEmbedder, marks=needs_model)])


@both
async def test_vectors_have_length_one_and_the_stated_shape(make: type[Embedder]) -> None:
    embedder = make()
    vectors = await embedder.embed(TEXTS)

    assert vectors.shape == (len(TEXTS), embedder.dimensions)
    assert vectors.dtype == np.float32
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-4)


@both
async def test_no_text_gives_no_vector(make: type[Embedder]) -> None:
    embedder = make()
    assert (await embedder.embed([])).shape == (0, embedder.dimensions)


@both
@pytest.mark.parametrize("text", ["", " ", "\n", "?!", "word " * 5000, "\ud83d"])
async def test_odd_texts_have_vectors_too(make: type[Embedder], text: str) -> None:
    (vector,) = await make().embed([text.encode("utf-8", "replace").decode()])
    assert np.isfinite(vector).all()
    assert abs(np.linalg.norm(vector) - 1) < 1e-3


@both
async def test_a_text_has_the_same_vector_alone_and_among_others(make: type[Embedder]) -> None:
    embedder = make()
    many = [f"{text} {number}" * (1 + number % 5) for number in range(5) for text in TEXTS]
    together = await embedder.embed(many)
    for text, vector in zip(many[::7], together[::7], strict=True):
        (alone,) = await embedder.embed([text])
        assert float(alone @ vector) > 0.9999


@both
async def test_texts_of_one_meaning_are_nearer_than_others(make: type[Embedder]) -> None:
    first, same, other, _ = await make().embed(TEXTS)
    assert float(first @ same) > float(first @ other) + 0.2


@both
async def test_calls_at_once_do_not_mix_their_results(make: type[Embedder]) -> None:
    embedder = make()
    alone = await embedder.embed(TEXTS)
    results: dict[int, np.ndarray] = {}

    async def ask(index: int) -> None:
        results[index] = (await embedder.embed([TEXTS[index]]))[0]

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            for index in range(len(TEXTS)):
                nursery.start_soon(ask, index)
    for index, vector in results.items():
        assert float(alone[index] @ vector) > 0.9999


async def test_a_missing_model_is_named_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(EmbeddingError, match="install the program anew"):
        await OnnxEmbedder(tmp_path).embed(["hello"])


async def test_a_damaged_model_is_an_embedding_error(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"not a model")
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(EmbeddingError):
        await OnnxEmbedder(tmp_path).embed(["hello"])


@needs_model
async def test_a_question_overtakes_an_import() -> None:
    embedder = RealEmbedder()
    many = [f"{text} {number}" for number in range(100) for text in TEXTS]
    order: list[str] = []

    async def import_them() -> None:
        await embedder.embed(many)
        order.append("import")

    await embedder.embed(["warm up"])
    async with trio.open_nursery() as nursery:
        nursery.start_soon(import_them)
        await trio.testing.wait_all_tasks_blocked()
        for number in range(10):
            await embedder.embed([f"Where is box {number}?"])
            order.append("question")
    assert order == ["question"] * 10 + ["import"]


@needs_model
async def test_a_cancelled_import_leaves_the_embedder_usable() -> None:
    embedder = RealEmbedder()
    with trio.move_on_after(0.2):
        await embedder.embed(["A text of some length, again and again. " * 20] * 500)
    vectors = await embedder.embed(TEXTS * 3)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-4)
    assert float(vectors[0] @ vectors[4]) > 0.9999
