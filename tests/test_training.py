"""Training on the Hugging Face Trainer: what is saved, how a run resumes, how it stops."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from functools import cached_property
from pathlib import Path

import pytest
import torch
import yaml
from helpers import refused
from planted import random_stories, word_tokenizer

from bilinear_circuits.data.rows import tokenize_rows
from bilinear_circuits.models.llama import ModelSettings, build_model, dropout_on_outputs
from bilinear_circuits.training.language_model import (
    NonFiniteLossError,
    OptimSettings,
    evaluations,
    latest_checkpoint,
    train_model,
)

ROOT = Path(__file__).parents[1]
SHAPE = {"d_model": 16, "n_layers": 2, "n_heads": 2, "d_mlp": 24, "context": 16}
OPTIM = {"epochs": 3, "batch_rows": 8, "lr": 0.01, "dropout": 0.1, "evaluations": 4}


def tiny(seed=0, **change):
    return build_model(ModelSettings(**(SHAPE | change)), word_tokenizer(), seed)


def rows(n, seed):
    return tokenize_rows(random_stories(n, seed), word_tokenizer(), SHAPE["context"])


def test_a_bilinear_model_is_a_stock_llama_without_biases():
    model = tiny()
    assert model.config.hidden_act == "linear"
    assert not any("bias" in name for name, _ in model.named_parameters())
    assert model.lm_head.weight.data_ptr() != model.model.embed_tokens.weight.data_ptr()
    assert {module.__class__.__module__.split(".")[0] for module in model.modules()} <= {"transformers", "torch"}


def test_the_seed_makes_the_weights():
    first, again, other = (tiny(seed).lm_head.weight for seed in (0, 0, 1))
    torch.testing.assert_close(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("act", ["silu", "gelu", "relu", "solu"])
def test_other_activations_are_there_for_comparison(act):
    model = tiny(hidden_act=act)
    x = torch.randn(3, 24, generator=torch.Generator().manual_seed(0))
    functions = torch.nn.functional
    expected = {
        "silu": functions.silu(x), "gelu": functions.gelu(x), "relu": x.relu(), "solu": x * x.softmax(-1),
    }  # fmt: skip
    torch.testing.assert_close(model.model.layers[0].mlp.act_fn(x), expected[act])


def test_dropout_acts_in_training_only_and_leaves_no_trace():
    model, ids = tiny(), torch.randint(20, (2, 9))
    before, keys = model(ids).logits, set(model.state_dict())
    with dropout_on_outputs(model, 0.5):
        assert set(model.state_dict()) == keys
        torch.testing.assert_close(model.eval()(ids).logits, before)
        assert not torch.allclose(model.train()(ids).logits, before)
    torch.testing.assert_close(model(ids).logits, before)


def test_dropout_falls_on_the_embedding_and_on_what_attention_and_mlp_write():
    model, seen = tiny().train(), {}
    parts = {"embedding": model.model.embed_tokens}
    for index, block in enumerate(model.model.layers):
        parts |= {f"attention {index}": block.self_attn, f"mlp {index}": block.mlp}
    with dropout_on_outputs(model, 0.5):
        for name, part in parts.items():
            # Registered later, so it sees what the dropout left.
            part.register_forward_hook(
                lambda module, args, out, name=name: seen.update({name: out if torch.is_tensor(out) else out[0]})
            )
        model(torch.randint(20, (4, 16)))
    for name in parts:
        zeros = (seen[name] == 0).float().mean().item()
        assert 0.4 < zeros < 0.6, name


def test_training_lowers_the_loss_and_keeps_the_best_weights(tmp_path):
    model, valid = tiny(), rows(43, seed=1)  # not a multiple of the batch: each of them counts, and counts once
    result = train_model(model, rows(100, seed=0), valid, OptimSettings(**OPTIM), tmp_path, device="cpu")
    losses = [entry["valid_loss"] for entry in result.log]
    assert result.valid_loss == min(losses) < losses[0] < math.log(20)
    assert result.steps == 3 * (100 // 8)
    assert result.tokens == result.steps * 8 * 16
    with torch.no_grad():
        batch = torch.stack([row["input_ids"] for row in valid])
        loss = model.eval()(batch, labels=batch).loss.item()
    assert loss == pytest.approx(result.valid_loss, rel=1e-6)
    lines = (tmp_path / "log.csv").read_text().splitlines()
    assert lines[0] == "step,epoch,train_loss,valid_loss"
    assert len(lines) == len(result.log) + 1


@pytest.mark.slow
def test_a_batch_in_several_forward_passes_is_the_same_batch(tmp_path):
    logs = []
    for rows_per_device in (None, 4):
        settings = OptimSettings(**OPTIM | {"dropout": 0.0, "rows_per_device": rows_per_device})
        # 101 rows: an epoch ends with five that make no batch.
        result = train_model(tiny(), rows(101, 0), rows(20, 1), settings, tmp_path / str(rows_per_device), device="cpu")
        logs.append(result.log)
    assert logs[0][-1]["epoch"] == 3
    for whole, accumulated in zip(*logs, strict=True):
        assert accumulated == pytest.approx(whole, rel=1e-4)


def test_one_process_trains_on_one_gpu_where_there_are_several(tmp_path, monkeypatch):
    from bilinear_circuits.training import language_model as training

    class OnTwoGpus(training.TrainingArguments):
        @cached_property
        def _setup_devices(self):
            self._n_gpu = 2
            return torch.device("cpu")

    monkeypatch.setattr(training, "TrainingArguments", OnTwoGpus)
    arguments = training._training_arguments(OptimSettings(**OPTIM), 100, tmp_path, 0, "cpu", "none")
    assert arguments.train_batch_size == 8


def test_a_loss_that_is_not_finite_stops_the_run_with_advice(tmp_path):
    settings = OptimSettings(**OPTIM | {"lr": 1e30, "warmup": 0.0, "dropout": 0.0})
    with refused(NonFiniteLossError, "must stay finite, got nan at step .*Lower lr"):
        train_model(tiny(), rows(100, 0), rows(20, 1), settings, tmp_path, device="cpu")


def test_an_incomplete_checkpoint_is_removed_and_the_latest_whole_one_found(tmp_path):
    for step, state in ((4, '{"global_step": 4}'), (8, '{"global_step": 8}'), (12, '{"global_st'), (16, None)):
        (tmp_path / f"checkpoint-{step}").mkdir()
        if state is not None:
            (tmp_path / f"checkpoint-{step}/trainer_state.json").write_text(state)
    assert latest_checkpoint(tmp_path) == tmp_path / "checkpoint-8"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-4", "checkpoint-8"]
    assert latest_checkpoint(tmp_path / "nowhere") is None


def test_a_checkpoint_is_complete_when_every_process_has_saved_its_random_numbers(tmp_path, monkeypatch):
    from bilinear_circuits.utilities import processes

    def wait():
        last = max((tmp_path / "checkpoints").iterdir(), key=lambda path: int(path.name.split("-")[1]))
        seen.append([(last / name).exists() for name in ("rng_state.pth", "trainer_state.json")])

    seen = []
    monkeypatch.setattr(processes, "wait", wait)
    train_model(tiny(), rows(40, 0), rows(20, 1), OptimSettings(**OPTIM), tmp_path, device="cpu")
    assert seen
    assert all(one == [True, False] for one in seen)


@pytest.mark.parametrize("is_first", [True, False])
def test_the_first_process_alone_writes_the_curve(tmp_path, is_first):
    from transformers import TrainerControl, TrainerState, TrainingArguments

    from bilinear_circuits.training.language_model import _Watch

    history = [{"loss": 3.0, "step": 5, "epoch": 0.5}, {"eval_loss": 2.5, "step": 5, "epoch": 0.5}]
    state = TrainerState(log_history=history, is_world_process_zero=is_first)
    arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    _Watch(tmp_path / "log.csv").on_log(arguments, state, TrainerControl(), logs=history[1])
    assert (tmp_path / "log.csv").exists() == is_first


def test_every_evaluation_has_the_training_loss_before_it():
    history = [
        {"loss": 3.0, "step": 5, "epoch": 0.5}, {"eval_loss": 2.5, "step": 5, "epoch": 0.5},
        {"loss": 2.0, "step": 9, "epoch": 0.9}, {"eval_loss": 2.2, "step": 10, "epoch": 1.0}, {"train_runtime": 1.0},
    ]  # fmt: skip
    assert list(evaluations(history)) == [
        {"step": 5, "epoch": 0.5, "train_loss": 3.0, "valid_loss": 2.5},
        {"step": 10, "epoch": 1.0, "train_loss": 2.0, "valid_loss": 2.2},
    ]


@pytest.mark.parametrize(
    ("settings", "change", "message"),
    [
        (ModelSettings, {"d_model": 15}, "d_model must be n_heads times an even number.*d_model=15 and n_heads=2"),
        (ModelSettings, {"hidden_act": "swiglu"}, "hidden_act must be one of linear, silu.*got 'swiglu'"),
        (ModelSettings, {"n_layers": 0}, "n_layers must be a number above 0, got 0"),
        (OptimSettings, {"lr": "fast"}, "lr must be a number above 0, got 'fast'"),
        (OptimSettings, {"dropout": 1}, "dropout must be at least 0 and below 1, got 1"),
        (OptimSettings, {"schedule": "steps"}, "schedule must be one of linear, cosine, got 'steps'"),
        (OptimSettings, {"rows_per_device": 0}, "rows_per_device must be a number above 0, got 0"),
        (OptimSettings, {"weight_decay": -1}, "weight_decay must be 0 or more, got -1"),
        (OptimSettings, {"rows_per_device": 3}, "rows_per_device must divide batch_rows=8, got 3"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, change, message):
    with refused(ValueError, message):
        settings(**((SHAPE if settings is ModelSettings else OPTIM) | change))


def test_fewer_stories_than_a_batch_are_refused(tmp_path):
    with refused(ValueError, "batch_rows must be at most the number of stories, 5, got 8"):
        train_model(tiny(), rows(5, 0), rows(5, 1), OptimSettings(**OPTIM), tmp_path, device="cpu")


def recipe(folder, **change):
    stories = folder / "stories.txt"
    lines = [f"{story} the cat sat at home and ran ." for story in random_stories(220, length=20)]
    stories.write_text("\n<|endoftext|>\n".join(lines))
    content = {"name": "tiny", "corpus": str(stories), "valid_share": 0.2, "vocab_size": 64}
    content |= {"model": SHAPE | {"context": 24}, "optim": OPTIM | {"epochs": 12, "evaluations": 12}} | change
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def command(*arguments):
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    line = [sys.executable, "-m", "bilinear_circuits.cli", "train", *map(str, arguments), "--device", "cpu"]
    return subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


@pytest.mark.slow
def test_a_killed_run_continues_as_if_nothing_had_happened(tmp_path):
    path = recipe(tmp_path)
    whole = command(path, "--out", tmp_path / "whole")
    _, stderr = whole.communicate()
    assert whole.returncode == 0, stderr
    for kill_after in (3, 6):
        process = command(path, "--out", tmp_path / "killed")
        checkpoints = tmp_path / "killed/checkpoints"
        while process.poll() is None and len(list(checkpoints.glob("checkpoint-*"))) < 1:
            time.sleep(0.01)
        time.sleep(kill_after / 10)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    resumed = command(path, "--out", tmp_path / "killed")
    _, stderr = resumed.communicate()
    assert resumed.returncode == 0, stderr
    logs = [(tmp_path / name / "log.csv").read_text() for name in ("whole", "killed")]
    expected, got = ([list(map(float, line.split(","))) for line in log.splitlines()[1:]] for log in logs)
    assert [row[0] for row in got] == [row[0] for row in expected]
    for mine, theirs in zip(got, expected, strict=True):
        assert mine == pytest.approx(theirs, rel=1e-4)
    assert not (tmp_path / "killed/checkpoints").exists()
    assert "the stories are tokenized already" in stderr
    names = [{path.name for path in (tmp_path / name).iterdir()} for name in ("whole", "killed")]
    assert names[0] == names[1] >= {"model.safetensors", "tokenizer.json", "training.json"}
    assert "data" not in names[0]


@pytest.mark.slow
def test_the_folder_of_a_run_is_a_model_that_loads_anywhere_and_is_bilinear(tmp_path):
    import bilinear_circuits as bc

    process = command(recipe(tmp_path), "--out", tmp_path / "out")
    stdout, stderr = process.communicate()
    assert process.returncode == 0, stderr
    assert stdout.startswith("tiny: validation loss")
    model = bc.load_model(tmp_path / "out")
    assert bc.BilinearMLP.from_model(model, 1).probe_error < 1e-4
    saved = json.loads((tmp_path / "out/training.json").read_text())
    assert saved["recipe"]["optim"]["beta2"] == 0.95
    assert saved["result"]["valid_loss"] > 0
    assert len(saved["data_sha256"]) == 64
    again = command(recipe(tmp_path), "--out", tmp_path / "out")
    _, stderr = again.communicate()
    assert again.returncode == 2
    assert "which holds a finished one. Remove it or name another --out" in stderr


def test_a_folder_with_another_run_is_not_continued(tmp_path):
    from bilinear_circuits.commands.train import Arguments, run

    out = tmp_path / "out"
    out.mkdir()
    (out / "run.json").write_text('{"name": "tiny", "seed": 5}')
    with refused(ValueError, "out must hold a training with these settings to go on with, got .*seed"):
        run(Arguments(recipe=str(recipe(tmp_path)), out=str(out)))


@pytest.mark.parametrize("path", sorted((ROOT / "configs/train").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_shipped_recipes_are_valid_and_named_after_their_file(path):
    from bilinear_circuits.command_line.recipes import read_recipe

    assert read_recipe(str(path)).name == path.stem


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"modle": 1}, "got 'modle'. Did you mean model?"),
        ({"vocab_size": "big"}, "vocab_size of .* must be a whole number, got 'big'"),
        ({"name": 3}, "name of .* must be a text, got 3"),
        ({"tokenizer": 3}, "tokenizer of .* must be a text, got 3"),
        ({"valid_share": "abc"}, "valid_share of .* must be a finite number, got 'abc'"),
        ({"valid_share": 2}, "valid_share of .* must be between 0 and 1, got 2"),
        ({"seed": 10**20}, r"seed must be between 0 and 2\*\*63 - 1, got 100000000000000000000"),
        ({"n_stories": 0}, "n_stories of .* must be at least 1, got 0"),
        ({"optim": OPTIM | {"compile": 3}}, "compile of optim of .* must be true or false, got 3"),
    ],
)
def test_a_wrong_recipe_is_refused_by_key(change, message, tmp_path):
    from bilinear_circuits.command_line.recipes import read_recipe

    with refused(ValueError, message):
        read_recipe(str(recipe(tmp_path, **change)))


def test_a_corpus_that_cannot_be_read_leaves_nothing_behind(tmp_path):
    from bilinear_circuits.commands.train import Arguments, run

    path = recipe(tmp_path, corpus=str(tmp_path / "missing.txt"))
    with refused(FileNotFoundError, "missing.txt: no such file"):
        run(Arguments(recipe=str(path), out=str(tmp_path / "out")))
    assert not (tmp_path / "out").exists()


def recipe_of(path):
    from bilinear_circuits.command_line.recipes import read_recipe

    return read_recipe(str(path))


def test_stories_for_validation_are_left_out_of_training_and_counted(tmp_path, capsys):
    from bilinear_circuits.command_line.training_data import divide

    stories = [f"{story} the cat sat at home and ran ." for story in random_stories(40, length=20)]
    valid = [stories[3].upper(), f"  {stories[5]}\n", "the dog was not here and the cat was not at home ."]
    asked = recipe_of(recipe(tmp_path, valid="valid.txt"))
    train, held_out, counts = divide(asked, "c.txt", [*stories, stories[0], "too short"], valid)
    assert train == [story for story in stories if story not in (stories[3], stories[5])]
    assert len(held_out) == 3
    assert counts == {
        "read": 42, "duplicates": 1, "corrupt": 1, "in_validation": 2, "training": 38, "validation": 3,
    }  # fmt: skip
    expected = "42 stories: 1 duplicates and 1 corrupt ones left out, and 2 that are in valid.txt\n"
    assert capsys.readouterr().err.endswith(expected)


def test_a_corpus_for_validation_that_leaves_nothing_to_train_on_is_refused(tmp_path):
    from bilinear_circuits.command_line.training_data import divide

    stories = [f"{story} the cat sat at home and ran ." for story in random_stories(4, length=20)]
    asked = recipe_of(recipe(tmp_path, valid="valid.txt"))
    with refused(ValueError, "valid must hold other stories than the corpus, got valid.txt: .* 0 are left to train on"):
        divide(asked, "c.txt", stories, stories)
    with refused(ValueError, "4 are left to train on and 0 to validate with"):
        divide(asked, "c.txt", stories, ["too short"])


def test_a_corpus_without_a_usable_story_is_named():
    from bilinear_circuits.command_line.training_data import divide

    with refused(ValueError, "corpus must hold stories of ten words or more, got c.txt, of whose 2 none is left"):
        divide(recipe_of("ts-nano"), "c.txt", ["too short", "text,label"], [])


def test_every_long_step_from_stories_to_rows_reports_its_progress(tmp_path, monkeypatch):
    from bilinear_circuits.command_line import common
    from bilinear_circuits.command_line.training_data import prepare

    def bar(items, description, /):
        reported.append((description, len(items)))
        return items

    reported = []
    monkeypatch.setattr(common, "bar", bar)
    asked = recipe_of(recipe(tmp_path))
    prepare(asked, asked.stories, tmp_path / "data")
    # Tokens are made a thousand stories at a time.
    assert reported == [("clean", 220), ("train the tokenizer", 1), ("tokenize", 1), ("tokenize", 1)]


def test_stories_are_tokenized_once_for_the_same_recipe_corpus_and_tokenizer(tmp_path, capsys):
    from bilinear_circuits.command_line.training_data import prepare
    from bilinear_circuits.data.rows import TrainingData

    def prepared(**change):
        asked = recipe_of(recipe(tmp_path, **change))
        prepare(asked, asked.stories, tmp_path / "data")()
        again = "the stories are tokenized already" in capsys.readouterr().err
        return again, TrainingData.load(tmp_path / "data").rows.data_hash

    again, first = prepared()
    assert not again
    assert prepared() == (True, first)
    for change in ({"seed": 1}, {"vocab_size": 60}, {"tokenizer": "ts-17m"}):
        again, other = prepared(**change)
        assert not again
        assert other != first
    recipe(tmp_path)
    text = (tmp_path / "stories.txt").read_text()
    (tmp_path / "valid.txt").write_text(text[: len(text) // 4])
    assert not prepared(valid=str(tmp_path / "valid.txt"))[0]
    (tmp_path / "valid.txt").write_text(text[: len(text) // 3])
    assert not prepared(valid=str(tmp_path / "valid.txt"))[0]
