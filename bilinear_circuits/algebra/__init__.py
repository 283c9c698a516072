"""The interaction tensor and what follows from it by linear algebra: matrices, spectra, leading eigenpairs. Torch alone."""
