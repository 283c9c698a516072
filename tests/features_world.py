"""A tiny world for tests of the feature report: dead, rare and dense features, and tokens that try to break out."""

from dataclasses import replace

import torch
from planted import WORDS, random_dictionary, tiny_llama
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

SCRIPT = "</script><img/src=x/onerror=alert(1)>"
HOSTILE = (SCRIPT, "<!--", "{{7*7}}", "=1+2", "<b>bold</b>", "\u202ereversed")
VOCABULARY = (*WORDS[: len(WORDS) - len(HOSTILE)], *HOSTILE)
D_MODEL, D_SAE_IN, D_SAE_OUT = 16, 70, 66
DEAD, DENSE = 5, 9
LAYER = 1


def tokenizer():
    vocabulary = {word: index for index, word in enumerate(["[UNK]", "[BOS]", "[EOS]", "[PAD]", *VOCABULARY])}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=made, unk_token="[UNK]", bos_token="[BOS]", eos_token="[EOS]", pad_token="[PAD]"
    )


def stories(n=60, seed=0):
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(4, 20, (n,), generator=generator).tolist()
    return [" ".join(VOCABULARY[i] for i in torch.randint(len(VOCABULARY), (k,), generator=generator)) for k in lengths]


def dictionary(hook_name, d_sae, seed):
    """A random TopK dictionary in which one feature is never active and one nearly always."""
    made = random_dictionary(D_MODEL, d_sae, hook_name, seed, k=5)
    b_enc = made.b_enc.clone()
    b_enc[DEAD], b_enc[DENSE] = -100, 3
    return replace(made, b_enc=b_enc)


def write_world(root):
    """Model, dictionaries and stories as files; the arguments that name them."""

    tiny_llama(d_model=D_MODEL, n_layers=2).save_pretrained(root / "tiny")
    tokenizer().save_pretrained(root / "tiny")
    for side, d_sae in (("in", D_SAE_IN), ("out", D_SAE_OUT)):
        hook = f"blocks.{LAYER}.mlp.hook_{side}"
        dictionary(hook, d_sae, seed=d_sae).save(root / "saes" / hook)
    (root / "stories.txt").write_text("\n<|endoftext|>\n".join(stories()), encoding="utf-8")
    return {"model": str(root / "tiny"), "saes": str(root / "saes"), "corpus": str(root / "stories.txt")}


def activity_of(world):
    """The layer on the corpus, the way any analysis gets it."""
    import bilinear_circuits as bc
    from bilinear_circuits import zoo
    from bilinear_circuits.data.stories import tokenize_stories
    from bilinear_circuits.interactions.activity import collect_activity

    model = bc.load_model(world["model"])
    mlp = bc.BilinearMLP.from_model(model, LAYER)
    interactions = bc.FeatureInteractions(mlp, *zoo.load_dictionaries(LAYER, world["saes"], "cpu"))
    return model, collect_activity(model, [interactions], tokenize_stories(stories(), model.tokenizer, 32))[0]
