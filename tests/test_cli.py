"""The command line as a user meets it, on the shipped model."""

import csv
import dataclasses
import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from planted import tiny_llama, word_tokenizer

from bilinear_circuits.cli import VERBS

ROOT = Path(__file__).parents[1]
QUERY = ROOT / "configs/circuits/sentiment_negation.yaml"


def run(*arguments, cwd=None):
    command = [sys.executable, "-m", "bilinear_circuits.cli", *map(str, arguments)]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment)


def mistake(capsys, *arguments):
    """What stderr says; nothing may go to stdout, and the exit code is 2."""
    from bilinear_circuits.cli import main

    try:
        code = main(list(map(str, arguments)))
    except SystemExit as done:
        code = done.code
    captured = capsys.readouterr()
    assert code == 2, captured.err
    assert captured.out == ""
    assert captured.err.splitlines()[-1].startswith("bilinear-circuits: error: ")
    return captured.err


def query_file(folder, **change):
    import yaml

    content = {"name": "q", "triggers": ["not"], "positive": ["good"], "negative": ["bad"]} | change
    path = folder / "query.yaml"
    path.write_text(yaml.safe_dump({key: value for key, value in content.items() if value is not None}))
    return path


@pytest.mark.parametrize("verb", [(), *((verb,) for verb in VERBS)])
def test_help_teaches_without_loading_anything_heavy(verb):
    code = (
        "import sys; from bilinear_circuits.cli import main\n"
        f"try: main({[*verb, '--help']!r})\n"
        "except SystemExit: pass\n"
        "assert not {'torch', 'transformers', 'sae_lens'} & set(sys.modules), 'heavy import'\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "usage: bilinear-circuits" in done.stdout
    # Every verb writes to a folder, but for the one that serves and the one that writes into those of the dictionaries.
    option = {("serve",): "--port", ("names",): "--replace"}.get(verb, "--out")
    assert all(f"\n  {name}" in done.stdout for name in VERBS) if not verb else option in done.stdout


MISTAKES = {
    ("nonsense",): f"verb must be one of {', '.join(VERBS)}, got nonsense",
    ("circits",): "got circits. Did you mean circuits?",
    ("circuits",): "the following arguments are required: QUERY",
    ("circuits", "missing.yaml"): "name (sentiment_negation, ts_nano_negation), got missing.yaml: no such file.",
    ("circuits", "sentiment_negatoin"): "got sentiment_negatoin: no such file. Did you mean sentiment_negation?",
    ("train", "configs/train/ts-nan.yaml"): "no such file. Did you mean ts-nano?",
    ("train-sae", "ts-17m"): "(ts-17m-4x, ts-17m-8x, ts-17m-progress, ts-nano), got ts-17m: no such file. Did you",
    ("circuits", QUERY, "--layers", "9"): "layer must have dictionaries in ts-17m (layers 3, 4), got 9",
    ("circuits", QUERY, "--model", "ts-71m"): "got ts-71m. Did you mean ts-17m?",
    ("circuits", QUERY, "--saes", "nowhere"): "got nowhere: no such folder",
    ("circuits", QUERY, "--corpus", "nowhere.txt"): "got nowhere.txt: no such file",
    ("circuits", QUERY, "--out", ROOT / "LICENSE"): "LICENSE is a file",
    ("circuits", QUERY, "--n-stories", "10"): "stories must be more than 232",
    ("inspect", "--layer", "3"): "the following arguments are required: --feature",
    ("inspect", "--layer", "x", "--feature", "1"): "argument --layer: invalid int value: 'x'",
    ("inspect", "--layer", "3", "--feature", "3072"): "feature must be between 0 and 3071",
    ("inspect", "--layer", "3", "--feature", "1", "--device", "cuda:7"): "device must be one that torch can use",
    ("inspect", "--layr", "4", "--feature", "1"): "--layr is no option, did you mean --layer?",
    ("lowrank", "--nonsense"): "unrecognized arguments: --nonsense: --nonsense is no option. See",
    ("lowrank", "--device", "gpu", "--n-stories", "2"): "got gpu: no such device; name cpu, cuda or cuda:1",
    ("interactions", "--layer", "3"): "the following arguments are required: --out",
    ("interactions", "--layer", "9", "--out", "o"): "layer must have dictionaries in ts-17m (layers 3, 4), got 9",
    ("interactions", "--layer", "3", "--out", "o", "--k", "0"): "k must be at least 1, got 0",
    ("interactions", "--layer", "3", "--out", "o", "--order", "size"): "argument --order: invalid choice: 'size'",
    ("discover", "--layers", "9"): "layer must have dictionaries in ts-17m (layers 3, 4), got 9",
    ("discover", "--fdr", "5"): "fdr must be a number between 0 and 1, got 5.0",
    ("edit", "missing.json", "--out", "o"): "missing.json",
    ("prove", "missing.json", "--out", "o"): "missing.json",
    ("compare", "missing.json", "missing.json"): "missing.json",
    ("lowrank", "--bogus"): "unrecognized arguments: --bogus",
    ("inspect", "--layer", "3", "--feature", "1", "--k", "0"): "k must be at least 1, got 0.",
    ("lowrank", "--ranks", "385"): "ranks must be between 1 and d_in=384, got 385",
    ("lowrank", "--ranks", "0", "--n-stories", "2"): "ranks must be between 1 and d_in=384, got 0",
    ("sample", "--out", "x.txt", "--temperature", "0"): "temperature must be positive",
    ("sample", "--out", ROOT): "out must be a file",
}


@pytest.mark.parametrize("arguments", MISTAKES, ids=lambda arguments: " ".join(map(str, arguments[:4])))
def test_a_mistake_is_one_line_and_leaves_nothing(arguments, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert MISTAKES[arguments] in mistake(capsys, *arguments)
    assert list(tmp_path.iterdir()) == []


MODEL_ALONE = {
    "inspect": ("--layer", "1", "--feature", "3"),
    "features": ("--layer", "1", "--out", "o"),
    "graph": ("--prompt", "a", "--layer", "1", "--feature", "3", "--out", "o"),
    "interactions": ("--layer", "1", "--coactive", "--out", "o"),
    "explore": ("--features", "1/3", "--out", "o"),
    "serve": ("--features", "1/3"),
    **dict.fromkeys(("lowrank", "discover", "evaluate-sae"), ()),
}


@pytest.mark.parametrize("verb", MODEL_ALONE)
def test_missing_dictionaries_and_stories_are_said_together(verb, tmp_path, monkeypatch, capsys):
    tiny_llama(n_layers=2).save_pretrained(tmp_path / "model")
    word_tokenizer().save_pretrained(tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    said = mistake(capsys, verb, *MODEL_ALONE[verb], "--model", "model")
    assert "--saes and --corpus must be given for model: dictionaries and stories are shipped for ts-17m." in said
    said = mistake(capsys, verb, *MODEL_ALONE[verb], "--model", "model", "--corpus", ROOT / "LICENSE")
    assert "--saes must be given for model: dictionaries are shipped for ts-17m." in said


def test_only_what_is_needed_is_said_to_be_missing(tmp_path, monkeypatch, capsys):
    tiny_llama(n_layers=2).save_pretrained(tmp_path / "model")
    word_tokenizer().save_pretrained(tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    for asked in (("circuits", QUERY), ("interactions", "--layer", "1", "--out", "o")):
        assert "--saes must be given for model" in mistake(capsys, *asked, "--model", "model")


@pytest.mark.parametrize("verb", VERBS)
def test_the_usage_line_puts_what_is_needed_first_and_the_rest_in_brackets(verb, capsys):
    from bilinear_circuits import cli

    module = importlib.import_module(VERBS[verb])
    with pytest.raises(SystemExit):
        cli._parse(verb, module, ["--help"])
    text = capsys.readouterr().out
    usage = " ".join(text.split("\n\n")[0].split())
    needed, _, optional = usage.removeprefix(f"usage: bilinear-circuits {verb} ").partition("[")
    assert "]" not in needed
    assert re.fullmatch(r"(\[[^\[\]]+\] ?)+", f"[{optional}"), usage
    names = {one.name for one in dataclasses.fields(module.Arguments) if one.default is dataclasses.MISSING}
    names &= {one.name for one in dataclasses.fields(module.Arguments) if one.default_factory is dataclasses.MISSING}
    options = {f"--{name.replace('_', '-')}" for name in names}
    assert set(re.findall(r"--[\w-]+", needed)) == {name for name in options if name in usage}
    assert set(re.findall(r"--[\w-]+", text)) >= set(re.findall(r"--[\w-]+", usage))
    assert not re.search(r"--[\w-]+ list|default:\s+\[\]", text), "what a list holds"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"trigers": ["not"]}, "got 'trigers'. Did you mean triggers?"),
        ({"positive": None}, "must hold the key positive, got only name, negative, triggers"),
        ({"corpus": 7}, "must be a file, a Hub id or a shipped model's name, got 7"),
        ({"triggers": "not"}, "triggers must be a list of words, got 'not'"),
        ({"n_stories": "many"}, "must be a positive whole number, got 'many'"),
        ({"settings": {"sits": 3}}, "got 'sits'. Did you mean sites?"),
        ({"settings": {"sites": 0}}, "sites must be a whole number of at least 1, got 0"),
        ({"negative": ["bad", "flabbergasted"]}, "got flabbergasted, which are not"),
    ],
)
def test_a_wrong_query_key_is_named(change, message, tmp_path, capsys):
    assert message in mistake(capsys, "circuits", query_file(tmp_path, **change), "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_value_of_the_wrong_kind_is_named(tmp_path):
    wrong = {
        'Quote words such as "no" in YAML': {"triggers": [False]},
        "triggers must be a list of words, got 3": {"triggers": 3},
        "must be true or false, got 'perhaps'": {"allow_missing": "perhaps"},
        "must be a whole number, got 'many'": {"settings": {"sites": "many"}},
        "settings": {"settings": 3},
    }
    queries = []
    for index, change in enumerate(wrong.values()):
        (tmp_path / str(index)).mkdir()
        queries.append(str(query_file(tmp_path / str(index), **change)))
    # In a process of its own: here the shape checks of the tests would speak first.
    each = "import sys; from bilinear_circuits.cli import main; print([main(['circuits', q]) for q in sys.argv[1:]])"
    done = subprocess.run([sys.executable, "-c", each, *queries], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout == "[2, 2, 2, 2, 2]\n", done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == 5
    assert all(message in line for message, line in zip(wrong, lines, strict=True))


def test_a_model_that_is_not_bilinear_is_refused_with_the_reason(tmp_path, capsys):
    tiny_llama(act="silu", n_layers=4).save_pretrained(tmp_path / "model")
    word_tokenizer().save_pretrained(tmp_path / "model")
    asked = ("lowrank", "--model", tmp_path / "model", "--saes", "ts-17m", "--corpus", "ts-17m", "--layers", "3")
    assert "It applies a SiLU gate" in mistake(capsys, *asked)


def test_dictionaries_of_another_model_are_refused_with_both_shapes(tmp_path, capsys):
    tiny_llama(n_layers=4).save_pretrained(tmp_path / "model")
    word_tokenizer().save_pretrained(tmp_path / "model")
    asked = ("lowrank", "--model", tmp_path / "model", "--saes", "ts-17m", "--corpus", "ts-17m", "--layers", "3")
    assert "whose blocks.3.mlp.hook_in has width 12, got blocks.3.mlp.hook_in with W_enc (384, 3072)" in mistake(
        capsys, *asked
    )


@pytest.mark.slow
def test_sample_writes_stories_that_the_other_verbs_read(tmp_path, capsys):
    from bilinear_circuits.cli import main

    stories, out = str(tmp_path / "stories.txt"), tmp_path / "out"
    assert main(["sample", "--n", "2", "--out", stories, "--seed", "1"]) == 0
    assert capsys.readouterr().out.startswith("2 stories written")
    assert main(["lowrank", "--layers", "3", "--corpus", stories, "--min-active", "30", "--out", str(out)]) == 0
    result = json.loads((out / "lowrank.json").read_text())
    assert result["layers"]["3"]["ranks"] == [1, 2, 4, 8, 16, 384]
    assert len(result["layers"]["3"]["correlation"]) == 3072
    assert len(result["provenance"]["model"]["sha256"]) == 64
    assert sorted(path.name for path in out.iterdir()) == ["lowrank.csv", "lowrank.json", "lowrank.parquet"]
    header, first = (out / "lowrank.csv").read_text().splitlines()[:2]
    assert header == "layer,feature,n_active,rank_1,rank_2,rank_4,rank_8,rank_16,rank_384"
    assert first.startswith("3,0,")


def test_inspect_shows_a_feature_and_writes_its_page(tmp_path, capsys):
    from bilinear_circuits.cli import main

    out = tmp_path / "out"
    assert main(["inspect", "--layer", "4", "--feature", "143", "--n-stories", "10", "--out", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "layer 4, output feature 143" in shown
    assert "largest interactions in the weights" in shown
    assert sorted(path.name for path in out.iterdir()) == ["feature.json", "report.html"]


@pytest.mark.slow
def test_circuits_writes_a_report_and_its_numbers(tmp_path):
    path = query_file(
        tmp_path,
        triggers=["not", "n't"], positive=["good", "happy", "nice"], negative=["bad", "sad", "hurt"],
        settings={"ranking_stories": 80, "sites": 40, "controls": 4, "circuits": 1, "loss_stories": 8},
    )  # fmt: skip
    done = run("circuits", path, "--n-stories", 600, "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "out/circuit.json").read_text())
    assert {circuit["evidence"]["sign"] for circuit in result["circuits"]} == {1, -1}
    assert result["provenance"]["config"]["seed"] == 0
    assert (tmp_path / "out/report.html").stat().st_size < 5_000_000
    names = ["circuit.json", "ranking.csv", "ranking.parquet", "report.html"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == names
    ranking = list(csv.DictReader((tmp_path / "out/ranking.csv").read_text().splitlines()))
    assert [row["name"] for row in ranking] == [one["name"] for one in result["ranking"]]
