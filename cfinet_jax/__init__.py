"""CFINet in JAX: a two-stage detector for objects of 8 to 32 pixels.

`cfinet_jax.load(workdir).predict(pictures)` detects, `cfinet_jax.train.train(config, workdir)` trains.
"""

from typing import Any


def __getattr__(name: str) -> Any:
    """`load`, which is imported when it is asked for: JAX reads its environment at import."""
    if name != "load":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from cfinet_jax.predict import load

    return load
