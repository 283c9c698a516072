"""The verb `compare`: end to end on tiny models, and every way it can be asked wrongly."""

import json
import shutil

import jaxtyping
import pytest
import yaml
from planted import WORDS, interactions_of, random_dictionary, random_stories, tiny_llama, word_tokenizer

from bilinear_circuits.cli import main
from bilinear_circuits.comparison.stability import StabilityTable
from bilinear_circuits.utilities.folders import file_hash
from bilinear_circuits.utilities.saving import load_result

QUICK = ["--n-null", "4", "--n-shifts", "39"]


def write_saes(model, folder, seed, d_sae_out=19):
    """Dictionaries of two layers; another seed has other output dictionaries."""
    for layer in (1, 2):
        one = interactions_of(model, layer)
        out = one.sae_out if seed == 0 else random_dictionary(12, d_sae_out, one.sae_out.hook_name, seed=50 + seed)
        for dictionary in (one.sae_in, out):
            dictionary.save(folder / dictionary.hook_name)


def write_model(folder, seed, words=None):
    model = tiny_llama(seed)
    model.save_pretrained(folder)
    (word_tokenizer() if words is None else word_tokenizer(words)).save_pretrained(folder)
    return model


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Two searches in one model with different dictionaries, and one in another model."""
    root = tmp_path_factory.mktemp("compare")
    (root / "stories.txt").write_text("\n<|endoftext|>\n".join(random_stories(150)))
    models = {name: write_model(root / name, seed) for name, seed in (("model", 0), ("model-other", 1))}
    places = {"one": ("model", 0), "two": ("model", 1), "other": ("model-other", 0)}
    query = {
        "name": "tiny", "triggers": ["not", "never"], "positive": ["good", "nice"], "negative": ["bad", "sad"],
        "settings": {"ranking_stories": 60, "loss_stories": 4, "sites": 20, "site_position": 12, "shortlist": 3,
                     "controls": 2, "baseline": 4},
    }  # fmt: skip
    (root / "query.yaml").write_text(yaml.safe_dump(query))
    for name, (model, seed) in places.items():
        write_saes(models[model], root / f"saes-{name}", seed)
        asked = ["--model", root / model, "--saes", root / f"saes-{name}", "--corpus", root / "stories.txt"]
        assert main(["circuits", *map(str, [root / "query.yaml", *asked, "--out", root / f"found-{name}"])]) == 0
    # The other model has a third layer of dictionaries, and a shorter context.
    one = interactions_of(models["model-other"], 0)
    for dictionary in (one.sae_in, one.sae_out):
        dictionary.save(root / "saes-other" / dictionary.hook_name)
    config = json.loads((root / "model-other/config.json").read_text()) | {"max_position_embeddings": 8}
    (root / "model-other/config.json").write_text(json.dumps(config))
    found = root / "found-other/circuit.json"
    document = json.loads(found.read_text())
    document["provenance"]["model"]["files"]["config.json"] = file_hash(root / "model-other/config.json")
    found.write_text(json.dumps(document))
    return root


def files(world, *names):
    return [str(world / f"found-{name}/circuit.json") for name in names]


def places(world, *names):
    """Options that say where model and dictionaries of each file are."""
    models = [world / ("model-other" if name == "other" else "model") for name in names]
    return ["--models", *models, "--saes", *(world / f"saes-{name}" for name in names)]


def asked_for(world, *names):
    return [*files(world, *names), *places(world, *names)]


def circuits(world, name):
    return [one["name"] for one in json.loads((world / f"found-{name}/circuit.json").read_text())["circuits"]]


def compare(world, *arguments):
    return main(["compare", *map(str, arguments), "--corpus", str(world / "stories.txt"), *QUICK])


def test_a_search_returns_in_itself_and_is_compared_with_others(world, tmp_path, capsys):
    out = tmp_path / "out"
    assert compare(world, *asked_for(world, "one", "one", "two"), "--out", out) == 0
    shown = capsys.readouterr().out
    table = load_result(StabilityTable, out)
    same, other = table.comparisons
    names = circuits(world, "one")
    assert [match.circuit for match in same.matches] == [match.match for match in same.matches] == names
    assert same.n_returned == len(names) >= 2
    assert all(match.likeness.form == pytest.approx(1, abs=1e-5) for match in same.matches)
    assert [match.circuit for match in other.matches] == names
    assert all(-1 < match.likeness.activation < 0.999 for match in other.matches)
    assert (
        f"{len(names)} of {len(names)} circuits of [1] found-one/circuit.json return in [2] found-one/circuit" in shown
    )
    assert f"{other.n_returned} of {len(names)} circuits of [1] found-one/circuit.json return in [3] found-two" in shown
    for match in other.matches:
        assert any(line.startswith(match.circuit) and f" {match.match} " in line for line in shown.splitlines())
        assert f"{match.likeness.activation:+.2f}" in shown
    assert sorted(path.name for path in out.iterdir()) == ["report.html", "result.json", "result.safetensors"]


def test_what_it_takes_to_repeat_a_result_is_kept(world, tmp_path):
    assert compare(world, *asked_for(world, "one", "two"), "--seed", "5", "--out", tmp_path / "out") == 0
    source = json.loads((tmp_path / "out/result.json").read_text())["provenance"]
    assert source["config"]["seed"] == 5
    assert [file["name"] for file in source["files"]] == ["[1] found-one/circuit.json", "[2] found-two/circuit.json"]
    for file in source["files"]:
        assert file["query"]["triggers"] == ["not", "never"]
        assert {len(file["sha256"]), len(file["model"]["sha256"])} == {64}
        assert len(file["dictionaries"]) == 4
    assert (source["corpus"]["n_stories"], source["corpus"]["name"]) == (150, "stories.txt")
    assert source["versions"]["torch"]
    hashes = [[one["sha256"] for one in file["dictionaries"]] for file in source["files"]]
    assert hashes[0] != hashes[1]


def test_another_model_is_compared_by_what_its_features_do(world, tmp_path, capsys):
    assert compare(world, *asked_for(world, "one", "other"), "--out", tmp_path / "out") == 0
    (only,) = load_result(StabilityTable, tmp_path / "out").comparisons
    assert {(m.likeness.decoder, m.likeness.form) for m in only.matches} == {(None, None)}
    assert len(only.assignment) == min(len(circuits(world, name)) for name in ("one", "other"))
    assert "      -" in capsys.readouterr().out
    stories = (world / "stories.txt").read_text().split("<|endoftext|>")
    assert only.n_tokens == sum(min(len(story.split()), 7) for story in stories)  # [BOS] is the eighth
    source = json.loads((tmp_path / "out/result.json").read_text())["provenance"]
    assert [len(file["dictionaries"]) for file in source["files"]] == [4, 6]


def test_places_can_be_given_and_one_holds_for_all(world, tmp_path, capsys):
    moved = {}
    for name in ("model", "saes-one", "saes-two"):
        shutil.copytree(world / name, tmp_path / name)
        moved[name] = str(tmp_path / name)
    asked = ["--models", moved["model"], "--saes", moved["saes-one"], moved["saes-two"]]
    assert compare(world, *files(world, "one", "two"), *asked, "--by", "form") == 0
    assert "by form on" in capsys.readouterr().out


def with_option(words, *option):
    """A command line with an option in place of the same one, if it has it."""
    words = [str(word) for word in words]
    if option[0] in words:
        start = words.index(option[0])
        end = next((i for i in range(start + 1, len(words)) if words[i].startswith("--")), len(words))
        del words[start:end]
    return [*words, *map(str, option)]


def mistake(capsys, *arguments):
    """What the command says to something wrong; nothing may go to stdout."""
    jaxtyping.config.update("jaxtyping_disable", True)  # the package's own checks speak, as for its users
    try:
        code = main(["compare", *map(str, arguments)])
    except SystemExit as done:
        code = done.code
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)
    captured = capsys.readouterr()
    assert code == 2, captured.err
    assert captured.out == ""
    last = captured.err.splitlines()[-1]
    assert last.startswith("bilinear-circuits: error: ")
    assert "Traceback" not in captured.err
    return last


MISTAKES = {
    ("--models", "a", "b", "c"): "models must be one for all files, or one for each of the 2, got 3",
    ("--models", "ts-71m"): "got ts-71m. Did you mean ts-17m?",
    ("--models", "ts-17m"): "model must be the one the circuits were found in",
    ("--saes", "nowhere"): "got nowhere: no such folder",
    ("--by", "magic"): "argument --by: invalid choice: 'magic'",
    ("--threshold", "1.5"): "threshold must be a correlation between -1 and 1, got 1.5",
    ("--n-null", "0"): "n_null must be at least 1, got 0",
    ("--n-shifts", "-2"): "n_shifts must be at least 1, got -2",
    ("--n-stories", "0"): "n_stories must be at least 1, got 0",
    ("--seed", "-1"): "seed must be between 0 and",
    ("--device", "cuda:9"): "device must be one that torch can use, got cuda:9",
    ("--corpus", "nowhere.txt"): "got nowhere.txt: no such file",
}


@pytest.mark.parametrize("options", MISTAKES, ids=" ".join)
def test_a_wrong_option_is_one_line(options, world, tmp_path, capsys):
    asked = [*asked_for(world, "one", "two"), "--corpus", world / "stories.txt", "--out", tmp_path / "out"]
    assert MISTAKES[options] in mistake(capsys, *with_option(asked, *options))
    assert not (tmp_path / "out").exists()


def test_wrong_files_are_one_line(world, tmp_path, capsys):
    one, two = files(world, "one", "two")
    corpus = ["--corpus", str(world / "stories.txt")]
    assert "circuits must be two files or more, got 1" in mistake(capsys, one)
    assert "the following arguments are required: CIRCUIT.json" in mistake(capsys)
    assert "got nowhere.json: no file" in mistake(capsys, one, "nowhere.json")
    assert "circuit must be a JSON file" in mistake(capsys, one, world / "stories.txt")
    asked = asked_for(world, "one", "two")
    told = mistake(capsys, one, two, *corpus)
    assert "--models and --saes must be given" in told
    assert "made with model, saes-one, saes-two, not shipped" in told
    assert "error: --saes must be given" in mistake(capsys, one, two, *corpus, "--models", world / "model")
    assert "--corpus must be given" in mistake(capsys, *asked)
    assert "is a file" in mistake(capsys, *asked, *corpus, "--out", world / "stories.txt")


def test_dictionaries_other_than_those_of_the_file_are_refused(world, capsys):
    swapped = [world / "saes-one", world / "saes-one"]
    asked = [*asked_for(world, "one", "two"), "--corpus", world / "stories.txt"]
    told = mistake(capsys, *with_option(asked, "--saes", *swapped))
    assert "saes must be the dictionaries the circuits were found with" in told
    assert told.endswith("sae_weights.safetensors differ.")


def test_a_model_with_another_tokenizer_is_another_model(world, tmp_path, capsys):
    """The weights are those of the file; only the words of its tokenizer are others."""
    shutil.copytree(world / "model-other", tmp_path / "model")
    word_tokenizer([*WORDS[:-1], "unheard"]).save_pretrained(tmp_path / "model")
    asked = [*asked_for(world, "one", "other"), "--corpus", world / "stories.txt"]
    told = mistake(capsys, *with_option(asked, "--models", world / "model", tmp_path / "model"))
    assert "model must be the one the circuits were found in" in told
    assert "tokenizer.json differ" in told


def test_weights_of_different_models_cannot_choose_the_matches(world, capsys):
    asked = [*asked_for(world, "one", "other"), "--corpus", world / "stories.txt", "--by", "decoder"]
    assert "by must be activation, jaccard, promoted between different models, got decoder" in mistake(capsys, *asked)


def test_the_corpus_of_shipped_stories_is_found_by_its_hash(world):
    from bilinear_circuits import zoo
    from bilinear_circuits.commands.compare import Arguments, corpus_for, read_sources

    saes = [str(world / f"saes-{name}") for name in ("one", "two")]
    arguments = Arguments(circuits=files(world, "one", "two"), models=[str(world / "model")], saes=saes)
    first, second = read_sources(arguments)
    shipped = file_hash(zoo.FOLDER / "ts-17m-stories.txt")
    object.__setattr__(first.file, "corpus_hash", shipped)
    assert corpus_for(arguments, [first, second]).path == zoo.corpus_path("ts-17m")
