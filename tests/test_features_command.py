"""The feature report on the command line: the files it writes, what they hold, and what it refuses."""

import base64
import csv
import gzip
import json
import re
from html.parser import HTMLParser

import pytest
import torch
from features_world import D_SAE_IN, D_SAE_OUT, DEAD, DENSE, LAYER, SCRIPT, activity_of, write_world
from pyarrow import parquet
from test_cli import mistake

from bilinear_circuits.report.tables import write_table
from sae.commands import features as command

FILES = {"features.csv", "features.json", "features.parquet", "index.html", "run.json", "features", "parts"}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return write_world(tmp_path_factory.mktemp("features"))


@pytest.fixture(scope="module")
def made(world, tmp_path_factory):
    """A whole report of both sides."""
    out = tmp_path_factory.mktemp("made") / "report"
    command.run(command.Arguments(**world, layer=LAYER, out=str(out), n_stories=60, neuronpedia=True))
    return out


def arguments(world, out, **others):
    return command.Arguments(**world, layer=LAYER, out=str(out), n_stories=60, **others)


def page(made, side, feature):
    return (made / f"layer-{LAYER}-{side}" / "features" / f"{feature}.html").read_text(encoding="utf-8")


def data_of(text):
    """The rows that the index embeds."""
    packed = json.loads(re.search(r'<script type="application/json" id="features">(.*?)</script>', text, re.S)[1])
    return json.loads(gzip.decompress(base64.b64decode(packed["gzip"]))) if "gzip" in packed else packed


class Page(HTMLParser):
    """Elements and text of a page, and whether it nests."""

    VOID = frozenset({"meta", "br", "img", "link", "input", "hr"})

    def __init__(self, text):
        super().__init__()
        self.opened, self.elements, self.text = [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.opened.append(tag)

    def handle_endtag(self, tag):
        assert self.opened.pop() == tag

    def handle_data(self, data):
        if self.opened[-1:] not in (["script"], ["style"]):
            self.text += data


def test_everything_is_there(made):
    assert {path.name for path in made.iterdir()} == {"index.html", "plotly.min.js", "layer-1-in", "layer-1-out"}
    for side, d_sae in (("in", D_SAE_IN), ("out", D_SAE_OUT)):
        folder = made / f"layer-1-{side}"
        assert {path.name for path in folder.iterdir()} == FILES | {"neuronpedia"}
        assert {path.stem for path in (folder / "features").iterdir()} == {str(f) for f in range(d_sae)}
        record = json.loads((folder / "features.json").read_text())
        assert (record["n_features"], record["dead"], record["side"]) == (d_sae, record["dead"], side)
        assert record["dead"] >= 1
        assert record["provenance"]["config"]["out"] == "report"
        assert record["provenance"]["dictionaries"][1]["d_sae"] == D_SAE_OUT
    assert 'href="layer-1-out/index.html"' in (made / "index.html").read_text()


def test_every_link_leads_to_a_page_and_nothing_is_fetched(made):
    for file in sorted(made.rglob("*.html")):
        for tag, attributes in Page(file.read_text(encoding="utf-8")).elements:
            for name in ("href", "src"):
                target = attributes.get(name)
                if target is None or target.startswith(("#", "data:")):
                    continue
                assert not re.match(r"[a-z]+:|//", target), target
                assert (file.parent / target).is_file(), (file, target)
            assert not [name for name in attributes if name.startswith("on")], tag


def test_hostile_tokens_stay_text(made):
    seen = 0
    for file in sorted(made.rglob("*.html")):
        text = file.read_text(encoding="utf-8")
        parsed = Page(text)
        assert parsed.opened == []
        assert "img" not in {tag for tag, _ in parsed.elements}
        assert SCRIPT not in text
        assert "\u202e" not in text
        seen += SCRIPT in parsed.text
    assert seen > 10
    index = (made / "layer-1-out" / "index.html").read_text(encoding="utf-8")
    assert any(SCRIPT in token for row in data_of(index)["rows"] for token in row[3])


def test_dead_and_dense_features_say_so(made):
    for side in ("in", "out"):
        dead, dense = Page(page(made, side, DEAD)), Page(page(made, side, DENSE))
        assert "Dead on this corpus: it is active at none of the" in dead.text
        assert "figure" not in {tag for tag, _ in dead.elements}
        assert "Dense: active at" in dense.text
    assert "Largest interactions in the weights" in Page(page(made, "out", DEAD)).text
    assert "no direct path leads from it to the logits" in Page(page(made, "in", DENSE)).text


def test_numbers_of_a_page_are_those_of_the_analyses(world, made):
    from bilinear_circuits.profiles import profile_feature
    from bilinear_circuits.report.text import number, signed
    from bilinear_circuits.running import unembedding

    model, activity = activity_of(world)
    feature = 31
    profile = profile_feature(activity, feature, unembedding(model), model.tokenizer)
    text = " ".join(Page(page(made, "out", feature)).text.split())
    assert f"{number(100 * profile.frequency)} %of tokens active ({len(activity.outputs[feature][0])})" in text.replace(
        "% of", "%of"
    )
    assert f"{number(profile.completeness)} completeness" in text.replace("completeness", " completeness")
    assert signed(profile.promoted[0][1], 2) in text
    top = activity.interactions.top(3, feature)
    for _, first, second, weight in top:
        assert signed(weight, 4) in text
        assert f'href="../../layer-1-in/features/{first}.html"' in page(made, "out", feature)
        assert f'href="../../layer-1-in/features/{second}.html"' in page(made, "out", feature)
    rows = {row[0]: row for row in data_of((made / "layer-1-out" / "index.html").read_text())["rows"]}
    names = [name for name, *_ in data_of((made / "layer-1-out" / "index.html").read_text())["numbers"]]
    numbers = dict(zip(names, rows[feature][6:], strict=True))
    assert numbers["frequency"] == pytest.approx(profile.frequency, rel=1e-4)
    assert numbers["rank2_correlation"] == pytest.approx(profile.rank2_correlation, abs=1e-3)
    assert numbers["and_shape"] == pytest.approx(profile.shape.score, rel=1e-3)


def test_figures_of_a_page_hold_the_numbers(made):
    text = page(made, "out", 31)
    blocks = dict(re.findall(r'<script type="application/json" id="figure-(\w+)">(.*?)</script>', text, re.S))
    assert sorted(blocks) == ["heatmap", "histogram", "scatter", "spectrum"]
    histogram = json.loads(blocks["histogram"])["data"][0]
    n_active = int(re.search(r"of tokens active \((\d+)\)", text)[1])
    assert sum(count or 0 for count in histogram["y"]) == n_active
    heatmap = json.loads(blocks["heatmap"])["data"][0]
    assert len(heatmap["x"]) == len(heatmap["z"]) == len(set(heatmap["x"]))
    assert "customdata" not in heatmap


def test_tables_hold_what_the_index_shows(made):
    folder = made / "layer-1-out"
    table = parquet.read_table(folder / "features.parquet").to_pydict()
    with (folder / "features.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert table["feature"] == list(range(D_SAE_OUT)) == [int(row["feature"]) for row in rows]
    assert table["state"][DEAD] == "dead"
    assert table["rank2_correlation"][DEAD] is None
    assert rows[DEAD]["rank2_correlation"] == ""
    for row, tokens, r in zip(rows, table["tokens"], table["rank2_correlation"], strict=True):
        joined = " · ".join(tokens)
        assert row["tokens"] == (f"'{joined}" if joined.startswith("=") else joined)
        assert not row["tokens"].startswith("=")
        assert row["rank2_correlation"] == ("" if r is None else str(r))
    assert any(tokens[:1] == ["=1+2"] for tokens in table["tokens"])


def test_input_features_are_numbered_after_the_output_features_as_in_graphs(world, made):
    from bilinear_circuits.attribution import attribute_prompt
    from bilinear_circuits.report.graph import GraphSource, graph_payload

    model, activity = activity_of(world)
    folder = made / "layer-1-in" / "neuronpedia"
    batches = [json.loads(file.read_text(encoding="utf-8")) for file in folder.glob("batch-*.json")]
    vectors = {one["feature_index"]: one["vector"] for batch in batches for one in batch["features"]}
    skipped = json.loads((folder / "skipped_indexes.json").read_text())["skipped_indexes"]
    assert sorted([*vectors, *skipped]) == list(range(D_SAE_OUT, D_SAE_OUT + D_SAE_IN))
    ids = torch.tensor([1, 5, 6, 7, 8, 9, 10, 11])
    graph = attribute_prompt(model, [activity.interactions], [(LAYER, DENSE)], ids)
    document = graph_payload(graph, GraphSource("", "s", "m"), model.tokenizer, lambda *name: str(name))
    seen = 0
    for node in document["nodes"]:
        layer, index, _ = node["node_id"].split("_") if node["feature_type"] == "cross layer transcoder" else (0, 0, 0)
        side = node["clerp"].split(" ")[0]
        if side == "in" and int(index) in vectors:
            number = int(node["clerp"].split("/")[1].split(":")[0])
            assert vectors[int(index)] == pytest.approx(activity.interactions.sae_in.W_dec[number].tolist(), rel=1e-6)
            assert int(layer) == batches[0]["layer"]
            seen += 1
    assert seen > 3


def test_neuronpedia_batches_hold_every_feature(world, made):
    keys = {
        "feature_index", "neuron_alignment_indices", "neuron_alignment_values", "neuron_alignment_l1",
        "correlated_neurons_indices", "correlated_neurons_l1", "correlated_neurons_pearson",
        "correlated_features_indices", "correlated_features_l1", "correlated_features_pearson",
        "neg_str", "neg_values", "pos_str", "pos_values", "frac_nonzero", "freq_hist_data_bar_heights",
        "freq_hist_data_bar_values", "logits_hist_data_bar_heights", "logits_hist_data_bar_values", "n_prompts_total",
        "n_tokens_in_prompt", "dataset", "decoder_weights_dist", "activations", "vector",
    }  # fmt: skip
    _, activity = activity_of(world)
    found, folder = [], made / "layer-1-out" / "neuronpedia"
    for file in sorted(folder.glob("batch-*.json")):
        batch = json.loads(file.read_text(encoding="utf-8"))
        assert set(batch) == {"model_id", "layer", "sae_set", "sae_id_suffix", "features"}
        assert (batch["model_id"], batch["layer"], batch["sae_id_suffix"]) == ("tiny", LAYER, None)
        found += batch["features"]
    skipped = json.loads((folder / "skipped_indexes.json").read_text())
    named = {"model_id": "tiny", "layer": "1", "sae_set": "saes", "log_sparsity": None}
    assert skipped == named | {"skipped_indexes": skipped["skipped_indexes"]}
    assert skipped["skipped_indexes"] == (activity.outputs.counts == 0).nonzero().squeeze(1).tolist()
    assert DEAD in skipped["skipped_indexes"]
    numbers = [one["feature_index"] for one in found]
    assert sorted([*numbers, *skipped["skipped_indexes"]]) == list(range(D_SAE_OUT))
    for one in found:
        assert one["activations"]
        row = activity.interactions.sae_out.W_dec[one["feature_index"]].tolist()
        assert one["vector"] == pytest.approx(row, rel=1e-6)
        assert set(one) == keys
        assert sum(one["logits_hist_data_bar_heights"]) == 20
        assert len(one["logits_hist_data_bar_values"]) == 50
        assert len(one["pos_str"]) == len(one["pos_values"]) == 10
        assert one["pos_values"] == sorted(one["pos_values"], reverse=True)
        assert one["neg_values"] == sorted(one["neg_values"])
        for example in one["activations"]:
            assert set(example) == {"bin_min", "bin_max", "bin_contains", "qualifying_token_index", "tokens", "values"}
            assert len(example["tokens"]) == len(example["values"])
            assert example["values"][example["qualifying_token_index"]] != 0
    (dense,) = (one for one in found if one["feature_index"] == DENSE)
    assert {(one["bin_min"], one["bin_contains"]) for one in dense["activations"][:6]} == {(-1, -1)}


def test_what_was_killed_goes_on_and_comes_out_the_same(world, tmp_path, capsys, monkeypatch):
    from sae.commands import report_folder

    monkeypatch.setattr(report_folder, "CHUNK", 2)
    out = tmp_path / "report"
    asked = arguments(world, out, side="out", feature=[31, DEAD, DENSE, 40, 2])
    kept, written = report_folder.ReportFolder.write, []

    def killed(self, index, *others):
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(index)
        kept(self, index, *others)

    with monkeypatch.context() as patched:
        patched.setattr(report_folder.ReportFolder, "write", killed)
        with pytest.raises(KeyboardInterrupt):
            command.run(asked)
    folder = out / "layer-1-out"
    assert not (folder / "index.html").exists()
    pages = sorted((folder / "features").iterdir())
    assert {int(path.stem) for path in pages} == {2, DEAD, DENSE, 31}
    before = {path.name: path.stat().st_mtime_ns for path in pages}
    pages[0].unlink()  # as if half a chunk had been lost
    command.run(asked)
    said = capsys.readouterr()
    assert "output features: 1 of 3 chunks are finished already" in said.err
    after = {path.name: path.stat().st_mtime_ns for path in (folder / "features").iterdir()}
    unchanged = {name for name in before if after.get(name) == before[name]}
    assert len(after) == 5
    assert len(unchanged) == 2
    assert "with 5 features" in said.out
    assert f"open {out}/index.html in a browser" in said.out
    other = tmp_path / "other"
    command.run(arguments(world, other, side="out", feature=[31, DEAD, DENSE, 40, 2]))
    for name in after:
        assert (folder / "features" / name).read_text() == (other / "layer-1-out" / "features" / name).read_text()


def test_changed_settings_are_refused(world, tmp_path, made, capsys):
    out = tmp_path / "report"
    command.run(arguments(world, out, side="out", feature=[31]))
    with pytest.raises(ValueError, match=r"out must hold a report with these settings .*, where feature, neuronpedia"):
        command.run(arguments(world, out, side="out", feature=[31, 32], neuronpedia=True))
    (tmp_path / "full" / "layer-1-out").mkdir(parents=True)
    (tmp_path / "full" / "layer-1-out" / "mine.txt").write_text("")
    with pytest.raises(ValueError, match=r"out must be a new or empty folder, or hold a report to go on with"):
        command.run(arguments(world, tmp_path / "full", side="out"))


def test_labels_are_shown_and_searched(world, tmp_path):
    labels = tmp_path / "labels.yaml"
    labels.write_text('out:\n  31: "negation <b>"\nin:\n  2: a name\n')
    command.run(arguments(world, tmp_path / "report", feature=[31, 2], labels=str(labels)))
    assert "negation &lt;b&gt;" in page(tmp_path / "report", "out", 31)
    assert "negation &lt;b&gt;" in page(tmp_path / "report", "in", 2) or "31.html" not in page(
        tmp_path / "report", "in", 2
    )
    index = (tmp_path / "report" / "layer-1-in" / "index.html").read_text()
    assert {row[0]: row[1] for row in data_of(index)["rows"]}[2] == "a name"


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        (["--side", "up"], "argument --side: invalid choice: 'up'"),
        (["--feature", "3", "3"], "feature must name one feature or more, each once"),
        (["--feature", "66"], "feature must be between 0 and 65, one of the output dictionary, got 66"),
        (["--layer", "0"], "layer must have dictionaries"),
        (["--labels", "/none"], "labels must be a YAML file, got /none: no such file"),
    ],
)
def test_mistakes_are_one_line(world, tmp_path, capsys, changes, match):
    named = [part for key, value in world.items() for part in (f"--{key}", value)]
    argv = ["features", *named, "--layer", "1", "--side", "out", "--out", str(tmp_path / "no"), *changes]
    assert re.search(match, mistake(capsys, *argv))
    assert not (tmp_path / "no").exists()


def test_a_table_comes_back_from_both_files(tmp_path):
    columns = {"n": [1, None], "x": [0.25, -1e-7], "text": ["=1+2", "'quoted"], "list": [["@a", "b"], []]}
    csv_file, parquet_file = write_table(tmp_path / "table", columns)
    assert parquet.read_table(parquet_file).to_pydict() == columns
    with csv_file.open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    assert rows == [["n", "x", "text", "list"], ["1", "0.25", "'=1+2", "'@a · b"], ["", "-1e-07", "''quoted", ""]]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["table.csv", "table.parquet"]


def test_columns_of_unlike_lengths_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"columns must be one or more, all of one length, got lengths \[1, 2\]"):
        write_table(tmp_path / "table", {"a": [1], "b": [1, 2]})
