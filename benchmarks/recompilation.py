"""That a run compiles each of its programs once, and that its loop refuses hidden transfers.

    python -m benchmarks.recompilation [--steps=N] [--output=JSON]

Trains the tiny experiment of the tests and counts what JAX compiles in each kind of step, the first time and later.
One more batch is handed to the step as NumPy arrays, which only the transfer guard of the loop can notice. Fails
unless later steps compile nothing and the guard objects.
"""

import argparse
import collections
import logging
import sys
import tempfile
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import jax
from etils import epath

from benchmarks import tables
from cfinet_jax import checkpoint, evaluate, training
from cfinet_jax.runtime import mesh
from tests import tiny


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(prog="python -m benchmarks.recompilation", description=__doc__.partition("\n")[0])
    result.add_argument("--steps", type=int, default=3, help="updates before each of the two evaluations")
    result.add_argument("--output", help="JSON file for the result")
    return result


class Compilations(logging.Handler):
    """Names of the programs that JAX says it compiles, by kind of step and how often that kind has begun."""

    def __init__(self) -> None:
        super().__init__()
        self.begun: collections.Counter[str] = collections.Counter()
        self.now = ("start", 1)
        self.names: dict[tuple[str, int], list[str]] = collections.defaultdict(list)

    def begin(self, kind: str) -> None:
        self.begun[kind] += 1
        self.now = kind, self.begun[kind]

    def emit(self, record: logging.LogRecord) -> None:
        if record.getMessage().startswith("Compiling "):
            self.names[self.now].append(record.getMessage().split()[1])

    def before(self, kind: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, announced."""

        def announced(*arguments: Any) -> Any:
            self.begin(kind)
            return function(*arguments)

        return announced


class Announced(Iterator):
    """Batches, each of which begins an update."""

    def __init__(self, batches: Any, compilations: Compilations) -> None:
        self.batches, self.compilations = batches, compilations

    def __next__(self) -> Any:
        self.compilations.begin("update")
        return next(self.batches)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.batches, name)


def observe(config: Any, workdir: epath.Path, last: int) -> tuple[Compilations, str]:
    """What a run compiles, and how it ends when the batch after update `last` stays on the host."""
    log, logger = Compilations(), logging.getLogger("jax")
    logger.handlers, logger.propagate = [log], False
    jax.config.update("jax_log_compiles", True)
    batches, place = training.train_batches, mesh.place_batch
    with (
        mock.patch.object(training, "train_batches", lambda *arguments: Announced(batches(*arguments), log)),
        mock.patch.object(mesh, "place_batch", lambda x, over: x if log.begun["update"] > last else place(x, over)),
        mock.patch.object(checkpoint, "save", log.before("checkpoint", checkpoint.save)),
        mock.patch.object(evaluate, "detect_split", log.before("evaluation", evaluate.detect_split)),
    ):
        try:
            training.train(config, workdir)
        except Exception as error:  # of XLA, whose type is not public
            return log, str(error).partition("\n")[0]
    return log, "the run ended well"


def main() -> int:
    """Trains, counts and reports; 1 if a later step compiled anything or a hidden transfer passed."""
    arguments = parser().parse_args()
    config = tiny.tiny_config()
    images = config.dataset.batch_size * arguments.steps
    config.training.update(images=3 * images, checkpoint_every_images=images)
    config.evaluation.every_images = images
    with tempfile.TemporaryDirectory() as folder:
        config.dataset.data_dir = str(tiny.prepare_scenes(epath.Path(folder, "prepared")))
        log, end = observe(config, epath.Path(folder, "run"), 2 * arguments.steps)
    rows = []
    for kind in log.begun:
        later = [name for (of, number), names in log.names.items() if of == kind and number > 1 for name in names]
        counts = {"programs compiled at first": len(log.names[kind, 1]), "later": len(later)}
        rows.append({"step": kind, "times": log.begun[kind], **counts})
        print(*(f"compiled late, in {kind}: {name}\n" for name in later), sep="", end="")
    tables.report(rows, arguments.output)
    refused = "Disallowed host-to-device transfer" in end
    print(f"hidden transfer {'refused' if refused else 'NOT REFUSED'}: {end}")
    return int(not refused or any(row["later"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
