"""Do the tests notice? A random sample of the mutants of cosmic-ray, each left to the mirrored tests of its module.

pip install cosmic-ray
python tests/mutation.py RESULTS [--seed 0] [--skip 0] [--count 250] [--minutes 60]

A place of the code gives at most one mutant: cosmic-ray has eleven for every `+`. The modules are changed in a copy.
RESULTS gets a line per mutant: verdict | seconds | where | operator | line before | line after. Lines that stand
there are not run again, so that an interrupted run goes on. `--skip` passes over a sample that was looked at before.
"""

import argparse
import ast
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import cosmic_ray.plugins
from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code

ROOT = Path(__file__).resolve().parents[1]
READERS = ("coco_annotations", "coco_boxes", "coco_files", "coco_layout", "dota", "label_files", "visdrone", "yolo")
MODULES = [
    f"cfinet_jax/{name}.py"
    for name in (
        *("boxes/*", "ops/*", "models/**/*", "metrics/*", "input/annotations", "input/batches", "input/windows"),
        *(f"preparation/{reader}" for reader in READERS),
    )
]
MIRRORS = {  # where the name does not say it
    **dict.fromkeys(("preparation/coco_annotations", "preparation/coco_boxes"), "preparation/test_coco"),
    "preparation/coco_layout": "preparation/test_coco_layout preparation/test_places",
    "preparation/dota": "preparation/test_sodaa", "preparation/visdrone": "preparation/test_published",
    "preparation/label_files": "preparation/test_coco preparation/test_yolo",
    "input/windows": "input/test_windows input/test_annotations",  # cut polygons are tested with the objects
    "models/detector": "models/test_oriented_detectors models/test_detector",
    "models/feature_adaption": "models/test_guided_anchor_rpn",
    "models/proposals/base": "models/test_coarse_to_fine_rpn",
    "models/proposals/rotated_rpn": "models/test_oriented_rpn",
    "metrics/__main__": "metrics/test_main", "metrics/dota_files": "metrics/test_oriented",
    "metrics/detection_matching": "metrics/test_curves metrics/test_oriented",
    "metrics/json_files": "metrics/test_main", "metrics/overlaps": "metrics/test_oriented",
}  # fmt: skip
LONGEST = 300  # seconds for the tests of one mutant: a few times what they take without


def mirrored(path: str) -> list[str]:
    """The test files of a module, fastest first; whole models are compared with the golden files."""
    name = path.removeprefix("cfinet_jax/").removesuffix(".py")
    folder, _, module = name.rpartition("/")
    test = MIRRORS.get(name) or MIRRORS.get(folder) or f"{folder.split('/')[0]}/test_{module}".lstrip("/")
    return [f"tests/{each}.py" for each in test.split()] + ["tests/models/test_whole_model.py"] * name.startswith(
        "models/"
    )


def without_effect(source: str) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Spans no test can or should notice: annotations, messages of errors, `jit` and caches."""
    nodes: list[ast.AST | None] = []
    for node in ast.walk(ast.parse(source)):
        nodes += [getattr(node, "annotation", None), getattr(node, "returns", None)]
        if isinstance(node, ast.Raise):
            nodes.append(node.exc)
        decorators = getattr(node, "decorator_list", ())
        nodes += [each for each in decorators if any(word in ast.unparse(each) for word in ("jit", "cache", "typed"))]
    return [((n.lineno, n.col_offset), (n.end_lineno, n.end_col_offset)) for n in nodes if n is not None]


def places(path: str) -> dict[tuple, list[tuple]]:
    """Each place of a module that cosmic-ray can change, with its mutants."""
    source = (ROOT / path).read_text()
    spans = without_effect(source)
    nodes = list(ast_nodes(get_ast(source)))
    found = {}
    for name in sorted(cosmic_ray.plugins.operator_names()):
        operator = cosmic_ray.plugins.get_operator(name)
        if operator.arguments():
            continue
        positions = (where for node in nodes for where in operator().mutation_positions(node))
        for occurrence, (start, end) in enumerate(positions):
            shift = name == "core/RemoveDecorator"  # its place begins with the `@`
            if not any(first <= (start[0], start[1] + shift) < last for first, last in spans):
                found.setdefault((path, *start, *end), []).append((name, occurrence))
    return found


def sample(seed: int) -> list[tuple[str, int, str, int]]:
    """All places in the order of a seed, each with one mutant: path, line, operator, occurrence."""
    paths = sorted(
        {
            path.relative_to(ROOT).as_posix()
            for pattern in MODULES
            for path in ROOT.glob(pattern)
            if path.name != "__init__.py"
        }
    )
    found = {place: mutants for path in paths for place, mutants in places(path).items()}
    order, generator = sorted(found), random.Random(seed)
    generator.shuffle(order)
    return [(place[0], place[1], *generator.choice(found[place])) for place in order]


def run_mutant(copy: Path, path: str, line: int, operator: str, occurrence: int) -> str:
    """The line of results of one mutant."""
    source = (ROOT / path).read_text()
    mutated = mutate_code(source, cosmic_ray.plugins.get_operator(operator)(), occurrence)
    changed = [pair for pair in zip(source.splitlines(), mutated.splitlines(), strict=False) if pair[0] != pair[1]]
    before, after = changed[0] if changed else ("", "")
    start = time.monotonic()
    (copy / path).write_text(mutated)
    command = [sys.executable, "-B", "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *mirrored(path)]
    environment = {"CI": "1", "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".jax_cache")} | os.environ
    try:
        done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, timeout=LONGEST)
        verdict = "survived" if done.returncode == 0 else "caught"
    except subprocess.TimeoutExpired:
        verdict = "timeout"
    finally:
        (copy / path).write_text(source)
    fields = verdict, f"{time.monotonic() - start:.0f}", f"{path}:{line}", f"{operator}#{occurrence}"
    return " | ".join((*fields, before.strip(), after.strip()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    for name, default in (("seed", 0), ("skip", 0), ("count", 250), ("minutes", 60)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    stop = time.monotonic() + 60 * options.minutes
    lines = options.results.read_text().splitlines() if options.results.exists() else []
    with tempfile.TemporaryDirectory() as folder:
        for name in ("cfinet_jax", "configs", "data", "tests"):
            shutil.copytree(ROOT / name, Path(folder) / name, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", folder)
        for mutant in sample(options.seed)[options.skip + len(lines) : options.skip + options.count]:
            if time.monotonic() > stop:
                break
            lines.append(run_mutant(Path(folder), *mutant))
            with options.results.open("a") as file:
                print(lines[-1], file=file, flush=True)
    survived = sum(line.startswith("survived") for line in lines)
    print(f"{len(lines) - survived} of {len(lines)} caught")


if __name__ == "__main__":
    main()
