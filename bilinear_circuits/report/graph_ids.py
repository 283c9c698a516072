"""Numbers of features where a layer has one dictionary: in attribution graphs, their feature details and dashboards.

circuit-tracer and Neuronpedia know one dictionary for each layer. Here a layer has two, so the numbers of its input
features follow those of its output features, which are kept: 4/143 stays feature 143 of layer 4.
"""

from bilinear_circuits.interactions.activity import Side


def shared_index(feature: int, side: Side, d_sae_out: int) -> int:
    """Number of a feature among those of both dictionaries of its layer, output features first.

    Examples:
        >>> shared_index(143, "out", 3072), shared_index(0, "in", 3072)
        (143, 3072)
    """
    return feature + (d_sae_out if side == "in" else 0)


def cantor_pair(layer: int, index: int) -> int:
    """One number for a layer and a feature, as circuit-tracer has it.

    Examples:
        >>> cantor_pair(0, 0), cantor_pair(1, 0), cantor_pair(0, 1), cantor_pair(4, 143)
        (0, 1, 2, 11021)
    """
    return (layer + index) * (layer + index + 1) // 2 + index
