"""What holds for every verb that writes: nothing of the machine, nothing by halves, one run at a time."""

import importlib
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from verbs import RESUMABLE, VERBS, asked, files_of, write_world

from bilinear_circuits.cli import VERBS as VERB_MODULES
from bilinear_circuits.cli import main
from bilinear_circuits.command_line.claims import claimed

ROOT = Path(__file__).parents[1]
# One of each way of writing; the others run with the slow tests.
QUICK = ("graph", "inspect", "interactions", "approximate", "heads", "import")
FAST = ("circuits", "edit", "graph", "features", "interactions", "train", "train-sae", "import")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("jane-doe")
    made = write_world(root)
    assert main(asked("circuits", made, root / "found")) == 0
    assert main(asked("train-sae", made, root / "dictionaries")) == 0
    return root, made


@pytest.mark.parametrize(
    "verb", [verb if verb in QUICK else pytest.param(verb, marks=pytest.mark.slow) for verb in VERBS]
)
def test_a_verb_writes_no_path_of_the_machine_and_leaves_nothing_beside(verb, world, tmp_path):
    root, places = world
    out = tmp_path / "results"
    assert main(asked(verb, places, out)) == 0
    found = files_of(out)
    assert found
    for name, content in found.items():
        for path in (root, tmp_path):
            assert str(path).encode() not in content, f"{name} names {path}"
    assert [one.name for one in tmp_path.iterdir()] == ["results"]
    assert not [name for name in found if re.search(r"(^|/)\.|\.part(/|$)", name)]
    # Details of a graph are named by the hash of the model they are of.
    for name in [name for name in found if not name.startswith("features/")][:6]:
        mine = tmp_path / "mine" / name
        mine.parent.mkdir(parents=True)
        mine.write_text("notes of another program")
        assert main(asked(verb, places, tmp_path / "mine")) == 2, f"{name} of others was replaced"
        assert files_of(tmp_path / "mine") == {name: b"notes of another program"}
        shutil.rmtree(tmp_path / "mine")


def test_no_verb_writes_into_the_dictionaries_that_are_shipped_or_followed(world, capsys):
    from bilinear_circuits import zoo

    root, places = world
    for place in (zoo.FOLDER / "ts-17m-saes", zoo.FOLDER / "ts-17m-saes/blocks.4.mlp.hook_in"):
        before = {one.name for one in place.iterdir()}
        assert main(["inspect", "--layer", "4", "--feature", "350", "--out", str(place)]) == 2
        assert "out must be another folder than the dictionaries" in capsys.readouterr().err
        assert {one.name for one in place.iterdir()} == before
    assert main(asked("sae-progress", places, root / "dictionaries")) == 2
    assert "out must be another folder than the dictionaries" in capsys.readouterr().err


@pytest.mark.parametrize("verb", [verb for verb, line in VERBS.items() if "PLACE" in line])
@pytest.mark.parametrize("folder", ["model", "saes", "saes/blocks.1.mlp.hook_in"])
def test_no_verb_writes_into_what_it_reads(verb, folder, world, capsys):
    root, places = world
    before = files_of(root / folder)
    assert main(asked(verb, places, root / folder)) == 2
    what = "the model" if folder == "model" else "the dictionaries"
    assert f"out must be another folder than {what}, got" in capsys.readouterr().err
    assert files_of(root / folder) == before


@pytest.mark.parametrize("verb", ["inspect", "evaluate-sae"])
def test_a_verb_replaces_its_own_earlier_result_and_leaves_other_files(verb, world, tmp_path, capsys):
    out = tmp_path / "results"
    out.mkdir()
    (out / "notes.md").write_text("mine")
    line = asked(verb, world[1], out)
    assert main(line) == 0
    record = out / importlib.import_module(VERB_MODULES[verb]).OUTPUTS.record
    first = without_times(json.loads(record.read_text()))
    assert main(line) == 0
    assert without_times(json.loads(record.read_text())) == first
    assert (out / "notes.md").read_text() == "mine"
    record.write_text(record.read_text().replace('"kind": "', '"kind": "another '))
    assert main(line) == 2
    assert f"which holds another {record.name}. Name another --out." in capsys.readouterr().err


@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb != "graph"])  # graphs gather in one folder: they wait
def test_a_second_run_on_the_same_folder_is_refused(verb, world, tmp_path, capsys):
    out = tmp_path / "results"
    with claimed(out):
        assert main(asked(verb, world[1], out)) == 2
    assert "out must not be written by two runs at once" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "verb", [verb if verb in FAST else pytest.param(verb, marks=pytest.mark.slow) for verb in VERBS]
)
def test_a_full_disk_is_one_line_and_leaves_no_half(verb, world, tmp_path, capsys):
    out = tmp_path / "results"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (600, limits[1]))
    try:
        code = main(asked(verb, world[1], out))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    captured = capsys.readouterr()
    assert code == 2, captured.err
    last = captured.err.splitlines()[-1]
    assert last.startswith(f"bilinear-circuits: error: the disk of {out} is full: make room"), last
    assert "Traceback" not in captured.err
    if verb in RESUMABLE:
        assert main(asked(verb, world[1], out)) == 0  # and goes on once there is room
    else:
        assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_circuits_active_at_no_held_out_site_are_reported_and_read_again(world, tmp_path, capsys):
    import yaml

    root, places = world
    query = yaml.safe_load((root / "QUERY.yaml").read_text())
    query["settings"] |= {"sites": 1, "shortlist": 12}
    (tmp_path / "query.yaml").write_text(yaml.safe_dump(query))
    asked_for = places | {"QUERY": str(tmp_path / "query.yaml"), "CIRCUIT": str(tmp_path / "found/circuit.json")}
    assert main(asked("circuits", asked_for, tmp_path / "found")) == 0
    said = capsys.readouterr().out
    assert "active at no site" in said
    assert "not proved: the feature is active at no trigger site, fewer than 10" in said
    assert re.search(r"^0 of \d proved$", said, re.MULTILINE)
    found = json.loads((tmp_path / "found/circuit.json").read_text())["circuits"]
    unmeasured = [one["proof"] for one in found if one["proof"]["removal"]["n"] == 0]
    assert unmeasured
    assert all(one["p_value"] is None and one["removal"]["mean"] is None for one in unmeasured)
    assert main(asked("explore", asked_for, tmp_path / "explored")) == 0
    assert main(asked("edit", asked_for, tmp_path / "edited")) == 0


@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb != "graph"])
def test_a_name_that_no_folder_can_have_is_one_line(verb, world, capsys):
    for name in ("", " ", "a" * 300, "\0x"):
        line = [text if text != "OUT" else name for text in asked(verb, world[1], "OUT")]
        assert main(line) == 2
        assert "error: out must be the name of a folder, got" in capsys.readouterr().err


def process(verb, places, out):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    line = [sys.executable, "-m", "bilinear_circuits.cli", *asked(verb, places, out)]
    return subprocess.Popen(
        line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, cwd=out.parent
    )


def result(folder):
    """What a run found: its files, without how long it took and whether it was interrupted."""
    found = {}
    for name, content in files_of(folder).items():
        if name.endswith((".html", ".png", ".parquet", ".bin")):
            continue  # pages show the seconds; the same rows are in .csv and .json
        if name.endswith(".json"):
            found[name] = without_times(json.loads(content))
        else:
            found[name] = content
    return found


def without_times(value):
    if isinstance(value, dict):
        told = {"seconds", "resumed_at", "created", "create_time_ms", "sha256", "train_runtime"}
        return {key: without_times(one) for key, one in value.items() if key not in told}
    return [without_times(one) for one in value] if isinstance(value, list) else value


@pytest.mark.slow
@pytest.mark.parametrize("verb", VERBS)
def test_a_run_killed_at_any_time_and_given_again_finds_the_same(verb, world, tmp_path):
    places, out, whole = world[1], tmp_path / "killed/results", tmp_path / "whole/results"
    for folder in (out, whole):
        folder.parent.mkdir()
    started = time.perf_counter()
    first = process(verb, places, whole)
    assert (first.communicate(), first.returncode)[1] == 0
    seconds = time.perf_counter() - started
    for share in (0.55, 0.7, 0.8, 0.9, 0.97):
        killed = process(verb, places, out)
        time.sleep(share * seconds)
        killed.kill()
        killed.communicate()
    again = process(verb, places, out)
    said = again.communicate()[1]
    # One of the killed runs may have come to its end.
    over = ("holds a finished one", "which holds files", "must be a new or empty folder")
    assert again.returncode == 0 or any(text in said for text in over), said
    assert result(out) == result(whole)
    assert [one.name for one in out.parent.iterdir()] == ["results"]
