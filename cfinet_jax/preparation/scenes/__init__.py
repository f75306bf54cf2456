"""Synthetic scenes of small objects, the embedded default data set."""
