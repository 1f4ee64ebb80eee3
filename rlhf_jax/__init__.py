"""RLHF for JAX: demonstrations and comparisons in, an aligned policy out."""

__version__ = "0.1.0"
