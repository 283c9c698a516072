from pathlib import Path

import pytest
import torch
from helpers import refused, save_tiny_llama
from planted import tiny_llama, word_tokenizer

from bilinear_circuits import zoo
from bilinear_circuits.data.corpora import read_stories
from bilinear_circuits.data.stories import tokenize_stories
from bilinear_circuits.dictionaries.dictionary import Dictionary
from bilinear_circuits.interactions.feature_interactions import FeatureInteractions
from bilinear_circuits.interactions.low_rank import low_rank_correlation
from bilinear_circuits.models.bilinear_mlp import BilinearMLP, NotBilinearError
from bilinear_circuits.models.running import capture_mlp


def test_the_default_model_is_shipped():
    assert zoo.DEFAULT_MODEL in zoo.names()
    assert Path(zoo.model_path(zoo.DEFAULT_MODEL)).is_dir()


def test_a_name_written_wrong_is_answered_with_a_near_one():
    with refused(FileNotFoundError, r"must be a shipped one \(.*ts-17m.*\).*got ts-17\. Did you mean ts-17m\?"):
        zoo.model_path("ts-17")


def test_a_path_that_is_no_model_folder_is_refused(tmp_path):
    with refused(FileNotFoundError, "must be a Hugging Face model folder, but .* has no config.json"):
        zoo.model_path(tmp_path)
    with refused(FileNotFoundError, f"a folder or a Hub id .*got {tmp_path / 'missing'}"):
        zoo.model_path(tmp_path / "missing")
    with refused(FileNotFoundError, "got ./missing"):
        zoo.model_path("./missing")


def test_a_folder_and_a_hub_id_are_passed_through(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    assert zoo.model_path(tmp_path) == str(tmp_path)
    assert zoo.model_path("owner/name") == "owner/name"


def test_a_model_folder_is_loaded_in_float32_with_its_tokenizer(tmp_path):
    model = zoo.load_model(save_tiny_llama(tmp_path))
    assert next(model.parameters()).dtype == torch.float32
    assert not model.training
    assert not model.compatibility_mode
    assert model.tokenizer.convert_tokens_to_ids("cat") == 6


def without_tensors(folder, *names):
    """Take tensors out of the weights of a model folder, whichever files they are in."""
    from safetensors.torch import load_file, save_file

    for file in folder.glob("*.safetensors"):
        kept = {name: tensor for name, tensor in load_file(file).items() if name not in names}
        save_file(kept, file, metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("shard_size", ["1GB", "3KB"])
def test_a_model_with_missing_tensors_is_refused_by_their_names(tmp_path, shard_size):
    tiny_llama().save_pretrained(tmp_path, max_shard_size=shard_size)
    word_tokenizer().save_pretrained(tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) == (1 if shard_size == "1GB" else 6)
    assert zoo.load_model(tmp_path).cfg.n_layers == 3
    without_tensors(tmp_path, "model.layers.1.mlp.gate_proj.weight")
    with refused(
        ValueError, r"model must hold all of its tensors, .* lacks 1: model\.layers\.1\.mlp\.gate_proj\.weight\."
    ):
        zoo.load_model(tmp_path)
    without_tensors(tmp_path, *(f"model.layers.{layer}.mlp.up_proj.weight" for layer in range(3)), "lm_head.weight")
    with refused(ValueError, r"lacks 5: lm_head\.weight, model\.layers\.0\.mlp\.up_proj\.weight, .* and 2 more\. Save"):
        zoo.load_model(tmp_path)


def rewritten(folder, change):
    """Save a tiny model with its tensors changed."""
    from safetensors.torch import load_file, save_file

    save_tiny_llama(folder)
    save_file(change(load_file(folder / "model.safetensors")), folder / "model.safetensors", metadata={"format": "pt"})
    return folder


GATE = "model.layers.1.mlp.gate_proj"
OTHER_TENSORS = {
    "compiled": (lambda w: {f"_orig_mod.{k}": v for k, v in w.items()}, r"saved from inside torch\.compile. Take the"),
    "parallel": (lambda w: {f"module.{k}": v for k, v in w.items()}, "saved from inside a parallel wrapper"),
    "a bias": (
        lambda w: w | {f"{GATE}.bias": torch.ones(20)},
        f"1 more, .*{GATE}.bias. config.json says .* no such bias",
    ),
    "not a number": (lambda w: w | {f"{GATE}.weight": w[f"{GATE}.weight"] * torch.nan}, "must be finite, got 240"),
    "a shape": (lambda w: w | {f"{GATE}.weight": torch.ones(3, 3)}, rf"{GATE}.weight must have the shape \(20, 12\)"),
}


@pytest.mark.parametrize("load", [zoo.load_model, zoo.load_plain_model], ids=["bridge", "plain"])
@pytest.mark.parametrize("change", OTHER_TENSORS)
def test_tensors_that_are_not_those_of_the_model_are_refused(change, load, tmp_path):
    changed, message = OTHER_TENSORS[change]
    with refused(ValueError, message):
        load(rewritten(tmp_path, changed))


def test_files_that_make_another_model_of_a_folder_are_refused(tmp_path):
    save_tiny_llama(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    with refused(ValueError, r"must be a whole model, got .* with an adapter beside it \(adapter_config.json\)"):
        zoo.load_model(tmp_path)
    config = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").unlink()
    with refused(
        ValueError, r"must be a whole model, got .* with an adapter without its model \(adapter_config.json\)"
    ):
        zoo.load_model(tmp_path)
    (tmp_path / "config.json").write_text(config)
    (tmp_path / "adapter_config.json").unlink()
    (tmp_path / "tokenizer_config.json").write_text("{")
    with refused(ValueError, r"tokenizer_config.json must be a JSON file, got .*tokenizer_config.json"):
        zoo.load_model(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes((tmp_path / "model.safetensors").read_bytes()[:-8])
    with refused(ValueError, "model.safetensors must be a whole safetensors file, got .*, which is damaged"):
        zoo.load_model(tmp_path)


def test_every_file_that_decides_what_a_model_computes_is_in_its_fingerprint(tmp_path):
    tiny_llama().save_pretrained(tmp_path, max_shard_size="3KB")
    word_tokenizer().save_pretrained(tmp_path)
    before = zoo.model_fingerprint(tmp_path)
    names = (
        "config.json",
        "tokenizer.json",
        "model.safetensors.index.json",
        *(p.name for p in tmp_path.glob("*.safet*s")),
    )
    for name in names:
        content = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(content + b" ")
        changed = zoo.model_fingerprint(tmp_path)
        assert changed.differences(before) == [name]
        assert changed.sha256 != before.sha256
        (tmp_path / name).write_bytes(content)
    assert zoo.model_fingerprint(tmp_path) == before


def test_tied_embeddings_are_not_missing(tmp_path):
    from transformers import LlamaForCausalLM

    model = tiny_llama()
    model.config.tie_word_embeddings = True
    LlamaForCausalLM(model.config).save_pretrained(tmp_path)
    word_tokenizer().save_pretrained(tmp_path)
    loaded = zoo.load_model(tmp_path)
    torch.testing.assert_close(loaded.W_U, loaded.W_E.T)


def make_saes(folder, *names):
    for name in names:
        (folder / name).mkdir()
    return folder


def test_layers_have_a_dictionary_on_either_side(tmp_path):
    names = ("blocks.10.mlp.hook_in", "blocks.10.mlp.hook_out", "blocks.2.mlp.hook_in", "blocks.2.mlp.hook_out")
    folder = make_saes(tmp_path, *names, "blocks.3.mlp.hook_in", "blocks.4.mlp.hook_out")
    assert zoo.dictionary_layers(folder) == [2, 4, 10]
    with refused(FileNotFoundError, r"layer must have dictionaries in .*, layers \[2, 4, 10\], got 3"):
        zoo.load_dictionaries(3, folder)


def test_a_folder_without_outputs_is_refused(tmp_path):
    with refused(FileNotFoundError, "must hold dictionaries of MLP outputs, .* with blocks.3.mlp.hook_in alone"):
        zoo.dictionary_layers(make_saes(tmp_path, "blocks.3.mlp.hook_in"))


def test_a_folder_of_dictionaries_that_is_missing_is_refused():
    with refused(FileNotFoundError, r"must be the name of a shipped model \(.*ts-17m.*\), a folder .*got nowhere"):
        zoo.dictionaries_path("nowhere")


def test_stories_of_a_shipped_model_are_found_by_its_name():
    assert Path(zoo.corpus_path("ts-17m")).is_file()
    assert zoo.corpus_path("owner/name") == "owner/name"
    assert zoo.corpus_path("some.txt") == "some.txt"


@pytest.fixture(scope="module")
def shipped():
    """The shipped model, its layers with dictionaries, and what its MLPs read and wrote on some stories."""
    model = zoo.load_model()
    layers = zoo.dictionary_layers(zoo.DEFAULT_MODEL)
    tokens = tokenize_stories(read_stories(zoo.corpus_path(zoo.DEFAULT_MODEL), 12), model.tokenizer, 256)
    captured = capture_mlp(model, tokens.ids, layers)
    return model, layers, {layer: (one.x[tokens.mask], one.y[tokens.mask]) for layer, one in captured.items()}


def test_the_shipped_mlps_are_bilinear(shipped):
    model, _, _ = shipped
    for layer in range(model.cfg.n_layers):
        assert BilinearMLP.from_model(model, layer).probe_error < 1e-5


def test_shipped_dictionaries_belong_to_the_hooks_they_are_named_for(shipped):
    _, layers, _ = shipped
    for layer in layers:
        sae_in, sae_out = zoo.load_dictionaries(layer)
        assert isinstance(sae_in, Dictionary)
        assert sae_in.hook_name == sae_in.name == f"blocks.{layer}.mlp.hook_in"
        assert sae_out.hook_name == sae_out.name == f"blocks.{layer}.mlp.hook_out"


def test_ledgers_of_the_shipped_model_sum_to_the_true_pre_activations(shipped):
    from sae_lens import SAE

    model, layers, captured = shipped
    layer = layers[0]
    x, y = captured[layer]
    folder = zoo.dictionaries_path(zoo.DEFAULT_MODEL)
    sae_in = SAE.load_from_disk(folder / f"blocks.{layer}.mlp.hook_in")
    sae_out = SAE.load_from_disk(folder / f"blocks.{layer}.mlp.hook_out")
    interactions = FeatureInteractions(BilinearMLP.from_model(model, layer), sae_in, sae_out)
    generator = torch.Generator().manual_seed(0)
    features = torch.randint(sae_out.cfg.d_sae, (50,), generator=generator)
    total, seen = [], []
    sae_out.to(torch.float64).hook_sae_acts_pre.add_hook(lambda pre, hook: seen.append(pre))
    for feature in features.tolist():
        token = torch.randint(len(x), (20,), generator=generator)
        total.append(interactions.ledger(x[token], feature).total)
        sae_out.encode(y[token].double())
        seen[-1] = seen[-1][:, feature]
    sae_out.reset_hooks()
    total, expected = torch.stack(total), torch.stack(seen).detach()
    assert total.numel() == 1000
    assert (total - expected).norm() / expected.norm() < 1e-4
    assert (total - expected).abs().max() / expected.abs().max() < 1e-4


def test_low_rank_correlations_of_the_shipped_model(shipped):
    model, layers, captured = shipped
    x, _ = captured[layers[0]]
    interactions = FeatureInteractions(BilinearMLP.from_model(model, layers[0]), *zoo.load_dictionaries(layers[0]))
    found = low_rank_correlation(interactions, x, ranks=[2], features=range(40))
    assert found.kept.sum() >= 5
    whole = interactions.mlp.tensor.d_in
    torch.testing.assert_close(found.at_rank(whole), torch.ones(int(found.kept.sum())).double(), rtol=0, atol=1e-4)
    assert 0.4 < found.mean(2) < 0.99


def test_the_shipped_model_in_compatibility_mode_is_refused():
    model = zoo.load_model()
    model.enable_compatibility_mode()
    with refused(NotBilinearError, "SiLU gate.*compatibility mode"):
        BilinearMLP.from_model(model, 3)


@pytest.mark.parametrize("name", ["~nobody-has-this-name/x", "owner/name", "x" * 5000, ""])
def test_a_name_that_is_no_path_is_shown_as_it_is(name):
    from bilinear_circuits.command_line import records

    assert records.display_name(name) == name


def test_a_path_is_not_mistaken_for_a_neighbour_with_a_longer_name(tmp_path):
    for name in ("run", "run-saes"):
        (tmp_path / name).mkdir()
    for name in ("a.txt", "a.txt-stories.txt"):
        (tmp_path / name).write_text("a story")
    assert zoo.dictionaries_path(tmp_path / "run") == tmp_path / "run"
    assert zoo.corpus_path(tmp_path / "a.txt") == str(tmp_path / "a.txt")
    assert Path(zoo.corpus_path("ts-17m")).is_file()


def test_a_model_without_a_tokenizer_says_what_is_missing(tmp_path):
    save_tiny_llama(tmp_path)
    for file in tmp_path.glob("*token*"):
        file.unlink()
    with refused(ValueError, "model must have a tokenizer, got .* without tokenizer.json"):
        zoo.load_model(tmp_path)
