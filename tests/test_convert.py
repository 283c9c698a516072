"""A gated model made bilinear while it is trained: the gate at every beta, both controls, the model that comes out."""

import json

import pytest
import torch
import yaml
from helpers import assert_near, randn, refused
from llamas import random_llama
from planted import random_stories, tiny_llama, word_tokenizer
from transformers import AutoModelForCausalLM
from verbs import TRAIN

import bilinear_circuits as bc
from bilinear_circuits.cli import main
from bilinear_circuits.commands import convert
from bilinear_circuits.data.rows import tokenize_rows
from bilinear_circuits.training.annealing import AnnealedGate, Annealing, annealed_gates, make_linear


@pytest.mark.parametrize("act", [torch.nn.functional.silu, torch.nn.functional.gelu])
def test_a_gate_goes_from_itself_to_half_its_input(act):
    g = randn(100)
    gate = AnnealedGate(act)
    assert gate(g).equal(act(g))
    gate.beta = 0.25
    assert_near(gate(g), act(g / 4) * 4)
    gate.beta = 1e-6
    assert_near(gate(g), g / 2, 1e-5)
    gate.beta = 0
    assert gate(g).equal(g / 2)


def test_beta_falls_over_its_share_of_the_steps_and_stays():
    from transformers import TrainerControl, TrainerState, TrainingArguments

    gate, arguments = AnnealedGate(torch.nn.functional.silu), TrainingArguments(use_cpu=True)
    at = {}
    for step in range(10):
        Annealing([gate], 0.5).on_step_begin(arguments, TrainerState(global_step=step, max_steps=10), TrainerControl())
        at[step] = gate.beta
    assert [at[step] for step in (0, 1, 4, 5, 9)] == pytest.approx([1, 0.8, 0.2, 0, 0])
    for n_steps in (2, 5, 500):  # however large the share, the last step is taken with linear gates
        Annealing([gate], 0.999).on_step_begin(
            arguments, TrainerState(global_step=n_steps - 1, max_steps=n_steps), TrainerControl()
        )
        assert gate.beta == 0
    gate.beta = 1.0
    Annealing([gate], 0.5).on_train_begin(arguments, TrainerState(global_step=10, max_steps=10), TrainerControl())
    assert gate.beta == 0  # of a training that goes on with no step left
    with refused(ValueError, "optim.epochs must make two steps or more, got 1"):
        Annealing([gate], 0.5).on_train_begin(arguments, TrainerState(max_steps=1), TrainerControl())
    Annealing([gate], 0.0).on_step_begin(arguments, TrainerState(global_step=0, max_steps=10), TrainerControl())
    assert gate.beta == 0


@pytest.mark.parametrize("kind", ["silu", "gemma2", "qwen2"])
def test_what_comes_out_is_a_stock_model_that_computes_the_same(kind, tmp_path):
    model = random_llama(kind)
    ids = torch.arange(9).unsqueeze(0)
    before = model(ids).logits
    gates = annealed_gates(model)
    assert model(ids).logits.equal(before)
    with refused(ValueError, "layer 0 must have a gate that was annealed to the end"):
        make_linear(model)
    for gate in gates:
        gate.beta = 0.0
    linear = model(ids).logits
    make_linear(model)
    assert_near(model(ids).logits, linear, 1e-5)
    model.save_pretrained(tmp_path)
    written = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert_near(written(ids).logits, linear, 1e-5)
    assert bc.BilinearMLP.from_model(written, 1).probe_error < 1e-5
    with refused(ValueError, "layer 0 must have one of the gates SiLU, GELU, tanh-GELU to be made linear .*, got ReLU"):
        annealed_gates(tiny_llama(act="relu"))


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("convert")
    tiny_llama(act="silu", n_layers=2).save_pretrained(root / "model")
    word_tokenizer().save_pretrained(root / "model")
    lines = [f"{story} the cat sat at home ." for story in random_stories(150)]
    (root / "stories.txt").write_text("\n<|endoftext|>\n".join(lines))
    recipe = TRAIN | {"corpus": str(root / "stories.txt")}
    (root / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return root


def asked(world, out, *more):
    recipe = ["convert", str(world / "recipe.yaml"), "--model", str(world / "model"), "--device", "cpu"]
    return [*recipe, "--out", str(out), *map(str, more)]


@pytest.mark.slow
def test_three_are_trained_and_the_annealed_one_is_written(world, tmp_path, capsys):
    out = tmp_path / "out"
    brief = ("--n-seeds", 2, "--set", "optim.epochs=1")
    assert main(asked(world, out, *brief)) == 0
    said = capsys.readouterr().out
    losses = json.loads((out / "convert.json").read_text())["losses"]
    assert "mean of 2 seeds" in said
    assert said.count(" against the model trained on") == 2
    assert {file.name for file in out.iterdir()} >= {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "convert.json",
    }
    assert not (out / "arms").exists()
    model = AutoModelForCausalLM.from_pretrained(out)
    assert model.config.hidden_act == "linear"
    assert bc.BilinearMLP.from_model(model, 0).probe_error < 1e-4
    assert len(set(losses["annealed"] + losses["abrupt"] + losses["as it is"])) == 6
    rows = tokenize_rows(random_stories(10), word_tokenizer(), 24)
    start = convert.given_loss(AutoModelForCausalLM.from_pretrained(world / "model"), rows)
    expected = [
        torch.nn.functional.cross_entropy(
            AutoModelForCausalLM.from_pretrained(world / "model")(row["input_ids"][None]).logits[0, :-1],
            row["input_ids"][1:],
        ).item()
        for row in rows
    ]
    assert start == pytest.approx(sum(expected) / len(expected), rel=1e-5)
    assert main(asked(world, out, *brief)) == 2
    assert "a finished one" in capsys.readouterr().err


@pytest.mark.slow
def test_a_conversion_that_was_killed_goes_on(world, tmp_path, monkeypatch):
    trained, calls = convert._trained, []

    def until_killed(*arguments):
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(arguments[3])
        return trained(*arguments)

    assert main(asked(world, tmp_path / "whole")) == 0
    monkeypatch.setattr(convert, "_trained", until_killed)
    assert main(asked(world, tmp_path / "out")) == 130
    assert (tmp_path / "out/arms/abrupt-0/loss.json").is_file()
    monkeypatch.setattr(convert, "_trained", trained)
    assert main(asked(world, tmp_path / "out")) == 0
    whole, resumed = (json.loads((tmp_path / name / "convert.json").read_text())["losses"] for name in ("whole", "out"))
    assert whole == resumed


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--anneal", 1.5], "anneal must be a share of the steps between 0 and 1, got 1.5"),
        (["--n-seeds", 0], "n_seeds must be at least 1, got 0"),
    ],
)
def test_what_cannot_be_converted_is_refused_in_one_line(more, message, world, tmp_path, capsys):
    assert main(asked(world, tmp_path / "out", *more)) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "out").exists()


def test_a_bilinear_model_is_not_converted(world, tmp_path, capsys):
    tiny_llama(n_layers=1).save_pretrained(tmp_path / "model")
    word_tokenizer().save_pretrained(tmp_path / "model")
    words = asked(world, tmp_path / "out")
    words[words.index(str(world / "model"))] = str(tmp_path / "model")
    assert main(words) == 2
    assert "to be made linear little by little, got linear" in capsys.readouterr().err
