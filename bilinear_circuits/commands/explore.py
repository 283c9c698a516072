"""Write a page on which circuits are explored: interactions, eigenvectors, and prompts followed term by term.

Reads circuits from circuit.json of `bilinear-circuits circuits`, or takes output features by name, and writes
explorer.html, one file that needs no server, and explorer.json. `bilinear-circuits serve` shows the same page and
answers prompts of your own.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simple_parsing import field

from bilinear_circuits.command_line import common, records
from bilinear_circuits.command_line.circuit_file import CircuitFile, read_circuit_file, read_proofs
from bilinear_circuits.command_line.corpus import corpus_of, tokenized
from bilinear_circuits.command_line.outputs import Outputs
from bilinear_circuits.data.corpora import Corpus
from bilinear_circuits.utilities.display import Brief
from bilinear_circuits.utilities.feature import Feature

if TYPE_CHECKING:
    from bilinear_circuits.interactions.activity import LayerActivity
    from bilinear_circuits.interactions.neighbourhood import Neighbourhood
    from bilinear_circuits.interactions.profiles import FeatureProfile
    from bilinear_circuits.surgery.edits import FormEdit

RANK = 2  # of the form that the edit removes
WRITTEN = "written for this page"
# A negation turns a word around; the same words without it, and sentences of other kinds, show what that adds.
DEFAULT_PROMPTS = (
    "lily was happy . from that day on , she never forgot her friend .",
    "tim was sad because his car was not fast .",
    "she tried to lift the box , but she couldn't . it was not easy .",
    "the dog was sad and he did not want to play .",
    "tom was happy . he was not sad .",
    "tom was not happy . he was sad .",
    "the car was not good .",
    "the car was very good .",
    "the bird could not fly . its wing was hurt .",
    "the bird could fly . its wing was strong .",
    "ben learned that it is nice to share toys with his friends .",
    "once upon a time there was a little girl who loved to play in the park .",
)
_BEFORE, _AFTER = 16, 4  # tokens of a context


OUTPUTS = Outputs("explorer.json", "circuit explorer", ("explorer.html",))


@dataclass(kw_only=True)
class Arguments(common.GateArguments, common.LabelArguments):
    """Options of `explore`."""

    circuit: str | None = field(default=None, positional=True, nargs="?", metavar="CIRCUIT.json")
    """Circuits to show: circuit.json of bilinear-circuits circuits."""

    features: list[str] | None = None
    """Output features to show, such as 4/143; needed where no CIRCUIT.json is given, by default all circuits of it."""

    prompts: str | None = None
    """YAML file with a list of texts under the key prompts; by default a dozen with and without negation."""

    n_examples: int = 2
    """Stretches of the corpus in which each feature is strongest, shown as prompts besides."""

    n_members: int = 40
    """Input features in the matrix and the network of each circuit."""

    n_stories: int = 200
    """Stories read from the corpus."""

    out: str = "out/explorer"
    """Folder for explorer.html and explorer.json."""


class PromptAnswers:
    """Explains prompts, one after the other: what does not depend on the prompt is computed once.

    Attributes:
        names: Output features it explains.
    """

    def __init__(self, model: Any, activities: "Sequence[LayerActivity]", names: Sequence[tuple[int, int]]) -> None:
        """Convert the interactions to float64 and decompose the form of every feature."""
        from bilinear_circuits.interactions.naming import FeatureNames
        from bilinear_circuits.prompts.accounts import in_float64
        from bilinear_circuits.surgery.edits import FormEdit

        self.names = tuple(Feature(*one) for one in names)
        self._model = model
        exact = {activity.interactions.mlp.layer: in_float64(activity.interactions) for activity in activities}
        self._interactions = tuple(exact.values())
        self._edits = {name: FormEdit.of(exact[name[0]], name[1], RANK) for name in self.names}
        self._name = FeatureNames(activities, model.tokenizer)

    def __call__(self, text: str, names: "Sequence[tuple[int, int]] | None" = None) -> dict[str, Any]:
        """The account of a prompt as `report.prompts.prompt_payload` writes it.

        Args:
            text: The prompt.
            names: Output features, among those of this object; all of them by default.

        Raises:
            ValueError: If the text has no token or more than the model takes, or a feature is not one of this object.
        """
        from bilinear_circuits.models.running import context_length
        from bilinear_circuits.prompts.accounts import explain_prompt, prompt_tokens
        from bilinear_circuits.report.prompts import prompt_payload

        chosen = self.names if names is None else tuple(Feature(*one) for one in names)
        for name in chosen:
            if name not in self._edits:
                known = ", ".join(map(str, self.names))
                raise ValueError(f"features must be among those explored ({known}), got {name}.")
        tokens = prompt_tokens(text, self._model.tokenizer, context_length(self._model))
        edits: dict[tuple[int, int], FormEdit] = {name: self._edits[name] for name in chosen}
        account = explain_prompt(self._model, self._interactions, chosen, tokens, edits=edits)
        return prompt_payload(account, text, self._model.tokenizer, self._name)


@dataclass(frozen=True, eq=False, repr=False)
class Explorer(Brief):
    """What the explorer is made of, as `bilinear-circuits serve` needs it to answer further prompts.

    Attributes:
        model: The model.
        answers: Explains further prompts in the features shown.
        document: What the page shows, as `report.explorer.explorer_document` makes it.
    """

    model: Any
    answers: PromptAnswers
    document: Mapping[str, Any]


def run(arguments: Arguments) -> None:
    """Measure the circuits, run the prompts, write the page."""
    started = time.perf_counter()
    common.check_out(arguments.out)

    from bilinear_circuits.report.explorer import explorer_page

    document = prepare(arguments).document
    page = explorer_page(document)
    with common.written_whole(arguments.out, first=OUTPUTS.record) as folder:
        (folder / "explorer.json").write_text(common.to_json(document), encoding="utf-8")
        (folder / "explorer.html").write_text(page, encoding="utf-8")
    names = ", ".join(circuit["name"] for circuit in document["circuits"])
    print(f"circuits {names} in {len(document['prompts'])} prompts, {time.perf_counter() - started:.0f} s. Written:")
    print(f"  {Path(arguments.out) / 'explorer.html'} ({len(page.encode()) / 1e6:.1f} MB)")
    print(f"  {Path(arguments.out) / 'explorer.json'}")


def prepare(arguments: Arguments) -> Explorer:
    """Load the model, measure the circuits on the corpus and run the prompts.

    Raises:
        FileNotFoundError: If there is no such circuit.json, prompt file, model, dictionary or corpus.
        ValueError: If features are missing, misspelt or unknown, or the file is of another model.
    """
    started = time.perf_counter()
    asked = None if arguments.circuit is None else read_circuit_file(arguments.circuit)
    names, proofs = _asked_for(arguments, asked)
    texts = DEFAULT_PROMPTS if arguments.prompts is None else read_prompts(arguments.prompts)
    _check_counts(arguments)
    layers = common.check_layers(sorted({layer for layer, _ in names}), common.saes_of(arguments))
    corpus = corpus_of(arguments) if asked is None else asked.corpus_of(arguments)

    from bilinear_circuits.interactions.activity import collect_activity
    from bilinear_circuits.models.running import context_length
    from bilinear_circuits.report.explorer import explorer_document

    stories = corpus.read(arguments.n_stories)
    model, interactions = common.load_interactions(arguments, layers, corpus=corpus)
    by_layer = dict(zip(layers, interactions, strict=True))
    for layer, feature in names:
        by_layer[layer].check_feature(feature)
    tokens = tokenized(corpus, stories, model.tokenizer, context_length(model))
    activities = dict(zip(layers, collect_activity(model, interactions, tokens, common.bar), strict=True))
    profiles, around = _measured(model, activities, names, arguments.n_members)
    answers = PromptAnswers(model, tuple(activities.values()), names)
    prompts = _prompts(answers, activities, texts, model.tokenizer, arguments.n_examples)
    seconds = time.perf_counter() - started
    source = records.provenance(_resolved(arguments, names, corpus), interactions, corpus, len(stories), seconds)
    document = explorer_document(profiles, around, prompts, source, proofs)
    return Explorer(model, answers, document)


def _measured(
    model: Any, activities: "Mapping[int, LayerActivity]", names: Sequence[Feature], n_members: int
) -> "tuple[list[FeatureProfile], list[Neighbourhood]]":
    """Every circuit on the corpus, and the input features around it."""
    from bilinear_circuits.interactions.neighbourhood import neighbourhood
    from bilinear_circuits.interactions.profiles import profile_feature
    from bilinear_circuits.models.running import unembedding

    words = unembedding(model)
    profiles = [
        profile_feature(activities[layer], feature, words, model.tokenizer)
        for layer, feature in common.bar(names, "circuits")
    ]
    around = [
        neighbourhood(activities[profile.layer], profile, model.tokenizer, n_members)
        for profile in common.bar(profiles, "input features")
    ]
    return profiles, around


def _resolved(arguments: Arguments, names: Sequence[Feature], corpus: Corpus) -> Arguments:
    """What was asked for, with what was left open filled in, and files by their names alone."""
    return replace(
        arguments,
        circuit=None if arguments.circuit is None else Path(arguments.circuit).name,
        prompts=None if arguments.prompts is None else Path(arguments.prompts).name,
        features=[str(name) for name in names],
        saes=common.saes_of(arguments),
        corpus=records.display_name(corpus.path),
    )


def read_prompts(path: str) -> tuple[str, ...]:
    """The texts of a prompt file.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no YAML mapping with a list of texts under `prompts`, and nothing else.
    """
    content = common.read_yaml(path, "prompts")
    texts = content.pop("prompts", None)
    if content:
        raise ValueError(f"{path} must hold the key prompts alone, got {', '.join(map(str, content))} too.")
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) and text.strip() for text in texts):
        raise ValueError(f'prompts of {path} must be a list of texts, got {texts!r:.60}. Quote texts such as "no".')
    return tuple(dict.fromkeys(texts))


def _asked_for(arguments: Arguments, asked: CircuitFile | None) -> tuple[list[Feature], Mapping[str, Any]]:
    """Layer and feature of every circuit, and what is proved of them."""
    if asked is not None and arguments.circuit is not None:
        chosen = (asked if arguments.features is None else asked.only(arguments.features)).targets
        asked.check_source(arguments)
        return [circuit.key for circuit in chosen], read_proofs(arguments.circuit)
    if not arguments.features:
        raise ValueError("a CIRCUIT.json or --features must be given, such as --features 4/143 4/1846, got neither.")
    return [Feature.parse(name) for name in dict.fromkeys(arguments.features)], {}


def _check_counts(arguments: Arguments) -> None:
    for name, least in (("n_examples", 0), ("n_members", 2), ("n_stories", 1)):
        if getattr(arguments, name) < least:
            raise ValueError(f"{name} must be at least {least}, got {getattr(arguments, name)}.")


def _prompts(
    answers: PromptAnswers,
    activities: "Mapping[int, LayerActivity]",
    texts: Sequence[str],
    tokenizer: Any,
    n_examples: int,
) -> list[dict[str, Any]]:
    """Every text once, with where it comes from: those asked for, then where each feature is strongest."""
    sources = dict.fromkeys(texts, WRITTEN)
    for name in answers.names:
        for text in strongest_contexts(activities[name.layer], name.number, tokenizer, n_examples):
            sources.setdefault(text, f"strongest in the corpus for {name}")
    return [{"source": source, **answers(text)} for text, source in common.bar(list(sources.items()), "prompts")]


def strongest_contexts(activity: "LayerActivity", feature: int, tokenizer: Any, n: int) -> list[str]:
    """Stretches of n different stories of the corpus around the tokens at which an output feature is strongest."""
    from bilinear_circuits.interactions.examples import stretch

    token, value = activity.outputs[feature]
    found: dict[int, str] = {}
    for at in token[value.argsort(descending=True)].tolist():
        if len(found) >= n:
            break
        story = int(activity.story[at])
        if story not in found:
            ids = activity.token_ids[stretch(activity.story, at, _BEFORE, _AFTER)].tolist()
            found[story] = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
    return list(found.values())
