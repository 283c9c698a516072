"""The feature report: every feature of a dictionary measured on a corpus, and as pages that link to each other.

`measure`, `outputs`, `inputs` and `uses` measure (tensors in, records of `results` out), `pages`, `index` and
`figures` draw, `neuronpedia` exports; reading and writing is done by `sae.commands.features`.
"""
