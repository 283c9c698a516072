"""The largest interactions of a layer on the command line: in shards, after a kill, in several processes."""

import csv
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
import torch
from helpers import refused
from planted import random_dictionary, random_stories, tiny_llama, word_tokenizer
from safetensors.torch import load_file

import bilinear_circuits as bc
from bilinear_circuits.command_line.shards import ShardFolder, _at_sigterm
from bilinear_circuits.commands import interactions as command

ROOT = Path(__file__).parents[1]
COLUMNS = ("output", "first", "second", "weights", "scores")
FILES = [f"interactions.{ending}" for ending in ("csv", "json", "parquet", "safetensors")]


def write_dictionaries(folder, d_sae_in=40, d_sae_out=70):

    for side, d_sae in (("in", d_sae_in), ("out", d_sae_out)):
        name = f"blocks.1.mlp.hook_{side}"
        dictionary = random_dictionary(12, d_sae, name, seed=d_sae)
        dictionary.save(folder / name)
    return str(folder)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Options that name a tiny model, dictionaries and stories."""
    root = tmp_path_factory.mktemp("interactions")
    tiny_llama().save_pretrained(root / "tiny")
    word_tokenizer().save_pretrained(root / "tiny")
    (root / "stories.txt").write_text("\n<|endoftext|>\n".join(random_stories(60)))
    return {"model": str(root / "tiny"), "saes": write_dictionaries(root / "saes"), "layer": 1}


def layer_of(world):
    mlp = bc.BilinearMLP.from_model(bc.load_model(world["model"]), 1)
    return bc.FeatureInteractions(mlp, *bc.load_dictionaries(1, world["saes"]))


@pytest.fixture(scope="module")
def layer(world):
    return layer_of(world)


def run(world, out, **options):
    """The command in this process; the table and the record that it wrote."""
    command.run(command.Arguments(**world | {"out": str(out), "precision": "bfloat16"} | options))
    assert sorted(file.name for file in Path(out).iterdir()) == FILES
    return read(out)


def read(out):
    folder = Path(out)
    return load_file(folder / "interactions.safetensors"), json.loads((folder / "interactions.json").read_text())


def test_the_tables_hold_what_the_search_found(world, layer, tmp_path):
    from pyarrow import parquet

    run(world, tmp_path / "out", k=30)
    top = layer.top(30)
    rows = list(csv.DictReader((tmp_path / "out/interactions.csv").read_text().splitlines()))
    assert [(int(row["output"]), int(row["first"]), int(row["second"])) for row in rows] == [one[:3] for one in top]
    table = parquet.read_table(tmp_path / "out/interactions.parquet").to_pydict()
    assert list(table) == ["output", "first", "second", "weight", "score"]
    assert table["weight"] == pytest.approx(top.weights.tolist(), rel=1e-5)


def test_a_table_too_long_to_look_at_is_left_out(layer, tmp_path, monkeypatch):
    from bilinear_circuits.command_line import tables
    from bilinear_circuits.report.notebook import columns_of

    columns = columns_of(layer.top(5))
    monkeypatch.setattr(tables, "MOST_ROWS", 4)
    assert tables.write(tmp_path, "interactions", columns) == []
    assert list(tmp_path.iterdir()) == []


def check_table(table, top):
    assert set(table) == set(COLUMNS)
    assert [table[name].dtype for name in COLUMNS] == [torch.int32] * 3 + [torch.float32] * 2
    for name in COLUMNS:
        assert torch.equal(table[name], getattr(top, name).to(table[name].dtype)), name


def test_the_table_is_what_top_returns_and_the_record_says_why(world, layer, tmp_path, capsys):
    table, record = run(world, tmp_path / "out", k=30)
    top = layer.top(30, precision="bfloat16")
    check_table(table, top)
    assert record["schema_version"] == 1
    assert record["layer"] == 1
    assert record["counts"] == {"interactions": 30, "output_features": 70, "d_sae_in": 40, "d_sae_out": 70}
    certificate = record["certificate"]
    assert certificate["threshold"] == top.certificate.threshold
    assert certificate["interactions"] == 70 * 40 * 41 // 2
    assert certificate["precision"] == "bfloat16"
    assert certificate["candidates"] >= 30
    source = record["provenance"]
    assert len(source["model"]["sha256"]) == len(source["dictionaries"][1]["sha256"]) == 64
    assert source["corpus"] is None
    assert source["config"]["k"] == 30
    shown = capsys.readouterr().out.splitlines()
    assert shown[0] == "layer 1: 30 interactions, the 30 largest by magnitude of all output features; the first 20"
    assert len(shown) == 2 + 20 + 4
    first_row = shown[2].split()
    assert [int(one) for one in first_row[:3]] == [int(getattr(top, name)[0]) for name in COLUMNS[:3]]
    assert float(first_row[3]) == pytest.approx(float(top.weights[0]), rel=1e-3)
    assert shown[22].startswith("certificate: 57400 interactions compared, ")
    assert shown[23] == f"  none left out is above {top.certificate.threshold:.4g}"


@pytest.mark.parametrize("per_feature", [False, True])
@pytest.mark.parametrize("size", [3, 1000])
def test_shards_of_any_size_give_the_same_table(size, per_feature, world, layer, tmp_path):
    table, record = run(world, tmp_path / "out", k=9, per_feature=per_feature, shard_size=size)
    top = layer.top(9, per_feature=per_feature, precision="bfloat16")
    check_table(table, top)
    assert record["certificate"]["threshold"] == top.certificate.threshold


@pytest.mark.parametrize("coactive", [False, True])
def test_shards_hand_on_what_they_reached(coactive, world, tmp_path, monkeypatch):
    """Those of a killed search too; with k of each feature there is nothing to hand on."""
    floors, found = [], command.search
    monkeypatch.setattr(command, "search", lambda *arguments: floors.append(arguments[3]) or found(*arguments))
    corpus = str(Path(world["model"]).parent / "stories.txt")
    asked = {"k": 9, "shard_size": 20} | ({"coactive": True, "precision": None, "corpus": corpus} if coactive else {})
    expected, record = run(world, tmp_path / "whole", **asked)
    assert floors[0] == 0 < floors[1] <= floors[2] <= floors[3] <= record["certificate"]["threshold"]
    before = floors.copy()
    floors.clear()
    killed(world, tmp_path / "out", monkeypatch, 2, **asked)
    table, again = run(world, tmp_path / "out", **asked)
    assert floors == before
    assert all(torch.equal(table[name], expected[name]) for name in COLUMNS)
    assert again["certificate"] == record["certificate"]
    floors.clear()
    run(world, tmp_path / "each", **asked, per_feature=True)
    assert floors == [0, 0, 0, 0]


@pytest.mark.parametrize("order", ["positive", "negative"])
def test_some_features_and_one_sign(order, world, layer, tmp_path, capsys):
    asked = {"features": [33, 4, 69], "order": order, "k": 12}
    table, record = run(world, tmp_path / "out", **asked, shard_size=2)
    check_table(table, layer.top(**asked, precision="bfloat16"))
    assert record["counts"]["output_features"] == 3
    assert f"the 12 largest {order} ones of all output features\n" in capsys.readouterr().out


def test_the_precision_is_chosen_where_none_is_asked_for(world, layer, tmp_path):
    table, record = run(world, tmp_path / "out", k=12, precision=None)
    check_table(table, layer.top(12))
    assert record["certificate"]["precision"] in ("bfloat16", "float32")


def test_coactive_weighs_by_second_moments_of_the_corpus(world, layer, tmp_path, capsys):
    from bilinear_circuits.data.stories import tokenize_stories
    from bilinear_circuits.interactions.activity import collect_activity

    corpus = str(Path(world["model"]).parent / "stories.txt")
    asked = {"coactive": True, "precision": None, "corpus": corpus, "n_stories": 50, "shard_size": 16, "k": 12}
    table, record = run(world, tmp_path / "out", **asked)
    model = bc.load_model(world["model"])
    tokens = tokenize_stories(random_stories(60)[:50], model.tokenizer, 32)
    (activity,) = collect_activity(model, [layer], tokens)
    check_table(table, layer.top(12, moments=activity.second_moments))
    assert not torch.equal(table["weights"], table["scores"])
    assert record["provenance"]["corpus"]["name"] == "stories.txt"
    assert record["provenance"]["corpus"]["n_stories"] == 50
    assert "weight E[z_a z_b]" in capsys.readouterr().out


def test_more_than_there_are_is_said(world, tmp_path, capsys):
    _, record = run(world, tmp_path / "out", k=3000, features=[0, 1], shard_size=1)
    assert record["counts"]["interactions"] == 2 * 820
    assert "there are no more" in capsys.readouterr().out


class _KilledError(Exception):
    """Stands for a kill."""


def killed(world, out, monkeypatch, after, **options):
    """The command, killed in the shard after some."""
    found = command.search
    searched = []

    def some(*arguments):
        if len(searched) == after:
            raise _KilledError
        searched.append(arguments)
        return found(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(command, "search", some)
        with pytest.raises(_KilledError):
            run(world, out, **options)


def counted(monkeypatch):
    """Outputs of the shards searched from now on."""
    found, searched = command.search, []

    def count(products, *arguments):
        searched.append(products.outputs.tolist())
        return found(products, *arguments)

    monkeypatch.setattr(command, "search", count)
    return searched


@pytest.mark.parametrize("per_feature", [False, True])
def test_a_killed_search_goes_on_with_the_shards_left(per_feature, world, layer, tmp_path, monkeypatch, capsys):
    out, asked = tmp_path / "out", {"k": 9, "per_feature": per_feature, "shard_size": 20}
    killed(world, out, monkeypatch, 2, **asked)
    assert sorted(file.name for file in out.iterdir()) == ["run.json", "shards"]
    shards = [f"{index:05d}.{kind}" for index in (0, 1) for kind in ("json", "safetensors")]
    assert sorted(file.name for file in (out / "shards").iterdir()) == shards
    (out / "shards/00002.json").write_text("{}")  # a kill between the two files of a shard
    (out / ".shards-abcd1234.part").mkdir()  # and while one is written
    searched = counted(monkeypatch)
    table, _ = run(world, out, **asked)
    assert searched == [list(range(40, 60)), list(range(60, 70))]
    check_table(table, layer.top(9, per_feature=per_feature, precision="bfloat16"))
    assert "going on: 2 of 4 shards are finished already" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["00000.json", "00000.safetensors"])
def test_a_shard_that_was_damaged_is_searched_again(name, world, layer, tmp_path, monkeypatch, capsys):
    out, asked = tmp_path / "out", {"k": 9, "shard_size": 20}
    killed(world, out, monkeypatch, 2, **asked)
    damaged = bytearray((out / "shards" / name).read_bytes())
    damaged[-9] ^= 2
    (out / "shards" / name).write_bytes(damaged)
    searched = counted(monkeypatch)
    table, _ = run(world, out, **asked)
    assert searched == [list(range(20)), list(range(40, 60)), list(range(60, 70))]
    check_table(table, layer.top(9, precision="bfloat16"))
    assert "00000.json or its table is damaged: the shard is searched again" in capsys.readouterr().err


def test_a_search_killed_before_its_shards_were_removed_is_not_repeated(world, tmp_path, monkeypatch):
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(command.ShardFolder, "remove", lambda folder: None)
        command.run(command.Arguments(**world, out=str(out), k=9, shard_size=20))
    before = read(out)[0]
    searched = counted(monkeypatch)
    command.run(command.Arguments(**world, out=str(out), k=9, shard_size=20))
    assert searched == []
    assert sorted(file.name for file in out.iterdir()) == FILES
    assert all(torch.equal(read(out)[0][name], before[name]) for name in COLUMNS)


def test_what_was_measured_and_chosen_at_the_start_stays(world, tmp_path, monkeypatch):
    """Second moments are not measured again, and the faster precision of another moment changes nothing."""
    from bilinear_circuits import sweep
    from bilinear_circuits.interactions import activity

    corpus = str(Path(world["model"]).parent / "stories.txt")
    asked = {"k": 9, "shard_size": 20, "precision": None}
    coactive = asked | {"coactive": True, "corpus": corpus}
    expected, _ = run(world, tmp_path / "whole", **coactive)
    killed(world, tmp_path / "out", monkeypatch, 2, **coactive)
    monkeypatch.setattr(activity, "collect_activity", None)
    table, _ = run(world, tmp_path / "out", **coactive)
    assert all(torch.equal(table[name], expected[name]) for name in COLUMNS)
    for before, after in (("bfloat16", "float32"), ("float32", "bfloat16")):
        monkeypatch.setattr(sweep, "fastest_precision", lambda device, name=before: name)
        killed(world, tmp_path / before, monkeypatch, 2, **asked)
        monkeypatch.setattr(sweep, "fastest_precision", lambda device, name=after: name)
        assert run(world, tmp_path / before, **asked)[1]["certificate"]["precision"] == before


@pytest.mark.parametrize(
    "change", [{"k": 10}, {"per_feature": True}, {"order": "positive"}, {"features": [1]}, {"shard_size": 21}]
)
def test_another_searchs_folder_is_refused(change, world, tmp_path, monkeypatch):
    out, asked = tmp_path / "out", {"k": 9, "shard_size": 20}
    killed(world, out, monkeypatch, 1, **asked)
    (name,) = change
    message = f"out must hold a search with these settings to go on with, got .*out, where {name} differ. Remove it"
    with refused(ValueError, message):
        run(world, out, **asked | change)


def test_shards_of_other_dictionaries_are_not_used(world, tmp_path, monkeypatch):
    killed(world, tmp_path / "out", monkeypatch, 1, shard_size=20)
    other = world | {"saes": write_dictionaries(tmp_path / "saes", 41, 70)}
    with refused(ValueError, "where dictionaries_sha256 differ"):
        run(other, tmp_path / "out", shard_size=20)


def test_a_folder_that_holds_anything_else_is_left_alone(world, tmp_path):
    run(world, tmp_path / "out", k=3)
    with refused(ValueError, "out must be a new or empty folder, or hold a search to go on with, got .*out. Name"):
        run(world, tmp_path / "out", k=3)
    (tmp_path / "file").touch()
    with refused(ValueError, "out must be a folder, got .*: .*file is a file"):
        run(world, tmp_path / "file")


VALUES = {
    "k must be at least 1, got 0": {"k": 0},
    "shard_size must be at least 1, got 0": {"shard_size": 0},
    "patience must be a number of minutes above 0 and at most 525600, got 0": {"patience": 0},
    r"features must name one output feature or more, each once, got \[\]": {"features": []},
    r"features must name one output feature or more, each once, got \[1, 1\]": {"features": [1, 1]},
    "precision must be float32 with --coactive, got bfloat16. Leave it out": {"coactive": True},
    "order must be one of magnitude, positive, negative, got 'size'": {"order": "size"},
    "precision must be one of bfloat16, float32, got 'fp16'": {"precision": "fp16"},
    r"layer must have dictionaries in .*saes \(layers 1\), got 0": {"layer": 0},
    "feature must be between 0 and 69, one of the output dictionary .*, got 70": {"features": [1, 70]},
    "--corpus must be given for .*tiny: stories are shipped for ts-17m": {"coactive": True, "precision": None},
    "corpus must be .* got nowhere.txt": {"coactive": True, "precision": None, "corpus": "nowhere.txt"},
    "device must be one that torch can use, got cuda:9": {"device": "cuda:9"},
}


@pytest.mark.parametrize("message", VALUES)
def test_what_cannot_be_searched_is_refused_and_leaves_nothing(message, world, tmp_path):
    with refused((ValueError, FileNotFoundError), message):
        run(world, tmp_path / "out", **VALUES[message])
    assert not (tmp_path / "out").exists()


def test_an_interrupt_says_how_to_go_on(world, tmp_path, monkeypatch, capsys):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "search", interrupt)
    with pytest.raises(SystemExit) as done:
        run(world, tmp_path / "out")
    assert done.value.code == 130
    said = f"interrupted: finished shards are kept in {tmp_path}/out/shards; give the same command again to go on\n"
    assert capsys.readouterr().err.endswith(said)


def test_a_lost_worker_is_said_once_by_all_that_are_left(tmp_path, monkeypatch, capsys):
    def leave(code):
        raise SystemExit(code)

    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.setattr(os, "_exit", leave)
    (tmp_path / "shards").mkdir()
    for _ in range(2):
        with pytest.raises(SystemExit) as done, ShardFolder(str(tmp_path)).kept():
            raise ConnectionError
        assert done.value.code == 1
    assert capsys.readouterr().err.count("worker lost, or the job was stopped: finished shards are kept in") == 1


def test_a_signal_is_noticed_beside_the_main_thread_and_handlers_are_put_back():
    before = signal.getsignal(signal.SIGTERM)
    came = threading.Event()
    with _at_sigterm(came.set):
        os.kill(os.getpid(), signal.SIGTERM)
        assert came.wait(10)
    assert signal.getsignal(signal.SIGTERM) == before
    assert signal.set_wakeup_fd(-1) == -1


def test_each_process_has_a_gpu_of_its_own(world, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_RANK", "2")
    for asked, device in (("cpu", "cpu"), ("cuda", "cuda:2")):
        assert command._device(command.Arguments(**world, out="out", device=asked)) == device
    with refused(ValueError, "device must be cpu or cuda where there are several processes, got cuda:1"):
        command._device(command.Arguments(**world, out="out", device="cuda:1"))


def start(world, out, n_processes, **options):
    """The command in some processes; their output goes to files beside the folder."""
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(n_processes)]
    asked = [f"--{name.replace('_', '-')}={value}" for name, value in (world | {"out": out} | options).items()]
    several = launch if n_processes > 1 else []
    line = [sys.executable, *several, "-m", "bilinear_circuits.cli", "interactions", *asked]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with Path(f"{out}.stdout").open("w") as stdout, Path(f"{out}.stderr").open("w") as stderr:
        return subprocess.Popen(line, stdout=stdout, stderr=stderr, env=environment)


def output(out):
    return Path(f"{out}.stdout").read_text(), Path(f"{out}.stderr").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("per_feature", [False, True])
def test_two_processes_find_what_one_finds(per_feature, world, tmp_path):
    asked = {"k": 40, "per_feature": per_feature, "shard_size": 7, "precision": "bfloat16"}
    one, two = tmp_path / "one", tmp_path / "two"
    expected, record = run(world, one, **asked)
    assert start(world, two, 2, **asked).wait() == 0, output(two)
    table, other = read(two)
    assert all(torch.equal(table[name], expected[name]) for name in COLUMNS)
    # What is computed in full depends on what else was known by then.
    certificates = [one["certificate"] | {"candidates": None} for one in (other, record)]
    assert certificates[0] == certificates[1]
    assert (record["n_processes"], other["n_processes"]) == (1, 2)
    assert sorted(file.name for file in two.iterdir()) == FILES
    stdout, stderr = output(two)
    assert stdout.count("certificate:") == stdout.count("written:") == 1
    assert stderr.count("loading ") == 1


@pytest.mark.slow
def test_a_mistake_is_said_by_the_first_process_and_ends_all(world, tmp_path):
    out = tmp_path / "out"
    assert start(world, out, 2, features=70).wait(120) != 0
    stdout, stderr = output(out)
    assert stdout == ""
    assert stderr.count("feature must be between 0 and 69") == 1
    assert not out.exists()


def workers(process):
    """The processes that torchrun started, by rank."""
    found = psutil.Process(process.pid).children(recursive=True)
    return {int(one.environ()["RANK"]): one for one in found if "interactions" in one.cmdline()}


@pytest.mark.slow
def test_a_worker_that_hangs_counts_as_lost(world, tmp_path):
    big = world | {"saes": write_dictionaries(tmp_path / "saes", 150, 4000)}
    out = tmp_path / "out"
    process = start(big, out, 2, k=40, shard_size=2, patience=0.5)
    until = time.monotonic() + 120
    while not {file.name for file in out.glob("shards/0*.json")} > {"00000.json", "00001.json"}:
        assert process.poll() is None, output(out)
        assert time.monotonic() < until
        time.sleep(0.01)
    workers(process)[1].suspend()
    assert process.wait(120) != 0
    assert output(out)[1].count("worker lost, or the job was stopped: finished shards are kept in") == 1


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_lost_worker_stops_the_job_and_a_later_run_finishes(victim, world, tmp_path, monkeypatch):
    big = world | {"saes": write_dictionaries(tmp_path / "saes", 150, 4000)}
    out, asked = tmp_path / "out", {"k": 40, "shard_size": 2, "precision": "bfloat16"}
    process = start(big, out, 2, **asked)
    until = time.monotonic() + 120
    while not {file.name for file in out.glob("shards/0*.json")} > {"00000.json", "00001.json"}:
        assert process.poll() is None, output(out)
        assert time.monotonic() < until
        time.sleep(0.01)
    workers(process)[victim].kill()
    assert process.wait(60) != 0
    stdout, stderr = output(out)
    assert stdout == ""
    said = f"worker lost, or the job was stopped: finished shards are kept in {out}/shards; give the same command again"
    assert stderr.count(said) == 1
    assert not [file for file in FILES if (out / file).exists()]
    n_finished = len(list(out.glob("shards/0*.json")))
    assert 2 < n_finished < 2000
    searched = counted(monkeypatch)
    table, _ = run(big, out, **asked)
    assert len(searched) == 2000 - n_finished
    check_table(table, layer_of(big).top(40, precision="bfloat16"))
