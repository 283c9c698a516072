"""Which features and circuits of one model return in another."""
