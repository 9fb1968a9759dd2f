"""A native library that cannot run here is found out by a child, and the program goes on without it."""

import sys
from pathlib import Path

import pytest

from spacebot.base.errors import EmbeddingError
from spacebot.memory import probe
from spacebot.memory.embedding import OnnxEmbedder
from spacebot.memory.index import IndexPolicy
from spacebot.memory.types import NewMemory, Provenance, Query, Viewer
from tests.memory.conftest import OpenMemory

ROOM = Viewer(channel_id="chat:room")
LARGE = IndexPolicy(exact_limit=5, uses_child=False, flush_after_s=0, flush_after_large_s=0)
DEADLY = "import os, signal\nos.kill(os.getpid(), signal.SIGILL)\n"


def stand_in(folder: Path, library: str, text: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put a module in the library's place, for child processes only; gives a file that it writes a line to."""
    calls = folder / "calls"
    package = folder / "stand-ins" / library
    package.mkdir(parents=True)
    package.joinpath("__init__.py").write_text(f"open({str(calls)!r}, 'a').write('tried\\n')\n{text}")
    monkeypatch.setenv("PYTHONPATH", str(package.parent))
    return calls


async def test_a_library_that_dies_of_an_illegal_instruction_is_named_and_not_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = stand_in(tmp_path, "lancedb", DEADLY, monkeypatch)
    verdicts = tmp_path / "native.json"
    reason = await probe.why_not("lancedb", verdicts)
    assert reason is not None
    assert "does not run on this processor" in reason
    assert "SIGILL" in reason
    assert await probe.why_not("lancedb", verdicts) == reason
    assert calls.read_text() == "tried\n"
    assert not list(tmp_path.glob("core*"))


async def test_what_may_be_repaired_is_asked_again_and_what_works_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tmp_path / "nothing"
    calls = stand_in(tmp_path, "onnxruntime", "raise ImportError('half of it is missing')\n", monkeypatch)
    verdicts = tmp_path / "native.json"
    for attempt in (1, 2):  # an import that fails may be repaired before the next start
        reason = await probe.why_not("onnxruntime", verdicts, [str(model)])
        assert reason is not None
        assert "install the program anew" in reason
        assert calls.read_text() == "tried\n" * attempt
    verdicts.write_text("not JSON")
    monkeypatch.delenv("PYTHONPATH")
    assert await probe.why_not("lancedb", verdicts) is None
    stand_in(tmp_path / "later", "lancedb", DEADLY, monkeypatch)
    assert await probe.why_not("lancedb", verdicts) is None, "the verdict is kept"
    monkeypatch.setattr("importlib.metadata.version", lambda name: "999")
    assert await probe.why_not("lancedb", verdicts) is not None, "another version is another question"


async def test_no_secret_of_ours_reaches_the_child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-secret")
    monkeypatch.setenv("SPACEBOT_DIR", str(tmp_path))
    seen = tmp_path / "seen"
    stand_in(tmp_path, "lancedb", f"import os\nopen({str(seen)!r}, 'w').write(' '.join(os.environ))\n", monkeypatch)
    await probe.why_not("lancedb", None)
    names = set(seen.read_text().split())
    kept = {"PATH", "PYTHONPATH", "LD_LIBRARY_PATH", "TMPDIR", "LANG", "LC_ALL"}
    made_there = {"LC_CTYPE", "LANCE_LOG", "LANCE_INCLUDE_VECTOR_CENTROIDS", "OPENBLAS_NUM_THREADS"}
    assert names <= kept | made_there
    assert "PYTHONPATH" in names


async def test_without_the_vector_library_a_large_store_is_searched_in_memory_and_says_so(
    open_test_memory: OpenMemory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_test_memory() as memory:
        for number in range(8):
            await memory.save(NewMemory(content=f"Box {number} holds item{number}.", provenance=Provenance()))
    stand_in(tmp_path, "lancedb", DEADLY, monkeypatch)
    async with open_test_memory(index=LARGE, verdicts=tmp_path / "native.json") as memory:
        await memory.flush()
        result = await memory.recall(Query(viewer=ROOM, text="item3"))
        assert result.hits[0].memory.content == "Box 3 holds item3."
        assert "vector" in result.hits[0].legs
        assert any("without the vector table" in note and "SIGILL" in note for note in result.notes)
        stats = await memory.stats()
        assert (stats.engine, "SIGILL" in (stats.problem or "")) == ("exact", True)
        await memory.save(NewMemory(content="Box 9 holds item9.", provenance=Provenance()))
        assert (await memory.recall(Query(viewer=ROOM, text="item9"))).hits[0].memory.content == "Box 9 holds item9."
    assert not (tmp_path / "lancedb").exists()


async def test_a_small_store_asks_nobody_about_the_vector_library(
    open_test_memory: OpenMemory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = stand_in(tmp_path, "lancedb", DEADLY, monkeypatch)
    async with open_test_memory(index=IndexPolicy(), verdicts=tmp_path / "native.json") as memory:
        await memory.warm_up()
        await memory.save(NewMemory(content="The key is under the mat.", provenance=Provenance()))
        assert (await memory.recall(Query(viewer=ROOM, text="key"))).notes == ()
    assert not calls.exists()
    assert "lancedb" not in {path.name for path in tmp_path.iterdir()}


async def test_without_the_embedding_runtime_memories_are_kept_and_found_by_words(
    open_test_memory: OpenMemory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(tmp_path, "onnxruntime", DEADLY, monkeypatch)
    model = tmp_path / "model"
    model.mkdir()
    for name in ("model.onnx", "tokenizer.json"):
        (model / name).write_bytes(b"")
    embedder = OnnxEmbedder(model, verdicts=tmp_path / "native.json")
    with pytest.raises(EmbeddingError, match="SIGILL"):
        await embedder.embed(["a text"])
    async with open_test_memory(embedder=embedder) as memory:
        saved = await memory.save(NewMemory(content="The key is under the mat.", provenance=Provenance()))
        assert not saved.is_embedded
        result = await memory.recall(Query(viewer=ROOM, text="key"))
        assert result.hits[0].memory.id == saved.memory.id
        assert "found by words only" in " ".join(result.notes)
        assert (await memory.stats()).to_embed == 1


async def test_the_table_of_a_small_store_is_kept_in_step_by_a_child(
    open_test_memory: OpenMemory, tmp_path: Path
) -> None:
    """The library is never loaded here; the child is killed with its parent's pipe, and says how far it is."""
    was_loaded = "lancedb" in sys.modules
    stages: list[tuple[str, int, int]] = []
    async with open_test_memory(index=IndexPolicy()) as memory:
        for number in range(3):
            await memory.save(NewMemory(content=f"Box {number} holds item{number}.", provenance=Provenance()))
        await memory.flush()
        assert (await memory.stats()).unindexed == 0
        state = await memory.rebuild(lambda stage, done, total: stages.append((stage, done, total)))
        assert (state.is_usable, state.rows) == (True, 3)
        assert stages[-1] == ("rows", 3, 3)
    assert ("lancedb" in sys.modules) == was_loaded
    assert (tmp_path / "lancedb" / "memory_embeddings.lance").is_dir()


async def test_a_child_whose_parent_is_gone_ends() -> None:
    words = ["flush", '{"database": "/proc/nowhere/x.db", "folder": "/proc/nowhere", "model": "m", "dimensions": 8, '
             '"index_rows": 1}']  # fmt: skip
    async with probe.run_child("table", words) as child:
        assert child.stdin is not None
        await child.stdin.aclose()
        assert await child.wait() in (0, 1)
