"""Fitted layers of an ordinary model: what they recover, whether removals in them are those of the model, their cost.

    python benchmarks/gated.py losses --model FOLDER --corpus STORIES
    python benchmarks/gated.py removals --model FOLDER --corpus STORIES --saes FOLDER_OF_DICTIONARIES
    python benchmarks/gated.py streamed --shape 8b --layers 2
    python benchmarks/gated.py gates

`streamed` makes a checkpoint of random weights of the shape of a known model, in bfloat16, and reads it block by block.
"""

import argparse
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

import bilinear_circuits as bc
from bilinear_circuits import zoo
from bilinear_circuits.algebra.gate_fits import fit_gates
from bilinear_circuits.algebra.layer_fits import TranscoderSettings
from bilinear_circuits.data.corpora import Corpus
from bilinear_circuits.data.stories import StoryTokens, tokenize_stories
from bilinear_circuits.models.gated_mlp import GatedMLP
from bilinear_circuits.models.gates import GATES
from bilinear_circuits.models.running import model_blocks
from bilinear_circuits.models.streaming import StreamedModel
from bilinear_circuits.runs.replacement import measure_replacements, mlp_inputs
from bilinear_circuits.runs.streamed import StreamedRun

SHAPES = {  # d_model, d_mlp, heads, groups, vocabulary: those of Qwen2 0.5B and 1.5B, Llama 3.2 3B and Llama 3 8B
    "0.5b": (896, 4864, 14, 2, 151_936),
    "1.5b": (1536, 8960, 12, 2, 151_936),
    "3b": (3072, 8192, 24, 8, 128_256),
    "8b": (4096, 14_336, 32, 8, 128_256),
}
FITS = {
    "cubic": lambda gated, x, held_out=None: gated.cubic(x, held_out=held_out),
    "affine gates": lambda gated, x, held_out=None: gated.bilinear(x, held_out=held_out),
    "W_out solved": lambda gated, x, held_out=None: gated.bilinear(x, held_out=held_out, solve_output=True),
    "transcoder": lambda gated, x, held_out=None: gated.bilinear(x, held_out=held_out, transcoder=TranscoderSettings()),
}


def read(arguments: argparse.Namespace) -> tuple[Any, StoryTokens, StoryTokens]:
    """Model, stories of the fits, stories held out."""
    model, tokenizer = zoo.load_plain_model(arguments.model)
    stories = Corpus(arguments.corpus).read(arguments.held_out + arguments.n_stories)
    tokens = tokenize_stories(stories, tokenizer, arguments.context)
    return model, tokens[arguments.held_out :], tokens[: arguments.held_out]


def losses(arguments: argparse.Namespace) -> None:
    """Cross-entropy with all layers replaced, by kind of fit."""
    model, fitted, held_out = read(arguments)
    layers = range(len(model_blocks(model)))
    inputs = mlp_inputs(model, fitted, layers)
    gated = {layer: GatedMLP.from_model(model, layer) for layer in layers}
    print(f"{len(inputs[0]):,} tokens fitted; change of cross-entropy, nats, and share recovered")
    for name, fit in FITS.items():
        started = time.perf_counter()
        fits = [fit(gated[layer], inputs[layer]) for layer in layers]
        seconds = (time.perf_counter() - started) / len(fits)
        found = measure_replacements(model, held_out, fits)
        single = " ".join(f"{value:+.4f}" for value in found.change[:-1])
        unexplained = " ".join(f"{value:.3f}" for value in found.fvu)
        print(
            f"{name:<13} all {found.change[-1]:+.4f} ({found.recovered[-1]:.1%}; affine map"
            f" {found.linear_recovered[-1]:.1%}), single {single}, FVU {unexplained}, {seconds:.1f} s a layer"
        )
    print(f"cross-entropy {found.base:.3f}, without MLPs {found.without[-1]:.3f}")


def removals(arguments: argparse.Namespace) -> None:
    """Removals in fitted layers beside the model's own MLPs, over features of dictionaries."""
    model, fitted, held_out = read(arguments)
    for layer in zoo.dictionary_layers(arguments.saes):
        x, gated = mlp_inputs(model, fitted, [layer])[layer], GatedMLP.from_model(model, layer)
        sides = zoo.load_dictionaries(layer, arguments.saes)
        cubic = bc.CubicInteractions(gated.cubic(x), *sides)
        for name in ("affine gates", "W_out solved", "transcoder"):
            interactions = bc.FeatureInteractions(FITS[name](gated, x), *sides)
            (activity,) = bc.collect_activity(model, [interactions], held_out)
            active = [f for f in range(interactions.sae_out.d_sae) if len(activity.outputs[f][0]) > 10]
            found = bc.removal_agreement(activity, active[: arguments.n_features], cubic)
            columns = zip(*found.table().values(), strict=True)
            cells = "; ".join(f"{kind} {n:,}: r {r:.3f}, slope {one:.2f}" for kind, n, r, one, _ in columns)
            print(f"layer {layer}, {name}, {found.n_features} features: {cells}")


def streamed(arguments: argparse.Namespace) -> None:
    """Seconds and memory of a layer of a large checkpoint."""
    from transformers import LlamaConfig, LlamaForCausalLM

    d_model, d_mlp, heads, groups, vocabulary = SHAPES[arguments.shape]
    config = LlamaConfig(
        hidden_size=d_model, intermediate_size=d_mlp, num_attention_heads=heads, num_key_value_heads=groups,
        num_hidden_layers=arguments.layers, vocab_size=vocabulary, tie_word_embeddings=True,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        if (
            not arguments.checkpoint
        ):  # in a process of its own: what it takes to make one is not what it takes to read it
            import subprocess
            import sys

            command = [sys.executable, __file__, "streamed", "--shape", arguments.shape, "--layers"]
            subprocess.run([*command, str(arguments.layers), "--checkpoint", folder], check=True)
        else:
            torch.set_default_dtype(torch.bfloat16)
            LlamaForCausalLM(config).save_pretrained(arguments.checkpoint)
            return
        size = sum(file.stat().st_size for file in Path(folder).iterdir()) / 1e9
        ids = torch.randint(5, vocabulary, (arguments.n_stories + arguments.held_out, arguments.context))
        mask = torch.ones_like(ids, dtype=torch.bool)
        mask[:, 0] = False
        n = arguments.held_out
        run = StreamedRun(StreamedModel(folder), StoryTokens(ids[n:], mask[n:]), StoryTokens(ids[:n], mask[:n]))
        started = time.perf_counter()
        run.measure(FITS[arguments.fit])
        seconds = time.perf_counter() - started
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
        tokens = f"{ids[n:].numel():,} + {ids[:n].numel():,} tokens"
        print(
            f"{arguments.shape}: {arguments.layers} layers, {size:.1f} GB of files, {arguments.fit}, {tokens}:", end=" "
        )
        print(f"{seconds / arguments.layers:.0f} s a layer, at most {peak:.1f} GB of memory")


def gates(_: argparse.Namespace) -> None:
    """Unexplained share of E[silu^2] for gates from normal distributions, by order of the polynomial."""
    z = torch.randn(2_000_000, 1, dtype=torch.double)
    for mean, deviation in ((0, 0.8), (0, 2), (0, 5), (-1, 1), (-1, 1.5)):
        g = mean + deviation * z
        shares = [fit_gates([(g, torch.ones_like(g))], GATES["SiLU"], order).unexplained.item() for order in (1, 2, 4)]
        print(f"mean {mean}, deviation {deviation}: order 1, 2, 4: {' '.join(f'{share:.4f}' for share in shares)}")


def main() -> None:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=("losses", "removals", "streamed", "gates"))
    parser.add_argument("--model")
    parser.add_argument("--corpus")
    parser.add_argument("--saes")
    parser.add_argument("--n-stories", type=int, default=150)
    parser.add_argument("--held-out", type=int, default=60)
    parser.add_argument("--context", type=int, default=160)
    parser.add_argument("--n-features", type=int, default=100)
    parser.add_argument("--shape", choices=SHAPES, default="0.5b")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--fit", choices=FITS, default="affine gates")
    parser.add_argument("--checkpoint", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    {"losses": losses, "removals": removals, "streamed": streamed, "gates": gates}[arguments.task](arguments)


if __name__ == "__main__":
    main()
