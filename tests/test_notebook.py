"""Results in notebooks: tables that are whole and escaped, figures that plotly takes, and saving as before."""

import math
from types import SimpleNamespace

import plotly.graph_objects as go
import pytest
import torch
from helpers import D_IN, randn, random_interactions, random_matrix
from reports import HOSTILE, SCRIPT, Elements, make_discoveries, make_proof, make_search, modules

POSITIVE, NEGATIVE = "#2b7bba", "#d8701a"


@pytest.fixture(scope="module")
def bc():
    """The modules under test, imported under the shape-checking hook."""
    from bilinear_circuits.algebra import spectra
    from bilinear_circuits.interactions import low_rank as lowrank
    from bilinear_circuits.report import notebook
    from bilinear_circuits.report.figures import results
    from bilinear_circuits.utilities import display, saving

    return SimpleNamespace(
        display=display, lowrank=lowrank, notebook=notebook, results=results, saving=saving, spectra=spectra
    )


@pytest.fixture(scope="module")
def interactions(bc):
    return random_interactions()[0]


@pytest.fixture(scope="module")
def found(bc, interactions):
    """One result of every kind that an MLP between two dictionaries gives."""
    x = randn(40, D_IN, seed=3)
    return {
        "tensor": interactions.mlp.tensor,
        "dictionary": interactions.sae_in,
        "matrix": interactions.matrix(2),
        "spectrum": interactions.spectrum(2),
        "spectra": interactions.spectra(2).spectrum,
        "leading": interactions.spectra(2),
        "top": interactions.top(20),
        "ledger": interactions.ledger(x[:3], 2),
        "long ledger": interactions.ledger(x, 2),
        "one ledger": interactions.ledger(x[0], 2),
        "pairs": interactions.pair_contributions(x[0], 2),
        "low rank": bc.lowrank.low_rank_correlation(interactions, x, ranks=[1, 2], min_active=3),
        "statistics": interactions.statistics(precision="float32"),
    }


def text_of(result):
    """The table of a result as text, its elements checked to nest."""
    return Elements(result._repr_html_())


def test_every_result_has_a_table_that_nests_and_holds_no_script(bc, found):
    for name, result in found.items():
        shown = text_of(result)
        assert shown.opened == [], name
        assert {tag for tag, _ in shown.elements} <= {
            "div",
            "b",
            "small",
            "span",
            "table",
            "thead",
            "tbody",
            "tr",
            "th",
            "td",
        }
        assert shown.text.strip(), name


def test_a_spectrum_shows_its_leading_eigenvalues_in_the_colour_of_their_sign(bc):
    spectrum = bc.spectra.Spectrum(torch.tensor([2.0, -1.5]), torch.eye(4)[:, :2], torch.tensor(3.0))
    shown = spectrum._repr_html_()
    assert f'<span style="color:{POSITIVE}">+2.00</span>, <span style="color:{NEGATIVE}">−1.50</span>' in shown
    assert "2 of 4 eigenpairs" in shown
    assert "0 of the 2 computed, beyond ±3.00" in shown  # the edge 2 * 3 / sqrt(4)
    figure = spectrum.plot()
    assert isinstance(figure, go.Figure)
    assert list(figure.data[0].y) == [2.0, -1.5]
    assert list(figure.data[0].marker.color) == [POSITIVE, NEGATIVE]
    assert figure.layout.shapes[0].y1 == 3.0


def test_a_layer_and_a_dictionary_say_what_they_are(found):
    assert (
        "3 × 5 × 5, symmetric in the last twokept asthree matrices of 7 neurons, 91 numbers"
        in text_of(found["tensor"]).text
    )
    assert "11 on 5 dimensionsactivationtopk, k = 4" in text_of(found["dictionary"]).text


def test_spectra_of_a_batch_say_how_to_draw_one(found):
    assert "spectrum[index]" in text_of(found["spectra"]).text
    with pytest.raises(ValueError, match=r"spectrum must be that of one matrix, got eigenvalues \(9, 2\)"):
        found["spectra"].plot()
    assert len(found["spectra"][0].plot().data[0].y) == 2


def test_a_matrix_shows_eigenvalues_that_it_never_formed_a_matrix_for(bc):
    matrix = random_matrix(d=90, d_mlp=12, seed=4)
    leading = bc.notebook.algebra.leading_spectrum(matrix, 6)
    expected = torch.linalg.eigvalsh(matrix.to_dense())
    expected = expected[expected.abs().argsort(descending=True)][:6]
    torch.testing.assert_close(leading.eigenvalues, expected, rtol=1e-4, atol=0)
    torch.testing.assert_close(
        matrix @ leading.eigenvectors, leading.eigenvectors * leading.eigenvalues, rtol=0, atol=0.02
    )
    assert leading.frobenius_norm.item() == pytest.approx(torch.linalg.matrix_norm(matrix.to_dense()).item())
    assert "90 × 90, kept as factors of 12 neurons" in text_of(matrix).text


def test_a_batch_of_matrices_is_named_and_not_drawn():
    matrix = random_matrix(batch=(3,))
    assert "3" in text_of(matrix).text
    with pytest.raises(ValueError, match=r"matrix must be a single one to be drawn, got a batch \(3, 5, 5\)"):
        matrix.plot()


def test_the_largest_interactions_are_listed_and_drawn_in_order(found):
    top = found["top"]
    text = text_of(top).text
    assert "the first 12 of 20 rows" in text
    assert "exact: of 594 interactions" in text  # 9 outputs, 11 * 12 / 2 pairs
    bars = top.plot().data[0]
    assert list(bars.x) == pytest.approx(top.weights.tolist(), rel=1e-6)
    output, first, second, _ = next(iter(top))
    assert bars.text[0] == f"{output}: {first} × {second}"
    assert top.of(output).plot().data[0].text[0] == f"{first} × {second}"


def test_a_ledger_of_tokens_is_a_map_around_zero_with_the_total_below(bc, found):
    ledger = found["ledger"]
    heat = ledger.plot().data[0]
    assert heat.zmid == 0
    assert heat.zmin == -heat.zmax
    assert len(heat.z) == len(ledger.terms) + 1
    assert list(heat.z[-1]) == pytest.approx(ledger.total.tolist(), rel=1e-4)
    named = bc.results.ledger_map(ledger, ["the", "<b>", " x"])
    assert named["layout"]["xaxis"]["ticktext"] == ["the", "&lt;b&gt;", "␣x"]


def test_a_ledger_of_one_token_is_bars_and_one_of_many_says_mean_and_range(found):
    one, many = found["one ledger"], found["long ledger"]
    bars = one.plot().data[0]
    assert list(bars.x)[:-1] == pytest.approx([term.item() for term in one.terms.values()], rel=1e-5)
    assert "pairs of input features: the circuit proper" in text_of(one).text
    assert "least" in text_of(many).text
    with pytest.raises(ValueError, match="ledger must hold 1 to 64 positions to be drawn, got 0"):
        type(one)(*(term.reshape(-1)[:0] for term in (*one.terms.values(), one.active))).plot()


def test_pairs_are_drawn_as_what_they_add(found):
    pairs = found["pairs"]
    assert list(pairs.plot().data[0].x) == pytest.approx(pairs.contributions.tolist(), rel=1e-5)
    assert f"What {len(pairs.first)} pairs of input features add" in text_of(pairs).text


def test_low_rank_correlations_are_boxes_of_their_quartiles(bc):
    correlation = torch.tensor([[0.1, 1.0], [0.2, 1.0], [0.3, 1.0], [0.4, 1.0], [0.9, 1.0], [math.nan, math.nan]])
    result = bc.lowrank.LowRankCorrelation(
        torch.arange(6), (2, 5), correlation.double(), torch.tensor([20] * 5 + [1]), 10
    )
    box = result.plot().data[0]
    assert [box.q1[0], box.median[0], box.q3[0]] == pytest.approx([0.2, 0.3, 0.4])
    assert list(box.x) == ["2", "full"]
    assert "20.0 %" in text_of(result).text
    nothing = bc.lowrank.LowRankCorrelation(torch.arange(1), (5,), correlation[5:, :1].double(), torch.tensor([1]), 10)
    with pytest.raises(ValueError, match="result must hold a feature with enough active tokens"):
        nothing.plot()


def test_magnitudes_of_interactions_are_counted_per_factor_of_two(found):
    statistics = found["statistics"]
    positive, negative = statistics.plot().data
    assert (positive.name, positive.line.color, negative.line.color) == ("positive", POSITIVE, NEGATIVE)
    octaves = (statistics.edges[2:] / statistics.edges[1:-1]).log2().double()
    shown = torch.tensor([value or 0.0 for value in positive.y], dtype=torch.double)
    counted = statistics.positive.sum(0)[1 : 1 + len(octaves)].double()
    torch.testing.assert_close(shown * octaves, counted, rtol=1e-4, atol=0)


def test_a_search_shows_its_circuits_and_offers_every_figure_of_its_page(bc):
    search = make_search(modules())
    shown = text_of(search)
    assert shown.opened == []
    for expected in ("2/3", "pushes to", "−0.500 [−0.600, −0.400], n = 12", f"Circuits: {SCRIPT}"):
        assert expected in shown.text
    assert list(bc.notebook.figures_of(search))[:2] == ["forest", "2-3-heatmap"]
    assert search.plot("2-4-plane").data[1].name == "first group"
    with pytest.raises(ValueError, match=r"kind must be one of forest, 2-3-heatmap, .*, got 'pie'"):
        search.plot("pie")


def test_a_circuit_a_profile_and_a_proof_stand_by_themselves():
    circuit = make_search(modules()).circuits[0]
    assert text_of(circuit).text.count("Feature 2/3") == 1
    assert circuit.plot().layout.yaxis.ticktext[0] == "<b>2/3</b>, pushes to +"
    assert len(circuit.profile.plot().data) == 3  # the plane
    assert circuit.profile.plot("heatmap").data[0].type == "heatmap"
    proof = make_proof(modules())
    assert proof.plot().layout.yaxis.ticktext[0] == "<b>circuit</b>, rank 2"
    assert "ablation, all trigger sites–, n = 0" in text_of(proof).text


def test_hostile_tokens_are_text_and_nothing_else():
    for result in (make_search(modules()), make_search(modules()).circuits[0]):
        shown = text_of(result)
        assert all(tag not in ("script", "img") for tag, _ in shown.elements)
        assert all(set(attributes) <= {"style"} for _, attributes in shown.elements)
        assert SCRIPT in shown.text
        for _, spec in modules().html.figures.search_figures(make_search(modules())).items():
            assert "<img" not in str(spec)
    assert "⟨U+202E⟩reversed" in text_of(make_search(modules()).circuits[0].profile).text
    assert HOSTILE[0] == SCRIPT


def test_discoveries_are_drawn_by_motif_beside_the_null(bc):

    search = make_discoveries()
    (echo,) = search.echoes
    text = text_of(search).text
    assert "Motifs of 20 output features at a false-discovery rate of 5 %" in text
    assert "−0.250 (1, 2, 3, 4 …) × (6)" in text
    assert "none" in text
    discovery, echoes, apart, null = search.plot().data
    assert (discovery.name, list(discovery.x), list(discovery.y)) == ("discovery (1)", [0.8], [0.75])
    assert (list(echoes.y), len(apart.x)) == ([0.0], 0)
    assert list(null.x) == [0.4, 0.3]
    assert "echo of4/143" in text_of(echo).text


def test_the_remaining_results_have_tables(bc):
    from bilinear_circuits.interactions.bounds import Summary
    from bilinear_circuits.interactions.completeness import CircuitCompleteness

    summary = Summary(4, 0.5, (0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0))
    result = CircuitCompleteness(4, 143, 32, 9, summary, summary, 0.6, 0.25, 0.125, 0)
    text = text_of(result).text
    assert "the 32 of the circuit0.5000.1000.9000.250" in text
    assert "over 4 of 9 active tokens" in text
    assert not hasattr(result, "plot")


def test_what_has_no_table_is_refused_by_its_class(bc):
    with pytest.raises(TypeError, match="result must be of a class with a table, got a dict"):
        bc.notebook.html_of({})
    with pytest.raises(TypeError, match="result must be of a class with figures, got a dict"):
        bc.notebook.figures_of({})


def test_results_are_saved_and_loaded_as_before(bc, found, tmp_path):
    for name in ("spectrum", "top", "ledger", "pairs"):
        result = found[name]
        bc.saving.save_result(result, tmp_path / name)
        again = bc.saving.load_result(type(result), tmp_path / name)
        assert again._repr_html_() == result._repr_html_()
        for field, value in vars(result).items():
            if isinstance(value, torch.Tensor):
                torch.testing.assert_close(getattr(again, field), value, rtol=0, atol=0)


def test_the_mixins_leave_no_trace_in_the_results(bc, found):
    assert bc.display.Shown.__slots__ == bc.display.Drawn.__slots__ == ()
    spectrum = found["spectrum"]
    assert set(vars(spectrum)) == {"eigenvalues", "eigenvectors", "frobenius_norm"}
    with pytest.raises(AttributeError):
        spectrum.eigenvalues = None
