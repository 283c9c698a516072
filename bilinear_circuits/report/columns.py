"""What the columns and terms of a report mean, in one line each."""

RANKING: dict[str, tuple[str, str]] = {
    "name": ("feature", "Layer and output feature."),
    "score": (
        "score",
        "Geometric mean of the next five quantities, percentiles left out, with |pole shift| for the pole shift: no"
        " weights to choose.",
    ),
    "trigger_share": ("trigger share", "Share of the feature's activation that lies on trigger tokens."),
    "pole_shift": (
        "pole shift",
        "Mean logit of the positive words less that of the negative words, written by the decoder row straight through"
        " the unembedding, in standard deviations of its logits over the vocabulary.",
    ),
    "outlier_ratio": (
        "outlier ratio",
        "Smaller magnitude of the leading eigenvalue pair of opposite signs, over the semicircle edge of a random"
        " symmetric matrix of the same norm. Most features of any layer lie above 1: read the percentile.",
    ),
    "outlier_percentile": ("percentile", "Share of a random sample of the layer's features with a smaller ratio."),
    "and_shape": (
        "AND shape",
        "Share of the interaction mass that lies between the two groups of input features, not inside them: 1 for a"
        " pure AND, near 0 for squares; without structure 1/2 for two equal groups, less for unequal ones.",
    ),
    "and_percentile": ("percentile", "Share of the same sample with a smaller AND shape."),
    "rank2_correlation": (
        "rank-2 r",
        "Pearson correlation of the rank-2 form with the activation, over the tokens where the feature is active.",
    ),
    "n_active": ("active tokens", "Tokens of the ranking stories at which the feature is active."),
    "n_trigger": ("active triggers", "Trigger tokens among them."),
    "eigenvalues": (
        "leading eigenvalues",
        "The leading three, by magnitude, with their sign; circuit.json holds eight.",
    ),
}

TERMS: dict[str, str] = {
    "feature_feature": "pairs of input features: the circuit proper",
    "feature_bias": "input features × decoder bias",
    "feature_error": "input features × what the input dictionary misses",
    "bias_bias": "decoder bias × itself",
    "bias_error": "decoder bias × what the dictionary misses",
    "error_error": "what the dictionary misses × itself",
    "feature_linear": "input features, through biases of the MLP",
    "bias_linear": "decoder bias, through biases of the MLP",
    "error_linear": "what the dictionary misses, through biases of the MLP",
    "constant": "encoder bias and constants",
    "gate_remainder": "what the gates of the model do more than the fitted layer",
}

EFFECTS: dict[str, tuple[str, str]] = {
    "removal": (
        "removal",
        "Low-rank form subtracted at every token; measured at the trigger sites where the feature is on.",
    ),
    "removal_all_sites": ("removal, all trigger sites", "The same edit, measured at every trigger site."),
    "ablation": ("ablation", "The feature's own activation subtracted; sites where it is on."),
    "ablation_all_sites": ("ablation, all trigger sites", "The same, at every trigger site."),
    "control": (
        "controls, mean",
        "The same removal for features of like frequency and norm that act at triggers no more than chance; the"
        " interval resamples features and stories.",
    ),
    "trigger_control": (
        "controls at triggers, mean size",
        "Mean magnitude for features of like norm and activity at triggers whose decoder row points to no pole (pole"
        " shift below 1).",
    ),
}
