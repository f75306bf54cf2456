"""Geometry of boxes: arrays in, arrays out."""
