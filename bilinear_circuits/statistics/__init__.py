"""Bootstrap, intervals and correlations."""
