"""Results are written and read back equal, and damaged ones are refused."""

import json
import math
from dataclasses import dataclass

import pytest
import torch
from jaxtyping import Float
from torch import Tensor

from bilinear_circuits.algebra.spectra import Spectrum
from bilinear_circuits.circuits import CircuitQuery, Effect
from bilinear_circuits.utilities.saving import load_result, save_result


@dataclass(frozen=True, eq=False)
class Inner:
    values: Float[Tensor, " n"]
    effect: Effect | None


@dataclass(frozen=True, eq=False)
class Outer:
    query: CircuitQuery
    inner: tuple[Inner, ...]
    pair: tuple[str, int]
    by_name: dict[str, float]
    spectrum: Spectrum
    empty: Inner | None = None


@pytest.fixture
def outer():
    inner = Inner(torch.rand(3, dtype=torch.float64), Effect(1 / 3, math.nan, math.inf, 2))
    return Outer(
        CircuitQuery("not", ["not"], ["good"], ["bad"]),
        (inner, Inner(torch.arange(3.0).bfloat16(), None)),
        ("</script>", 4),
        {"a": 0.1, "b": -math.inf},
        Spectrum(torch.tensor([1.0, -2.0]), torch.eye(2)),
    )


def test_a_result_comes_back_equal_in_every_number(outer, tmp_path):
    save_result(outer, tmp_path / "new" / "folder", {"seed": 3})
    back = load_result(Outer, tmp_path / "new" / "folder")
    assert back.query == outer.query
    assert back.pair == outer.pair
    assert back.by_name == outer.by_name
    assert back.inner[0].values.dtype == torch.float64
    assert back.inner[0].values.equal(outer.inner[0].values)
    assert back.inner[1].values.equal(outer.inner[1].values)
    assert back.inner[1].effect is None
    effect = back.inner[0].effect
    assert effect.mean == 1 / 3
    assert math.isnan(effect.low)
    assert effect.high == math.inf
    assert effect.n == 2
    assert back.spectrum.eigenvalues.tolist() == [-2, 1]
    assert back.spectrum.frobenius_norm == outer.spectrum.frobenius_norm
    assert back.empty is None
    document = json.loads((tmp_path / "new/folder/result.json").read_text())
    assert document["kind"] == "Outer"
    assert document["provenance"] == {"seed": 3}
    assert sorted(file.name for file in (tmp_path / "new/folder").iterdir()) == ["result.json", "result.safetensors"]


def test_views_and_transposes_are_written_as_what_they_show(tmp_path):
    base = torch.arange(6.0).view(2, 3)
    save_result(Spectrum(torch.ones(2), base.T, torch.tensor(1.0)), tmp_path)
    assert load_result(Spectrum, tmp_path).eigenvectors.equal(base.T)


def test_what_is_no_result_is_refused(outer, tmp_path):
    with pytest.raises(TypeError, match="result must be a dataclass, got a dict"):
        save_result({}, tmp_path)
    with pytest.raises(
        TypeError, match=r"Inner\.values must be made of dataclasses, tensors and JSON types, got a set"
    ):
        save_result(Inner({1}, None), tmp_path)
    assert not list(tmp_path.iterdir())
    with pytest.raises(FileNotFoundError, match=r"must hold result\.json"):
        load_result(Outer, tmp_path)
    save_result(outer, tmp_path)
    with pytest.raises(ValueError, match=r"must hold a Inner of format 1, got .* with a Outer of 1"):
        load_result(Inner, tmp_path)


@pytest.mark.parametrize("damage", ["[]", "{", '{"format_version": 1, "kind": "Outer", "result": {"inner": 3}}'])
def test_a_damaged_result_is_refused(outer, damage, tmp_path):
    save_result(outer, tmp_path)
    (tmp_path / "result.json").write_text(damage)
    with pytest.raises(ValueError, match="folder must hold a"):
        load_result(Outer, tmp_path)


def test_both_files_may_be_read_by_whom_any_new_file_may_be(tmp_path):
    (tmp_path / "any").touch()
    save_result(Inner(torch.ones(2), None), tmp_path / "out")
    modes = {path.name: path.stat().st_mode for path in [*(tmp_path / "out").iterdir(), tmp_path / "any"]}
    assert len(set(modes.values())) == 1, modes
