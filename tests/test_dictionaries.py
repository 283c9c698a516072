import json

import dense as oracle
import pytest
import torch
from helpers import (
    D_IN,
    D_SAE_IN,
    INFERENCE_ARCHITECTURES,
    TRAINING_ARCHITECTURES,
    assert_near,
    randn,
    random_sae,
    refused,
)

from bilinear_circuits.dictionaries.activation import Activation
from bilinear_circuits.dictionaries.dictionary import Dictionary, as_dictionary
from bilinear_circuits.dictionaries.folding import UnsupportedSAEError

EVERY_INFERENCE = pytest.mark.parametrize("architecture", INFERENCE_ARCHITECTURES)


def inputs(dtype=torch.float64, scale=3.0):
    return scale * randn(40, D_IN, seed=77, dtype=dtype)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-10), ("float32", 1e-4)])
@pytest.mark.parametrize("apply_b_dec", [True, False], ids=["b_dec on the input", "b_dec on the output only"])
@EVERY_INFERENCE
def test_folding_reproduces_the_sae(architecture, apply_b_dec, dtype, tolerance):
    sae = random_sae(architecture, dtype=dtype, apply_b_dec_to_input=apply_b_dec)
    dictionary, x = Dictionary.from_sae(sae), inputs(getattr(torch, dtype))
    z = sae.encode(x).detach()
    assert (z != 0).any()
    assert (z == 0).any()
    assert_near(dictionary.encode(x), z, tolerance)
    assert_near(dictionary.decode(z), sae.decode(z).detach(), tolerance)
    assert dictionary.W_enc.dtype == getattr(torch, dtype)
    assert (dictionary.d_in, dictionary.d_sae) == (D_IN, D_SAE_IN)


@pytest.mark.parametrize("architecture", TRAINING_ARCHITECTURES)
def test_an_sae_in_training_is_read_as_it_would_be_saved(architecture, tmp_path):
    from sae_lens import SAE

    training, x = random_sae(architecture), inputs(torch.float32)
    training.save_inference_model(tmp_path)
    saved, dictionary = SAE.load_from_disk(tmp_path), Dictionary.from_sae(training)
    z = saved.encode(x).detach()
    assert (z != 0).any()
    assert_near(dictionary.encode(x), z, 1e-4)
    assert_near(dictionary.decode(z), saved.decode(z).detach(), 1e-4)


def test_reading_an_sae_leaves_it_as_it_was():
    sae = random_sae("training batchtopk")
    before = {name: value.clone() for name, value in sae.state_dict().items()}
    Dictionary.from_sae(sae)
    assert type(sae).__name__ == "BatchTopKTrainingSAE"
    torch.testing.assert_close(dict(sae.state_dict()), before, rtol=0, atol=0)


def test_decoder_bias_enters_the_encoder_bias():
    sae = random_sae("standard", dtype="float64")
    x = inputs()[0]
    pre = [
        sum((x[i] - sae.b_dec[i]).item() * sae.W_enc[i, a].item() for i in range(D_IN)) + sae.b_enc[a].item()
        for a in range(D_SAE_IN)
    ]
    assert_near(Dictionary.from_sae(sae).pre_activations(x), torch.tensor(pre, dtype=torch.float64))


@pytest.mark.parametrize("rule", ["relu", "jumprelu", "topk", "abstopk"])
def test_rules_equal_the_loops(rule):
    k = 4 if "topk" in rule else None
    threshold = randn(9, seed=1) if rule == "jumprelu" else None
    pre = randn(30, 9)
    expected = torch.stack([oracle.encode(row, rule, k, threshold) for row in pre])
    torch.testing.assert_close(Activation(rule, k, threshold)(pre), expected, rtol=0, atol=0)


def test_topk_keeps_no_negative_number():
    kept = Activation("topk", k=3)(torch.tensor([[-1.0, 2.0, -3.0, -0.5]]))
    assert kept.tolist() == [[0.0, 2.0, 0.0, 0.0]]


@EVERY_INFERENCE
def test_a_saved_folder_is_read_back(architecture, tmp_path):
    sae = random_sae(architecture, hook_name="blocks.3.mlp.hook_in")
    sae.save_model(tmp_path / "folder")
    loaded, direct, x = Dictionary.load(tmp_path / "folder"), Dictionary.from_sae(sae), inputs(torch.float32)
    assert (loaded.hook_name, direct.hook_name) == ("blocks.3.mlp.hook_in", "blocks.3.mlp.hook_in")
    assert (loaded.name, direct.name) == ("folder", "blocks.3.mlp.hook_in")
    assert_near(loaded.decode(loaded.encode(x)), direct.decode(direct.encode(x)), 1e-6)


def test_hook_name_is_read_from_a_folder_without_the_version_that_wrote_it(tmp_path):
    random_sae("topk", hook_name="blocks.3.mlp.hook_in").save_model(tmp_path)
    config = json.loads((tmp_path / "cfg.json").read_text())
    del config["metadata"]["sae_lens_version"]
    (tmp_path / "cfg.json").write_text(json.dumps(config))
    assert Dictionary.load(tmp_path).hook_name == "blocks.3.mlp.hook_in"


def test_hook_name_of_an_sae_that_names_none_is_none(tmp_path):
    random_sae("topk").save_model(tmp_path)
    assert Dictionary.load(tmp_path).hook_name is None
    assert Dictionary.from_sae(random_sae("topk"), name="mine").name == "mine"


@pytest.mark.parametrize("architecture", ["standard", "jumprelu", "gated", "topk rescaled"])
def test_unit_norm_is_the_same_function(architecture):
    dictionary, x = Dictionary.from_sae(random_sae(architecture, dtype="float64")), inputs()
    unit = dictionary.unit_norm()
    assert_near(unit.W_dec.norm(dim=1), torch.ones(D_SAE_IN))
    assert_near(unit.decode(unit.encode(x)), dictionary.decode(dictionary.encode(x)))
    assert_near(unit.encode(x), dictionary.encode(x) * dictionary.W_dec.norm(dim=1))


@pytest.mark.parametrize("architecture", ["topk", "abstopk"])
def test_unit_norm_is_refused_where_it_would_change_the_selection(architecture):
    dictionary = Dictionary.from_sae(random_sae(architecture))
    message = f"must have equal norms for a {architecture} dictionary.*norms from 0.3 to 3: scaling would change"
    with refused(UnsupportedSAEError, message):
        dictionary.unit_norm()


def test_conversion_keeps_the_rule():
    dictionary = Dictionary.from_sae(random_sae("jumprelu")).to(torch.bfloat16)
    assert dictionary.encode(inputs(torch.bfloat16)).dtype == torch.bfloat16
    assert dictionary.activation.threshold.dtype == torch.bfloat16
    assert dictionary.activation.kind == "jumprelu"


def test_a_dictionary_passes_through_and_other_things_are_refused():
    dictionary = Dictionary.from_sae(random_sae("topk"))
    assert as_dictionary(dictionary) is dictionary
    assert_near(as_dictionary(random_sae("topk")).W_enc, dictionary.W_enc)
    with refused(TypeError, "must be a SAELens SAE or a Dictionary, got Linear"):
        as_dictionary(torch.nn.Linear(2, 2))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"normalize_activations": "layer_norm"}, "got normalize_activations='layer_norm', which rescales each row"),
        ({"normalize_activations": "constant_norm_rescale"}, "'constant_norm_rescale', which rescales each row"),
        (
            {"normalize_activations": "expected_average_only_in"},
            r"scaling folded in.*Call sae\.fold_activation_norm_scaling_factor\(factor\) first",
        ),
        ({"normalize_activations": "covariance_whitening"}, r"Call sae\.fold_activation_whitening\("),
        ({"reshape_activations": "hook_z"}, "must read flat activations, got reshape_activations='hook_z'"),
    ],
)
def test_inputs_that_are_not_read_as_they_are_are_refused(overrides, message):
    sae = random_sae("standard", hook_name="blocks.0.attn.hook_z", **overrides)
    with refused(UnsupportedSAEError, message):
        Dictionary.from_sae(sae)


def test_folding_the_scale_first_is_accepted():
    sae = random_sae("standard", dtype="float64", normalize_activations="expected_average_only_in")
    sae.fold_activation_norm_scaling_factor(2.5)
    assert_near(Dictionary.from_sae(sae).encode(inputs()), sae.encode(inputs()).detach())


def test_a_transcoder_is_refused():
    from sae_lens.saes.transcoder import Transcoder, TranscoderConfig

    transcoder = Transcoder(TranscoderConfig(d_in=D_IN, d_sae=D_SAE_IN, d_out=3, apply_b_dec_to_input=False))
    with refused(UnsupportedSAEError, "got a transcoder: it reads one hook and writes another"):
        Dictionary.from_sae(transcoder)


def test_a_subclass_with_its_own_encode_is_refused():
    from sae_lens.saes.standard_sae import StandardSAE

    class Squared(StandardSAE):
        def encode(self, x):
            return super().encode(x).square()

    sae = random_sae("standard")
    sae.__class__ = Squared
    with refused(UnsupportedSAEError, "activations differ from those of the SAE.*subclass with its own encode"):
        Dictionary.from_sae(sae)


def test_a_subclass_with_its_own_decode_is_refused():
    from sae_lens.saes.topk_sae import TopKSAE

    class Doubled(TopKSAE):
        def decode(self, z):
            return 2 * super().decode(z)

    sae = random_sae("topk")
    sae.__class__ = Doubled
    with refused(UnsupportedSAEError, "reconstructions differ"):
        Dictionary.from_sae(sae)


@pytest.mark.parametrize("missing", ["cfg.json", "sae_weights.safetensors"])
def test_a_missing_file_is_named(missing, tmp_path):
    random_sae("topk").save_model(tmp_path)
    (tmp_path / missing).unlink()
    with refused(FileNotFoundError, f"must be a SAELens folder, but has no {missing}"):
        Dictionary.load(tmp_path)


def test_a_folder_that_sae_lens_cannot_read_is_refused(tmp_path):
    random_sae("topk").save_model(tmp_path)
    (tmp_path / "cfg.json").write_text("{}")
    with refused(ValueError, "must be a SAELens folder that SAELens can load"):
        Dictionary.load(tmp_path)


def test_shapes_that_do_not_fit_the_encoder_are_refused():
    W_enc, b_enc, b_dec = randn(D_IN, D_SAE_IN), randn(D_SAE_IN), randn(D_IN)
    with refused(ValueError, r"W_dec must be \(11, 5\) to match W_enc, \(d_in=5, d_sae=11\), got \(5, 11\)"):
        Dictionary(W_enc, b_enc, W_enc, b_dec, Activation("relu"))
    with refused(ValueError, r"b_enc must be \(11,\).*got \(5,\)"):
        Dictionary(W_enc, b_dec, W_enc.T, b_dec, Activation("relu"))


@pytest.mark.parametrize("architecture", TRAINING_ARCHITECTURES)
def test_a_folder_of_an_sae_in_training_is_read_as_the_sae(architecture, tmp_path):
    training, x = random_sae(architecture, dtype="float32"), inputs(torch.float32)
    training.save_model(tmp_path)
    loaded, expected = Dictionary.load(tmp_path), Dictionary.from_sae(training)
    assert (expected.encode(x) != 0).any()
    assert loaded.activation.kind == expected.activation.kind
    assert_near(loaded.encode(x), expected.encode(x))
    assert_near(loaded.decode(loaded.encode(x)), expected.decode(expected.encode(x)))


RULES = {
    "kind must be one of relu, jumprelu, topk, abstopk, identity, got 'silu'": lambda: Activation("silu"),
    "k must be at least 1, got 0": lambda: Activation("topk", k=0),
    "k must be at least 1, got -3": lambda: Activation("abstopk", k=-3),
    "k must be given for the kind topk, got None": lambda: Activation("topk"),
    "k must be left out for the kind relu, got 3": lambda: Activation("relu", k=3),
    "threshold must be given for the kind jumprelu": lambda: Activation("jumprelu"),
    "k must be at most the 4 features of dictionary, got 5": lambda: dictionary_of(Activation("topk", k=5)),
    r"threshold must have d_sae=4 entries, got \(3,\)": lambda: dictionary_of(
        Activation("jumprelu", threshold=torch.ones(3))
    ),
    "threshold of dictionary must be numbers, got 1": lambda: dictionary_of(
        Activation("jumprelu", threshold=torch.tensor([1, 2, torch.nan, 4.0]))
    ),
    "W_enc of dictionary must be finite, got 1": lambda: dictionary_of(W_enc=torch.nan),
    "b_enc of dictionary must be finite, got 1": lambda: dictionary_of(b_enc=torch.inf),
    "W_dec of dictionary must be finite, got 1": lambda: dictionary_of(W_dec=-torch.inf),
    "b_dec of dictionary must be finite, got 1": lambda: dictionary_of(b_dec=torch.nan),
}


def dictionary_of(activation=None, **bad):
    """A dictionary of 4 features in 3 dimensions, with one entry of a tensor replaced."""
    tensors = {"W_enc": torch.ones(3, 4), "b_enc": torch.ones(4), "W_dec": torch.ones(4, 3), "b_dec": torch.ones(3)}
    for name, value in bad.items():
        tensors[name].flatten()[0] = value
    return Dictionary(**tensors, activation=activation or Activation("relu"))


@pytest.mark.parametrize("message", RULES)
def test_rules_and_numbers_that_cannot_be_are_refused(message):
    with refused(ValueError, message):
        RULES[message]()


@pytest.mark.parametrize("k", [0, D_SAE_IN + 1])
def test_a_folder_with_a_k_that_cannot_be_is_refused(k, tmp_path):
    random_sae("topk").save_model(tmp_path)
    config = json.loads((tmp_path / "cfg.json").read_text())
    (tmp_path / "cfg.json").write_text(json.dumps(config | {"k": k}))
    with refused(ValueError, f"k must be .*, got {k}"):
        Dictionary.load(tmp_path)


def test_a_jumprelu_threshold_below_all_is_no_mistake():
    x = inputs(torch.float32)[:, :3]
    never = dictionary_of(Activation("jumprelu", threshold=torch.full((4,), -torch.inf)))
    assert_near(never.encode(x), dictionary_of().encode(x))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"architecture": "supersae"},
            "architecture of a dictionary must be one of abstopk, batchtopk, .*, got 'supersae'",
        ),
        ({"architecture": 7}, "must be one of .*, got 7 in cfg.json"),
        (
            {"architecture": "batchtopk"},
            "batchtopk, which SAELens has in training only, without .*save_inference_model",
        ),
        ({"architecture": "skip_transcoder"}, "got a skip_transcoder: it reads one hook and writes another"),
    ],
)
def test_a_folder_of_an_architecture_that_saelens_does_not_load_says_which(config, message, tmp_path):
    random_sae("topk", dtype="float32").save_model(tmp_path)
    file = tmp_path / "cfg.json"
    content = json.loads(file.read_text()) | config
    del content["metadata"]["sae_lens_version"]
    file.write_text(json.dumps(content))
    with refused(UnsupportedSAEError, message):
        Dictionary.load(tmp_path)
