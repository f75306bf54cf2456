"""CFINet in JAX: a two-stage detector for objects of 8 to 32 pixels."""
