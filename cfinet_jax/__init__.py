"""CFINet in JAX: a two-stage detector for objects of 8 to 32 pixels.

`cfinet_jax.get_config(name)` gives an experiment to change, `cfinet_jax.train(config, workdir)` trains,
 `cfinet_jax.load(workdir).predict(pictures)` detects.
"""

import importlib
import signal
import sys
from typing import Any

from cfinet_jax import errors

HOMES = {"get_config": "cfinet_jax.named_configs", "load": "cfinet_jax.predict", "train": "cfinet_jax.training"}
# `sys.argv[0]` is "-m" while Python looks for the module of `python -m cfinet_jax.MODULE`. Only for a command, whose
# imports take seconds: a program that imports the package keeps its own handlers.
if sys.argv[:1] == ["-m"] or "".join(sys.argv[:1]).endswith("/cfinet_jax"):
    for number in errors.SIGNALS:
        signal.signal(number, errors.leave)


def __getattr__(name: str) -> Any:
    """Import the functions in `HOMES` on first use, since JAX reads its environment variables at import."""
    if name not in HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(HOMES[name]), name)
