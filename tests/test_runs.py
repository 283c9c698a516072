"""Folders of runs: held by one run, cleared of what a kill left, their parts sealed; and why a run failed."""

import errno
import json
import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest
from helpers import refused

from bilinear_circuits.command_line.claims import claimed
from bilinear_circuits.command_line.common import written_whole
from bilinear_circuits.command_line.failures import BUG, MISTAKE, explain
from bilinear_circuits.command_line.sealed import read_sealed, write_sealed
from bilinear_circuits.commands.edit import replaced_whole


def _hold(out, ready):
    with claimed(out):
        ready.set()
        time.sleep(60)


def test_a_folder_is_free_again_once_the_process_that_held_it_was_killed(tmp_path):
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    process = context.Process(target=_hold, args=(tmp_path / "out", ready))
    process.start()
    assert ready.wait(60)
    message = "out must not be written by two runs at once, got .*out, where another one is going on"
    with refused(ValueError, message), claimed(tmp_path / "out"):
        raise AssertionError("held twice")
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    with claimed(tmp_path / "out"):
        pass


def test_folders_that_were_made_for_nothing_go_and_others_stay(tmp_path):
    (tmp_path / "there").mkdir()
    with claimed(tmp_path / "there/a/b"):
        assert (tmp_path / "there/a/b").is_dir()
    assert [one.name for one in tmp_path.rglob("*")] == ["there"]
    with claimed(tmp_path / "there/a/b"):
        (tmp_path / "there/a/b/result").touch()
    assert (tmp_path / "there/a/b/result").is_file()


def test_what_a_kill_left_half_written_goes_and_nothing_else(tmp_path):
    (tmp_path / ".out-abcd1234.part").mkdir()
    # Of other runs, of a run on a folder within, and the user's.
    others = [".out-2-abcd1234.part", ".other-abcd1234.part", "out/.x-abcd1234.part", "out/.my-work.part", ".out-notes"]
    for name in others:
        (tmp_path / name).mkdir(parents=True)
    with claimed(tmp_path / "out"):
        assert not (tmp_path / ".out-abcd1234.part").exists()
    assert all((tmp_path / name).is_dir() for name in others)


def test_a_folder_that_another_run_took_away_while_it_was_locked_is_made_again(tmp_path, monkeypatch):
    from bilinear_circuits.command_line import claims

    out, lock, gone = tmp_path / "out", claims._lock, []

    def late(folder, shown, wait):
        descriptor = lock(folder, shown, wait)
        if not gone:
            gone.append(out.rmdir())  # between the lock and the look at it
        return descriptor

    monkeypatch.setattr(claims, "_lock", late)
    with claimed(out):
        assert out.is_dir()
        monkeypatch.setattr(claims, "_lock", lock)
        with refused(ValueError, "out must not be written by two runs at once"), claimed(out):
            raise AssertionError("held twice")


def test_a_rank_of_a_cluster_does_not_take_the_lock_away(tmp_path, monkeypatch, capsys):
    from bilinear_circuits import cli

    monkeypatch.setenv("RANK", "3")
    with claimed(tmp_path / "out"):
        assert cli.main(["lowrank", "--out", str(tmp_path / "out")]) == MISTAKE
    assert "two runs at once" in capsys.readouterr().err


def test_a_link_that_leads_to_itself_is_one_line(tmp_path, capsys):
    from bilinear_circuits import cli

    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    assert cli.main(["lowrank", "--out", str(tmp_path / "loop/out")]) == MISTAKE
    assert "out must be the name of a folder" in capsys.readouterr().err


def test_names_of_temporary_folders_are_those_that_are_cleared(tmp_path):
    with written_whole(tmp_path / "out") as folder:
        name = folder.name
    (tmp_path / name).mkdir()
    with claimed(tmp_path / "out"):
        assert not (tmp_path / name).exists()


def test_what_was_replaced_comes_back_if_a_kill_kept_the_new_from_its_place(tmp_path):
    with replaced_whole(tmp_path / "out") as folder:
        (folder / "model").write_text("first")
        name = folder.parent.name
    # As it stands between the two renames.
    (tmp_path / name / "new").mkdir(parents=True)
    (tmp_path / "out").rename(tmp_path / name / "old")
    with claimed(tmp_path / "out"):
        assert (tmp_path / "out/model").read_text() == "first"
    assert [one.name for one in tmp_path.iterdir()] == ["out"]


def test_a_sealed_part_comes_back_and_a_changed_byte_of_it_or_its_files_is_noticed(tmp_path):
    (tmp_path / "rows.bin").write_bytes(bytes(100))
    content = {"threshold": 0.1 + 0.2, "names": ["é", None]}
    write_sealed(tmp_path / "part.json", content, tmp_path, ["rows.bin"])
    assert read_sealed(tmp_path / "part.json", tmp_path) == content
    for name in ("part.json", "rows.bin"):
        whole = (tmp_path / name).read_bytes()
        for at in range(0, len(whole), 7):
            damaged = bytearray(whole)
            damaged[at] ^= 1
            (tmp_path / name).write_bytes(damaged)
            assert read_sealed(tmp_path / "part.json", tmp_path) is None, (name, at)
        (tmp_path / name).write_bytes(whole)
    assert read_sealed(tmp_path / "part.json", tmp_path) == content
    (tmp_path / "rows.bin").unlink()
    assert read_sealed(tmp_path / "part.json", tmp_path) is None
    for text in ("null", "[]", "{}", '{"content": 1', json.dumps({"content": 1, "files": 3, "sha256": "x"})):
        (tmp_path / "part.json").write_text(text)
        assert read_sealed(tmp_path / "part.json", tmp_path) is None


def raised(error, cause=None):
    try:
        raise error from cause
    except Exception as caught:
        return caught


@pytest.mark.parametrize(
    ("error", "message", "code"),
    [
        (raised(ValueError("k must be at least 1, got 0.")), "k must be at least 1, got 0.", MISTAKE),
        (raised(OSError(errno.ENOSPC, "No space left on device")), "the disk of OUT is full: make room", MISTAKE),
        (raised(RuntimeError("I/O error: No space left on device (os error 28)")), "the disk of OUT is full", MISTAKE),
        (raised(RuntimeError("save failed"), OSError(errno.EDQUOT, "quota")), "the disk of OUT is full", MISTAKE),
        (raised(MemoryError()), "not enough memory: MemoryError. Ask for less at once", MISTAKE),
        (raised(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried")), "not enough memory", MISTAKE),
        (raised(ValueError("text must be short, got 'no space left on device'")), "text must be short", MISTAKE),
        (raised(KeyError("x")), "KeyError: 'x' (outside of the package). This is a bug of bilinear-circuits", BUG),
    ],
)
def test_why_a_run_failed_is_one_line(error, message, code, tmp_path):
    text, found = explain(error, tmp_path)
    assert (found, text.replace(str(tmp_path), "OUT")[: len(message)]) == (code, message)
    assert found != BUG or text.endswith("BILINEAR_CIRCUITS_TRACEBACK=1.")


def test_a_bug_says_where_it_is(monkeypatch, capsys):
    from bilinear_circuits import cli
    from bilinear_circuits.commands import lowrank

    monkeypatch.setattr(lowrank, "run", lambda arguments: lowrank.table(0, None, 0, 0))
    assert cli.main(["lowrank"]) == BUG
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "(bilinear_circuits/commands/lowrank.py:" in said
    assert "please report it" in said


@pytest.mark.parametrize(
    ("written", "said"),
    [
        (None, "nothing was written"),
        ("ranking.csv", "nothing is half written in"),
        ("run.json", "the last finished step that was saved in"),
        ("layer-1-out/run.json", "the last finished step that was saved in"),
    ],
)
def test_an_interrupt_says_what_it_left(written, said, tmp_path, monkeypatch, capsys):
    from bilinear_circuits import cli
    from bilinear_circuits.commands import lowrank

    def interrupted(arguments):
        if written is not None:
            with written_whole((Path(arguments.out) / written).parent) as folder:
                (folder / Path(written).name).touch()
        raise KeyboardInterrupt

    monkeypatch.setattr(lowrank, "run", interrupted)
    assert cli.main(["lowrank", "--out", str(tmp_path / "out")]) == 130
    assert said in capsys.readouterr().err
    assert (tmp_path / "out").exists() == (written is not None)
