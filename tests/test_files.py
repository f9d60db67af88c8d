"""Files appear whole or not at all."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import math
import os
import signal
import stat
from pathlib import Path
from typing import Any

import pytest

from equisynth.errors import UserError
from equisynth.files import MARK, atomic_folder, atomic_path, hash_json, link, read_json, remove, sha256, write_json
from killing import kill_in_child


class Interrupted(Exception):
    pass


def leftovers(folder: Path) -> list[str]:
    return [name for name in names(folder) if MARK in name]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_file_appears_when_the_block_ends(tmp_path: Path) -> None:
    target = tmp_path / "new" / "a.nii.gz"
    with atomic_path(target) as temporary:
        assert temporary.parent == target.parent
        assert temporary.name.endswith(".nii.gz")
        temporary.write_text("whole")
        assert not target.exists()
    assert target.read_text() == "whole"
    assert names(target.parent) == ["a.nii.gz"]


@pytest.mark.parametrize("before", [None, "old"])
def test_exception_leaves_what_was_there(before: str | None, tmp_path: Path) -> None:
    target = tmp_path / "a.json"
    if before is not None:
        target.write_text(before)
    with pytest.raises(Interrupted), atomic_path(target) as temporary:
        temporary.write_text("half")
        raise Interrupted
    assert names(tmp_path) == ([] if before is None else ["a.json"])
    assert before is None or target.read_text() == before


def test_results_have_the_usual_permissions(tmp_path: Path) -> None:
    with atomic_path(tmp_path / "ours") as temporary:
        temporary.write_text("")
    (tmp_path / "plain").write_text("")
    modes = {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("ours", "plain")}
    assert len(modes) == 1


def test_folder_replaces_the_old_one_whole(tmp_path: Path) -> None:
    target = tmp_path / "model"
    target.mkdir()
    (target / "old").write_text("old")
    with pytest.raises(Interrupted), atomic_folder(target) as temporary:
        (temporary / "new").write_text("half")
        raise Interrupted
    assert names(tmp_path) == ["model"]
    assert names(target) == ["old"]
    with atomic_folder(target) as temporary:
        (temporary / "new").write_text("whole")
    assert names(tmp_path) == ["model"]
    assert names(target) == ["new"]


@pytest.mark.parametrize("context", [atomic_path, atomic_folder])
def test_what_a_killed_process_left_goes_when_its_target_is_next_written(context: Any, tmp_path: Path) -> None:
    """And nothing else: not the temporaries of a living process, nor another target's, nor a stranger's file."""
    target, other, stranger = tmp_path / "model", tmp_path / "model-2", tmp_path / ".model-01234567"
    stranger.touch()
    with context(target) as living:
        if os.fork() == 0:
            with context(target) as half:
                (half / "part" if context is atomic_folder else half).write_text("half")
                os.kill(os.getpid(), signal.SIGKILL)
        os.wait()
        assert len(leftovers(tmp_path)) == 2
        with context(other):
            assert len(leftovers(tmp_path)) == 3
        with context(target) as second:
            assert set(leftovers(tmp_path)) == {living.name, second.name}
        assert living.exists()
    assert names(tmp_path) == [stranger.name, "model", "model-2"]


@pytest.mark.parametrize("step", [1, 2, 3])
def test_a_kill_while_a_folder_is_replaced_leaves_a_whole_one_or_none(step: int, tmp_path: Path) -> None:
    target = tmp_path / "model"

    def write(content: str) -> None:
        with atomic_folder(target) as temporary:
            for name in "ab":
                (temporary / name).write_text(content)

    write("old")
    assert kill_in_child(lambda: write("new"), step)
    found = {path.read_text() for path in target.iterdir()} if target.exists() else set()
    assert found == [{"old"}, set(), {"new"}][step - 1]
    write("new")
    assert names(tmp_path) == ["model"]


def test_a_removal_is_all_or_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "work"
    (folder / "inner").mkdir(parents=True)
    (folder / "inner" / "a").touch()
    assert kill_in_child(lambda: remove(folder), 2)
    assert not folder.exists()
    remove(folder)
    file = tmp_path / "file"
    file.touch()
    remove(file)
    assert not file.exists()


@pytest.mark.parametrize("links", [True, False])
def test_link_is_a_second_name_or_a_copy(links: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError("no hard links here")

    if not links:
        monkeypatch.setattr(os, "link", refuse)
    (tmp_path / "a").write_text("content")
    link(tmp_path / "a", tmp_path / "new" / "b")
    assert (tmp_path / "new" / "b").read_text() == "content"
    assert (tmp_path / "a").stat().st_nlink == (2 if links else 1)


def test_places_without_locks_are_written_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "no locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    for _ in range(2):
        with atomic_path(tmp_path / "a") as temporary:
            temporary.write_text("whole")
    assert names(tmp_path) == ["a"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_unwritable_place_is_the_users_to_mend(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match="cannot be written"), atomic_path(tmp_path / "a"):
        pass


def test_file_in_place_of_a_folder_is_the_users_to_mend(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for context in (atomic_path, atomic_folder):
        with pytest.raises(UserError, match="cannot be written"), context(tmp_path / "file" / "a"):
            pass


def test_json_comes_back(tmp_path: Path) -> None:
    content = {"name": "Ω", "values": [1, 2.5, None, True]}
    write_json(tmp_path / "a.json", content)
    assert read_json(tmp_path / "a.json") == content
    assert (tmp_path / "a.json").read_text(encoding="utf-8").endswith("}\n")


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_json_has_no_word_for_nan(value: float, tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", 1)
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "a.json", {"loss": value})
    assert read_json(tmp_path / "a.json") == 1
    assert names(tmp_path) == ["a.json"]


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe", b""])
def test_damaged_json_names_the_file(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(UserError, match=r"a\.json: is not valid JSON"):
        read_json(tmp_path / "a.json")


def test_absent_json_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a\.json: not found"):
        read_json(tmp_path / "a.json")


def test_sha256_of_a_file(tmp_path: Path) -> None:
    content = bytes(range(256)) * 5000
    (tmp_path / "a").write_bytes(content)
    assert sha256(tmp_path / "a") == hashlib.sha256(content).hexdigest()


def test_hash_of_json_depends_on_values_only() -> None:
    assert hash_json({"a": 1, "b": [1, 2]}) == hash_json({"b": [1, 2], "a": 1})
    assert hash_json({"a": 1}) != hash_json({"a": 2})
    assert hash_json([1, 2]) != hash_json([2, 1])
    assert len(hash_json({}, length=20)) == 20
