"""Results made by hand, with hostile token texts: what the tests of reports and pages show."""

import math
from functools import cache
from html.parser import HTMLParser
from types import SimpleNamespace

import torch

SCRIPT = "</script><img src=x onerror=alert(1)>"
HOSTILE = (SCRIPT, "<!--", "{{7*7}}", "a\u2028b", "<b>bold</b>", "\u202ereversed", '" onmouseover="alert(2)', "'); x('")
PROVENANCE = {
    "model": {"name": "tiny", "sha256": "ab12"},
    "dictionaries": [{"name": SCRIPT, "d_sae": 6}, {"name": "out", "d_sae": 5}],
    "corpus": {"name": "by hand", "n_stories": 3},
    "commit": None,
    "seconds": math.inf,
}


@cache
def modules():
    """The modules under test, imported under the shape-checking hook."""
    from bilinear_circuits import circuits, report
    from bilinear_circuits.algebra import spectra
    from bilinear_circuits.interactions import profiles, shape
    from bilinear_circuits.report import html, text

    return SimpleNamespace(
        circuits=circuits, profiles=profiles, report=report, shape=shape, spectra=spectra, html=html, text=text
    )


def make_profile(bc, feature=3):
    eigenvalues = torch.tensor([2.0, -1.5, 0.5, 0.0])
    block = torch.tensor([[0.1, 0.2, -0.9], [0.2, 0.0, 0.8], [-0.9, 0.8, -0.3]])
    shape = bc.shape.AndShape(
        torch.tensor([4, 1]), torch.tensor([2]), torch.tensor([0.5, 0.25, 0.125]), block, 0.75
    )  # fmt: skip
    return bc.profiles.FeatureProfile(
        layer=2,
        feature=feature,
        label=" · ".join(HOSTILE[:3]),
        frequency=0.01,
        top_tokens=HOSTILE,
        promoted=((SCRIPT, 0.5), (" ", 0.4), ("", 0.3), ("\n", 0.2)),
        suppressed=(("<!--", -0.5), ("{{7*7}}", -0.25)),
        spectrum=bc.spectra.Spectrum(eigenvalues, torch.eye(4), eigenvalues.norm()),
        shape=shape,
        input_labels=(f"{SCRIPT} · <b>x</b>", "{{7*7}} · <!--", "a\u2028b"),
        projections=torch.tensor([[0.0, 0.1], [0.6, -0.2], [-0.7, 0.3], [0.05, 0.0], [0.8, 0.9], [0.0, -0.1]]),
        eigenvector_labels=(((4, SCRIPT, 0.8), (2, "<!--", -0.7)), ((4, "plain", 0.9),)),
        predicted=torch.tensor([0.1, 0.4, 0.9]),
        actual=torch.tensor([0.2, 0.5, 1.1]),
        rank2_correlation=0.875,
        terms={"feature_feature": 0.5, "constant": -0.125},
        completeness=1.25,
        examples=(
            bc.profiles.Example(HOSTILE, (0.0, 0.5, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0), 3, 1.0),
            bc.profiles.Example(("the", "end"), (0.25, 0.0), 0, 0.5),
        ),
    )


def make_effect(bc, mean, half=0.1, n=12):
    return bc.circuits.Effect(mean, mean - half, mean + half, n)


def make_proof(bc, sign=1, removal=None, control=None, trigger=0.02):
    nothing = bc.circuits.Effect(math.nan, math.nan, math.nan, 0)
    return bc.circuits.CausalProof(
        rank=2,
        removal=removal or make_effect(bc, -0.5 * sign),
        removal_all_sites=make_effect(bc, -0.25 * sign),
        ablation=make_effect(bc, -0.4 * sign),
        ablation_all_sites=nothing,
        control=control or make_effect(bc, 0.01),
        controls=(
            bc.circuits.Control(0, 30, 2, 1.5, make_effect(bc, 0.03)),
            bc.circuits.Control(1, 20, 1, 1.25, make_effect(bc, -0.01)),
        ),
        trigger_control=make_effect(bc, 0.02, 0.01),
        trigger_controls=(bc.circuits.Control(5, 25, 9, 1.0, make_effect(bc, trigger)),),
        p_value=1 / 4,
        ce_base=1.5,
        ce_removal=make_effect(bc, 0.0002, 0.0005),
        ce_ablation=make_effect(bc, 0.0001, 0.0005),
    )


def make_evidence(bc, feature, shift):
    return bc.circuits.Evidence(
        2, feature, 0.5, shift, 1.5, 0.9, 0.75, 0.6, math.nan, 40, 20, (2.0, -1.5, 0.5, 0.0), 0.8
    )


def make_search(bc):
    best, other = make_evidence(bc, 3, 2.0), make_evidence(bc, 4, -1.0)
    return bc.circuits.CircuitSearch(
        query=bc.circuits.CircuitQuery(SCRIPT, ("not", SCRIPT), ("good", "<!--"), ("bad", "{{7*7}}"), True),
        missing=(SCRIPT,),
        ranking=(best, other, make_evidence(bc, 0, 0.5)),
        circuits=(
            bc.circuits.Circuit(best, make_profile(bc, 3), make_proof(bc, 1)),
            bc.circuits.Circuit(other, make_profile(bc, 4), make_proof(bc, -1)),
        ),
        decoder_cosine=torch.tensor([[1.0, -0.5], [-0.5, 1.0]]),
        settings=bc.circuits.SearchSettings(controls=2),
        n_tokens=1234,
        n_trigger_tokens=56,
        n_sites=8,
        seed=7,
    )


def make_discoveries():
    from bilinear_circuits.discovery.results import Block, Discovery, DiscoverySearch, DiscoverySettings

    block = Block((1, 2, 3, 4, 5), (6,), (1.0,) * 5, (1.0,), -0.25, 30, 1.0, 0.1)
    one = Discovery(4, 143, "flip", 0.8, 0.7, 1e-4, 2e-3, (block,), (0.5, -0.4), None)
    echo = Discovery(4, 9, "and", 0.6, 0.1, 1e-4, 2e-3, (block,), (0.5, -0.4), 143)
    return DiscoverySearch(
        (one,), (echo,), (), 20, 40, {"and": 0.5, "flip": math.inf},
        {"layer": {"and": 0.9, "flip": 0.9}, "refit": {"and": 0.4, "flip": 0.3}}, DiscoverySettings(), 0,
    )  # fmt: skip


class Elements(HTMLParser):
    """Collects the elements of a page, checks that they nest, and keeps scripts by id and text outside of them."""

    VOID = frozenset({"meta", "br", "img", "link", "input", "hr"})

    def __init__(self, page):
        super().__init__()
        self.opened, self.elements, self.scripts, self.text = [], [], {}, ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self.opened.append(tag)

    def handle_endtag(self, tag):
        assert self.opened.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data):
        if self.opened and self.opened[-1] == "script":
            name = self.elements[-1][1].get("id", "page")
            self.scripts[name] = self.scripts.get(name, "") + data
        elif not self.opened or self.opened[-1] != "style":
            self.text += data
