"""Do the tests notice? Thirty faults, each put into a copy of the package and left to its mirrored test file.

python tests/seeded_faults.py [--only N] [--jobs 2]

Prints fault | killed or survived | seconds, and fails if fewer than 27 are killed. About 15 minutes on two cores.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NEEDED = ("cfinet_jax", "configs", "data", "tests", "pyproject.toml")
MIRRORS = {"models/proposals/base": "models/test_coarse_to_fine_rpn"}  # where the name does not say it
TO_KILL = 27
LONGEST = 300  # seconds for one test file

# name, module, what stands there exactly once, what stands there instead
FAULTS = (
    ("height and width swapped in clipping", "boxes/horizontal",
     "jnp.stack([width, height, width, height])", "jnp.stack([height, width, height, width])"),
    ("mirrored box with its edges swapped", "boxes/horizontal",
     "[width - x2, y1, width - x1, y2]", "[width - x1, y1, width - x2, y2]"),
    ("growth of a side not limited", "boxes/horizontal",
     "jnp.clip(deltas[..., 2:], -MAX_LOG_RATIO, MAX_LOG_RATIO)", "deltas[..., 2:]"),
    ("anchors off by half a cell", "boxes/anchors",
     "np.arange(rows) * stride, np.arange(columns) * stride",
     "(np.arange(rows) + 0.5) * stride, (np.arange(columns) + 0.5) * stride"),
    ("natural logarithm in the dynamic threshold", "ops/matching", "jnp.log2(side / base_size)",
     "jnp.log(side / base_size)"),
    ("positive above the threshold instead of from it on", "ops/matching",
     "match.overlaps >= positive", "match.overlaps > positive"),
    ("of equal objects the last instead of the first", "ops/matching",
     "better = best > match.overlaps", "better = best >= match.overlaps"),
    ("padding and ignore regions matched as objects", "ops/matching",
     "jnp.pad(truth.is_object, (0, padding))", "jnp.pad(truth.is_object | True, (0, padding))"),
    ("one more than the quota drawn", "ops/sampling",
     "jnp.arange(most) < quota[..., None]", "jnp.arange(most) <= quota[..., None]"),
    ("background does not fill up for missing objects", "ops/sampling",
     "jnp.arange(kept) < size - count", "jnp.arange(kept) < size - quota"),
    ("suppressed boxes go on suppressing", "ops/nms", "suppresses & keep[None, :]", "suppresses & valid[None, :]"),
    ("cells outside the map read", "ops/bilinear", "jnp.where(inside, weights, 0.0)", "weights"),
    ("RoIAlign off by half a pixel", "ops/roi_align", "boxes[:, 1::-1] - 0.5", "boxes[:, 1::-1]"),
    ("RoIAlign with a fixed number of samples", "ops/roi_align",
     "jnp.clip(jnp.ceil(extent / size), 0, max_grid)", "jnp.full_like(extent, max_grid)"),
    ("taps column by column", "ops/deformable",
     "taps = jnp.asarray(TAPS, boxes.dtype)[:, None]", "taps = jnp.asarray(TAPS, boxes.dtype)[:, None, ::-1]"),
    ("positives missing in the denominator of Eq. 6", "ops/losses",
     "chosen = positive | negative", "chosen = negative"),
    ("ring buffer's cursor not advanced", "ops/exemplar_memory",
     "((memory.cursor + offered) % slots)", "(memory.cursor % slots)"),
    ("exemplars of its own class as negatives", "ops/imitation",
     "filled & ~of_class[:, :, None]", "filled & (of_class | True)[:, :, None]"),
    ("the object itself counted as a prediction", "ops/imitation",
     "samples.is_object & (samples.source >= objects) & (own >= min_score)", "samples.is_object & (own >= min_score)"),
    ("shifts by height and width swapped", "ops/imitation",
     "moves * extent[:, None]", "moves * extent[:, None, ::-1]"),
    ("boxes mirrored at the height", "ops/preprocess", "jnp.round(size[1] * scale)", "jnp.round(size[0] * scale)"),
    ("padding on one side only", "models/layers",
     "padding=dilation * (size // 2)", "padding=[(0, 2 * dilation * (size // 2))] * 2"),
    ("stride styles swapped", "models/resnet",
     '{"pytorch": (1, self.stride), "caffe": (self.stride, 1)}',
     '{"caffe": (1, self.stride), "pytorch": (self.stride, 1)}'),
    ("pyramid merged from fine to coarse", "models/fpn",
     "range(len(merged) - 2, -1, -1)", "range(len(merged) - 1)"),
    ("gradient through the coarse boxes", "models/proposals/coarse_to_fine_rpn",
     "jax.lax.stop_gradient(coarse_deltas)", "coarse_deltas"),
    ("stage losses divided by the positives only", "models/proposals/base",
     "jnp.maximum(positives, 1) + jnp.maximum(negatives, 1)", "jnp.maximum(positives, 1)"),
    ("an object matched to its twin", "models/roi_head",
     "jnp.where(own, jnp.arange(boxes.shape[0], dtype=jnp.int32), matched.indices)", "matched.indices"),
    ("temperature multiplied", "models/feature_imitation", "/ self.temperature", "* self.temperature"),
    ("exemplars teach the compression", "models/feature_imitation",
     "self.embed(jax.lax.stop_gradient(self.compress_memory(memory.features.astype(compressed.dtype))))",
     "self.embed(self.compress_memory(memory.features.astype(compressed.dtype)))"),
    ("sum instead of mean over positives", "models/feature_imitation",
     "weights * total / jnp.maximum(count, 1)", "weights * total"),
)  # fmt: skip


def mirrored(module: str) -> str:
    """The test file of a module."""
    folder, name = module.split("/")[0], module.split("/")[-1]
    return f"tests/{MIRRORS.get(module, f'{folder}/test_{name}')}.py"


def run_tests(test: str, fault: tuple[str, str, str] | None) -> tuple[str, float]:
    """Outcome (passed, failed, broken) of a test file in a fresh copy of the project, with the fault in it."""
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        for name in NEEDED:
            source, target = ROOT / name, copy / name
            if source.is_dir():
                shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(source, target)
        if fault is not None:
            module, found, replacement = fault
            path = copy / "cfinet_jax" / f"{module}.py"
            path.write_text(path.read_text().replace(found, replacement))
        # What the fault does not touch is compiled already.
        environment = os.environ | {"CI": "1", "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".jax_cache")}
        environment.pop("PYTHONPATH", None)
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", test]
        try:
            done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True, timeout=LONGEST)
        except subprocess.TimeoutExpired:
            return "broken", time.monotonic() - start
    # 1: tests ran and some failed; anything above: they never ran.
    outcome = {0: "passed", 1: "failed"}.get(done.returncode, "broken")
    if outcome == "failed" and "failed" not in done.stdout.splitlines()[-1]:
        outcome = "broken"
    return outcome, time.monotonic() - start


def check_table() -> None:
    """Every fault changes exactly one place."""
    for name, module, found, replacement in FAULTS:
        count = (ROOT / "cfinet_jax" / f"{module}.py").read_text().count(found)
        if count != 1 or found == replacement:
            raise SystemExit(f"fault '{name}': its text stands {count} times in {module}.py; correct the table")


def main() -> None:
    """Checks that the tests pass without faults, then that they fail with each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", type=int, help="number of one fault")
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args()
    check_table()
    faults = [(number, *fault) for number, fault in enumerate(FAULTS, 1) if options.only in (None, number)]

    with ThreadPoolExecutor(options.jobs) as pool:
        tests = sorted({mirrored(module) for _, _, module, *_ in faults})
        for test, (outcome, _) in zip(tests, pool.map(lambda test: run_tests(test, None), tests), strict=True):
            if outcome != "passed":
                raise SystemExit(f"{test} ({outcome}) does not pass without any fault: mend that first")
        outcomes = pool.map(lambda fault: run_tests(mirrored(fault[2]), fault[2:]), faults)
        killed = 0
        for (number, name, module, *_), (outcome, seconds) in zip(faults, outcomes, strict=True):
            verdict = {"passed": "survived", "failed": "killed", "broken": "broken"}[outcome]
            killed += verdict == "killed"
            print(f"{number:2} {name} ({module}) | {verdict} | {seconds:.0f}", flush=True)
    wanted = TO_KILL if options.only is None else 1
    print(f"{killed} of {len(faults)} killed; {wanted} are asked for")
    sys.exit(killed < wanted)


if __name__ == "__main__":
    main()
