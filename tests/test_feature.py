"""A feature of a layer: a pair of numbers with one text."""

import pytest

from bilinear_circuits.circuits.target import Target
from bilinear_circuits.utilities.feature import Feature


def test_a_feature_is_its_pair_and_has_one_text():
    feature = Feature(4, 143)
    assert feature == (4, 143)
    assert {feature: 1}[4, 143] == 1
    assert (str(feature), f"{feature}", repr(feature)) == ("4/143", "4/143", "Feature(layer=4, number=143)")
    assert Feature.parse("4/143") == feature == Target(4, 143, 1, ((), ())).key
    assert Target(4, 143, 1, ((), ())).name == "4/143"


@pytest.mark.parametrize(
    "text", ["4-143", "143", "4/", "/143", "4/143 ", "4/1_0", "-1/2", "4/\u0663", "4/" + "9" * 5000]
)
def test_a_text_that_names_no_feature_is_refused(text):
    with pytest.raises(ValueError, match=r"^features must be written as layer/feature, such as 4/143, got '"):
        Feature.parse(text)
