"""RLHF for JAX: demonstrations and comparisons in, an aligned policy out."""

import time

BEGUN = time.perf_counter()  # before anything else is imported
__version__ = "0.1.0"
