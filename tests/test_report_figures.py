"""Figures as dictionaries: plotly takes them, and they hold the numbers of the results."""

import math
import re
from dataclasses import replace

import plotly.graph_objects as go
import pytest
import torch
from reports import make_search, modules


@pytest.fixture(scope="module")
def bc():
    return modules()


@pytest.fixture(scope="module")
def search(bc):
    return make_search(bc)


@pytest.fixture(scope="module")
def profile(search):
    return search.circuits[0].profile


def test_heatmap_holds_the_block_and_a_symmetric_scale(bc, profile):
    heatmap = go.Figure(bc.report.interaction_heatmap(profile))
    trace = heatmap.data[0]
    torch.testing.assert_close(torch.tensor(trace.z), profile.shape.block)
    assert (trace.zmin, trace.zmid, trace.zmax) == pytest.approx((-0.9, 0, 0.9))
    assert trace.customdata[0][2] == ["4 &lt;/script&gt;&lt;img src=x onerror=alert(1)&gt; · &lt;b&gt;x&lt;/b&gt;",
                                      "2 a⟨U+2028⟩b"]  # fmt: skip
    assert {(line.x0, line.y0) for line in heatmap.layout.shapes} == {(1.5, -0.5), (-0.5, 1.5)}


def test_plane_has_every_input_feature_once_and_names_the_members(bc, profile):
    plane = go.Figure(bc.report.eigenvector_plane(profile))
    points = {(x, y) for trace in plane.data for x, y in zip(trace.x, trace.y, strict=True)}
    assert points == {tuple(round(value, 5) for value in row) for row in profile.projections.tolist()}
    assert [len(trace.x) for trace in plane.data] == [3, 2, 1]
    named = {note.text.split()[0]: (note.x, note.y) for note in plane.layout.annotations}
    assert named == {str(feature): pytest.approx(tuple(profile.projections[feature].tolist())) for feature in (4, 1, 2)}


def test_spectrum_bars_are_the_eigenvalues_over_the_null(bc, profile):
    figure = go.Figure(bc.report.spectrum_bars(profile, n=3))
    assert list(figure.data[0].y) == [2.0, -1.5, 0.5]
    up, down = figure.data[0].marker.color[0], figure.data[0].marker.color[1]
    assert up != down
    assert figure.data[0].marker.color[2] == up
    band = figure.layout.shapes[0]
    assert (band.y0, band.y1) == pytest.approx((-math.sqrt(6.5), math.sqrt(6.5)))


def test_scatter_pairs_form_and_activation(bc, profile):
    trace = go.Figure(bc.report.rank2_scatter(profile)).data[0]
    assert list(zip(trace.x, trace.y, strict=True)) == [(0.1, 0.2), (0.4, 0.5), (0.9, 1.1)]


def test_forest_shows_every_effect_with_its_interval(bc, search):
    figure = go.Figure(bc.report.effect_forest(search.circuits))
    dots, points = figure.data
    rows = dict(zip(points.y, zip(points.x, points.error_x.array, points.error_x.arrayminus, strict=True), strict=True))
    ticks = list(figure.layout.yaxis.ticktext)
    assert rows[ticks.index("removal")] == pytest.approx((-0.5, 0.1, 0.1))
    assert rows[ticks.index("ablation, all trigger sites")] == (None, None, None)
    assert list(dots.x) == [0.03, -0.01, 0.02] * 2
    assert len(points.x) == 2 * 5
    means = {ticks[row]: mean for row, (mean, _, _) in rows.items()}
    assert means["removal"] == 0.5  # of the second circuit, which has the last row of that name


def strings(value):
    """Every string in a nested document."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        return [one for inner in value.values() for one in strings(inner)]
    return [one for inner in value for one in strings(inner)] if isinstance(value, list) else []


def test_no_figure_holds_markup_from_a_token(bc, search, profile):
    own = re.compile(r"<b>2/[34]</b>|<br>|<extra></extra>")
    for figure in (
        bc.report.effect_forest(search.circuits),
        bc.report.interaction_heatmap(profile),
        bc.report.eigenvector_plane(profile),
        bc.report.spectrum_bars(profile),
        bc.report.rank2_scatter(profile),
    ):
        texts = strings(figure)
        assert not [text for text in texts if "<" in own.sub("", text)]


def test_figures_stand_an_empty_group_and_a_zero_block(bc, profile):
    none = torch.tensor([], dtype=torch.long)
    shape = bc.shape.AndShape(none, none, torch.zeros(0), torch.zeros(0, 0), 0.0)
    empty = replace(profile, shape=shape, input_labels=())
    assert len(bc.report.eigenvector_plane(empty)["data"][0]["x"]) == 6
    assert "Layer 2, feature 3" in bc.report.feature_page(empty, {})
    flat = replace(profile, shape=replace(profile.shape, block=torch.zeros(3, 3)))
    assert bc.report.interaction_heatmap(flat)["data"][0]["zmax"] == 1.0
