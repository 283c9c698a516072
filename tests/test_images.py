"""Images of figures: drawn by a real browser from the same descriptions as pages, or refused in one line."""

import struct
import sys
from types import SimpleNamespace

import pytest
from helpers import refused
from reports import make_profile, modules

TINY = {
    "data": [{"type": "bar", "x": [1, 2], "y": [0.5, -0.25], "text": ["</script><b>", "b"]}],
    "layout": {"height": 200, "paper_bgcolor": "rgba(0,0,0,0)", "font": {"color": "#808080", "size": 12}},
}


@pytest.fixture(scope="module")
def bc():
    """The modules under test, imported under the shape-checking hook."""
    from bilinear_circuits.report import figures, images

    return SimpleNamespace(images=images, figures=figures)


@pytest.fixture(scope="module")
def browser(bc):
    """Skips where there is no browser to draw with."""
    try:
        bc.images.check_images()
    except (ValueError, FileNotFoundError) as error:
        pytest.skip(str(error))


@pytest.fixture
def no_browser(monkeypatch, tmp_path_factory):
    """A machine without a browser, which is named all the same: what is refused before one starts needs none."""
    missing = tmp_path_factory.mktemp("browsers") / "no-browser"
    monkeypatch.setenv("BROWSER_PATH", str(missing))
    return missing


@pytest.mark.slow
def test_every_figure_becomes_a_png_and_an_svg(bc, browser, tmp_path):
    figures = {"tiny": TINY, **bc.figures.feature_figures(make_profile(modules()))}
    files = bc.images.write_images(figures, tmp_path / "images")
    assert sorted(files) == sorted((tmp_path / "images").iterdir())
    assert {file.name for file in files} >= {"tiny.png", "tiny.svg", "2-3-plane.png", "2-3-heatmap.svg"}
    png = (tmp_path / "images/tiny.png").read_bytes()
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">II", png[16:24]) == (1800, 400)  # 900 points wide, two pixels each
    svg = (tmp_path / "images/2-3-spectrum.svg").read_text()
    assert svg.startswith("<svg")
    assert "rank by magnitude" in svg
    assert "http" not in svg.replace("http://www.w3.org/", "")


@pytest.mark.slow
def test_a_figure_that_plotly_cannot_draw_is_refused_and_leaves_nothing(bc, browser, tmp_path):
    broken = {"data": 5, "layout": {}}
    with pytest.raises(ValueError, match="figures must be ones that plotly can draw, got"):
        bc.images.write_images({"broken": broken}, tmp_path, ["svg"])
    assert list(tmp_path.iterdir()) == []


def test_images_are_for_a_white_page_and_leave_the_figure_as_it_was(bc):
    white = bc.images.on_white(TINY)
    assert white["layout"]["paper_bgcolor"] == white["layout"]["plot_bgcolor"] == "#ffffff"
    assert white["layout"]["font"] == {"color": "#303030", "size": 12}
    assert white["data"] == TINY["data"]
    assert TINY["layout"]["paper_bgcolor"] == "rgba(0,0,0,0)"


def test_unknown_formats_and_names_that_are_no_file_names_are_refused(bc, no_browser, tmp_path):
    with refused(ValueError, "images must be among png, svg, got gif, pdf"):
        bc.images.write_images({"tiny": TINY}, tmp_path, ["gif", "svg", "pdf"])
    for name in ("../up", "", "a/b", ".hidden"):
        with refused(ValueError, "figures must have names of letters"):
            bc.images.write_images({name: TINY}, tmp_path, ["svg"])
    assert list(tmp_path.iterdir()) == []


def test_no_figures_and_no_formats_start_no_browser(bc, no_browser, tmp_path):
    assert bc.images.write_images({}, tmp_path / "none") == []
    assert bc.images.write_images({"tiny": TINY}, tmp_path / "none", []) == []


def test_a_missing_browser_is_named(bc, no_browser, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"images need a Chrome or Chromium browser, got .*, which is no file"):
        bc.images.write_images({"tiny": TINY}, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_package_is_named(bc, monkeypatch):
    monkeypatch.setitem(sys.modules, "kaleido", None)
    with pytest.raises(ValueError, match=r"images need kaleido, .*: pip install 'bilinear-circuits\[images\]'"):
        bc.images.check_images()


def test_the_option_of_the_verbs_is_checked_before_any_work(bc, no_browser, tmp_path):
    from bilinear_circuits.command_line import images

    images.check(None, None)
    assert images.written({"tiny": TINY}, str(tmp_path), None) == []
    with refused(ValueError, "images are written to a folder of --out, got --images png without --out"):
        images.check(["png"], None)
    with refused(ValueError, "images must be among png, svg, got bmp"):
        images.check(["png", "bmp"], str(tmp_path))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_the_option_of_the_verbs_writes_to_a_folder_of_its_own(bc, browser, tmp_path):
    from bilinear_circuits.command_line import images

    assert images.written({"tiny": TINY}, str(tmp_path), ["svg", "svg"]) == [f"{tmp_path / 'images'} (1 images)"]
    assert "</script" not in (tmp_path / "images/tiny.svg").read_text()
