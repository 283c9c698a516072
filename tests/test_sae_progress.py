"""Dictionaries along their training: every number is that of the verbs that measure one dictionary."""

import json
import math
from itertools import pairwise, permutations

import plotly.graph_objects as go
import pytest
import yaml
from helpers import refused
from planted import random_dictionary, random_stories, tiny_llama, word_tokenizer

from sae.commands import progress as command
from sae.commands import train_sae

HOOKS = ("blocks.1.mlp.hook_in", "blocks.1.mlp.hook_out")
TOKENS = [448, 960, 1984, 3968]  # 1/8, 1/4 and 1/2 of 62 steps of 64 tokens, in whole steps; all
RECIPE = {
    "name": "tiny", "layers": [1], "sae": {"k": 3}, "tokens": 4000, "batch_tokens": 64, "buffer_rows": 16,
    "context": 16, "model_rows": 32, "dead_window": 20, "norm_batches": 2, "lr": 1e-2, "checkpoints": 0,
    "snapshots": 3, "save_dtype": "float32",
}  # fmt: skip


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A model folder, a corpus, and dictionaries: "both" sides, "out" alone on two layers, "bare" without snapshots."""
    root = tmp_path_factory.mktemp("sae-progress")
    tiny_llama().save_pretrained(root / "tiny")
    word_tokenizer().save_pretrained(root / "tiny")
    (root / "stories.txt").write_text("\n<|endoftext|>\n".join(random_stories(150)))
    train(root, "both")
    train(root, "out", sides=["hook_out"], layers=[0, 1], snapshots=1, tokens=512)
    train(root, "bare", snapshots=0, tokens=512)
    return root


def train(root, name, **change):
    recipe = RECIPE | {"model": str(root / "tiny"), "corpus": str(root / "stories.txt")} | change
    (root / f"{name}.yaml").write_text(yaml.safe_dump(recipe))
    train_sae.run(train_sae.Arguments(recipe=str(root / f"{name}.yaml"), out=str(root / name)))


def arguments(root, name="both", **change):
    asked = {"folder": str(root / name), "model": str(root / "tiny"), "corpus": str(root / "stories.txt")}
    return command.Arguments(**asked | {"n_stories": 80} | change)


@pytest.fixture(scope="module")
def model(root):
    import bilinear_circuits as bc

    return bc.load_model(root / "tiny")


@pytest.fixture(scope="module")
def tokens(model):
    from bilinear_circuits.data.stories import tokenize_stories

    return tokenize_stories(random_stories(80), model.tokenizer, 32)


@pytest.fixture(scope="module")
def result(root):
    """What the verb prints and writes."""
    import contextlib
    import io

    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        command.run(arguments(root, out=str(root / "result")))
    return (
        json.loads((root / "result/progress.json").read_text()),
        printed.getvalue().splitlines(),
        (root / "result/progress.html").read_text(),
    )


def low_rank_of(model, folder, tokens, layer=1, sae_in=None):
    """Low-rank correlation as the verb `lowrank` measures it."""
    from bilinear_circuits.dictionaries.dictionary import Dictionary
    from bilinear_circuits.interactions.activity import collect_activity
    from bilinear_circuits.interactions.feature_interactions import FeatureInteractions
    from bilinear_circuits.interactions.low_rank import low_rank_correlation
    from bilinear_circuits.models.bilinear_mlp import BilinearMLP

    path = folder / f"blocks.{layer}.mlp.hook_out"
    sae_in = Dictionary.load(folder / f"blocks.{layer}.mlp.hook_in") if sae_in is None else sae_in
    interactions = FeatureInteractions(BilinearMLP.from_model(model, layer), sae_in, Dictionary.load(path))
    (activity,) = collect_activity(model, [interactions], tokens)
    return low_rank_correlation(interactions, activity.x, (1, 2, 4), active=activity.outputs)


def test_there_is_one_row_per_dictionary_and_token_count(result, tokens):
    document, printed, _ = result
    expected = [(name, at) for name in HOOKS for at in TOKENS]
    assert [(one["name"], one["training_tokens"]) for one in document["stages"]] == expected
    rows = [line.split() for line in printed[2 : 2 + len(expected)]]
    assert [(row[0], int(row[1].replace(",", ""))) for row in rows] == expected
    for row, one in zip(rows, document["stages"], strict=True):
        assert float(row[2]) == pytest.approx(one["fvu"], abs=1e-4)
        assert float(row[5]) == pytest.approx(one["ce_recovered"], abs=1e-4)
        assert [part["rank"] for part in one["low_rank"]] == ([] if one["name"] == HOOKS[0] else [1, 2, 4, 12])
    assert float(rows[-1][6]) == pytest.approx(document["stages"][-1]["low_rank"][0]["mean"], abs=1e-3)
    assert printed[0].startswith(f"{int(tokens.mask.sum())} tokens; cross-entropy of the model")
    assert document["n_tokens"] == tokens.mask.sum()


@pytest.mark.parametrize("at", TOKENS)
def test_every_row_is_what_evaluation_and_low_rank_correlation_say_of_its_dictionary(at, root, result, model, tokens):
    from bilinear_circuits.zoo import load_dictionaries
    from sae.evaluate import evaluate

    folder = root / "both" if at == TOKENS[-1] else root / "both/snapshots" / str(at)
    rows = [one for one in result[0]["stages"] if one["training_tokens"] == at]
    for row, expected in zip(rows, evaluate(model, load_dictionaries(1, folder), tokens), strict=True):
        assert row["name"] == expected.dictionary.hook_name
        assert row["d_sae"] == 48
        assert row["fvu"] == pytest.approx(expected.reconstruction.fvu, rel=1e-6)
        assert row["l0"] == pytest.approx(expected.reconstruction.l0)
        assert row["n_dead"] == len(expected.reconstruction.dead)
        assert result[0]["ce"] == pytest.approx(expected.loss.base)
        assert row["ce_zero"] == pytest.approx(expected.loss.zero, rel=1e-6)
        assert row["ce_spliced"] == pytest.approx(expected.loss.spliced, rel=1e-6)
        assert row["ce_recovered"] == pytest.approx(expected.loss.recovered, rel=1e-3)
    expected = low_rank_of(model, folder, tokens)
    assert expected.kept.sum() > 20
    for part in rows[1]["low_rank"]:
        share = expected.share_above(part["rank"])
        assert part["mean"] == pytest.approx(expected.mean(part["rank"]), abs=1e-6)
        assert part["share"]["value"] == pytest.approx(share.value)
        assert (part["share"]["low"], part["share"]["high"]) == pytest.approx((share.low, share.high))
        assert part["share"]["n"] == share.n


def test_rank_correlations_stand_below_the_table(result):
    document, printed, _ = result
    (trend,) = document["spearman"]
    rows = [one for one in document["stages"] if one["name"] == HOOKS[1]]
    share = [one["low_rank"][1]["share"]["value"] for one in rows]
    assert trend["hook_name"] == HOOKS[1]
    assert (trend["rank"], trend["n"]) == (2, 4)
    assert trend["fvu"] == pytest.approx(loop_spearman([one["fvu"] for one in rows], share), abs=1e-6)
    assert trend["ce_recovered"] == pytest.approx(loop_spearman([one["ce_recovered"] for one in rows], share), abs=1e-6)
    assert printed[-2] == (
        f"{HOOKS[1]}: Spearman correlation of the share at rank 2 with FVU {trend['fvu']:+.2f}, with CE recovered"
        f" {trend['ce_recovered']:+.2f}, over 4 stages"
    )


def loop_spearman(first, second):
    """Pearson correlation of ranks, each the mean place over all orders that sort the numbers."""

    def ranks(values):
        orders = [order for order in permutations(range(len(values))) if is_sorted([values[i] for i in order])]
        return [sum(order.index(i) for order in orders) / len(orders) for i in range(len(values))]

    a, b = ranks(first), ranks(second)
    mean = sum(a) / len(a)
    product = sum((x - mean) * (y - mean) for x, y in zip(a, b, strict=True))
    return product / math.sqrt(sum((x - mean) ** 2 for x in a) * sum((y - mean) ** 2 for y in b))


def is_sorted(values):
    return all(x <= y for x, y in pairwise(values))


@pytest.mark.parametrize(
    ("first", "second"),
    [([1, 2, 3], [3, 2, 1]), ([0.1, 5, 2, 2], [1, 1, 7, -3]), ([4, 4, 1, 4, 2], [0, 1, 2, 3, 3])],
)
def test_spearman_is_that_of_a_loop_over_orders(first, second):
    from sae.progress import spearman

    assert spearman(first, second) == pytest.approx(loop_spearman(first, second))


def test_spearman_is_none_where_there_is_none():
    from sae.progress import spearman

    assert math.isnan(spearman([1, 2], [1, 2]))
    assert math.isnan(spearman([1, 2, 3], [5, 5, 5]))
    assert math.isnan(spearman([1, 2, 3], [1, float("nan"), 3]))


def test_the_model_runs_once_per_layer_once_as_it_is_once_per_side_and_once_per_dictionary(
    root, model, tokens, monkeypatch
):
    from sae import evaluate, progress

    counts = {"capture": 0, "loss": 0}

    def counted(name, function):
        def count(*given):
            counts[name] += 1
            return function(*given)

        return count

    monkeypatch.setattr(progress, "capture_mlp", counted("capture", progress.capture_mlp))
    monkeypatch.setattr(evaluate, "_token_losses", counted("loss", evaluate._token_losses))
    names, n_batches = list(HOOKS), math.ceil(len(tokens) / 32)
    folders = {at: root / "both/snapshots" / str(at) for at in TOKENS[:3]}
    found = progress.training_progress(model, command._load(folders, names, "cpu"), tokens)
    assert len(found) == 6
    assert counts == {"capture": n_batches, "loss": n_batches * (1 + 2 + 6)}


def test_dictionaries_of_the_output_alone_are_measured_in_the_same_way(root, model, tokens, capsys):
    """Which input dictionary stands beside them makes no difference."""
    command.run(arguments(root, "out", out=str(root / "result-out")))
    printed = capsys.readouterr().out.splitlines()
    document = json.loads((root / "result-out/progress.json").read_text())
    expected = [(f"blocks.{layer}.mlp.hook_out", at) for layer in (0, 1) for at in (256, 512)]
    assert [(one["name"], one["training_tokens"]) for one in document["stages"]] == expected
    assert [line.split()[0] for line in printed[2:6]] == [name for name, _ in expected]
    for layer, row in ((0, document["stages"][1]), (1, document["stages"][3])):
        other = random_dictionary(12, 17, f"blocks.{layer}.mlp.hook_in")
        correlation = low_rank_of(model, root / "out", tokens, layer, other)
        assert [part["mean"] for part in row["low_rank"]] == pytest.approx(
            [correlation.mean(rank) for rank in (1, 2, 4, 12)], abs=1e-6
        )
    assert [one["fvu"] for one in document["spearman"]] == [None, None]
    assert "with FVU -, with CE recovered -, over 2 stages" in printed[-2]


def test_layers_can_be_chosen(root, capsys):
    command.run(arguments(root, "out", layers=[1]))
    rows = [line.split()[0] for line in capsys.readouterr().out.splitlines()[2:]]
    assert rows == ["blocks.1.mlp.hook_out"] * 2 + ["blocks.1.mlp.hook_out:"]


def test_input_dictionaries_alone_have_no_low_rank_columns(model, tokens):
    from sae.progress import training_progress, trends

    stages = training_progress(model, {HOOKS[0]: {64: random_dictionary(12, 17, HOOKS[0])}}, tokens[:4])
    document = command.payload(stages, trends(stages))
    assert document["ranks"] == document["spearman"] == document["stages"][0]["low_rank"] == []
    assert len(command.table(document).splitlines()) == 3


def test_numbers_that_are_none_are_dashes(model, tokens):
    """On so few tokens no feature is active often enough for a correlation."""
    from sae.figures import progress_panels
    from sae.progress import training_progress, trends

    stages = training_progress(model, {HOOKS[1]: {64: random_dictionary(12, 17, HOOKS[1])}}, tokens[:1])
    document = command.payload(stages, trends(stages))
    assert document["stages"][0]["low_rank"][0]["share"]["value"] is None
    assert command.table(document).splitlines()[2].split()[-3:] == ["-", "-", "-"]
    assert progress_panels(document)["share-1"]["data"][0]["y"] == [None]


def test_provenance_repeats_the_measurement(result, root):
    source = result[0]["provenance"]
    assert source["model"]["name"] == "tiny"
    assert source["corpus"]["name"] == "stories.txt"
    assert source["corpus"]["n_stories"] == 80
    assert set(source["dictionaries"]) == {f"{at}/{name}" for at in TOKENS for name in HOOKS}
    assert len(set(source["dictionaries"].values())) == 8
    assert source["recipe"] == json.loads((root / "both/training.json").read_text())["recipe"]
    assert source["config"]["layers"] == [1]
    assert source["versions"]["sae-lens"]
    assert sorted(path.name for path in (root / "result").iterdir()) == ["progress.html", "progress.json"]
    assert result[1][-1] == f"written: {root}/result/progress.html, {root}/result/progress.json"


def test_panels_draw_every_dictionary_on_a_log_axis(result):
    from sae.figures import progress_panels

    panels = {name: go.Figure(spec) for name, spec in progress_panels(result[0]).items()}
    assert list(panels) == ["share-1", "share-2", "share-4", "fvu", "ce_recovered", "n_dead"]
    for name, figure in panels.items():
        assert figure.layout.xaxis.type == "log"
        lines = ["layer 1 output"] if name.startswith("share") else ["layer 1 input", "layer 1 output"]
        assert [line.name for line in figure.data] == lines
        assert all(list(line.x) == TOKENS for line in figure.data)
    rows = [one for one in result[0]["stages"] if one["name"] == HOOKS[1]]
    (line,) = panels["share-2"].data
    for i, row in enumerate(rows):
        share = row["low_rank"][1]["share"]
        assert line.y[i] == pytest.approx(100 * share["value"])
        assert line.y[i] + line.error_y.array[i] == pytest.approx(100 * share["high"])
        assert line.y[i] - line.error_y.arrayminus[i] == pytest.approx(100 * share["low"])
    assert list(panels["fvu"].data[1].y) == [row["fvu"] for row in rows]


def test_page_is_one_file_that_loads_nothing(result):
    _, _, page = result
    assert page.count('id="figure-') == page.count("data-figure=") == 6
    assert "default-src 'none'" in page
    for loading in ("stylesheet", "<img", "<script src", "@import", 'href="http'):
        assert loading not in page
    assert "layer 1 output" in page
    assert "recipe.lr" in page


def test_texts_of_others_are_escaped_in_the_page(result):
    from sae.figures import progress_page

    document = json.loads(json.dumps(result[0]))
    for part, key in (("recipe", "name"), ("model", "name"), ("corpus", "name")):
        document["provenance"][part][key] = "</script><b onclick=x>&"
    page = progress_page(document)
    assert "<b onclick" not in page
    assert page.count("&lt;/script&gt;&lt;b onclick=x&gt;&amp;") >= 3


MISTAKES = {
    "folder must be one that train-sae wrote, got .*nowhere: it has no training.json": {"name": "nowhere"},
    "folder must hold snapshots, got .*bare without one. Train with snapshots: 5": {"name": "bare"},
    r"layer must have dictionaries in .*both \(layers 1\), got 2": {"layers": [1, 2]},
    "--model must be given for .*both: its dictionaries were trained on tiny, which is not a shipped": {"model": None},
    "model must be a shipped one .* got nowhere": {"model": "nowhere"},
    "--corpus must be given for .*tiny": {"corpus": None},
    "n_stories must be at least 1, got 0": {"n_stories": 0},
    "device must be one that torch can use, got cuda:9": {"device": "cuda:9"},
    "seed must be between 0 and": {"seed": -1},
}


@pytest.mark.parametrize("message", MISTAKES)
def test_mistakes_are_said_before_a_model_is_loaded(message, root, monkeypatch):
    from bilinear_circuits.command_line import common

    monkeypatch.setattr(common, "quietly_load_model", lambda *_: pytest.fail("loaded"))
    with refused((ValueError, FileNotFoundError), message):
        command.run(arguments(root, **MISTAKES[message]))


def test_a_training_that_was_cut_short_is_not_measured(root, tmp_path):
    (tmp_path / "run.json").write_text("{}")
    with refused(ValueError, "folder must hold finished dictionaries, got .*, whose training was cut short. Give"):
        command.run(arguments(root, folder=str(tmp_path)))


def test_a_snapshot_that_lacks_a_dictionary_is_named(tmp_path):
    (tmp_path / "snapshots/64" / HOOKS[0]).mkdir(parents=True)
    with refused(FileNotFoundError, "every snapshot must hold .*hook_out, got .*snapshots/64 without .*hook_out"):
        command._stage_folders(tmp_path, {"training_tokens": 128}, list(HOOKS))


def test_a_shipped_model_is_the_default_if_its_weights_are_those_trained_on(tmp_path):
    from bilinear_circuits import zoo

    sha256 = zoo.model_fingerprint("ts-17m").sha256
    record = {"recipe": {"model": "ts-17m", "model_sha256": sha256}}
    assert command._shipped_model(tmp_path, record) == "ts-17m"
    record["recipe"]["model_sha256"] = "0" * 64
    with refused(ValueError, "--model must be given for .*: its dictionaries were trained on ts-17m, .* other weights"):
        command._shipped_model(tmp_path, record)


def test_dictionaries_of_another_model_are_refused(model, tokens):
    from sae.progress import training_progress

    with refused(ValueError, "dictionary must read activations of width 12, the model's, got dictionary of width 5"):
        training_progress(model, {HOOKS[0]: {64: random_dictionary(5, 7, HOOKS[0])}}, tokens)
    with refused(ValueError, "stages must hold at least one dictionary, got none"):
        training_progress(model, {}, tokens)
    beyond = "blocks.3.mlp.hook_in"
    with refused(ValueError, "dictionaries must sit at the model's layers, 0 to 2, got layer 3"):
        training_progress(model, {beyond: {64: random_dictionary(12, 7, beyond)}}, tokens)
