"""Training in several processes: who does what, and that the model is that of one process."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from helpers import refused
from test_training import OPTIM, ROOT, recipe

from bilinear_circuits.training.language_model import OptimSettings, rows_per_device
from bilinear_circuits.utilities import processes


def start(n_processes, path, out, *options):
    """`train` in some processes; their output goes to files beside the folder."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(n_processes)]
    if n_processes == 1:
        command = [sys.executable]
    command += ["-m", "bilinear_circuits.cli", "train", str(path), "--out", str(out), "--device", "cpu", *options]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with Path(f"{out}.stdout").open("w") as stdout, Path(f"{out}.stderr").open("w") as stderr:
        return subprocess.Popen(command, stdout=stdout, stderr=stderr, env=environment)


def output(out):
    return Path(f"{out}.stdout").read_text(), Path(f"{out}.stderr").read_text()


def losses(out):
    lines = (out / "log.csv").read_text().splitlines()[1:]
    return [list(map(float, line.split(","))) for line in lines]


@pytest.mark.slow
def test_two_processes_train_the_model_of_one_also_when_killed_on_the_way(tmp_path):
    # 48 rows for validation in batches of 5 on each: the last ones are filled up with rows that may not count again.
    optim = OPTIM | {"epochs": 12, "evaluations": 12, "dropout": 0.0, "batch_rows": 10}
    path = recipe(tmp_path, optim=optim)
    one, two, killed = (tmp_path / name for name in ("one", "two", "killed"))
    assert start(1, path, one).wait() == 0, output(one)
    assert start(2, path, two).wait() == 0, output(two)
    process = start(2, path, killed)
    while process.poll() is None and not list((killed / "checkpoints").glob("checkpoint-*")):
        time.sleep(0.01)
    time.sleep(0.3)
    torchrun = psutil.Process(process.pid)
    for each in (torchrun, *torchrun.children(recursive=True)):
        each.kill()
    process.wait()
    assert not (killed / "training.json").exists()
    assert start(2, path, killed).wait() == 0, output(killed)

    expected, expected_names = losses(one), {file.name for file in one.iterdir()}
    for out in (two, killed):
        assert {file.name for file in out.iterdir()} == expected_names
        got = losses(out)
        assert len(got) == len(expected) == 12
        for mine, theirs in zip(got, expected, strict=True):
            assert mine == pytest.approx(theirs, rel=1e-4)
        records = [json.loads((folder / "training.json").read_text()) for folder in (one, out)]
        assert [record["n_processes"] for record in records] == [1, 2]
        for name in ("data_sha256", "n_rows", "n_stories"):
            assert records[0][name] == records[1][name]
        for name in ("steps", "tokens"):
            assert records[0]["result"][name] == records[1]["result"][name]
        assert records[1]["result"]["valid_loss"] == pytest.approx(records[0]["result"]["valid_loss"], rel=1e-4)
        assert (out / "tokenizer.json").read_bytes() == (one / "tokenizer.json").read_bytes()
        stdout, stderr = output(out)
        assert stdout.count("validation loss") == 1
        assert stderr.count("training tiny:") == 1
    assert "the stories are tokenized already" in output(killed)[1]


@pytest.mark.slow
def test_a_mistake_is_said_by_the_first_process_and_ends_all(tmp_path):
    process = start(2, recipe(tmp_path), tmp_path / "out", "--corpus", str(tmp_path / "missing.txt"))
    assert process.wait() != 0
    stdout, stderr = output(tmp_path / "out")
    assert stdout == ""
    assert stderr.count("missing.txt: no such file") == 1
    assert not (tmp_path / "out").exists()


def test_a_process_alone_is_the_first_and_waits_for_nobody(monkeypatch):
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert (processes.n_processes(), processes.is_first()) == (1, True)
    processes.join("cpu")
    processes.wait()
    processes.leave()
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("RANK", "3")
    assert (processes.n_processes(), processes.is_first()) == (4, False)


@pytest.mark.parametrize(("rank", "ended"), [("0", []), ("1", [0])])
def test_all_but_the_first_end_when_all_are_done(rank, ended, monkeypatch):
    class State:
        def __init__(self):
            self.wait_for_everyone = lambda: calls.append("wait")
            self.destroy_process_group = lambda: calls.append("destroy")

    calls, codes = [], []
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setattr(processes, "_state", State)
    monkeypatch.setattr(os, "_exit", codes.append)
    processes.leave()
    assert calls == ["wait", "destroy"]
    assert codes == ended


def test_a_process_that_waits_for_one_that_stopped_says_so(monkeypatch):
    class Gone:
        def wait_for_everyone(self):
            raise RuntimeError("Connection closed by peer")

    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(processes, "_state", Gone)
    with refused(ConnectionError, "another process of this run stopped"):
        processes.wait()


@pytest.mark.parametrize(
    ("n_devices", "asked", "expected"), [(1, None, 24), (1, 8, 8), (2, None, 12), (2, 8, None), (4, 8, 6), (3, 4, 4)]
)
def test_devices_share_the_rows_of_a_step(n_devices, asked, expected, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", str(n_devices))
    settings = OptimSettings(**OPTIM | {"batch_rows": 24, "rows_per_device": asked})
    if expected is None:
        with refused(ValueError, "batch_rows must be a multiple of 8 rows on each of 2 devices, got 24"):
            rows_per_device(settings)
    else:
        assert rows_per_device(settings) == expected


@pytest.mark.parametrize("n_devices", [7, 50])
def test_a_batch_that_devices_cannot_share_is_refused_before_anything_is_read(n_devices, tmp_path, monkeypatch):
    from bilinear_circuits.commands.train import Arguments, _asked, _run_folder, _start, resolved

    monkeypatch.setenv("WORLD_SIZE", str(n_devices))
    asked = Arguments(recipe=str(recipe(tmp_path)), out=str(tmp_path / "out"), device="cpu")
    with refused(ValueError, f"batch_rows must be a multiple of 1 rows on each of {n_devices} devices, got 8"):
        recipe_and_corpus = _asked(asked)[:2]
        _start(asked, *recipe_and_corpus, _run_folder(tmp_path / "out"), resolved(*recipe_and_corpus))
    assert not (tmp_path / "out").exists()
