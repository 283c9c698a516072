"""Discovery on the command line: a tiny model, the files it writes, and what it refuses."""

import csv
import json
from pathlib import Path

import pytest
from planted import random_dictionary, random_stories, tiny_llama, word_tokenizer
from test_cli import mistake

from bilinear_circuits.commands import discover as command
from bilinear_circuits.discovery import MOTIFS, DiscoverySearch
from bilinear_circuits.utilities.saving import load_result


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A tiny model whose first MLP multiplies pairs of input features, one pair for each output feature."""

    root = tmp_path_factory.mktemp("discover")
    model = tiny_llama(d_model=64, d_mlp=40)
    for layer in (0, 1):
        hooks = [f"blocks.{layer}.mlp.hook_{side}" for side in ("in", "out")]
        sae_in, sae_out = (
            random_dictionary(64, d, hook, seed=d + layer, k=8) for d, hook in zip((90, 40), hooks, strict=True)
        )
        for one, hook in ((sae_in, hooks[0]), (sae_out, hooks[1])):
            one.save(root / "saes" / hook)
        if layer == 0:
            mlp = model.model.layers[0].mlp
            mlp.gate_proj.weight.data, mlp.up_proj.weight.data = sae_in.W_dec[:40].clone(), sae_in.W_dec[40:80].clone()
            mlp.down_proj.weight.data = sae_out.W_dec.T.clone()
    model.save_pretrained(root / "tiny")
    word_tokenizer().save_pretrained(root / "tiny")
    (root / "stories.txt").write_text("\n<|endoftext|>\n".join(random_stories(80)))
    return {"model": str(root / "tiny"), "saes": str(root / "saes"), "corpus": str(root / "stories.txt")}


def test_what_is_printed_is_what_is_written(world, tmp_path, capsys):
    out = tmp_path / "found"
    command.run(
        command.Arguments(**world, out=str(out), n_stories=80, fdr=0.5, nulls=["rotation"], replicates=4, n_listed=2)
    )
    assert json.loads((out / "pairs.json").read_text())["interference"] == []
    printed = capsys.readouterr().out
    search = load_result(DiscoverySearch, out)
    assert search.settings.fdr == 0.5
    assert {one.layer for one in (*search.discoveries, *search.echoes, *search.apart)} <= {0, 1}
    assert f"{len(search.discoveries)} discoveries, {len(search.echoes)} echoes of other features" in printed
    assert len([one for one in search.discoveries if one.motif == "and" and one.layer == 0]) > 5
    for motif in MOTIFS:
        listed = [
            line.split()[0]
            for line in printed.split(f"\n{motif}:\n")[-1].split("\n\n")[0].splitlines()
            if "score" in line
        ]
        best = [one.name for one in search.discoveries if one.motif == motif][:2]
        assert (not best) == (f"\n{motif}:\n" not in printed)
        assert not best or listed == best
    rows = list(csv.DictReader((out / "discoveries.csv").read_text().splitlines()))
    assert [int(row["feature"]) for row in rows if row["status"] == "discovery"] == [
        o.feature for o in search.discoveries
    ]
    assert len(rows) == len(search.discoveries) + len(search.echoes) + len(search.apart)
    document = json.loads((out / "result.json").read_text())
    assert document["provenance"]["config"]["replicates"] == 4
    assert document["provenance"]["model"]["sha256"]
    assert json.loads((out / "pairs.json").read_text())["kind"] == "plane pairs"
    assert sorted(file.name for file in out.iterdir()) == [
        "discoveries.csv",
        "discoveries.parquet",
        "pairs.json",
        "report.html",
        "result.json",
        "result.safetensors",
    ]


def test_the_largest_interactions_are_checked_where_asked_for(world, tmp_path, capsys):
    out = tmp_path / "found"
    command.run(
        command.Arguments(
            **world, out=str(out), layers=[0], n_stories=40, nulls=["rotation"], replicates=1, n_largest=9
        )
    )
    assert "layer 0: of the 9 largest interactions of two input features" in capsys.readouterr().out
    assert [one["k"] for one in json.loads((out / "pairs.json").read_text())["interference"]] == [9]
    assert "Interactions that never meet" in (out / "report.html").read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--fdr", "0"], "fdr must be a number between 0 and 1, got 0.0"),
        (
            ["--nulls", "refit", "wrong"],
            "nulls must be among refit, weights, symmetric, rotation, dictionary, got",
        ),
        (["--replicates", "0"], "replicates must be a whole number of at least 1, got 0"),
        (["--n-listed", "0"], "n_listed must be at least 1, got 0"),
        (["--layers", "2"], "layer must have dictionaries in"),
        (["--n-largest", "-1"], "n_largest must be at least 0, got -1"),
        (["--n-stories", "0"], "n_stories must be at least 1, got 0"),
        (["--out", __file__], "out must be a folder"),
    ],
)
def test_what_makes_no_sense_is_refused_and_leaves_nothing(options, message, world, tmp_path, capsys):
    out = tmp_path / "never"
    where = [] if "--out" in options else ["--out", str(out)]
    said = mistake(capsys, "discover", *[f"--{k}={v}" for k, v in world.items()], *options, *where)
    assert message in said
    assert not Path(out).exists()
