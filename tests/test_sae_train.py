"""Training of dictionaries: real runs on a tiny model, and every refusal by its text."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from helpers import assert_near, refused
from planted import random_dictionary, random_stories, tiny_llama, word_tokenizer

from sae.commands import train_sae
from sae.settings import Recipe, TrainSettings

ROOT = Path(__file__).parents[1]
CONTEXT = 16
HOOKS = ("blocks.1.mlp.hook_in", "blocks.1.mlp.hook_out")
SIZES = {"tokens": 4000, "batch_tokens": 64, "buffer_rows": 16, "context": CONTEXT, "model_rows": 32}
TINY = {"layers": [1], "sae": {"k": 3}, **SIZES, "dead_window": 20, "norm_batches": 2, "lr": 1e-2, "checkpoints": 4}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model folder and a corpus."""
    root = tmp_path_factory.mktemp("train-sae")
    tiny_llama().save_pretrained(root / "tiny")
    word_tokenizer().save_pretrained(root / "tiny")
    (root / "stories.txt").write_text("\n<|endoftext|>\n".join(random_stories(150)))
    return root


@pytest.fixture(scope="module")
def model(folder):
    import bilinear_circuits as bc

    return bc.load_model(folder / "tiny")


@pytest.fixture(scope="module")
def tokens(model):
    from bilinear_circuits.data.stories import tokenize_stories

    return tokenize_stories(random_stories(150), model.tokenizer, CONTEXT)


def recipe_file(folder, path, **change):
    content = {"name": "tiny", "model": str(folder / "tiny"), "corpus": str(folder / "stories.txt")} | TINY | change
    path.write_text(yaml.safe_dump({key: value for key, value in content.items() if value is not None}))
    return str(path)


def settings(**change):
    return TrainSettings(**TINY | change)


@pytest.fixture(scope="module")
def trained(folder, tmp_path_factory):
    """The folder a whole run writes, in float32, and what it prints."""
    import contextlib
    import io

    out, printed = tmp_path_factory.mktemp("out") / "saes", io.StringIO()
    recipe = recipe_file(folder, out.parent / "recipe.yaml", save_dtype="float32")
    with contextlib.redirect_stdout(printed):
        train_sae.run(train_sae.Arguments(recipe=recipe, out=str(out)))
    return out, printed.getvalue()


def test_a_run_leaves_the_dictionaries_and_their_record_alone(trained):
    out, printed = trained
    assert sorted(one.name for one in out.iterdir()) == [*HOOKS, "training.json"]
    assert sorted(one.name for one in (out / HOOKS[0]).iterdir()) == ["cfg.json", "sae_weights.safetensors"]
    assert [one.name for one in out.parent.iterdir() if one.name.startswith(".")] == []
    assert [line.split()[:2] for line in printed.splitlines()[2:4]] == [[name, "48"] for name in HOOKS]


@pytest.mark.parametrize("hook_name", HOOKS)
def test_saelens_and_the_package_read_the_same_function(trained, hook_name):
    from sae_lens import SAE

    from bilinear_circuits.dictionaries.dictionary import Dictionary

    sae = SAE.load_from_disk(trained[0] / hook_name)
    dictionary = Dictionary.load(trained[0] / hook_name)
    x = torch.randn(200, 12, generator=torch.Generator().manual_seed(0))
    assert_near(dictionary.encode(x), sae.encode(x).detach(), 1e-5)
    assert_near(dictionary.decode(dictionary.encode(x)), sae(x).detach(), 1e-5)
    assert_near(dictionary.W_dec.norm(dim=1), torch.ones(48), 1e-5)
    assert dictionary.activation.k == 3


@pytest.mark.parametrize("hook_name", HOOKS)
def test_metadata_say_where_it_sits_and_how_to_reload(trained, hook_name):
    from sae_lens import SAE, __version__

    metadata = SAE.load_from_disk(trained[0] / hook_name).cfg.metadata.to_dict()
    expected = {
        "hook_name": hook_name,
        "model_name": "tiny",
        "model_class_name": "TransformerBridge",
        "context_size": CONTEXT,
        "prepend_bos": True,
        "exclude_special_tokens": [1],
        "training_tokens": 62 * 64,
        "training_architecture": "topk",
        "dataset_path": "stories.txt (150 stories)",
        "sae_lens_version": __version__,
        "sae_lens_training_version": __version__,
    }
    assert {key: metadata[key] for key in expected} == expected
    assert "load_model('tiny')" in metadata["reload"]
    assert "SAE.load_from_disk(folder)" in metadata["reload"]


def test_the_record_repeats_the_run_and_shows_it_learned(trained):
    record = json.loads((trained[0] / "training.json").read_text())
    assert record["recipe"]["model"] == "tiny"
    assert record["recipe"]["corpus"] == "stories.txt"
    assert record["recipe"]["decay"] == 1.0
    assert len(record["recipe"]["model_sha256"]) == len(record["recipe"]["corpus_sha256"]) == 64
    assert record["versions"]["sae-lens"]
    assert record["training_tokens"] == 62 * 64
    assert record["resumed_at"] == 0
    for hook_name in HOOKS:
        curve = record["curve"][hook_name]
        assert record["final"][hook_name] == curve[-1]
        assert curve[-1]["tokens"] == record["training_tokens"]
        assert curve[-1]["fvu"] < 0.8 * curve[0]["fvu"]
        assert curve[-1]["l0"] == 3
    assert str(trained[0].parent) not in json.dumps(record)


def test_the_trained_dictionaries_explain_more_than_random_ones(trained, model, tokens):
    from bilinear_circuits.zoo import load_dictionaries
    from sae.evaluate import reconstructions

    dictionaries = load_dictionaries(1, trained[0])
    random = [random_dictionary(12, 48, hook_name) for hook_name in HOOKS]
    found = reconstructions(model, [*dictionaries, *random], tokens)
    assert all(found[side].fvu < 0.9 * found[side + 2].fvu for side in (0, 1))


def test_training_sees_the_stories_tokens_and_neither_bos_nor_padding(model, tokens, monkeypatch):
    from bilinear_circuits.models.running import capture_mlp
    from sae import train

    seen = []

    def watch(name, sae, points, n_steps, batch_tokens):
        forward = sae.training_forward_pass
        sae.training_forward_pass = lambda step_input: seen.append(step_input.sae_in.clone()) or forward(step_input)

    monkeypatch.setattr(train, "_record", watch)
    train.train_dictionaries(model, tokens, settings(scale_inputs=False, tokens=512, checkpoints=0))
    captured = capture_mlp(model, tokens.ids, [1])[1]
    own, batch = captured.x[tokens.mask], seen[0]
    assert batch.shape == (64, 12)
    assert torch.cdist(batch, own, compute_mode="donot_use_mm_for_euclid_dist").min(1).values.max() < 1e-5
    assert torch.cdist(batch, captured.x[:, 0]).min() > 0.1


def test_the_same_seed_gives_the_same_dictionaries_and_leaves_torchs_own_alone(model, tokens):
    from sae.train import train_dictionaries

    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = train_dictionaries(model, tokens, settings(tokens=512))
    assert torch.equal(torch.rand(3), expected)
    again = train_dictionaries(model, tokens, settings(tokens=512))
    other = train_dictionaries(model, tokens, settings(tokens=512, seed=1))
    for hook_name in HOOKS:
        assert torch.equal(first.dictionaries[hook_name].W_enc, again.dictionaries[hook_name].W_enc)
        assert not torch.equal(first.dictionaries[hook_name].W_enc, other.dictionaries[hook_name].W_enc)


def test_the_rate_is_constant_and_then_falls_to_zero(model):
    from sae_lens.registry import get_sae_training_class
    from sae_lens.training.sae_trainer import SAETrainer

    from sae.checks import sae_config
    from sae.train import _runner_config

    for decay, n_constant in ((0.25, 48), (1.0, 1)):
        chosen = settings(tokens=64 * 64, decay=decay)
        config = _runner_config(chosen, model, "tiny", [1, 3], False)
        sae = get_sae_training_class("topk")[0](sae_config(chosen, model))
        trainer = SAETrainer(cfg=config.to_sae_trainer_config(), sae=sae, data_provider=iter(()))
        rates = []
        for _ in range(chosen.n_steps):
            rates.append(trainer.optimizer.param_groups[0]["lr"])
            trainer.step(torch.randn(64, 12))
        assert rates[:n_constant] == pytest.approx([1e-2] * n_constant)
        falling = torch.tensor([*rates[n_constant:], trainer.optimizer.param_groups[0]["lr"]])
        assert (falling.diff() < 0).all()
        assert falling[-1] == pytest.approx(0, abs=1e-9)


ARCHITECTURES = {
    "topk": {"k": 3},
    "abstopk": {"k": 3},
    "batchtopk": {"k": 2.5},
    "matryoshka_batchtopk": {"k": 3, "matryoshka_widths": [16, 48]},
    "standard": {"l1_coefficient": 0.5},
    "jumprelu": {"l0_coefficient": 0.1},
    "gated": {"l1_coefficient": 0.5},
}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_becomes_a_folder_that_both_read_alike(architecture, model, tokens, tmp_path):
    from sae_lens import SAE

    from bilinear_circuits.dictionaries.dictionary import Dictionary
    from sae.train import train_dictionaries

    chosen = settings(architecture=architecture, sae=ARCHITECTURES[architecture], tokens=512, checkpoints=0)
    x = torch.randn(50, 12, generator=torch.Generator().manual_seed(0))
    for name, dictionary in train_dictionaries(model, tokens, chosen).dictionaries.items():
        for dtype, tolerance in ((torch.float32, 1e-6), (torch.float16, 1e-3)):
            dictionary.save(tmp_path / name, {"model_name": "tiny"}, dtype)
            sae, loaded = SAE.load_from_disk(tmp_path / name), Dictionary.load(tmp_path / name)
            assert_near(loaded.encode(x), sae.encode(x).detach(), 1e-5)
            assert_near(loaded.decode(loaded.encode(x)), sae(x).detach(), 1e-5)
            assert_near(loaded.W_dec, dictionary.W_dec, tolerance)
            assert_near(loaded.pre_activations(x), dictionary.pre_activations(x), 10 * tolerance)
            assert_near(loaded.W_dec.norm(dim=1), torch.ones(48), 1e-3)
            assert loaded.hook_name == sae.cfg.metadata.hook_name == name


def test_the_folded_dictionary_is_what_was_trained(model, tokens):
    """Its FVU is that of the last batch, which SAELens scaled: the scale must be folded, not lost."""
    from bilinear_circuits.models.running import capture_mlp
    from sae.evaluate import reconstructions
    from sae.train import train_dictionaries

    trained = train_dictionaries(model, tokens, settings())
    found = reconstructions(model, list(trained.dictionaries.values()), tokens)
    for reconstruction, curve in zip(found, trained.curve.values(), strict=True):
        assert reconstruction.fvu == pytest.approx(curve[-1]["fvu"], rel=0.2)
    x = capture_mlp(model, tokens.ids, [1])[1].y[tokens.mask]
    assert not 0.9 < x.norm(dim=1).mean() / 12**0.5 < 1.1  # a lost scale would show


def test_one_side_can_be_trained_alone(folder, tmp_path):
    recipe = recipe_file(folder, tmp_path / "recipe.yaml", layers=[0, 1], sides=["hook_out"], tokens=512, snapshots=1)
    train_sae.run(train_sae.Arguments(recipe=recipe, out=str(tmp_path / "saes")))
    names = [f"blocks.{layer}.mlp.hook_out" for layer in (0, 1)]
    assert sorted(one.name for one in (tmp_path / "saes").iterdir()) == [*names, "snapshots", "training.json"]
    assert sorted(one.name for one in (tmp_path / "saes/snapshots/256").iterdir()) == names
    record = json.loads((tmp_path / "saes/training.json").read_text())
    assert record["recipe"]["sides"] == ["hook_out"]
    assert list(record["curve"]) == list(record["final"]) == names


def test_sides_come_in_one_order_each_once():
    assert settings(sides=["hook_out", "hook_in", "hook_out"]).hook_names == HOOKS
    assert settings(sides=("hook_in",)).hook_names == HOOKS[:1]
    assert settings().hook_names == HOOKS


def test_bfloat16_multiplies_in_less_precision_and_ends_as_good(model, tokens, trained, monkeypatch):
    from sae import train

    products = set()
    forward = train._record

    def watch(name, sae, points, *sizes):
        forward(name, sae, points, *sizes)
        recorded = sae.training_forward_pass

        def seen(step_input):
            products.add((step_input.sae_in @ sae.W_enc).dtype)
            return recorded(step_input)

        sae.training_forward_pass = seen

    monkeypatch.setattr(train, "_record", watch)
    made = train.train_dictionaries(model, tokens, settings(precision="bf16"))
    assert products == {torch.bfloat16}
    record = json.loads((trained[0] / "training.json").read_text())
    for name, dictionary in made.dictionaries.items():
        assert dictionary.W_enc.dtype == dictionary.W_dec.dtype == torch.float32
        last = [sum(point["fvu"] for point in curve[name][-10:]) / 10 for curve in (made.curve, record["curve"])]
        assert last[0] == pytest.approx(last[1], rel=0.1)


SNAPSHOT_TOKENS = [7 * 64, 15 * 64, 31 * 64]


@pytest.fixture(scope="module")
def kept(folder, tmp_path_factory):
    """The folder of a whole run with three snapshots, in float32."""
    out = tmp_path_factory.mktemp("kept") / "saes"
    recipe = recipe_file(folder, out.parent / "recipe.yaml", save_dtype="float32", snapshots=3)
    train_sae.run(train_sae.Arguments(recipe=recipe, out=str(out)))
    return out


def snapshot_folders(out):
    return sorted((out / "snapshots").iterdir(), key=lambda one: int(one.name))


def test_snapshots_are_halvings_of_the_training_in_whole_steps():
    assert settings(snapshots=3).snapshot_tokens == tuple(SNAPSHOT_TOKENS)  # of 62 steps
    assert settings(snapshots=20).snapshot_tokens == (64, 3 * 64, *SNAPSHOT_TOKENS)
    assert settings().snapshot_tokens == ()


def test_snapshots_are_kept_at_their_token_counts_and_load(kept):
    from bilinear_circuits.dictionaries.dictionary import Dictionary

    assert [int(one.name) for one in snapshot_folders(kept)] == SNAPSHOT_TOKENS
    for one, n_tokens in zip(snapshot_folders(kept), SNAPSHOT_TOKENS, strict=True):
        assert sorted(path.name for path in one.iterdir()) == list(HOOKS)
        for hook_name in HOOKS:
            dictionary = Dictionary.load(one / hook_name)
            assert dictionary.hook_name == hook_name
            assert_near(dictionary.W_dec.norm(dim=1), torch.ones(48), 1e-5)
            metadata = json.loads((one / hook_name / "cfg.json").read_text())["metadata"]
            assert metadata["training_tokens"] == n_tokens
            assert metadata["model_name"] == "tiny"


def test_snapshots_are_the_dictionaries_of_their_moment(kept, model, tokens):
    from bilinear_circuits.zoo import load_dictionaries
    from sae.evaluate import reconstructions

    folders = [*snapshot_folders(kept), kept]
    dictionaries = [one for path in folders for one in load_dictionaries(1, path)]
    found = reconstructions(model, dictionaries, tokens)
    record = json.loads((kept / "training.json").read_text())
    for side, hook_name in enumerate(HOOKS):
        fvu = [one.fvu for one in found[side::2]]
        assert fvu == sorted(fvu, reverse=True)
        assert fvu[-1] < 0.8 * fvu[0]
        for value, n_tokens in zip(fvu, SNAPSHOT_TOKENS, strict=False):
            near = [point["fvu"] for point in record["curve"][hook_name] if abs(point["tokens"] - n_tokens) <= 128]
            assert value == pytest.approx(sum(near) / len(near), rel=0.15)


def test_snapshots_change_nothing_about_the_training(kept, trained):
    from bilinear_circuits.dictionaries.dictionary import Dictionary

    for hook_name in HOOKS:
        with_them, without = (Dictionary.load(out / hook_name) for out in (kept, trained[0]))
        assert torch.equal(with_them.W_enc, without.W_enc)


def test_a_snapshot_is_what_a_run_that_ends_there_makes(model, tokens):
    """Scale and all; at a constant rate nothing else tells a half from a whole run."""
    from sae.train import train_dictionaries

    snapshots = {}
    chosen = {"decay": 0.0, "checkpoints": 0}
    train_dictionaries(model, tokens, settings(**chosen, tokens=2048, snapshots=1), on_snapshot=snapshots.__setitem__)
    short = train_dictionaries(model, tokens, settings(**chosen, tokens=1024))
    assert list(snapshots) == [1024]
    for hook_name, expected in short.dictionaries.items():
        found = snapshots[1024][hook_name]
        for name in ("W_enc", "b_enc", "W_dec", "b_dec"):
            assert torch.equal(getattr(found, name), getattr(expected, name)), name


NAMES = ("W_enc", "b_enc", "W_dec", "b_dec")


class _KilledError(Exception):
    """Stands for a kill."""


def kill_after(monkeypatch, n_rows):
    """The data set ends the run, as a kill would, after some rows."""
    from sae.train import StoryRowsDataset

    rows = StoryRowsDataset.__iter__

    def some(self):
        for index, row in enumerate(rows(self)):
            if index == n_rows:
                raise _KilledError
            yield row

    monkeypatch.setattr(StoryRowsDataset, "__iter__", some)


def killed(monkeypatch, recipe, out, n_rows=320):
    with monkeypatch.context() as patch:
        kill_after(patch, n_rows)
        with pytest.raises(_KilledError):
            train_sae.run(train_sae.Arguments(recipe=recipe, out=str(out)))


def test_a_killed_run_goes_on_from_its_last_checkpoint(folder, trained, tmp_path, monkeypatch):
    from bilinear_circuits.dictionaries.dictionary import Dictionary

    recipe, out = recipe_file(folder, tmp_path / "recipe.yaml", save_dtype="float32"), tmp_path / "saes"
    killed(monkeypatch, recipe, out)
    assert sorted(one.name for one in out.iterdir()) == ["checkpoints", "run.json"]
    (complete,) = (out / "checkpoints").iterdir()
    at = int(complete.name)
    assert 0 < at < 62 * 64
    (out / "checkpoints" / "9999" / HOOKS[0]).mkdir(parents=True)  # cut short: no runner_cfg.json
    (out / HOOKS[0]).mkdir()  # moved in place, but its record was not
    train_sae.run(train_sae.Arguments(recipe=recipe, out=str(out)))
    assert sorted(one.name for one in out.iterdir()) == [*HOOKS, "training.json"]
    record = json.loads((out / "training.json").read_text())
    assert record["resumed_at"] == at
    for points in record["curve"].values():
        seen = [point["tokens"] for point in points]
        assert seen == sorted(set(seen))
        assert seen[0] == 64
        assert seen[-1] == 62 * 64
        assert points[-1]["fvu"] < 0.8 * points[0]["fvu"]
    for hook_name in HOOKS:
        resumed, whole = (Dictionary.load(one / hook_name) for one in (out, trained[0]))
        assert all(torch.equal(getattr(resumed, name), getattr(whole, name)) for name in NAMES), hook_name


@pytest.mark.parametrize("architecture", ["standard", "gated", "jumprelu", "batchtopk", "matryoshka_batchtopk"])
@pytest.mark.slow
def test_every_architecture_resumes_to_the_same_weights(architecture, model, tokens, tmp_path, monkeypatch):
    from sae.train import train_dictionaries

    sae = {"k": 3} if "topk" in architecture else {}
    sae |= {"matryoshka_widths": [8, 16, 48]} if architecture.startswith("matryoshka") else {}
    asked = settings(architecture=architecture, sae=sae, tokens=2048, checkpoints=3)
    whole = train_dictionaries(model, tokens, asked)
    with monkeypatch.context() as patch:
        kill_after(patch, 170)
        with pytest.raises(_KilledError):
            train_dictionaries(model, tokens, asked, checkpoints=tmp_path)
    resumed = train_dictionaries(model, tokens, asked, checkpoints=tmp_path)
    assert resumed.resumed_at > 0
    assert resumed.curve == whole.curve
    for hook_name, expected in whole.dictionaries.items():
        found = resumed.dictionaries[hook_name]
        assert all(torch.equal(getattr(found, name), getattr(expected, name)) for name in NAMES)


def test_a_killed_run_that_goes_on_leaves_every_snapshot(folder, tmp_path, monkeypatch, model, tokens):
    from bilinear_circuits.zoo import load_dictionaries
    from sae.evaluate import reconstructions

    recipe, out = recipe_file(folder, tmp_path / "recipe.yaml", snapshots=3), tmp_path / "saes"
    killed(monkeypatch, recipe, out, n_rows=200)
    before = [int(one.name) for one in snapshot_folders(out)]
    assert before == SNAPSHOT_TOKENS[: len(before)]
    assert 0 < len(before) < 3
    train_sae.run(train_sae.Arguments(recipe=recipe, out=str(out)))
    assert [int(one.name) for one in snapshot_folders(out)] == SNAPSHOT_TOKENS
    dictionaries = [one for path in (*snapshot_folders(out), out) for one in load_dictionaries(1, path)]
    found = reconstructions(model, dictionaries, tokens)
    for side in (0, 1):
        fvu = [one.fvu for one in found[side::2]]
        assert fvu == sorted(fvu, reverse=True)


def test_a_run_of_other_settings_is_not_gone_on_with(folder, tmp_path, monkeypatch):
    out = tmp_path / "saes"
    killed(monkeypatch, recipe_file(folder, tmp_path / "recipe.yaml"), out)
    other = recipe_file(folder, tmp_path / "other.yaml", lr=1e-4)
    with refused(
        ValueError, "out must hold a training with these settings to go on with, got .*saes, where lr differ. Remove"
    ):
        train_sae.run(train_sae.Arguments(recipe=other, out=str(out)))


@pytest.mark.slow
def test_a_process_killed_at_any_moment_leaves_nothing_that_cannot_be_gone_on_with(folder, tmp_path):
    recipe, out = recipe_file(folder, tmp_path / "recipe.yaml", tokens=20000), tmp_path / "saes"
    code = (
        "import sys; from sae.commands import train_sae\n"
        "train_sae.run(train_sae.Arguments(recipe=sys.argv[1], out=sys.argv[2]))"
    )
    command = [sys.executable, "-c", code, recipe, str(out)]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}

    def start():
        return subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)

    process = start()
    for extra in (0.0, 0.1, 0.7):
        until = time.monotonic() + 120
        while not any(out.glob("checkpoints/*/runner_cfg.json")) and time.monotonic() < until:
            time.sleep(0.01)
        time.sleep(extra)
        process.kill()
        process.wait()
        assert not (out / "training.json").exists()
        assert not any(out.glob("blocks.*"))
        process = start()
    assert process.wait(timeout=300) == 0
    assert sorted(one.name for one in out.iterdir()) == [*HOOKS, "training.json"]


VALUES = {
    "layers must be a list of whole numbers, got 1": {"layers": 1},
    r"layers must be a list of whole numbers, got \['1'\]": {"layers": ["1"]},
    "layers must name at least one layer, got none": {"layers": []},
    "tokens must be a whole number, got 1.5": {"tokens": 1.5},
    "seed must be a whole number, got True": {"seed": True},
    "seed must be between 0 and 2\\*\\*63 - 1, got -1": {"seed": -1},
    "expansion must be at least 1, got 0": {"expansion": 0},
    "checkpoints must not be negative, got -1. 0 saves none": {"checkpoints": -1},
    "snapshots must not be negative, got -1. 0 saves none": {"snapshots": -1},
    "snapshots must be a whole number, got 2.5": {"snapshots": 2.5},
    "sides must be a list of hook_in or hook_out, got 'hook_in'": {"sides": "hook_in"},
    r"sides must be a list of hook_in or hook_out, got \[\]": {"sides": []},
    r"sides must be a list of hook_in or hook_out, got \['hook_in', 'out'\]": {"sides": ["hook_in", "out"]},
    "precision must be one of float32, bf16, got 'fp16'": {"precision": "fp16"},
    "precision must be one of float32, bf16, got 16": {"precision": 16},
    "lr must be a number, got '1e-3'. YAML reads 1e-3 as text: write 1.0e-3": {"lr": "1e-3"},
    "lr must be positive, got 0": {"lr": 0},
    "decay must be a share of the training, from 0 to 1, got 2": {"decay": 2},
    "architecture must be a name, got 3": {"architecture": 3},
    "sae must be a mapping of options to values, got 30": {"sae": 30},
    "scale_inputs must be true or false, got 1": {"scale_inputs": 1},
    r"buffer_rows \* context must be at least batch_tokens, or no batch could be served, got 3 \* 16 = 48 against 64."
    " Raise buffer_rows to 4 or more, or lower batch_tokens": {"buffer_rows": 3},
    r"tokens must fill the buffer of activations at least once, buffer_rows \* context = 256, got 255": {"tokens": 255},
}


@pytest.mark.parametrize("message", VALUES)
def test_settings_that_cannot_work_are_refused_at_once(message):
    with refused(ValueError, message):
        settings(**VALUES[message])


FILES = {
    "must hold only the keys .*, got 'layer'. Did you mean layers": {"layer": 3},
    "must hold the key corpus": {"corpus": None},
    "name of .* must be a text, got 3": {"name": 3},
    "n_stories must be a whole number of at least 1, got 0": {"n_stories": 0},
    "save_dtype must be one of float16, float32, got 'int8'": {"save_dtype": "int8"},
    "architecture must be one of abstopk, batchtopk, gated, .*, topk, got top-k": {"architecture": "top-k"},
    "got matching_pursuit. It encodes by iteration and has no encoder row": {"architecture": "matching_pursuit"},
    "sae must hold only options of topk, .*, got 'l1_coefficient'": {"sae": {"k": 3, "l1_coefficient": 1}},
    "sae must hold only options of topk, .*, got 'd_in'": {"sae": {"k": 3, "d_in": 4}},
    "sae must hold k, the number of active features, for topk, got none": {"sae": {}},
    r"k must be a whole number above 0, at most expansion \* d_in = 48, got 49": {"sae": {"k": 49}},
    r"k must be a whole number above 0, at most expansion \* d_in = 48, got 2.5": {"sae": {"k": 2.5}},
    r"k must be a number above 0, at most expansion \* d_in = 48, got 0": {
        "architecture": "batchtopk",
        "sae": {"k": 0},
    },
    "sae must hold options that SAELens accepts for matryoshka_batchtopk, got": {
        "architecture": "matryoshka_batchtopk",
        "sae": {"k": 3, "matryoshka_widths": [48, 16]},
    },
    "layers must be between 0 and 2, those of the model, got 7": {"layers": [1, 7]},
    "context must be at most 32, the model's, got 64": {"context": 64, "buffer_rows": 1},
    r"corpus must hold enough tokens for one buffer of activations, buffer_rows \* context = 256, got \d+ in 3": {
        "n_stories": 3
    },
    "model must be a shipped one .* got nowhere": {"model": "nowhere"},
    "corpus must be a text file or a Hub id .* got nowhere.txt: no such file": {"corpus": "nowhere.txt"},
}


@pytest.mark.parametrize("message", FILES)
def test_recipes_that_cannot_work_are_refused_before_anything_is_written(message, folder, tmp_path):
    recipe, out = recipe_file(folder, tmp_path / "recipe.yaml", **FILES[message]), tmp_path / "saes"
    with refused((ValueError, FileNotFoundError), message):
        train_sae.run(train_sae.Arguments(recipe=recipe, out=str(out)))
    assert not out.exists()


def test_a_folder_that_holds_anything_else_is_left_alone(trained, folder, tmp_path):
    recipe = recipe_file(folder, tmp_path / "recipe.yaml")
    with refused(ValueError, "got .*saes, which holds a finished one. Remove it or name another --out"):
        train_sae.run(train_sae.Arguments(recipe=recipe, out=str(trained[0])))
    (tmp_path / "file").touch()
    with refused(ValueError, "out must be a new or empty folder, or hold a training to go on with"):
        train_sae.run(train_sae.Arguments(recipe=recipe, out=str(tmp_path)))
    with refused(ValueError, "out must be a folder, got .*: .*file is a file"):
        train_sae.run(train_sae.Arguments(recipe=recipe, out=str(tmp_path / "file")))
    with refused(ValueError, "device must be one that torch can use, got cuda:9"):
        train_sae.run(train_sae.Arguments(recipe=recipe, out=str(tmp_path / "new"), device="cuda:9"))


def test_models_without_the_hooks_and_rows_too_long_are_refused(model, tokens):
    from sae.checks import check_model, check_tokens

    with refused(ValueError, "model must have the hook blocks.1.mlp.hook_in, got a LlamaForCausalLM without it"):
        check_model(tiny_llama(), settings())
    with refused(ValueError, "tokens must be rows of at most context=8, got 14"):
        check_tokens(tokens, settings(context=8))


def test_a_training_that_blows_up_is_said_so(model, tokens):
    from sae.train import DivergedError, train_dictionaries

    with refused(DivergedError, "loss of blocks.1.mlp.hook_in must stay finite, got (nan|inf) at step 1. Lower lr"):
        train_dictionaries(model, tokens, settings(lr=1e37, tokens=512))


def test_a_weight_that_is_not_finite_is_said_so():
    from helpers import random_sae

    from sae.train import DivergedError, _dictionary

    sae = random_sae("training topk")
    with torch.no_grad():
        sae.W_dec[0, 0] = float("nan")
    with refused(DivergedError, "W_dec of blocks.1.mlp.hook_in must stay finite, got entries that are not. Lower lr"):
        _dictionary(sae, HOOKS[0])


def test_a_weight_too_large_for_the_files_is_refused(tmp_path):

    dictionary = random_dictionary(4, 6, HOOKS[0])
    dictionary.W_enc[0, 0] = 1e6
    with refused(ValueError, "W_enc of dictionary must be finite in torch.float16"):
        dictionary.save(tmp_path / "sae", {}, torch.float16)


@pytest.mark.parametrize("path", sorted((ROOT / "configs/sae").glob("*.yaml")), ids=lambda path: path.name)
def test_recipes_of_the_repository_hold_together(path):
    from sae.checks import check_options

    recipe = train_sae.read_recipe(str(path))
    assert isinstance(recipe, Recipe)
    check_options(recipe.settings)
    assert recipe.hook_names[: len(recipe.sides)] == tuple(f"blocks.{recipe.layers[0]}.mlp.{s}" for s in recipe.sides)


@pytest.mark.parametrize("module", ["train_sae", "evaluate", "progress"])
def test_verbs_import_nothing_heavy(module):
    code = (
        f"import sys, sae.commands.{module}\n"
        "assert not {'torch', 'transformers', 'sae_lens'} & set(sys.modules), 'heavy import'"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
