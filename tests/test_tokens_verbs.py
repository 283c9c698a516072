"""What of a tokenizer and of long or strange texts may change a result, and what is said of the rest."""

import json
import shutil

import pytest
import torch
import yaml
from planted import WORDS, random_dictionary, random_stories, tiny_llama, word_tokenizer
from test_cli import mistake
from test_corpus_verbs import LAYER, QUERY, TRAIN, TRAIN_SAE

from bilinear_circuits.cli import main

N_TOKENS = len(WORDS) + 4
BEYOND = 3  # ids that the model has and the tokenizer has not


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A tiny model whose likeliest tokens are ids beyond its tokenizer, dictionaries, and stories."""

    root = tmp_path_factory.mktemp("tokens")
    model = tiny_llama(n_layers=2)
    model.resize_token_embeddings(N_TOKENS + BEYOND, mean_resizing=False)
    with torch.no_grad():
        model.lm_head.weight[N_TOKENS:] = 5 * torch.randn(BEYOND, 12, generator=torch.Generator().manual_seed(0))
    model.save_pretrained(root / "tiny")
    word_tokenizer().save_pretrained(root / "tiny")
    for side, d_sae in (("in", 20), ("out", 40)):
        hook = f"blocks.{LAYER}.mlp.hook_{side}"
        random_dictionary(12, d_sae, hook, seed=d_sae).save(root / "saes" / hook)
    (root / "stories.txt").write_text("\n<|endoftext|>\n".join(random_stories(120)))
    long = [" ".join(random_stories(5, seed=seed)) for seed in range(3)]
    (root / "long.txt").write_text("\n<|endoftext|>\n".join([*random_stories(120), *long]))
    (root / "foreign.txt").write_text("\n<|endoftext|>\n".join(["el gato no era bueno"] * 120))
    (root / "query.yaml").write_text(yaml.safe_dump(QUERY))
    recipe = {"model": str(root / "tiny"), "corpus": str(root / "long.txt")}
    (root / "sae.yaml").write_text(yaml.safe_dump(TRAIN_SAE | recipe))
    (root / "train.yaml").write_text(yaml.safe_dump(TRAIN | recipe | {"model": TRAIN["model"]}))
    return root


def command(world, verb, out, *, model=None, corpus="stories.txt"):
    """A small command of every verb that reads stories."""
    source = ["--model", world / "tiny" if model is None else model, "--saes", world / "saes"]
    layer = ["--layer", LAYER]
    own = {
        "circuits": ["circuits", world / "query.yaml", *source, "--n-stories", 123],
        "inspect": ["inspect", *layer, "--feature", 3, *source],
        "lowrank": ["lowrank", "--layers", LAYER, "--ranks", 1, 2, "--min-active", 5, *source],
        "features": ["features", *layer, "--side", "out", "--feature", 3, *source],
        "interactions": ["interactions", *layer, "--k", 5, "--coactive", *source],
        "graph": ["graph", *layer, "--prompt", "the cat was not good", *graph_features(), *source],
        "explore": ["explore", "--features", f"{LAYER}/3", "--n-members", 4, "--n-examples", 1, *source],
        "evaluate-sae": ["evaluate-sae", *source],
        "train-sae": ["train-sae", world / "sae.yaml"],
        "train": ["train", world / "train.yaml", "--device", "cpu"],
    }[verb]
    return [str(one) for one in (*own, "--corpus", world / corpus, "--out", out)]


def graph_features():
    return [text for feature in range(8) for text in ("--feature", feature)]


VERBS = ("circuits", "inspect", "lowrank", "features", "interactions", "graph", "evaluate-sae", "train-sae", "train")


@pytest.mark.parametrize(
    "verb", [one if one in ("inspect", "train") else pytest.param(one, marks=pytest.mark.slow) for one in VERBS]
)
def test_stories_that_are_cut_are_counted_once(verb, world, tmp_path, capsys):
    assert main(command(world, verb, tmp_path / "out", corpus="long.txt")) == 0
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "are cut at the context" in line]
    context = {"train": 24, "train-sae": 16}.get(verb, 32)
    assert line.endswith(f"long.txt are cut at the context, {context} tokens with [BOS]")
    if verb != "train":  # which makes a tokenizer of its own, of more pieces
        assert "3 of 123 stories of" in line
        assert main(command(world, verb, tmp_path / "short")) == 0
        assert "are cut" not in capsys.readouterr().err


@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb != "train"])
def test_a_corpus_of_unknown_words_is_refused_and_leaves_nothing(verb, world, tmp_path, capsys):
    said = mistake(capsys, *command(world, verb, tmp_path / "out", corpus="foreign.txt"))
    assert "corpus must be of the model's vocabulary, got" in said
    assert "foreign.txt, of whose 600 tokens 100 % are unknown to it. Is it of another language" in said
    assert list(tmp_path.iterdir()) == []


def plain(content):
    """Without what says how it was made."""
    if isinstance(content, dict):
        return {key: plain(value) for key, value in content.items() if key != "provenance"}
    return [plain(one) for one in content] if isinstance(content, list) else content


def results(out):
    tables = {file.name: file.read_text() for file in out.rglob("*.csv")}
    return tables | {file.name: plain(json.loads(file.read_text())) for file in out.glob("*.json")}


@pytest.fixture(scope="module")
def expected(world, tmp_path_factory):
    """What some verbs write for the model as it is."""
    out = tmp_path_factory.mktemp("expected")
    for verb in ("circuits", "lowrank", "interactions"):
        assert main(command(world, verb, out / verb, corpus="long.txt")) == 0
    return {verb: results(out / verb) for verb in ("circuits", "lowrank", "interactions")}


FOLDERS = {
    "pad of another token": {"config.json": {"pad_token_id": 7}, "tokenizer_config.json": {"pad_token": "cat"}},
    "pad beyond": {"config.json": {"pad_token_id": 4096}},
    "pad below": {"config.json": {"pad_token_id": -1}},
    "no pad": {"config.json": {"pad_token_id": None}, "tokenizer_config.json": {"pad_token": None}},
    "left": {"tokenizer_config.json": {"padding_side": "left", "truncation_side": "left", "model_max_length": 4}},
    "generation": {"generation_config.json": {"do_sample": True, "max_new_tokens": 1, "pad_token_id": 4096}},
}


FAST = ("pad beyond", "left")


@pytest.mark.parametrize(
    "folder", [one if one in FAST else pytest.param(one, marks=pytest.mark.slow) for one in FOLDERS]
)
def test_pad_tokens_sides_and_generation_settings_change_nothing(folder, world, expected, tmp_path):
    model = shutil.copytree(world / "tiny", tmp_path / "tiny")
    for name, values in FOLDERS[folder].items():
        content = json.loads((model / name).read_text()) | values
        (model / name).write_text(json.dumps({key: value for key, value in content.items() if value is not None}))
    for verb, known in expected.items():
        assert main(command(world, verb, tmp_path / verb, model=model, corpus="long.txt")) == 0
        found = results(tmp_path / verb)
        assert found.keys() == known.keys()
        for name in known:
            assert without_hashes(found[name]) == without_hashes(known[name]), (verb, name)


def without_hashes(content):
    """Hashes of the model's files differ, as they should: its folder is another one."""
    return {k: v for k, v in content.items() if not k.startswith("model")} if isinstance(content, dict) else content


@pytest.mark.parametrize("verb", ["circuits", "inspect", "features", "graph", "explore"])
def test_ids_beyond_the_tokenizer_are_shown_as_ids(verb, world, tmp_path, capsys):
    assert main(command(world, verb, tmp_path / "out")) == 0
    shown = capsys.readouterr().out
    files = [file for file in (tmp_path / "out").rglob("*") if file.suffix in (".json", ".csv")]
    text = shown + "".join(file.read_text() for file in files)
    ids = [f"<{N_TOKENS + one}>" for one in range(BEYOND)]
    assert any(one in text for one in ids)
    assert "None" not in text
