"""What words of the pages mean. The same sentences stand in docs/glossary.md; a test compares them."""

GLOSSARY: dict[str, str] = {
    "AND shape": "Share of a form's interaction mass that lies between its two groups of input features, not inside"
    " them. 1 where the output feature is a product of two things that do nothing alone.",
    "Circuit": "An output feature whose form multiplies two groups of input features, with the pole it pushes to. Named"
    " by layer and feature: 4/143.",
    "Completeness": "Share of a pre-activation that pairs of input features explain. Undefined where the feature is"
    " off.",
    "Composition": "|M_earlier M| / (|M_earlier| |M|): how much of what an earlier head writes is read by the"
    " queries, the keys or the values of a later one.",
    "Controls": "The same intervention on other features: some of like frequency and norm, some as active at the"
    " triggers that point to no pole.",
    "Copying score": "Share of the magnitude of the eigenvalues of OV, between tokens and their logits, that has a"
    " positive real part: 1 if a head promotes what it looks at, 1/2 by chance.",
    "Cut": "All that crosses one height of a model, before a block or between its attention and its MLP. The flow"
    " across every cut is the value of the target.",
    "Degree": "How many embeddings a part of the target is a product of: with all embeddings multiplied by c, it"
    " grows as c to this power.",
    "Echo": "A discovery that is explained by a stronger one, because two encoders are alike.",
    "Edge": "One product w_ab z_a z_b of two input features in the pre-activation of an output feature. Only a bilinear"
    " layer is a sum of them, so each can be taken out by itself.",
    "Flow": "What a node wrote times the cotangent of the target there: its exact share of the target's value, with"
    " patterns, norm scales and gate factors fixed and each product split half and half. An account, no prediction.",
    "Form": "The quadratic form of an output direction: its interaction matrix Q, and linear and constant parts where"
    " the layer has biases.",
    "Interaction": "T_ab, what input features a and b do to an output feature together. What two features add is 2 T_ab"
    " z_a z_b, what one adds by itself T_aa z_a^2.",
    "Log-odds": "Of an attention score: the score less its mean over the keys that the query sees, log A_qk - mean_j"
    " log A_qj.",
    "Motif": "A template of a form on groups of input features: and, flip, xor, contrast, square, suppression.",
    "Null": "What a score would be if there were nothing to find: the same code on weights in which one thing is"
    " broken.",
    "Outlier": "An eigenvalue beyond the edge of the semicircle that eigenvalues of a random symmetric matrix of the"
    " same norm fill.",
    "Pair": "The product of two parts of an MLP's input, of which the MLP's flow is the sum.",
    "Pole": "One of two sets of words between which a circuit moves the model. The pole logit difference is the mean"
    " logit of the positive ones less that of the negative ones.",
    "Rank-2 form": "What the two eigenvectors of largest eigenvalue, by magnitude, keep of a form: with eigenvalues of"
    " opposite sign one product of two directions.",
    "Site": "A token at which something is measured, such as the first trigger of a held-out story.",
    "Trigger": 'A word at which a circuit acts, such as "not".',
}
