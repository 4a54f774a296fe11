"""Files that are written whole or not at all."""

from __future__ import annotations

import os
import stat

import pytest

from pyprune.errors import InputError
from pyprune.files import (
    read_json,
    remove_parts,
    require_free_directory,
    whole_directory,
    whole_file,
    write_json,
    write_text,
)


def test_a_file_is_replaced_whole_or_left_as_it_was(tmp_path):
    target = tmp_path / "a.json"
    write_text(target, "old")
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(target, {"value": float("nan")})
    assert target.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.json"]


def test_a_directory_appears_whole_or_not_at_all(tmp_path):
    def interrupted() -> None:
        with whole_directory(tmp_path / "out") as scratch:
            (scratch / "half").write_text("...")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert os.listdir(tmp_path) == []


def test_a_link_to_an_empty_directory_is_followed(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "dangling").symlink_to("later")
    for name in ("link", "dangling"):
        with whole_directory(tmp_path / name) as scratch:
            (scratch / "file").write_text("x")
    assert (tmp_path / "real" / "file").read_text() == "x"
    assert (tmp_path / "later" / "file").read_text() == "x"
    assert (tmp_path / "link").is_symlink()


def test_what_a_kill_left_half_written_goes_and_nothing_else(tmp_path):
    def killed(name: str) -> None:
        child = os.fork()
        if not child:
            with whole_directory(tmp_path / name) as scratch, whole_directory(scratch) as inner:
                (inner / "half").write_text("...")
                os._exit(0)  # no handler runs
        assert os.waitpid(child, 0)[1] == 0

    (tmp_path / "link").symlink_to("real")
    for name in ("out", "output", "out.v2", "link"):
        killed(name)
    assert len(os.listdir(tmp_path)) == 9
    remove_parts(tmp_path / "out")
    remove_parts(tmp_path / "link")
    left = sorted(name.lstrip(".").partition(".")[0] for name in os.listdir(tmp_path))
    assert left == ["link", "out", "out", "output", "output"]
    remove_parts(tmp_path / "out.v2")
    assert len(os.listdir(tmp_path)) == 3


def test_what_a_writer_puts_beside_its_file_goes_too(tmp_path):
    child = os.fork()
    if not child:
        with whole_file(tmp_path / "state") as scratch:
            scratch.write_text("half")
            scratch.with_name(".tmpAbCdEf").write_text("half")  # as safetensors does
            os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert len(os.listdir(tmp_path)) == 1
    remove_parts(tmp_path / "state")
    assert os.listdir(tmp_path) == []


def test_a_mount_point_is_refused_before_any_work(tmp_path, monkeypatch):
    monkeypatch.setattr("pathlib.Path.is_mount", lambda path: True)
    with pytest.raises(InputError, match="is a mount point"):
        require_free_directory(tmp_path)


def test_what_is_not_a_regular_file_is_never_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="is not a regular file"):
        write_text(tmp_path / "pipe", "x")
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)
    with pytest.raises(InputError, match="is a directory"):
        write_text(tmp_path, "x")


def test_private_files_of_other_writers_get_ordinary_modes(tmp_path):
    old = os.umask(0o022)
    try:
        with whole_directory(tmp_path / "out") as scratch:
            (scratch / "inner").mkdir(mode=0o700)
            (scratch / "inner" / "file").touch(mode=0o600)
    finally:
        os.umask(old)
    modes = [stat.S_IMODE((tmp_path / "out" / p).stat().st_mode) for p in ("", "inner", "inner/file")]
    assert modes == [0o755, 0o755, 0o644]


def test_json_of_many_levels_is_refused_in_one_line(tmp_path):
    (tmp_path / "deep.json").write_text("[" * 100_000)
    with pytest.raises(InputError, match=r"^.*deep\.json: its JSON is nested too deeply; .*$"):
        read_json(tmp_path / "deep.json")
