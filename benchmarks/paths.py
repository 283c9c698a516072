"""Graphs of prompts: time and memory, predicted against real effects of removals, and what pruned graphs keep.

    python benchmarks/paths.py --task time effects pairs prune
    python benchmarks/paths.py --model FOLDER --task effects --prompts 50

Effects are of whole heads and whole MLPs on the logit of the most likely token; single pairs are the largest of a
prompt. Prompts are the starts of stories, in the model's own tokens.
"""

import argparse
import resource
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch

import bilinear_circuits as bc
from bilinear_circuits.paths.effects import Effects
from bilinear_circuits.paths.nodes import Node
from bilinear_circuits.paths.removal import Pair
from bilinear_circuits.statistics.correlations import correlation, slope


def main() -> None:
    """Run what was asked for and print a table."""
    arguments = parsed()
    torch.set_num_threads(arguments.threads)
    model, tokenizer = load(arguments.model)
    tasks = {"time": times, "effects": effects, "pairs": pairs, "prune": pruning}
    for task in arguments.task:
        for name, value in tasks[task](model, tokenizer, arguments):
            print(f"{arguments.model:.30}  {name:<58} {value}", flush=True)


def parsed() -> argparse.Namespace:
    """Arguments of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="ts-17m", help="a shipped model, or a folder")
    parser.add_argument("--corpus", default="ts-17m", help="stories whose starts are prompts")
    parser.add_argument("--task", nargs="+", choices=("time", "effects", "pairs", "prune"), default=["time"])
    parser.add_argument("--prompts", type=int, default=50)
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


def load(name: str) -> tuple[Any, Any]:
    """A model and its tokenizer; models that are not bilinear come from transformers."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from bilinear_circuits.zoo import model_path

    folder = model_path(name)
    return AutoModelForCausalLM.from_pretrained(folder).float().eval(), AutoTokenizer.from_pretrained(folder)


def prompts(tokenizer: Any, arguments: argparse.Namespace, n: int) -> Iterator[torch.Tensor]:
    """Starts of stories, of 12 to 27 tokens."""
    stories = bc.read_stories(bc.corpus_path(arguments.corpus), n)
    for at, story in enumerate(stories):
        ids = [tokenizer.bos_token_id, *tokenizer.encode(story, add_special_tokens=False)]
        yield torch.tensor(ids[: 12 + 7 * at % 16])


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """What some work gives, and its seconds."""
    start = time.perf_counter()
    return work(), time.perf_counter() - start


def peak() -> float:
    """Largest resident set so far, in GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def times(model: Any, tokenizer: Any, arguments: argparse.Namespace) -> Iterator[tuple[str, str]]:
    """Seconds and growth of the resident set for graphs with all pairs."""
    story = " ".join(bc.read_stories(bc.corpus_path(arguments.corpus), 4))
    ids = [tokenizer.bos_token_id, *tokenizer.encode(story, add_special_tokens=False)]
    for n, sources in ((19, True), (128, False)):
        tokens, before = torch.tensor(ids[:n]), peak()
        run, seconds = timed(lambda tokens=tokens: bc.FrozenRun(model, tokens))
        graph, more = timed(lambda run=run, sources=sources: run.graph(int(run.logits[-1].argmax()), sources=sources))
        kept, most = timed(lambda graph=graph: graph.mass(0.9))
        kind = "with sources" if sources else "components"
        yield f"{n} tokens, {kind}: sum - target", f"{graph.cut(0) - graph.total:+.1e} of {graph.total:.2f}"
        yield f"{n} tokens, {kind}: pairs, share with 90 % of mass", f"{kept.n_pairs} {kept.share_of_pairs:.3f}"
        yield f"{n} tokens, {kind}: s of run, flow, all pairs", f"{seconds:.2f} {more:.2f} {most:.2f}"
        yield f"{n} tokens, {kind}: GB above the start", f"{peak() - before:.2f} (peak {peak():.2f})"


def summary(name: str, found: list[Effects]) -> Iterator[tuple[str, str]]:
    """Correlation and slope of each prompt, and of all together."""
    predicted, real = (torch.cat([getattr(one, side) for one in found]) for side in ("predicted", "real"))
    rows = torch.tensor([[one.correlation, one.slope] for one in found]).nanmedian(0).values.tolist()
    yield f"{name}: n, r, slope of all", f"{len(real)} {correlation(predicted, real):.3f} {slope(predicted, real):.3f}"
    yield f"{name}: median r, slope of a prompt", f"{rows[0]:.3f} {rows[1]:.3f}"


def effects(model: Any, tokenizer: Any, arguments: argparse.Namespace) -> Iterator[tuple[str, str]]:
    """Whole heads and whole MLPs, removed one by one."""
    found = []
    for tokens in prompts(tokenizer, arguments, arguments.prompts):
        run = bc.FrozenRun(model, tokens)
        layers, heads = range(run.frozen.n_layers), range(run.frozen.n_heads)
        remove = [Node("head", layer, head=head) for layer in layers for head in heads]
        remove += [Node("mlp", layer) for layer in layers]
        found.append(run.effect(int(run.logits[-1].argmax()), remove))
    yield from summary("heads and MLPs", found)


def pairs(model: Any, tokenizer: Any, arguments: argparse.Namespace) -> Iterator[tuple[str, str]]:
    """Single pairs removed one by one: the twenty largest of every prompt, and twenty drawn from those kept."""
    found: dict[str, list[Effects]] = {"the 20 largest pairs": [], "20 pairs drawn from 90 %": []}
    for tokens in prompts(tokenizer, arguments, arguments.prompts):
        run = bc.FrozenRun(model, tokens, torch.float64)
        target = int(run.logits[-1].argmax())
        kept = run.graph(target).mass(0.9)
        drawn = torch.randperm(len(kept.value), generator=torch.Generator().manual_seed(0))
        for name, order in zip(found, (torch.arange(20), drawn[:20]), strict=True):
            columns = {name: getattr(kept, name)[order] for name in ("layer", "position", "first", "second", "value")}
            pairs = replace(kept, **columns).named(run.frozen, 20)
            found[name].append(run.effect(target, [Pair(*ends) for *ends, _ in pairs]))
    for name, some in found.items():
        yield from summary(name, some)


def pruning(model: Any, tokenizer: Any, arguments: argparse.Namespace) -> Iterator[tuple[str, str]]:
    """Pairs with 90 % of the mass alone."""
    for sources in (False, True):
        found = []
        for tokens in prompts(tokenizer, arguments, arguments.prompts):
            run = bc.FrozenRun(model, tokens)
            found.append(run.graph(int(run.logits[-1].argmax()), sources=sources).prune(0.9))
        kind = f"pruned to 90 %, {'with sources' if sources else 'components'}"
        n = len(found)
        yield f"{kind}: arg max kept", f"{sum(one.keeps_argmax for one in found)} of {n}"
        columns = [[one.share, one.kl, one.kept.share_of_pairs] for one in found]
        share, kl, pairs = torch.tensor(columns).mean(0).tolist()
        yield f"{kind}: mean share of target, KL, share of pairs", f"{share:.3f} {kl:.4f} {pairs:.3f}"


if __name__ == "__main__":
    main()
