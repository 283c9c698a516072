"""Every verb on a device that is not the CPU: nothing of the CPU meets it, and the results are the same."""

import json
import math
from pathlib import Path

import pytest
from another_device import DEVICE, another_device, on_the_cpu
from verbs import OTHERS, VERBS, asked, write_world

from bilinear_circuits import zoo
from bilinear_circuits.cli import main
from bilinear_circuits.dictionaries.dictionary import Dictionary

# What differs between runs and devices, or orders what is equal but for rounding.
_ASIDE = {"provenance", "seconds", "settings", "device"}
_VERBS = [verb for verb, line in (VERBS | OTHERS).items() if "PLACE" in line and verb != "serve"] + [
    "sae-progress",
    "paths",
    "heads",
]
_FAST = ("heads",)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("device")
    made = write_world(root)
    assert main(asked("circuits", made, root / "found")) == 0
    circuits = json.loads((root / "found/circuit.json").read_text())["circuits"]
    return made | {"LAST": circuits[-1]["name"]}


@pytest.fixture
def loaded_on_the_cpu(monkeypatch):
    """Models and dictionaries are loaded on the CPU, by libraries that know no other device here, and moved."""
    load_model, load_plain, load = zoo.load_model, zoo.load_plain_model, Dictionary.load.__func__

    def model(name, device="cpu"):
        with on_the_cpu():
            found = load_model(name)
        return found.to(device)

    def plain(name, device="cpu"):
        with on_the_cpu():
            found, tokenizer = load_plain(name)
        return found.to(device), tokenizer

    def dictionary(cls, path, name=None, device="cpu"):
        with on_the_cpu():
            found = load(cls, path, name)
        return found.to(device)

    monkeypatch.setattr(zoo, "load_model", model)
    monkeypatch.setattr(zoo, "load_plain_model", plain)
    monkeypatch.setattr(Dictionary, "load", classmethod(dictionary))


@pytest.mark.filterwarnings("ignore:at..frobenius_norm is deprecated")  # of torch to itself
@pytest.mark.parametrize("verb", [one if one in _FAST else pytest.param(one, marks=pytest.mark.slow) for one in _VERBS])
def test_a_verb_gives_the_same_on_another_device(verb, world, loaded_on_the_cpu, tmp_path):
    if verb == "sae-progress":
        assert main(asked("train-sae", world, Path(world["FOLDER"]))) == 0
    few = ["--features", world["LAST"], "--n-edges", "8"] if verb == "prove" else []
    assert main([*asked(verb, world, tmp_path / "cpu"), *few]) == 0
    with another_device():
        assert main([*asked(verb, world, tmp_path / "device"), *few, "--device", str(DEVICE)]) == 0
    for file in sorted((tmp_path / "cpu").rglob("*.json")):
        name = file.relative_to(tmp_path / "cpu")
        same(json.loads(file.read_text()), json.loads((tmp_path / "device" / name).read_text()), str(name))


def same(cpu, device, where):
    """Whether two results are equal but for rounding."""
    if isinstance(cpu, dict):
        assert cpu.keys() == device.keys(), where
        for key in cpu.keys() - _ASIDE:
            same(cpu[key], device[key], f"{where}.{key}")
    elif isinstance(cpu, list):
        assert len(cpu) == len(device), where
        for index, (one, other) in enumerate(zip(cpu, device, strict=True)):
            same(one, other, f"{where}[{index}]")
    elif isinstance(cpu, float) and not isinstance(device, str):
        assert math.isclose(cpu, device, rel_tol=1e-3, abs_tol=1e-4), f"{where}: {cpu} and {device}"
    else:
        assert cpu == device, where
