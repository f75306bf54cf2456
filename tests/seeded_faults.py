"""Do the tests notice faults? Thirty faults, each put into a copy of the package and left to the tests of its module.

python tests/seeded_faults.py [--only N] [--jobs 2]

Prints fault | killed or survived | seconds, and fails if fewer than 27 are killed. About 15 minutes on two cores.
"""

import argparse
import ast
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
NEEDED = ("cfinet_jax", "configs", "data", "tests", "pyproject.toml")
MIRRORS = {"models/proposals/base": "models/test_coarse_to_fine_rpn"}  # where the name does not say it
TO_KILL = 27
TIMEOUT = 300  # seconds for one test file


class Fault(NamedTuple):
    """A change of one function: another function around it, or a pattern replaced in its source."""

    name: str
    module: str
    function: str  # a method as Class.method
    change: str  # the faulty function, which may call the `right` one, or the pattern
    replacement: str | None = None  # of the pattern


FAULTS = tuple(Fault(*row) for row in (
    ("height and width swapped in clipping", "boxes/horizontal", "clip",
     "lambda boxes, size: right(boxes, size[::-1])"),
    ("mirrored box with its edges swapped", "boxes/horizontal", "flip",
     "lambda boxes, width: right(boxes, width)[..., jnp.array([2, 1, 0, 3])]"),
    ("growth of a side not limited", "boxes/horizontal", "decode", r"MAX_LOG_RATIO", "jnp.inf"),
    ("anchors off by half a cell", "boxes/anchors", "anchor_grid",
     "lambda shape, stride, scale, ratios: right(shape, stride, scale, ratios) + np.float32(stride / 2)"),
    ("natural logarithm in the dynamic threshold", "ops/matching", "dynamic_thresholds", r"jnp\.log2", "jnp.log"),
    ("positive above the threshold instead of from it on", "ops/matching", "match_max_iou",
     r">= positive", "> positive"),
    ("of equal objects the last instead of the first", "ops/matching", "best_match", r"best > ", "best >= "),
    ("padding and ignore regions matched as objects", "ops/matching", "chunks_of",
     "lambda truth: (lambda objects, real, first: (objects, real | True, first))(*right(truth))"),
    ("one more than the quota drawn", "ops/sampling", "choose",
     "lambda priorities, candidate, quota, most: right(priorities, candidate, quota + 1, most)"),
    ("background does not fill up for missing objects", "ops/sampling", "sample_balanced",
     r"size - count", "size - quota"),
    ("suppressed boxes go on suppressing", "ops/nms", "keep_best", r"& keep\[None, :\]", "& valid[None, :]"),
    ("cells outside the map read", "ops/bilinear", "corners", r"jnp\.where\(inside, (\w+), 0\.0\)", r"\1"),
    ("RoIAlign off by half a pixel", "ops/roi_align", "roi_align", r" - 0\.5", ""),
    ("RoIAlign with a fixed number of samples", "ops/roi_align", "sample_axis",
     r"jnp\.clip\(jnp\.ceil\(extent / size\), 0, max_grid\)", "jnp.full_like(extent, max_grid)"),
    ("taps column by column", "ops/deformable", "tap_points",
     "lambda boxes, stride: right(boxes, stride)[jnp.arange(9).reshape(3, 3).T.ravel()]"),
    ("positives missing in the denominator of Eq. 6", "ops/losses", "contrastive",
     r"positive \| negative", "negative"),
    ("ring buffer's cursor not advanced", "ops/exemplar_memory", "push",
     "lambda memory, new: ExemplarMemory(right(memory, new).features, memory.cursor, right(memory, new).size)"),
    ("exemplars of its own class as negatives", "ops/imitation", "choose_contrast",
     r"~of_class", "(of_class | True)"),
    ("the object itself counted as a prediction", "ops/imitation", "quality_released",
     r" & \(samples\.source >= objects\)", ""),
    ("shifts by height and width swapped", "ops/imitation", "jitter",
     r"moves \* extent\[:, None\]", "moves * extent[:, None, ::-1]"),
    ("boxes mirrored at the height", "ops/preprocess", "prepare_boxes", r"size\[1\]", "size[0]"),
    ("padding on one side only", "models/layers", "jax.lax.conv_general_dilated",
     "lambda x, kernel, strides, padding, **more: right(x, kernel, strides, [(0, a + b) for a, b in padding], **more)"),
    ("stride styles swapped", "models/resnet", "Bottleneck.__call__",
     r'"pytorch": (\(.*?\)), "caffe": (\(.*?\))', r'"pytorch": \2, "caffe": \1'),
    ("pyramid merged from fine to coarse", "models/fpn", "FPN.__call__",
     r"range\(len\(merged\) - 2, -1, -1\)", "range(len(merged) - 1)"),
    ("gradient through the coarse boxes", "models/proposals/coarse_to_fine_rpn", "TwoStageRPN.refine",
     r"jax\.lax\.stop_gradient", ""),
    ("stage losses divided by the positives only", "models/proposals/base", "ProposalNetwork.sample",
     r" \+ jnp\.maximum\(negatives, 1\)", ""),
    ("an object matched to its twin", "models/roi_head", "RoiHead.sample_image",
     r"jnp\.where\(own, [^\n]*, (matched\.indices)\)", r"\1"),
    ("temperature multiplied", "models/feature_imitation", "FeatureImitation.losses",
     r"/ self\.temperature", "* self.temperature"),
    ("exemplars teach the compression", "models/feature_imitation", "FeatureImitation.losses",
     r"jax\.lax\.stop_gradient\(self\.compress_memory", "(self.compress_memory"),
    ("sum instead of mean over positives", "models/feature_imitation", "FeatureImitation.normalise",
     r" / jnp\.maximum\(count, 1\)", ""),
))  # fmt: skip


def mirrored(module: str) -> str:
    """Return the test file of a module."""
    folder, name = module.split("/")[0], module.split("/")[-1]
    return f"tests/{MIRRORS.get(module, f'{folder}/test_{name}')}.py"


def with_fault(source: str, fault: Fault) -> str:
    """Put a fault into the source of its module. Raises `ValueError` if its function or its pattern is not there."""
    if fault.replacement is None:
        scope, _, name = fault.function.rpartition(".")
        if not scope and name not in {getattr(node, "name", None) for node in ast.parse(source).body}:
            raise ValueError(f"no function {fault.function}")
        return f"{source}\n{fault.function} = (lambda right: {fault.change})({fault.function})\n"
    body, node = ast.parse(source).body, None
    for name in fault.function.split("."):
        node = next((each for each in body if getattr(each, "name", None) == name), None)
        if not isinstance(node, ast.ClassDef | ast.FunctionDef):
            raise ValueError(f"no function {fault.function}")
        body = node.body
    lines = source.splitlines(keepends=True)
    start, end = body[0].lineno - 1, body[-1].end_lineno
    changed, count = re.subn(fault.change, fault.replacement, "".join(lines[start:end]))
    if count == 0:
        raise ValueError(f"{fault.function} does not hold {fault.change}")
    return "".join([*lines[:start], changed, *lines[end:]])


def run_tests(test: str, fault: Fault | None) -> tuple[str, float]:
    """Run a test file in a copy of the project with the fault in it; return passed, failed or broken, and seconds."""
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
            path = copy / "cfinet_jax" / f"{fault.module}.py"
            path.write_text(with_fault(path.read_text(), fault))
        # Programs that the fault does not change are in the cache.
        environment = {"CI": "1", "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".jax_cache")} | os.environ
        environment.pop("PYTHONPATH", None)
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", test]
        try:
            done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True, timeout=TIMEOUT)
        except subprocess.TimeoutExpired:
            return "broken", time.monotonic() - start
    # 1: tests ran and some failed; anything above: they never ran.
    outcome = {0: "passed", 1: "failed"}.get(done.returncode, "broken")
    if outcome == "failed" and "failed" not in done.stdout.splitlines()[-1]:
        outcome = "broken"
    return outcome, time.monotonic() - start


def main() -> None:
    """Check that the tests pass without faults, then that they fail with each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", type=int, help="number of one fault")
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args()
    faults = [(number, fault) for number, fault in enumerate(FAULTS, 1) if options.only in (None, number)]

    with ThreadPoolExecutor(options.jobs) as pool:
        tests = sorted({mirrored(fault.module) for _, fault in faults})
        for test, (outcome, _) in zip(tests, pool.map(lambda test: run_tests(test, None), tests), strict=True):
            if outcome != "passed":
                raise SystemExit(f"{test} ({outcome}) does not pass without any fault: mend that first")
        outcomes = pool.map(lambda numbered: run_tests(mirrored(numbered[1].module), numbered[1]), faults)
        killed = 0
        for (number, fault), (outcome, seconds) in zip(faults, outcomes, strict=True):
            verdict = {"passed": "survived", "failed": "killed", "broken": "broken"}[outcome]
            killed += verdict == "killed"
            print(f"{number:2} {fault.name} ({fault.module}) | {verdict} | {seconds:.0f}", flush=True)
    wanted = TO_KILL if options.only is None else 1
    print(f"{killed} of {len(faults)} killed; {wanted} are asked for")
    sys.exit(killed < wanted)


if __name__ == "__main__":
    main()
