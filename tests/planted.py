"""A tiny world for tests of circuits: a word tokenizer, a bilinear Llama, dictionaries, stories."""

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

WORDS = [
    "not",
    "never",
    "good",
    "nice",
    "bad",
    "sad",
    "the",
    "cat",
    "dog",
    "was",
    "is",
    "and",
    "ran",
    "sat",
    "home",
    ".",
]


def word_tokenizer(words=WORDS):
    vocabulary = {word: index for index, word in enumerate(["[UNK]", "[BOS]", "[EOS]", "[PAD]", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="[UNK]", bos_token="[BOS]", eos_token="[EOS]", pad_token="[PAD]"
    )


def tiny_llama(seed=0, d_model=12, d_mlp=14, n_layers=3, act="linear"):
    """Random weights, large enough that every layer matters."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = LlamaConfig(
            hidden_act=act, hidden_size=d_model, intermediate_size=d_mlp, num_hidden_layers=n_layers,
            num_attention_heads=2, num_key_value_heads=2, vocab_size=len(WORDS) + 4, max_position_embeddings=32,
            tie_word_embeddings=False, bos_token_id=1, eos_token_id=2, pad_token_id=3,
        )  # fmt: skip
        model = LlamaForCausalLM(config).eval()
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.data = torch.randn_like(parameter) / parameter.shape[1] ** 0.5
    return model


def random_dictionary(d_in, d_sae, hook_name, seed=0, k=3):
    from bilinear_circuits.dictionaries.activation import Activation
    from bilinear_circuits.dictionaries.dictionary import Dictionary

    generator = torch.Generator().manual_seed(seed)
    W_dec = torch.nn.functional.normalize(torch.randn(d_sae, d_in, generator=generator), dim=1)
    b_dec = 0.1 * torch.randn(d_in, generator=generator)
    return Dictionary(W_dec.T.contiguous(), -W_dec @ b_dec, W_dec, b_dec, Activation("topk", k=k), hook_name)


def interactions_of(model, layer, d_sae_in=17, d_sae_out=19):
    from bilinear_circuits.interactions.feature_interactions import FeatureInteractions
    from bilinear_circuits.models.bilinear_mlp import BilinearMLP

    mlp = BilinearMLP.from_model(model, layer)
    d_model = mlp.tensor.d_in
    return FeatureInteractions(
        mlp,
        random_dictionary(d_model, d_sae_in, mlp.hook_in, seed=layer),
        random_dictionary(d_model, d_sae_out, mlp.hook_out, seed=100 + layer),
    )


def save_between_dictionaries(root, layers, name="tiny"):
    """A tiny model, its tokenizer, and dictionaries on both sides of some layers, as folders; the model."""

    model = tiny_llama()
    model.save_pretrained(root / name)
    word_tokenizer().save_pretrained(root / name)
    for layer in layers:
        one = interactions_of(model, layer)
        for dictionary in (one.sae_in, one.sae_out):
            dictionary.save(root / "saes" / dictionary.hook_name)
    return model


def random_stories(n, seed=0, length=14):
    """Stories of random words and random lengths."""
    generator = torch.Generator().manual_seed(seed)
    stories = []
    for _ in range(n):
        n_words = int(torch.randint(4, length, (), generator=generator))
        stories.append(" ".join(WORDS[i] for i in torch.randint(len(WORDS), (n_words,), generator=generator)))
    return stories
