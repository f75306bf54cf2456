"""Data sets of small objects, in the layouts that they are published in."""
