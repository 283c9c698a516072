"""Corpora as stories, stories as tokens, tokens as rows to train on."""
