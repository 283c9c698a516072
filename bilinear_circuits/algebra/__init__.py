"""The interaction tensor and what linear algebra reads out of it: matrices, spectra, leading eigenpairs."""
