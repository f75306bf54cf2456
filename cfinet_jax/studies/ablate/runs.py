"""Runs of a study, one after another: finished ones are skipped, and one that fails does not stop the others."""

import traceback
from typing import NamedTuple

from etils import epath
from ml_collections import ConfigDict

from cfinet_jax.errors import NO_SPACE, Unwritable, UserError
from cfinet_jax.runtime.files import replace_text
from cfinet_jax.runtime.interruption import requests
from cfinet_jax.runtime.lock import InUse, locked
from cfinet_jax.studies.ablate.study import Study, config_of, digest
from cfinet_jax.training import train


class Run(NamedTuple):
    """A row of a study, trained from one seed."""

    row: str
    seed: int
    config: ConfigDict
    folder: epath.Path  # its workdir

    @property
    def name(self) -> str:
        """The name for messages."""
        return f"{self.row}, seed {self.seed}"

    @property
    def finished(self) -> bool:
        """Whether it is trained, evaluated and reported."""
        return (self.folder / "finished").exists()

    @property
    def failure(self) -> str | None:
        """Why the last attempt failed, in one line; None if it did not."""
        path = self.folder / "failure.txt"
        if self.finished or not path.exists():
            return None
        return next(iter(path.read_bytes().decode(errors="replace").splitlines()), f"unknown, {path} is empty")


def runs_of(study: Study, config: ConfigDict, workdir: epath.Path, seeds: int) -> list[Run]:
    """Return the runs of all rows, seed by seed. Raises `UserError` for a row that cannot be set."""
    runs = []
    for row in study.rows:
        changed = config_of(row, config)
        for seed in range(config.seed, config.seed + seeds):
            seeded = changed.copy_and_resolve_references()
            seeded.seed = seed
            runs.append(Run(row.name, seed, seeded, workdir / "runs" / digest(changed) / f"seed_{seed}"))
    return runs


def run_all(runs: list[Run]) -> None:
    """Run what is not finished, each from its newest checkpoint, except what another process is running.

    Raises `Interrupted` after SIGTERM or SIGINT, with everything saved.
    """
    with requests():  # a training handles signals by itself; this is for the time between trainings
        for number, run in enumerate(runs, start=1):
            if run.finished:
                continue
            try:
                with locked(run.folder / "claim"):
                    if not run.finished:  # another process may have finished it before we had the lock
                        print(f"\nRun {number} of {len(runs)}: {run.name}, in {run.folder}", flush=True)
                        try_once(run)
            except InUse:
                print(f"{run.name}: another process is running it.", flush=True)


def try_once(run: Run) -> None:
    """Train, evaluate and report. A failure is recorded, unless every other run would fail in the same way."""
    (run.folder / "failure.txt").unlink(missing_ok=True)
    try:
        train(run.config, run.folder)
    except Exception as error:
        if isinstance(error, Unwritable) or (isinstance(error, OSError) and error.errno in NO_SPACE):
            raise
        reason = " ".join(str(error).split()) or type(error).__name__
        known = isinstance(error, UserError)
        line = reason if known else f"{type(error).__name__}: {reason[:300]}"
        replace_text(run.folder / "failure.txt", line + "\n" + ("" if known else traceback.format_exc()))
        print(f"{run.name} failed: {line}", flush=True)
    else:
        (run.folder / "finished").touch()
