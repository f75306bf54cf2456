"""What happens once, before training: data sets become prepared TFDS directories."""
