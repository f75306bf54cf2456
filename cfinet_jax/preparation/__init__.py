"""Data sets become prepared TFDS directories: once, before training."""
