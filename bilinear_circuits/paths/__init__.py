"""Exact graphs of one prompt through attention and every layer, and circuits of attention heads from weights alone."""
