import pytest
from helpers import refused

from bilinear_circuits.command_line.changes import with_changes

RECIPE = {"name": "tiny", "tokens": 10, "sae": {"k": 3}, "layers": [1]}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ([], {}),
        (["tokens=20"], {"tokens": 20}),
        (["layers=[0, 2]"], {"layers": [0, 2]}),
        (["sae.k=5"], {"sae": {"k": 5}}),
        (["sae.other=yes"], {"sae": {"k": 3, "other": True}}),
        (["new.deep.key=1.5"], {"new": {"deep": {"key": 1.5}}}),
        (["name=a=b"], {"name": "a=b"}),
        (["tokens=20", "tokens=30"], {"tokens": 30}),
    ],
)
def test_values_are_replaced(changes, expected):
    before = {"name": "tiny", "tokens": 10, "sae": {"k": 3}, "layers": [1]}
    assert with_changes(RECIPE, changes) == before | expected
    assert before == RECIPE


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("tokens", "--set must be KEY=VALUE, got 'tokens'. For instance"),
        ("=3", "--set must be KEY=VALUE, got '=3'"),
        ("sae..k=3", "--set must be KEY=VALUE, got 'sae..k=3'"),
        ("sae=[1", r"--set must give sae a YAML value, got '\[1'"),
        ("tokens.k=3", "--set must lead through mappings, got tokens.k, where tokens is 10"),
    ],
)
def test_changes_that_cannot_be_are_refused(change, message):
    with refused(ValueError, message):
        with_changes(RECIPE, [change])
