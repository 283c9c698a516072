"""Prove circuits edge by edge: take out single pair terms, nodes, the circuit or all but it, and run the model.

Reads circuit.json of `bilinear-circuits circuits`, takes its circuits apart on stories that played no part in the
search, prints short tables and writes report.html, proof.json (its numbers), result.json and result.safetensors.
"""

import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simple_parsing import field

from bilinear_circuits.command_line import common, records
from bilinear_circuits.command_line.circuit_file import read_circuit_file
from bilinear_circuits.command_line.corpus import tokenized
from bilinear_circuits.command_line.outputs import Outputs
from bilinear_circuits.command_line.values import check_most
from bilinear_circuits.utilities.folders import file_hash

if TYPE_CHECKING:
    from bilinear_circuits.interventions import CircuitProofs, ProofSettings


OUTPUTS = Outputs("proof.json", "circuit proof", ("report.html", "result.json", "result.safetensors"))


@dataclass(kw_only=True)
class Arguments(common.GateArguments, common.LabelArguments):
    """Options of `prove`."""

    circuit: str = field(positional=True, metavar="CIRCUIT.json")
    """Circuits to prove: circuit.json of bilinear-circuits circuits."""

    features: list[str] | None = None
    """Circuits of the file to prove, such as 4/143; by default all."""

    n_edges: int = 32
    """Edges of a circuit: the pairs of input features with the largest mean contribution at the triggers."""

    n_exact: int = 64
    """Single edges measured on the feature's pre-activation, each at one site."""

    n_draws: int = 5
    """Random subsets of the circuit's complement, of each size."""

    n_controls: int = 6
    """Control features of either kind."""

    n_nonsense: int = 1000
    """Random pairs of poles."""

    out: str
    """Folder for report.html, proof.json, result.json and result.safetensors."""


def run(arguments: Arguments) -> None:
    """Prove, print tables, write the numbers."""
    started = time.perf_counter()
    asked = read_circuit_file(arguments.circuit)
    asked = asked if arguments.features is None else asked.only(arguments.features)
    common.check_out(arguments.out)
    settings = _settings(arguments)
    saes = common.saes_of(arguments)
    asked.check_source(arguments)
    layers = common.check_layers(asked.layers, saes)
    corpus = asked.corpus_of(arguments)

    from bilinear_circuits.commands.prove_tables import tables
    from bilinear_circuits.data.token_texts import TokenTexts
    from bilinear_circuits.interventions import prove_circuits
    from bilinear_circuits.models.running import context_length
    from bilinear_circuits.report.pages import proof_page
    from bilinear_circuits.utilities.saving import save_result

    stories = corpus.read(asked.n_stories)
    if not asked.is_corpus(corpus):
        common.note("the corpus is not that of the search: edges and sites are chosen on other stories")
    known = [layer for layer in common.check_layers(None, saes) if layer >= layers[0]]
    model, interactions = common.load_interactions(arguments, known, corpus=corpus)
    tokens = tokenized(corpus, stories, model.tokenizer, min(asked.settings.context, context_length(model)))
    proofs = prove_circuits(model, interactions, asked, tokens, settings, arguments.seed, progress=common.bar)
    resolved = replace(
        arguments,
        saes=saes,
        corpus=records.display_name(corpus.path),
        features=[target.name for target in asked.targets],
    )
    source = records.provenance(resolved, interactions, corpus, len(stories), time.perf_counter() - started)
    source |= {"circuits": {"sha256": file_hash(Path(arguments.circuit)), "seed": asked.seed}}
    with common.written_whole(arguments.out, first=OUTPUTS.record) as folder:
        save_result(proofs, folder, source)
        (folder / "proof.json").write_text(common.to_json(_payload(proofs, source)), encoding="utf-8")
    common.write_page(arguments.out, lambda: proof_page(proofs, source, TokenTexts(model.tokenizer)))
    print(tables(proofs, model.tokenizer))
    print(f"\n{time.perf_counter() - started:.0f} s. Written:\n{OUTPUTS.listed(arguments.out)}")


def _settings(arguments: Arguments) -> "ProofSettings":
    """How much is measured.

    Raises:
        ValueError: If a number is below 1, or too large.
    """
    from bilinear_circuits.interventions import ProofSettings

    check_most(arguments, n_draws=1_000, n_nonsense=100_000)
    names = ("n_edges", "n_exact", "n_draws", "n_controls", "n_nonsense")
    return ProofSettings(**{name: getattr(arguments, name) for name in names})


def _payload(proofs: "CircuitProofs", source: dict[str, Any]) -> dict[str, Any]:
    """The proofs as a JSON document, null where a number could not be measured."""
    from bilinear_circuits.report.payload import plain

    content = {
        **asdict(replace(proofs, agreements={})),
        "agreements": {layer: one.table() for layer, one in proofs.agreements.items()},
        "proofs": [
            {"name": proof.name, **asdict(proof), "exactness": _exactness(proof.exactness)} for proof in proofs.proofs
        ],
    }
    return plain({"schema_version": 1, "kind": OUTPUTS.kind, "provenance": source, **content})


def _exactness(exactness: Any) -> dict[str, Any]:
    """With what follows from the measurements."""
    names = ("differenced_correlation", "written_correlation", "worst_error")
    return {**asdict(exactness), **{name: getattr(exactness, name) for name in names}}
