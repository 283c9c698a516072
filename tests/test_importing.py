"""Import of published models and dictionaries, against forward passes written from the description of their format."""

import json
import math
import os
from pathlib import Path

import pytest
import torch
from helpers import refused
from planted import word_tokenizer
from safetensors.torch import load_file, save_file

MODEL = {
    "n_head": 3, "n_layer": 2, "n_ctx": 16, "d_model": 12, "d_hidden": 20,
    "bias": False, "normalization": True, "tokenizer": "words",
}  # fmt: skip
DICTIONARY = {"point": "mlp-in", "layer": 1, "expansion": 3, "k": 4, "normalize": None}
D_VOCAB, D_IN = 37, 12
QKV = "transformer.h.1.attn.qkv.weight"


def random_weights(shapes, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(*shape, generator=generator).to(dtype) / shape[-1] ** 0.5 for name, shape in shapes}


def model_weights(dtype=torch.float32):
    d_model, d_hidden = MODEL["d_model"], MODEL["d_hidden"]
    shapes = [("transformer.wte.weight", (D_VOCAB, d_model)), ("lm_head.weight", (D_VOCAB, d_model))]
    for i in range(MODEL["n_layer"]):
        shapes += [
            (f"transformer.h.{i}.attn.qkv.weight", (3 * d_model, d_model)),
            (f"transformer.h.{i}.attn.o.weight", (d_model, d_model)),
            (f"transformer.h.{i}.mlp.w.weight", (2 * d_hidden, d_model)),
            (f"transformer.h.{i}.mlp.p.weight", (d_model, d_hidden)),
        ]
    return random_weights(shapes, dtype)


def dictionary_weights(dtype=torch.float32):
    d_sae = DICTIONARY["expansion"] * D_IN
    shapes = [("w_enc.weight", (d_sae, D_IN)), ("w_dec.weight", (D_IN, d_sae)), ("b_dec", (D_IN,))]
    return random_weights(shapes, dtype)


def publish(folder, config, weights, tokenizer=False):
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(weights, folder / "model.safetensors")
    if tokenizer:
        word_tokenizer().save_pretrained(folder)
    return folder


def run_import(source, out, **options):
    from bilinear_circuits.commands.importing import Arguments, run

    run(Arguments(source=str(source), out=str(out), **options))
    return out


def rms(x):
    return x / (x.pow(2).mean(-1, keepdim=True) + 1e-8).sqrt()


def rotated(x, base, interleaved):
    """Rotary embedding of one head, (pos, d_head), pair by pair: (i, i + d_head/2), or (2i, 2i + 1) if interleaved."""
    n_pos, d_head = x.shape
    out = torch.empty_like(x)
    for i in range(d_head // 2):
        a, b = (2 * i, 2 * i + 1) if interleaved else (i, i + d_head // 2)
        angle = torch.arange(n_pos, dtype=x.dtype) * base ** (-2 * i / d_head)
        out[:, a] = x[:, a] * angle.cos() - x[:, b] * angle.sin()
        out[:, b] = x[:, b] * angle.cos() + x[:, a] * angle.sin()
    return out


def attention(x, weights, i, order, base, interleaved):
    """Causal attention of one row, (pos, d_model), head by head."""
    n_pos, d_model = x.shape
    d_head = d_model // MODEL["n_head"]
    parts = (x @ weights[f"transformer.h.{i}.attn.qkv.weight"].T).split(d_model, dim=-1)
    q, k, v = (parts[j] for j in order)
    heads = []
    for h in range(MODEL["n_head"]):
        own = slice(h * d_head, (h + 1) * d_head)
        scores = rotated(q[:, own], base, interleaved) @ rotated(k[:, own], base, interleaved).T / math.sqrt(d_head)
        scores = scores.masked_fill(torch.ones(n_pos, n_pos).triu(1).bool(), -math.inf)
        heads.append(scores.softmax(-1) @ v[:, own])
    return torch.cat(heads, -1) @ weights[f"transformer.h.{i}.attn.o.weight"].T


def published_logits(
    tokens, weights, scaled=True, order=(0, 1, 2), base=10000.0, interleaved=False, mlp_norm=rms, last_norm=rms
):
    """The source's forward pass, in float64; the options are the mistakes an import could make."""
    weights = {name: one.double() for name, one in weights.items()}
    scale = 1 / math.sqrt(2 * MODEL["n_layer"]) if scaled else 1
    rows = []
    for row in tokens:
        x = weights["transformer.wte.weight"][row]
        for i in range(MODEL["n_layer"]):
            x = x + scale * attention(rms(x), weights, i, order, base, interleaved)
            left, right = (mlp_norm(x) @ weights[f"transformer.h.{i}.mlp.w.weight"].T).chunk(2, dim=-1)
            x = x + (left * right) @ weights[f"transformer.h.{i}.mlp.p.weight"].T
        rows.append(last_norm(x) @ weights["lm_head.weight"].T)
    return torch.stack(rows)


def random_tokens():
    return torch.randint(D_VOCAB, (3, 11), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def stock_logits(folder):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype="float32").eval()(random_tokens()).logits.double()


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    """An imported model with its tokenizer."""
    folder = tmp_path_factory.mktemp("import")
    return run_import(publish(folder / "source", MODEL, model_weights(), tokenizer=True), folder / "model")


def test_logits_of_the_imported_model_are_those_of_the_description(imported):
    expected = published_logits(random_tokens(), model_weights())
    assert expected.std() > 0.3
    torch.testing.assert_close(stock_logits(imported), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "mistake",
    [
        {"scaled": False},
        {"order": (1, 0, 2)},
        {"order": (0, 2, 1)},
        {"base": 1000.0},
        {"interleaved": True},
        {"mlp_norm": lambda x: x},
        {"last_norm": lambda x: x},
    ],
    ids=lambda mistake: "-".join(mistake),
)
def test_the_comparison_of_logits_sees_every_mistake(imported, mistake):
    wrong = published_logits(random_tokens(), model_weights(), **mistake)
    assert (stock_logits(imported) - wrong).abs().max() > 1e-2


@torch.no_grad()
def test_the_imported_model_is_hooked_and_proved_bilinear(imported):
    import bilinear_circuits as bc

    model = bc.load_model(imported)
    torch.testing.assert_close(
        model(random_tokens()).double(), published_logits(random_tokens(), model_weights()), atol=1e-5, rtol=0
    )
    assert model.tokenizer.bos_token == "[BOS]"
    weights = model_weights()
    for layer in range(MODEL["n_layer"]):
        mlp = bc.BilinearMLP.from_model(model, layer)
        left, right = weights[f"transformer.h.{layer}.mlp.w.weight"].chunk(2)
        torch.testing.assert_close(mlp.tensor.W_gate, left.T)
        torch.testing.assert_close(mlp.tensor.W_in, right.T)
        torch.testing.assert_close(mlp.tensor.W_out, weights[f"transformer.h.{layer}.mlp.p.weight"].T)


def test_the_written_model_says_where_it_comes_from(imported):
    from bilinear_circuits.utilities.folders import file_hash

    config, origin = (json.loads((imported / name).read_text()) for name in ("config.json", "import.json"))
    assert (config["hidden_act"], config["rms_norm_eps"], config["vocab_size"]) == ("linear", 1e-8, D_VOCAB)
    assert (config["tie_word_embeddings"], config["bos_token_id"], config["dtype"]) == (False, 1, "float32")
    assert sorted(origin["files"]) == ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
    assert origin["files"]["model.safetensors"] == file_hash(imported / "model.safetensors")
    assert origin["source_files"]["model.safetensors"] == file_hash(imported.parent / "source/model.safetensors")
    assert origin["source_config"] == MODEL
    assert origin["versions"]["transformers"]
    assert (origin["revision"], origin["source"]) == (None, "source")


def test_the_dtype_is_kept_and_a_missing_tokenizer_is_said(tmp_path, capsys):
    publish(tmp_path / "source", MODEL, model_weights(torch.bfloat16))
    out = run_import(tmp_path / "source", tmp_path / "out")
    assert "no tokenizer in the source, which names words: --tokenizer takes" in capsys.readouterr().out
    assert {one.dtype for one in load_file(out / "model.safetensors").values()} == {torch.bfloat16}
    config = json.loads((out / "config.json").read_text())
    assert (config["dtype"], config["bos_token_id"], config["eos_token_id"]) == ("bfloat16", None, None)
    scale = (2 * MODEL["n_layer"]) ** -0.5
    folded = load_file(out / "model.safetensors")["model.layers.0.self_attn.o_proj.weight"]
    torch.testing.assert_close(folded, model_weights(torch.bfloat16)["transformer.h.0.attn.o.weight"] * scale)


def test_a_tokenizer_can_be_named(tmp_path):
    publish(tmp_path / "source", MODEL, model_weights())
    word_tokenizer().save_pretrained(tmp_path / "words")
    out = run_import(tmp_path / "source", tmp_path / "out", tokenizer=str(tmp_path / "words"))
    assert json.loads((out / "config.json").read_text())["pad_token_id"] == 3
    with refused(ValueError, match="tokenizer must have at most the 37 words of the model, got 44"):
        word_tokenizer([f"w{i}" for i in range(40)]).save_pretrained(tmp_path / "more")
        run_import(tmp_path / "source", tmp_path / "out2", tokenizer=str(tmp_path / "more"))
    with refused(FileNotFoundError, match=r"tokenizer must be a folder or Hub id with a tokenizer.json"):
        run_import(tmp_path / "source", tmp_path / "out2", tokenizer=str(tmp_path / "source"))
    assert not (tmp_path / "out2").exists()


def test_shards_and_pickled_tensors_give_the_same_model(imported, tmp_path):
    weights = model_weights()
    names = sorted(weights)
    shards = {"a.safetensors": names[:4], "b.safetensors": names[4:]}
    folder = publish(tmp_path / "sharded", MODEL, weights)
    (folder / "model.safetensors").unlink()
    for file, part in shards.items():
        save_file({name: weights[name] for name in part}, folder / file)
    index = {"weight_map": {name: file for file, part in shards.items() for name in part}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))

    pickled = publish(tmp_path / "pickled", MODEL, weights)
    (pickled / "model.safetensors").unlink()
    torch.save(weights, pickled / "pytorch_model.bin")
    expected = load_file(imported / "model.safetensors")
    for source in (folder, pickled):
        got = load_file(run_import(source, tmp_path / f"{source.name}-out") / "model.safetensors")
        assert got.keys() == expected.keys()
        assert all(torch.equal(got[name], expected[name]) for name in expected)

    (folder / "b.safetensors").unlink()
    with refused(FileNotFoundError, match=r"all shards of .*index.json, got none named b.safetensors"):
        run_import(folder, tmp_path / "out")
    save_file(weights, folder / "b.safetensors")
    with refused(ValueError, match=r"weights must hold each name once, got \S+ again in b.safetensors"):
        run_import(folder, tmp_path / "out")


class Harmful:
    """Unpickling it would make a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("legacy", [True, False])
def test_a_pickle_of_other_objects_is_never_opened(legacy, tmp_path):
    folder = publish(tmp_path / "source", MODEL, model_weights())
    (folder / "model.safetensors").unlink()
    content = {"lm_head.weight": Harmful(tmp_path / "harm")}
    torch.save(content, folder / "pytorch_model.bin", _use_new_zipfile_serialization=not legacy)
    with refused(ValueError, match=r"weights must be plain tensors, got .*never unpickled, because that can run code"):
        run_import(folder, tmp_path / "out")
    assert not (tmp_path / "harm").exists()
    assert not (tmp_path / "out").exists()


def topk_with_sign(pre, k):
    """The k largest of each row, by value and with their sign, in loops."""
    kept = torch.zeros_like(pre)
    for row, values in enumerate(pre.tolist()):
        for index in sorted(range(len(values)), key=values.__getitem__)[-k:]:
            kept[row, index] = pre[row, index]
    return kept


def published_dictionary(x, normalize, b_dec_on_input=False):
    """Activations and reconstruction of the source."""
    w_enc, w_dec, b_dec = (dictionary_weights()[name].double() for name in ("w_enc.weight", "w_dec.weight", "b_dec"))
    scaled = x / (normalize or 1) - (b_dec if b_dec_on_input else 0)
    z = topk_with_sign(scaled @ w_enc.T, DICTIONARY["k"])
    return z, (z @ w_dec.T + b_dec) * (normalize or 1)


def random_rows():
    return torch.randn(200, D_IN, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


@pytest.mark.parametrize("b_dec_on_input", [False, True])
@pytest.mark.parametrize("normalize", [None, 2.5, 3])
def test_an_imported_dictionary_is_the_source_where_k_pre_activations_are_positive(
    normalize, b_dec_on_input, tmp_path, capsys
):
    import bilinear_circuits as bc
    from bilinear_circuits.models.importing import clipped_share

    publish(tmp_path / "source", DICTIONARY | {"normalize": normalize}, dictionary_weights())
    out = run_import(
        tmp_path / "source", tmp_path / "out", b_dec_on_output_only=not b_dec_on_input, fold_normalize=True
    )
    dictionary = bc.Dictionary.load(out).to(torch.float64)
    x = random_rows()
    z, reconstruction = published_dictionary(x, normalize, b_dec_on_input)
    assert clipped_share(dictionary, x) == 0
    torch.testing.assert_close(dictionary.encode(x), z, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(dictionary.decode(z), reconstruction, atol=1e-5, rtol=1e-5)
    assert "(here 0.0 % of 1024 random rows" in capsys.readouterr().out


def test_where_the_source_keeps_negative_values_the_import_drops_them_and_nothing_else(tmp_path):
    """k = 15 of 36 features of random sign: on some rows fewer than 15 are positive."""
    import bilinear_circuits as bc
    from bilinear_circuits.models.importing import clipped_share

    k = 15
    publish(tmp_path / "source", DICTIONARY | {"k": k}, dictionary_weights())
    dictionary = bc.Dictionary.load(run_import(tmp_path / "source", tmp_path / "out", b_dec_on_output_only=True)).to(
        torch.float64
    )
    x = random_rows()
    z = topk_with_sign(x @ dictionary_weights()["w_enc.weight"].double().T, k)
    got = dictionary.encode(x)
    negative = (z < 0).any(-1)
    assert 0.02 < negative.double().mean() < 0.5
    torch.testing.assert_close(got, z.relu())
    torch.testing.assert_close(got[~negative], z[~negative])
    assert ((got - z)[negative].abs().amax(-1) > 0).all()
    assert clipped_share(dictionary, x) == pytest.approx(negative.double().mean().item())


def test_no_shift_of_the_encoder_bias_replaces_the_sign(tmp_path):
    """Why there is no exact SAELens form: a lifted bias keeps the ranks, but the error differs from row to row."""
    w_enc, w_dec = (dictionary_weights()[name].double() for name in ("w_enc.weight", "w_dec.weight"))
    pre, lift = random_rows() @ w_enc.T, 10.0
    exact = topk_with_sign(pre, 15)
    lifted = topk_with_sign(pre + lift, 15)
    assert torch.equal(lifted != 0, exact != 0)
    error = (lifted - exact) @ w_dec.T
    torch.testing.assert_close(error, lift * (exact != 0).double() @ w_dec.T)
    assert error.std(0).min() > 1


def test_the_metadata_survives_saelens_and_says_how_to_load(tmp_path):
    from sae_lens import SAE, __version__

    from bilinear_circuits.models.importing import TOPK_RULE

    publish(tmp_path / "tiny-scope", DICTIONARY, dictionary_weights())
    out = run_import(tmp_path / "tiny-scope", tmp_path / "out")
    metadata = SAE.load_from_disk(out).cfg.metadata
    assert (metadata.hook_name, metadata.model_name) == ("blocks.1.mlp.hook_in", "tiny")
    assert (metadata.sae_lens_version, metadata.source_activation) == (__version__, TOPK_RULE)
    assert "bilinear_circuits.Dictionary.load" in metadata.load
    assert sorted(one.name for one in out.iterdir()) == ["cfg.json", "import.json", "sae_weights.safetensors"]
    assert SAE.load_from_disk(run_import(tmp_path / "tiny-scope", tmp_path / "b", model="m")).cfg.metadata[
        "model_name"
    ] == ("m")


def test_imported_dictionaries_of_both_sides_fit_the_imported_model(imported, tmp_path):
    import bilinear_circuits as bc

    for side in ("in", "out"):
        source = publish(tmp_path / side, DICTIONARY | {"point": f"mlp-{side}"}, dictionary_weights())
        run_import(source, tmp_path / f"saes/blocks.1.mlp.hook_{side}")
    mlp = bc.BilinearMLP.from_model(bc.load_model(imported), 1)
    interactions = bc.FeatureInteractions(mlp, *bc.load_dictionaries(1, tmp_path / "saes"))
    assert interactions.sae_out.hook_name == mlp.hook_out
    with torch.no_grad():
        cache = bc.load_model(imported).run_with_cache(random_tokens())[1]
    for point in ("resid-pre", "resid-mid", "resid-post"):
        from bilinear_circuits.models.published_format import HOOK_NAMES

        assert cache[f"blocks.1.{HOOK_NAMES[point]}"].shape == (3, 11, D_IN)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_the_dtype_of_a_dictionary_is_kept(dtype, tmp_path):
    import bilinear_circuits as bc

    publish(tmp_path / "source", DICTIONARY | {"normalize": 2.0}, dictionary_weights(dtype))
    out = run_import(tmp_path / "source", tmp_path / "out")
    assert load_file(out / "sae_weights.safetensors")["W_enc"].dtype == dtype
    torch.testing.assert_close(
        bc.Dictionary.load(out).W_enc, dictionary_weights(dtype)["w_enc.weight"].T.float(), atol=1e-3, rtol=1e-2
    )


MODEL_MISTAKES = {
    "missing weight": ({}, {QKV: None}, f"weights must hold {QKV}, got none of that name"),
    "missing embedding": ({}, {"transformer.wte.weight": None}, r"weights must hold transformer.wte.weight, got none"),
    "missing lm_head": ({}, {"lm_head.weight": None}, r"weights must hold lm_head.weight"),
    "unknown weight": ({}, {"transformer.n_f.weight": (12,)}, r"understood, got transformer.n_f.weight, \(12,\)"),
    "wrong shape": ({}, {QKV: (12, 36)}, rf"{QKV} must have the shape \(36, 12\) .* got \(12, 36\)"),
    "further layer": ({"n_layer": 1}, {}, r"understood, got transformer.h.1.attn.o.weight"),
    "missing key": ({"d_hidden": None}, {}, "config.json must hold n_head, .*, got none named d_hidden"),
    "unknown key": ({"gate": "silu"}, {}, "gate of config.json must be null, got 'silu'"),
    "bias": ({"bias": True}, {}, "bias of config.json must be false.*got True"),
    "normalization": ({"normalization": False}, {}, "normalization of config.json must be true.*got False"),
    "heads": ({"n_head": 5}, {}, "d_model of config.json must be n_head times an even number.*n_head=5"),
    "kind of a size": ({"n_ctx": "256"}, {}, "n_ctx of config.json must be a positive whole number, got '256'"),
}


def changed(base, change):
    return {key: value for key, value in (base | change).items() if value is not None}


@pytest.mark.parametrize("mistake", MODEL_MISTAKES)
def test_a_model_that_is_not_of_the_format_is_refused_by_name(mistake, tmp_path):
    config, weights, match = MODEL_MISTAKES[mistake]
    weights = {name: None if shape is None else torch.zeros(shape) for name, shape in weights.items()}
    publish(tmp_path / "source", changed(MODEL, config), changed(model_weights(), weights))
    with refused(ValueError, match=match):
        run_import(tmp_path / "source", tmp_path / "out")
    assert [one.name for one in tmp_path.iterdir()] == ["source"]


def test_numbers_that_are_none_and_mixed_dtypes_are_refused(tmp_path):
    weights = model_weights()
    weights[QKV][0, 0] = math.nan
    publish(tmp_path / "nan", MODEL, weights)
    with refused(ValueError, match=f"{QKV} must be finite, got 1 infinite or undefined"):
        run_import(tmp_path / "nan", tmp_path / "out")
    publish(tmp_path / "mixed", MODEL, model_weights() | {QKV: torch.zeros(36, 12).half()})
    with refused(ValueError, match=r"weights must have one dtype, got torch.float16, torch.float32"):
        run_import(tmp_path / "mixed", tmp_path / "out")
    publish(tmp_path / "whole", MODEL, model_weights() | {QKV: torch.zeros(36, 12, dtype=torch.int8)})
    with refused(ValueError, match=rf"{QKV} must be of one of .*, got torch.int8"):
        run_import(tmp_path / "whole", tmp_path / "out")


def test_frequencies_of_the_known_base_are_left_out_and_others_refused(imported, tmp_path):
    names = [f"transformer.h.{i}.attn.rotary.inv_freq" for i in range(2)]
    known = {name: torch.tensor([1.0, 0.01]) for name in names}
    publish(tmp_path / "source", MODEL | {"gate": None, "bilinear": True, "repo": "a/b"}, model_weights() | known)
    assert torch.equal(stock_logits(run_import(tmp_path / "source", tmp_path / "out")), stock_logits(imported))
    publish(tmp_path / "other", MODEL, model_weights() | {names[1]: torch.tensor([1.0, 0.1])})
    with refused(ValueError, match=r"inv_freq must be that of the base 10000 at d_head=4, got other numbers"):
        run_import(tmp_path / "other", tmp_path / "out2")


DICTIONARY_MISTAKES = {
    "point": ({"point": "attn-out"}, {}, {}, "point of config.json must be one of mlp-in, .*, got 'attn-out'"),
    "transcoder": ({"target": ["mlp-out", 1]}, {}, {}, r"target of config.json must be null .* is a transcoder"),
    "no layer": ({"layer": None}, {}, {}, "layer must be a whole number from 0 .* got None. Pass --layer"),
    "two layers": ({}, {}, {"layer": 0}, "layer must be that of config.json, 1, got 0"),
    "missing key": ({"k": None}, {}, {}, "config.json must hold point, expansion, k, got none named k"),
    "unknown key": ({"relu": True}, {}, {}, "got relu=True"),
    "large k": ({"k": 37}, {}, {}, "k must be at most the 36 features of the dictionary, got 37"),
    "normalize": (
        {"normalize": 0},
        {},
        {"fold_normalize": True},
        "normalize of config.json must be null or a positive number, got 0",
    ),
    "kind of normalize": ({"normalize": True}, {}, {"fold_normalize": True}, "null or a positive number, got True"),
    "expansion": ({"expansion": 4}, {}, {}, r"must be \(4 d_in, d_in\), by the expansion=4 .*, got \(36, 12\)"),
    "missing encoder": ({}, {"w_enc.weight": None}, {}, r"weights must hold w_enc.weight, got only"),
    "missing bias": ({}, {"b_dec": None}, {}, "weights must hold b_dec"),
    "unknown bias": ({}, {"w_enc.bias": (36,)}, {}, r"understood, got w_enc.bias, \(36,\)"),
    "wrong shape": ({}, {"w_dec.weight": (36, 12)}, {}, r"w_dec.weight must have the shape \(12, 36\)"),
    "option of a model": ({}, {}, {"tokenizer": "x/y"}, "--tokenizer must be left out for a dictionary, got x/y"),
}


@pytest.mark.parametrize("mistake", DICTIONARY_MISTAKES)
def test_a_dictionary_that_is_not_of_the_format_is_refused_by_name(mistake, tmp_path):
    config, weights, options, match = DICTIONARY_MISTAKES[mistake]
    weights = {name: None if shape is None else torch.zeros(shape) for name, shape in weights.items()}
    publish(tmp_path / "source", changed(DICTIONARY, config), changed(dictionary_weights(), weights))
    with refused(ValueError, match=match):
        run_import(tmp_path / "source", tmp_path / "out", **options)
    assert [one.name for one in tmp_path.iterdir()] == ["source"]


def test_sources_that_cannot_be_read_say_why(tmp_path):
    out = tmp_path / "out"
    with refused(FileNotFoundError, match=r"source must be a folder or a Hub id .* got nowhere: no such folder"):
        run_import("nowhere", out)
    with refused(OSError, match=r"source must be a folder, or a Hub id that can be fetched, got nobody/none: [^\n]*$"):
        run_import("nobody/none", out)
    nested = tmp_path / "many"
    nested.mkdir()
    publish(nested / "a", DICTIONARY, dictionary_weights())
    with refused(FileNotFoundError, match=r"config.json, got \S+many without. --subfolder can be one of a\."):
        run_import(nested, out)
    with refused(FileNotFoundError, match="subfolder must be a folder of .*, got b"):
        run_import(nested, out, subfolder="b")
    (nested / "a/config.json").write_text("{")
    with refused(ValueError, match=r"config.json must be a JSON file, got"):
        run_import(nested, out, subfolder="a")
    (nested / "a/config.json").write_text('{"hidden_size": 3}')
    with refused(ValueError, match=r"source must be a published bilinear model .* with: hidden_size"):
        run_import(nested, out, subfolder="a")
    (nested / "a/model.safetensors").write_bytes(b"no tensors")
    with refused(ValueError, match=r"weights must be plain tensors, got .*damaged"):
        run_import(nested, out, subfolder="a")
    (nested / "a/model.safetensors").unlink()
    with refused(FileNotFoundError, match=r"source must hold model.safetensors or pytorch_model.bin"):
        run_import(nested, out, subfolder="a")
    assert not out.exists()


def test_dictionaries_of_a_scope_on_the_hub_are_imported_one_by_one_with_its_commit(hub, tmp_path):
    for name, layer in (("three", 3), ("four", 4)):
        publish(tmp_path / "scope" / name, changed(DICTIONARY, {"point": ["mlp-out", layer]}), dictionary_weights())
    commit = hub("someone/tiny-scope", tmp_path / "scope")
    for name, layer in (("three", 3), ("four", 4)):
        out = run_import("someone/tiny-scope", tmp_path / name, subfolder=name)
        assert json.loads((out / "import.json").read_text())["revision"] == commit
        metadata = json.loads((out / "cfg.json").read_text())["metadata"]
        assert metadata["model_name"] == "someone/tiny"
        assert metadata["hook_name"] == f"blocks.{layer}.mlp.hook_out"
    with refused(FileNotFoundError, match="subfolder must be a folder of someone/tiny-scope, got five"):
        run_import("someone/tiny-scope", tmp_path / "five", subfolder="five")


def test_files_in_the_way_and_options_of_the_other_kind_are_refused(imported, tmp_path):
    source = publish(tmp_path / "source", MODEL, model_weights())
    with refused(ValueError, match="out must be a new or empty folder, got .* which holds files"):
        run_import(source, imported)
    with refused(ValueError, match="--layer must be left out for a model, got 0"):
        run_import(source, tmp_path / "out", layer=0)
    with refused(ValueError, match="--b-dec-on-output-only must be left out for a model, got True"):
        run_import(source, tmp_path / "out", b_dec_on_output_only=True)


def test_the_arguments_are_parsed_as_documented():
    from bilinear_circuits import cli
    from bilinear_circuits.commands import importing

    got = cli._parse("import", importing, ["a/b", "--out", "c", "--b-dec-on-output-only", "--layer", "3"])
    assert (got.source, got.out, got.b_dec_on_output_only, got.layer) == ("a/b", "c", True, 3)


def test_only_topk_dictionaries_are_clipped():
    from planted import random_dictionary

    from bilinear_circuits.dictionaries.activation import Activation
    from bilinear_circuits.dictionaries.dictionary import Dictionary
    from bilinear_circuits.models.importing import clipped_share

    topk = random_dictionary(5, 7, "blocks.0.mlp.hook_in")
    relu = Dictionary(topk.W_enc, topk.b_enc, topk.W_dec, topk.b_dec, Activation("relu"))
    with refused(ValueError, match="dictionary must be a topk one, got relu"):
        clipped_share(relu, torch.zeros(1, 5))


PUBLISHED = Path(__file__).parents[2] / "shared/data/published-format"


@pytest.mark.skipif(not PUBLISHED.is_dir(), reason="no folders of the publishing code on this machine")
@torch.no_grad()
def test_folders_of_the_publishing_code_give_their_expected_values_without_options(tmp_path):
    import bilinear_circuits as bc

    expected = load_file(PUBLISHED / "model/expected.safetensors")
    model = bc.load_model(run_import(PUBLISHED / "model", tmp_path / "model"))
    torch.testing.assert_close(model(expected["ids"]), expected["logits"], atol=1e-5, rtol=0)
    for kind in ("plain", "bias", "norm"):
        source = PUBLISHED / f"dictionary-{kind}"
        out = run_import(source, tmp_path / kind, subfolder="1-mlp-in-x4-k6")
        dictionary, expected = bc.Dictionary.load(out), load_file(source / "1-mlp-in-x4-k6/expected.safetensors")
        z = dictionary.encode(expected["x"])
        torch.testing.assert_close(z, expected["activations"], atol=1e-5, rtol=0)
        torch.testing.assert_close(dictionary.decode(z), expected["reconstruction"], atol=1e-5, rtol=0)
    with refused(ValueError, match="gate of config.json must be null, got 'silu'"):
        run_import(PUBLISHED / "model-silu", tmp_path / "silu")
