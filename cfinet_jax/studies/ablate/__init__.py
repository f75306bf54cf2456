"""`--mode=ablate`: train the rows of a study from the same seeds, compare them, and say what can be claimed."""

from etils import epath
from ml_collections import ConfigDict

from cfinet_jax.build import check_start, check_values, discover_sizes
from cfinet_jax.errors import UserError
from cfinet_jax.input import dataset
from cfinet_jax.metrics.protocols import PROTOCOLS
from cfinet_jax.models.detector import build_detector
from cfinet_jax.studies.ablate import anchor_figure, study_page
from cfinet_jax.studies.ablate.devices import is_helper, leave_to_helpers, run_on
from cfinet_jax.studies.ablate.intervals import reopen_damaged
from cfinet_jax.studies.ablate.runs import Run, run_all, runs_of
from cfinet_jax.studies.ablate.study import load_study


def ablate(config: ConfigDict, workdir: epath.Path, study: str, seeds: int, devices: str | None) -> None:
    """Run a study, every row from `seeds` seeds, and write `<study>.html` into the workdir.

    The same command resumes what is not finished. `devices` are numbers such as 0,1, which work on one run each;
    None: one run after another, each on all devices.

    Raises:
      UserError: if the study cannot be set up, or a run failed or is not finished; the others are reported by then.
    """
    shared = leave_to_helpers(devices, workdir) if devices and not is_helper() else []
    config = discover_sizes(config, workdir)
    loaded, name = load_study(study, config), study.rpartition(":")[2]
    if loaded.measure == "anchors":
        return anchor_figure.write(loaded, config, workdir, name)
    if loaded.measure.startswith("proposals/") and not config.evaluation.proposals:
        raise UserError(f"The study {name} compares proposals: set evaluation.proposals=True.")
    if loaded.measure == "AP" and PROTOCOLS[config.evaluation.protocol].toolkit:
        raise UserError(f"{config.evaluation.protocol} cannot resample images: set evaluation.protocol=visdrone.")
    prepared = dataset.open_dataset(config.dataset, config.dataset.eval_split)
    runs = runs_of(loaded, config, workdir, seeds)
    for run in runs:  # refuse all of them before anything is trained
        check_values(run.config)
        check_start(run.config)
        build_detector(run.config.detector, len(prepared.classes))
    if is_helper():
        return run_all(runs)
    reopen_damaged(runs, loaded.measure)
    if shared:
        run_on(shared, runs, workdir)
    else:
        run_all(runs)
    study_page.write(loaded, runs, prepared, config, workdir, name)
    check_finished(runs)


def check_finished(runs: list[Run]) -> None:
    """Raise `UserError` if a run failed or is not finished, naming it and the reason."""
    failed = [run for run in runs if run.failure]
    missing = [run.name for run in runs if not (run.finished or run.failure)]
    lines = []
    if failed:
        lines.append(f"{len(failed)} of {len(runs)} runs failed, first {failed[0].name}: {failed[0].failure}")
    if missing:
        lines.append(
            f"{len(missing)} of {len(runs)} runs are not finished ({'; '.join(missing)}): another process is running "
            "them, or was killed."
        )
    if lines:
        raise UserError(f"{' '.join(lines)} Rerun the same command to run only what is left.")
