"""The package as it is installed away from a clone: everything is in the wheel, and a query is found by its name."""

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PARTS = ("bilinear_circuits", "sae", "configs", "docs", "tests", "benchmarks")
LINK = ROOT / "bilinear_circuits/configs"
SOURCES = {"bilinear_circuits": "bilinear_circuits", "sae": "sae", "configs": "bilinear_circuits/configs"}

pytestmark = pytest.mark.slow


def done(*command, cwd):
    """A command that ended, run without the folders of this clone."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, cwd=cwd, env=environment)


def ran(*command, cwd):
    ended = done(*command, cwd=cwd)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """A wheel built without a network from a copy, since a build leaves files behind and takes in old ones."""
    copy, out = (tmp_path_factory.mktemp(name) for name in ("sources", "wheel"))
    for part in PARTS:
        shutil.copytree(ROOT / part, copy / part, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, copy)
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel")
    ran(*pip, "--no-deps", "--no-index", "--no-build-isolation", "--wheel-dir", out, copy, cwd=out)
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """The folder of commands of an environment that holds the wheel, and what it depends on from this one."""
    folder = tmp_path_factory.mktemp("installed")
    ran(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder)
    python = folder / "bin/python"
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"])
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", python, "install")
    # The .pth file shows pip the package under test, too: it is not to be taken out of there.
    ran(*pip, "--no-deps", "--no-index", "--ignore-installed", wheel, cwd=folder)
    return folder / "bin"


def test_the_wheel_holds_every_file_of_the_packages_and_no_other(wheel):
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    expected = {
        f"{target}/{file.relative_to(ROOT / source).as_posix()}"
        for source, target in SOURCES.items()
        for file in (ROOT / source).rglob("*")
        if file.is_file() and "__pycache__" not in file.parts and LINK not in file.parents
    }
    assert names == expected
    assert {"bilinear_circuits/py.typed", "bilinear_circuits/configs/train/ts-nano.yaml"} <= names


def test_the_description_of_the_wheel_has_no_link_that_leads_nowhere(wheel):
    content = zipfile.ZipFile(wheel)
    (metadata,) = (name for name in content.namelist() if name.endswith(".dist-info/METADATA"))
    text = content.read(metadata).decode()
    assert "# bilinear-circuits" in text
    assert re.findall(r"\]\((?!https://)[^)]*\)|<img", text) == []


def test_a_query_by_name_runs_in_an_empty_folder(installed, tmp_path):
    where = "import bilinear_circuits; print(bilinear_circuits.__file__)"
    assert ran(installed / "python", "-c", where, cwd=tmp_path).startswith(str(installed.parent))
    asked = ("circuits", "sentiment_negation", "--layers", "4", "--n-stories", "260", "--out", "found")
    shown = ran(installed / "bilinear-circuits", *asked, cwd=tmp_path)
    assert re.search(r"\d of \d proved", shown)
    result = json.loads((tmp_path / "found/circuit.json").read_text())
    assert result["query"]["name"] == "Sentiment negation"
    assert result["provenance"]["commit"] is None
    assert sorted(file.name for file in tmp_path.iterdir()) == ["found"]


@pytest.mark.parametrize("verb", ["train", "train-sae"])
def test_recipes_are_found_by_name(installed, verb, tmp_path):
    ended = done(installed / "bilinear-circuits", verb, "ts-nan", cwd=tmp_path)
    assert ended.returncode == 2
    assert ended.stderr.endswith("got ts-nan: no such file. Did you mean ts-nano?\n")
