"""Measures and pictures of pseudo labels; nothing here takes part in training."""
