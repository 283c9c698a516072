"""`bilinear-circuits sample` on a tiny model: what decides a sample, and which files it leaves alone."""

import json
import shutil

import pytest
from planted import tiny_llama, word_tokenizer
from test_cli import mistake

from bilinear_circuits.cli import main
from bilinear_circuits.command_line.claims import claimed
from bilinear_circuits.commands import sample


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("sample") / "tiny"
    tiny_llama(n_layers=1).save_pretrained(root)
    word_tokenizer().save_pretrained(root)
    return root


def asked(folder, out, **options):
    named = [text for key, value in options.items() for text in (f"--{key.replace('_', '-')}", value)]
    return ["sample", *map(str, ["--model", folder, "--n", 4, "--out", out, *named])]


def sampled(folder, out, **options):
    assert main(asked(folder, out, **options)) == 0
    return out.read_text()


def with_json(folder, path, name, **values):
    """A copy of a model folder with values of one of its files changed."""
    shutil.copytree(folder, path)
    content = json.loads((path / name).read_text()) if (path / name).is_file() else {}
    (path / name).write_text(json.dumps(content | values))
    return path


def test_a_sample_is_its_text_and_a_record_of_how_it_was_made(folder, tmp_path):
    text = sampled(folder, tmp_path / "new/stories.txt", seed=3)
    assert {file.name for file in (tmp_path / "new").iterdir()} == {"stories.txt", "stories.txt.json"}
    record = json.loads((tmp_path / "new/stories.txt.json").read_text())
    assert record["n_stories"] == text.count("<|endoftext|>") > 0
    assert (record["max_tokens"], record["config"]["seed"], record["model"]["name"]) == (31, 3, "tiny")
    assert str(tmp_path) not in json.dumps(record)


CHANGES = {
    "generation": ("generation_config.json", {"do_sample": False, "temperature": 9.0, "max_new_tokens": 1, "top_k": 1}),
    "sides": ("tokenizer_config.json", {"truncation_side": "left", "padding_side": "left", "model_max_length": 2}),
    "pad": ("config.json", {"pad_token_id": 999}),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_does_not_decide_a_sample_changes_nothing(change, folder, tmp_path):
    name, values = CHANGES[change]
    other = with_json(folder, tmp_path / "tiny", name, **values)
    assert sampled(other, tmp_path / "a.txt") == sampled(folder, tmp_path / "b.txt")


def test_the_same_command_again_gives_the_same_file_and_another_seed_replaces_it(folder, tmp_path):
    first = sampled(folder, tmp_path / "a.txt")
    assert sampled(folder, tmp_path / "a.txt") == first
    assert sampled(folder, tmp_path / "a.txt", seed=1) != first


def test_files_that_it_did_not_write_or_that_were_changed_are_left_alone(folder, tmp_path, capsys):
    own = tmp_path / "own.txt"
    own.write_text("a story of mine")
    message = "out must be a new file, or one that sample wrote and nobody changed, got"
    assert message in mistake(capsys, *asked(folder, own))
    assert own.read_text() == "a story of mine"
    changed = sampled(folder, tmp_path / "changed.txt") + "more\n"
    capsys.readouterr()
    (tmp_path / "changed.txt").write_text(changed)
    assert message in mistake(capsys, *asked(folder, tmp_path / "changed.txt"))
    assert (tmp_path / "changed.txt").read_text() == changed
    (tmp_path / "other.txt.json").write_text('{"kind": "mine"}')
    message = "out must leave other.txt.json free for its settings"
    assert message in mistake(capsys, *asked(folder, tmp_path / "other.txt"))
    assert (tmp_path / "other.txt.json").read_text() == '{"kind": "mine"}'
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("n_moved", [0, 1])
@pytest.mark.parametrize("before", [None, 1], ids=["new", "replaced"])
def test_the_same_command_goes_on_after_a_kill_between_its_two_files(n_moved, before, folder, tmp_path, monkeypatch):
    out, moved, replace = tmp_path / "a.txt", [], sample.os.replace
    if before is not None:
        sampled(folder, out, seed=before)

    def some(*files):
        if len(moved) == n_moved:
            raise SystemExit("killed")
        moved.append(replace(*files))

    with monkeypatch.context() as patch:
        patch.setattr(sample.os, "replace", some)
        with pytest.raises(SystemExit, match="killed"):
            main(asked(folder, out))
    assert sampled(folder, out) == sampled(folder, tmp_path / "whole.txt")
    names = ["a.txt", "a.txt.json", "whole.txt", "whole.txt.json"]
    assert sorted(file.name for file in tmp_path.iterdir()) == names


def test_two_runs_on_one_file_are_refused_and_on_two_files_of_a_folder_are_not(folder, tmp_path, capsys):
    with claimed(sample.results_folder(sample.Arguments(out=str(tmp_path / "a.txt"), model=str(folder)))):
        message = "out must not be written by two runs at once"
        assert message in mistake(capsys, *asked(folder, tmp_path / "a.txt"))
        sampled(folder, tmp_path / "b.txt")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["b.txt", "b.txt.json"]


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"max_tokens": 32}, "max_tokens must be between 1 and 31, which with [BOS] fill the model's context, got 32"),
        ({"max_tokens": 0}, "max_tokens must be between 1 and 31"),
        ({"n": 0}, "n must be positive and finite, got 0"),
        ({"device": "cuda:77"}, "device must be one that torch can use"),
    ],
)
def test_what_cannot_be_is_refused_before_the_model_is_loaded(option, message, folder, tmp_path, monkeypatch, capsys):
    from bilinear_circuits import zoo

    monkeypatch.setattr(zoo, "load_plain_model", None)
    assert message in mistake(capsys, *asked(folder, tmp_path / "a.txt", **option))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.txt.gz", ""])
def test_names_of_other_files_are_refused(name, folder, capsys):
    assert "out must be " in mistake(capsys, *asked(folder, name))
