"""Score detections of any detector under the rules of a benchmark; also a command for files. Needs no JAX."""
