"""Studies that researchers run: over-optimisation, frontiers."""
