"""Random weights at unequal sizes, tiny models, and the one place where an InteractionMatrix meets its dense form."""

import contextlib
from pathlib import Path

import pytest
import torch

from bilinear_circuits.algebra.matrix import InteractionMatrix
from bilinear_circuits.algebra.tensor import InteractionTensor
from bilinear_circuits.interactions.feature_interactions import FeatureInteractions
from bilinear_circuits.models.bilinear_mlp import BilinearMLP

D_IN, D_MLP, D_OUT = 5, 7, 3
D_SAE_IN, D_SAE_OUT = 11, 9
HOOK_IN, HOOK_OUT = "blocks.0.mlp.hook_in", "blocks.0.mlp.hook_out"
WORDS = [
    "the",
    "a",
    "cat",
    "dog",
    "sat",
    "ran",
    "on",
    "mat",
    "big",
    "small",
    "red",
    "blue",
    "was",
    "not",
    "happy",
    "sad",
]
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}


def randn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def assert_near(actual, expected, tolerance=None):
    """Equal up to the tolerance of the dtype of `actual`, relative to the largest entry expected."""
    expected = torch.as_tensor(expected, dtype=actual.dtype)
    tolerance = TOLERANCE[actual.dtype] if tolerance is None else tolerance
    scale = expected.abs().max().item() if expected.numel() else 0.0
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance * max(scale, 1.0))


def random_tensor(seed=0, biases=(), d_in=D_IN, d_mlp=D_MLP, d_out=D_OUT, dtype=torch.float64):
    """A random layer, with the biases named."""
    shapes = {"W_gate": (d_in, d_mlp), "W_in": (d_in, d_mlp), "W_out": (d_mlp, d_out)}
    shapes |= {name: (d_out if name == "b_out" else d_mlp,) for name in biases}
    return InteractionTensor(
        **{name: randn(*shape, seed=10 * seed + i, dtype=dtype) for i, (name, shape) in enumerate(shapes.items())}
    )


def weights_of(tensor):
    """The six arrays of a layer, in the order the oracles take them."""
    return tensor.W_gate, tensor.W_in, tensor.W_out, tensor.b_gate, tensor.b_in, tensor.b_out


def random_matrix(seed=0, batch=(), d=D_IN, d_mlp=D_MLP, kind="indefinite", dtype=torch.float64):
    """A random interaction matrix: indefinite, or of one sign (equal factors, weights of one sign)."""
    left, right = (randn(d, d_mlp, seed=100 + 2 * seed + i, dtype=dtype) for i in range(2))
    weights = randn(*batch, d_mlp, seed=200 + seed, dtype=dtype)
    if kind == "indefinite":
        return InteractionMatrix(left, right, weights)
    return InteractionMatrix(left, left, weights.abs() * (1 if kind == "positive" else -1))


def check_matrix(op, dense):
    """Every operation of an InteractionMatrix against a dense symmetric matrix, or a batch of them."""
    dense, dtype = dense.double(), op.left.dtype
    d = dense.shape[-1]
    x, y, other = (randn(4, d, seed=seed) for seed in (1, 2, 3))
    assert op.shape == dense.shape
    assert op.dim == d
    assert_near(op.to_dense(), dense)
    assert_near(op.to_dense(), op.to_dense().mT)
    assert_near(op @ x[0].to(dtype), dense @ x[0])
    assert_near(op @ other.T.to(dtype), dense @ other.T)
    assert_near(op(x.to(dtype)), torch.einsum("ni,...ij,nj->n...", x, dense, x))
    assert_near(op(x[0].to(dtype)), torch.einsum("i,...ij,j->...", x[0], dense, x[0]))
    assert_near(op(x.to(dtype), y.to(dtype)), torch.einsum("ni,...ij,nj->n...", x, dense, y))
    assert_near(op.trace(), torch.einsum("...ii->...", dense))
    assert_near(op.diagonal(), torch.einsum("...ii->...i", dense))
    assert_near(op.frobenius_norm(), dense.square().sum((-1, -2)).sqrt())
    partner = random_matrix(seed=5, d=d, d_mlp=4)
    partner = InteractionMatrix(*(t.to(dtype) for t in (partner.left, partner.right, partner.weights)))
    assert_near(op.inner(partner), (dense * partner.to_dense().double()).sum((-1, -2)))
    rows, columns = torch.tensor([d - 1, 0]), torch.tensor([1, d - 1, 2])
    assert_near(op.block(rows, columns), dense[..., rows, :][..., columns])
    basis = randn(d + 2, d, seed=4)
    assert_near(op.change_basis(basis.to(dtype)).to_dense(), basis @ dense @ basis.T)
    for k in (0, 1, d - 1, d, None):
        check_spectrum(op.eigh(k), dense, d if k is None else k)
    if dense.ndim > 2:
        last = dense.shape[0] - 1
        for index in (0, slice(1, None), torch.tensor([last, 0])):
            assert_near(op[index].to_dense(), dense[index])


def check_spectrum(spectrum, dense, k):
    """A spectrum holds the k eigenvalues of largest magnitude, signs kept, and orthonormal eigenvectors of them."""
    dense = dense.double()
    values = torch.linalg.eigvalsh(dense)
    order = values.abs().argsort(dim=-1, descending=True)
    assert spectrum.eigenvalues.shape == (*dense.shape[:-2], k)
    assert spectrum.eigenvectors.shape == (*dense.shape[:-1], k)
    tolerance = 10 * TOLERANCE[spectrum.eigenvalues.dtype]
    assert_near(spectrum.eigenvalues, values.gather(-1, order)[..., :k], tolerance)
    assert_near(spectrum.frobenius_norm, torch.linalg.matrix_norm(dense))
    vectors = spectrum.eigenvectors
    assert_near(vectors.mT @ vectors, torch.eye(k).expand(*dense.shape[:-2], k, k), tolerance)
    assert_near(dense.to(vectors.dtype) @ vectors, vectors * spectrum.eigenvalues.unsqueeze(-2), tolerance)
    missing = (dense - spectrum.to_dense().double()).square().sum((-1, -2))
    dropped = values.gather(-1, order)[..., k:].square().sum(-1)
    torch.testing.assert_close(missing, dropped, rtol=1e-4, atol=1e-5 * dense.square().sum().item())


def random_mlp(biases=(), seed=0, dtype=torch.float64):
    """A bilinear MLP of no model, between the two hooks of layer 0."""
    return BilinearMLP(
        random_tensor(seed, biases, dtype=dtype), 0, HOOK_IN, HOOK_OUT, None, 0.0, ("blocks.0.ln2.hook_out",)
    )


def random_interactions(architecture="topk", biases=(), dtype="float64"):
    """An MLP between two random SAEs; the SAEs are returned too."""
    sae_in = random_sae(architecture, D_IN, D_SAE_IN, seed=1, dtype=dtype)
    sae_out = random_sae("standard", D_OUT, D_SAE_OUT, seed=2, dtype=dtype)
    mlp = random_mlp(biases, dtype=getattr(torch, dtype))
    return FeatureInteractions(mlp, sae_in, sae_out), sae_in, sae_out


def sae_classes():
    """Class, configuration class and further arguments of every SAELens architecture, by a name of ours."""
    from sae_lens.saes import (
        abstopk_sae,
        batchtopk_sae,
        gated_sae,
        jumprelu_sae,
        matryoshka_batchtopk_sae,
        standard_sae,
        topk_sae,
    )

    def pair(module, name, **arguments):
        return getattr(module, name), getattr(module, f"{name}Config"), arguments

    return {
        "standard": pair(standard_sae, "StandardSAE"),
        "topk": pair(topk_sae, "TopKSAE", k=4),
        "topk rescaled": pair(topk_sae, "TopKSAE", k=4, rescale_acts_by_decoder_norm=True),
        "abstopk": pair(abstopk_sae, "AbsTopKSAE", k=4),
        "abstopk rescaled": pair(abstopk_sae, "AbsTopKSAE", k=4, rescale_acts_by_decoder_norm=True),
        "jumprelu": pair(jumprelu_sae, "JumpReLUSAE"),
        "gated": pair(gated_sae, "GatedSAE"),
        "training topk": pair(topk_sae, "TopKTrainingSAE", k=4),
        "training batchtopk": pair(batchtopk_sae, "BatchTopKTrainingSAE", k=4),
        "training matryoshka": pair(
            matryoshka_batchtopk_sae, "MatryoshkaBatchTopKTrainingSAE", k=4, matryoshka_widths=[3, 11]
        ),
        "training jumprelu": pair(jumprelu_sae, "JumpReLUTrainingSAE"),
        "training gated": pair(gated_sae, "GatedTrainingSAE"),
        "training standard": pair(standard_sae, "StandardTrainingSAE"),
    }


INFERENCE_ARCHITECTURES = (
    "standard",
    "topk",
    "topk rescaled",
    "abstopk",
    "abstopk rescaled",
    "jumprelu",
    "gated",
)
TRAINING_ARCHITECTURES = (
    "training topk",
    "training batchtopk",
    "training matryoshka",
    "training jumprelu",
    "training gated",
    "training standard",
)


def random_sae(architecture, d_in=D_IN, d_sae=D_SAE_IN, seed=0, hook_name=None, **overrides):
    """A SAELens SAE with every parameter random, and decoder rows of norms spread over a factor of ten."""
    from sae_lens.saes.sae import SAEMetadata

    sae_class, config_class, arguments = sae_classes()[architecture]
    metadata = {} if hook_name is None else {"hook_name": hook_name}
    arguments = {"d_in": d_in, "d_sae": d_sae, "metadata": SAEMetadata(**metadata), **arguments, **overrides}
    return randomised(sae_class(config_class(**arguments)), seed)


@torch.no_grad()
def randomised(sae, seed=0):
    """Fill every parameter of an SAE."""
    for i, (name, parameter) in enumerate(sorted(sae.named_parameters())):
        values = randn(*parameter.shape, seed=1000 * (seed + 1) + i)
        if name == "threshold":
            values = values.abs()
        if name == "W_dec":
            values *= torch.linspace(0.3, 3, len(values)).unsqueeze(1) / values.norm(dim=1, keepdim=True)
        parameter.copy_(values)
    if hasattr(sae, "topk_threshold"):
        sae.topk_threshold.fill_(0.7)
    return sae


def tiny_tokenizer():
    """A word-level tokenizer of 50 words, with [UNK], [BOS], [EOS] and [PAD]."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = {"unk_token": "[UNK]", "bos_token": "[BOS]", "eos_token": "[EOS]", "pad_token": "[PAD]"}
    words = [*special.values(), *WORDS]
    words += [f"w{i}" for i in range(50 - len(words))]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=16, **special)


def tiny_llama(hidden_act="linear", n_layers=3, mlp_bias=False, seed=0):
    """A random Llama of 3 layers, d_model 12, d_mlp 20, with weights large enough for every part to matter."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=50,
        hidden_size=12,
        intermediate_size=20,
        num_hidden_layers=n_layers,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=6,
        hidden_act=hidden_act,
        mlp_bias=mlp_bias,
        max_position_embeddings=16,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=3,
        tie_word_embeddings=False,
        rms_norm_eps=0.1,
    )
    return _scaled(LlamaForCausalLM(config), seed)


def save_tiny_llama(folder: Path, **arguments):
    """The same model and its tokenizer as a Hugging Face folder."""
    tiny_llama(**arguments).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def tiny_hooked_transformer(normalization_type="RMS", gated_mlp=True, act_fn="linear", seed=0):
    """A random HookedTransformer; "linear" needs `linear_activation`."""
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    config = HookedTransformerConfig(
        n_layers=2,
        d_model=12,
        n_ctx=16,
        d_head=6,
        n_heads=2,
        d_mlp=20,
        d_vocab=50,
        act_fn=act_fn,
        gated_mlp=gated_mlp,
        normalization_type=normalization_type,
        device="cpu",
        eps=0.1,
    )
    return _scaled(HookedTransformer(config), seed)


@contextlib.contextmanager
def linear_activation():
    """TransformerLens with a linear activation, for as long as the context lasts."""
    from transformer_lens.utilities.activation_functions import SUPPORTED_ACTIVATIONS

    assert "linear" not in SUPPORTED_ACTIVATIONS
    SUPPORTED_ACTIVATIONS["linear"] = lambda x: x
    try:
        yield
    finally:
        del SUPPORTED_ACTIVATIONS["linear"]


@contextlib.contextmanager
def refused(error, match):
    """The package refuses, by this message, as its users see it: with no check of shape annotations in front."""
    import jaxtyping

    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        with pytest.raises(error, match=match):
            yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)


def random_tokens(n_stories=2, n_pos=7, seed=0):
    return torch.randint(4, 50, (n_stories, n_pos), generator=torch.Generator().manual_seed(seed))


def n_hooks(model):
    """Number of torch forward hooks on all modules of a model, past the ones transformers leaves on its first run."""
    with torch.no_grad():
        model(random_tokens())
    return sum(len(module._forward_hooks) for module in model.modules())


@torch.no_grad()
def _scaled(model, seed):
    for i, (name, parameter) in enumerate(sorted(model.named_parameters())):
        values = randn(*parameter.shape, seed=1000 * seed + i, dtype=parameter.dtype)
        is_norm = "norm" in name or ".ln" in name or name.startswith("ln")
        parameter.copy_(1 + 0.3 * values if is_norm and name.endswith(("weight", "w")) else 0.3 * values)
    return model.eval()


@contextlib.contextmanager
def as_users_see_it():
    """With no check of shape annotations in front of the package's own errors."""
    import jaxtyping

    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)
