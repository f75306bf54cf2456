"""The operations that take the time beside convolutions, each beside its naive form and beside torch's.

    python -m benchmarks.ops [--size=512] [--precision=float32] [--parts ...] [--repeats=N] [--output=JSON]

RoIAlign, NMS, adaptive convolution, matching and the embedding of a full memory, of one picture in the numbers of
`configs/sodad.py`, forward and, where there are gradients, with them. All forms of a computation must agree before they
are timed, in turn. On JAX's default device; torch computes on a CUDA device if there is one.
"""

import argparse
import importlib
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import drawn, naive, peer, tables, timing
from cfinet_jax.boxes import anchors
from cfinet_jax.models.detector import PRECISIONS, build_detector
from cfinet_jax.models.fpn import strides_of
from cfinet_jax.ops import deformable, matching, nms, roi_align
from cfinet_jax.structures import GroundTruth
from configs import sodad

TOLERANCE = {"float32": 5e-3, "bfloat16": 5e-2}  # of the largest number; CUDA's float32 products have ten bits
MOST_DIFFERENT = 1e-3  # share of torch's decisions, where overlaps are equal but for rounding


class Case(NamedTuple):
    """One computation in all its forms."""

    name: str
    ours: Callable[..., Any]
    naive: Callable[..., Any]
    theirs: str  # in `benchmarks/torch_ops.py`
    arguments: tuple[Any, ...]
    constants: dict[str, Any]  # which all forms take, by name
    learnt: int = 0  # how many of the first arguments get a gradient


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(prog="python -m benchmarks.ops", description=__doc__.partition("\n")[0])
    result.add_argument("--size", type=int, default=512, help="pixels of a side of the network's input")
    result.add_argument("--precision", choices=PRECISIONS, default="float32", help="of features and kernels")
    result.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="what to measure")
    result.add_argument("--repeats", type=int, default=5, help="timed runs of each form; the median counts")
    result.add_argument("--output", help="JSON file for the result")
    return result


def regions_case(size: int, dtype: Any) -> list[Case]:
    """Pooling of the regions that one picture trains on: squares, for which `max_grid` samples are always enough."""
    rng, settings = np.random.default_rng(0), sodad.get_config().detector
    strides = strides_of(settings.neck.levels)
    pyramid = [maps(rng, (size // stride, size // stride, settings.neck.channels), dtype) for stride in strides]
    sides = np.exp(rng.uniform(np.log(8), np.log(size / 2), (settings.roi_head.samples, 1)))
    corner = rng.uniform(0, size - sides, (len(sides), 2))
    boxes = jnp.asarray(np.concatenate([corner, corner + sides], 1), jnp.float32)
    levels = roi_align.levels_of(boxes, settings.roi_head.finest_scale, len(strides))
    constants = {"strides": strides, "size": settings.roi_head.pool_size, "max_grid": settings.roi_head.max_grid}
    name = f"RoIAlign, {len(boxes)} regions x {settings.neck.channels}"
    return [Case(name, roi_align.roi_align, naive.pool, "roi_align", (pyramid, boxes, levels), constants, 1)]


def suppression_cases(size: int, dtype: Any) -> list[Case]:
    """NMS among the candidates of one level, and within the classes of all proposals; half of all lie at objects."""
    rng, settings = np.random.default_rng(0), sodad.get_config().detector
    network = settings.proposal_network.coarse_to_fine.proposals
    candidates, proposals = network.train.candidates, network.max_proposals

    def boxes(count: int) -> np.ndarray:
        near = np.tile(drawn.boxes(rng, (drawn.OBJECTS,), size), (count // 2 // drawn.OBJECTS, 1))
        near = near + rng.normal(0, 2, near.shape)
        return np.concatenate([near, drawn.boxes(rng, (count - len(near),), size)])

    one = jnp.asarray(boxes(candidates), jnp.float32), jnp.asarray(rng.permutation(candidates) / candidates)
    shifted = boxes(proposals)[:, None] + rng.normal(0, 1, (proposals, drawn.CLASSES, 4))
    all_scores = rng.permutation(shifted[..., 0].size).reshape(shifted.shape[:2]) / shifted[..., 0].size
    many = jnp.asarray(shifted, jnp.float32), jnp.asarray(all_scores, jnp.float32)

    def kept(suppress: Callable[..., Any], boxes: Any, scores: Any, max_overlap: float) -> Any:
        order = jnp.argsort(-scores, stable=True)
        keep = suppress(boxes[order], jnp.ones(len(boxes), bool), max_overlap)
        return jnp.zeros(len(boxes), bool).at[order].set(keep)

    def of_classes(suppress: Callable[..., Any], boxes: Any, scores: Any, max_overlap: float) -> Any:
        of_class = partial(kept, suppress, max_overlap=max_overlap)
        return jax.vmap(of_class, in_axes=1, out_axes=1)(boxes, scores)

    first, second = {"max_overlap": network.train.nms_overlap}, {"max_overlap": settings.roi_head.nms_overlap}
    ours, plain = nms.suppress, naive.suppress
    return [
        Case(f"NMS, {candidates} boxes", partial(kept, ours), partial(kept, plain), "nms", one, first),
        Case(
            f"NMS, {proposals} boxes x {drawn.CLASSES} classes",
            partial(of_classes, ours),
            partial(of_classes, plain),
            "class_wise",
            many,
            second,
        ),
    ]


def convolution_case(size: int, dtype: Any) -> list[Case]:
    """The adaptive convolution of the finest map, its anchors moved by two pixels."""
    rng, settings = np.random.default_rng(0), sodad.get_config().detector
    stride, channels = strides_of(1)[0], settings.neck.channels
    rows = size // stride
    scale = settings.proposal_network.coarse_to_fine.anchor_scale
    grid = anchors.anchor_grid((rows, rows), stride, scale, (1.0,))
    points = deformable.tap_points(jnp.asarray(grid + rng.normal(0, 2, grid.shape), jnp.float32), stride)
    arguments = maps(rng, (rows, rows, channels), dtype), maps(rng, (3, 3, channels, channels), dtype, 0.01), points
    name = f"adaptive convolution, {rows} x {rows} x {channels}"
    return [
        Case(name, deformable.deformable_conv, naive.deformable_conv, "deformable_conv", arguments, {}, 2),
    ]


def matching_case(size: int, dtype: Any) -> list[Case]:
    """Anchors of all levels to as many objects as a picture may have."""
    rng, config = np.random.default_rng(0), sodad.get_config()
    network, count = config.detector.proposal_network.coarse_to_fine, config.dataset.max_objects
    strides = strides_of(config.detector.neck.levels)
    grids = [anchors.anchor_grid((size // s, size // s), s, network.anchor_scale, (1.0,)) for s in strides]
    boxes, objects = np.concatenate(grids), jnp.asarray(drawn.boxes(rng, (count,), size))
    truth = GroundTruth(objects, jnp.zeros(count, int), jnp.ones(count, bool), jnp.zeros(count, bool))
    constants = {"min_forced": network.min_positive_overlap}
    name = f"matching, {len(boxes):,} anchors x {count} objects"
    arguments = jnp.asarray(boxes, jnp.float32), truth
    return [Case(name, matching.best_match, naive.best_match, "best_match", arguments, constants)]


def embedding_cases(size: int, dtype: Any) -> list[Case]:
    """Compressing a full memory, which has no gradient, and the regions that one picture trains on."""
    rng, settings = np.random.default_rng(0), sodad.get_config().detector
    shape = (settings.roi_head.pool_size, settings.roi_head.pool_size, settings.neck.channels)
    memory = maps(rng, (drawn.CLASSES, settings.imitation.slots, *shape), dtype)
    regions = maps(rng, (settings.roi_head.samples, *shape), dtype)
    imitation: Any = build_detector(settings, drawn.CLASSES).imitation
    parameters = imitation.init(jax.random.key(0), regions[:1], method="compress")["params"]

    def ours(parameters: Any, regions: Any, groups: int) -> Any:
        method = "compress" if regions.ndim == 4 else "compress_memory"
        return imitation.apply({"params": parameters}, regions, method=method)

    def plain(parameters: Any, regions: Any, groups: int) -> Any:
        return naive.compress(parameters, regions.reshape(-1, *shape), groups)

    constants, of = {"groups": settings.imitation.groups}, f"of {' x '.join(map(str, shape))}"
    return [
        Case(f"compressing {drawn.CLASSES * settings.imitation.slots:,} exemplars {of}", ours, plain, "compress",
             (parameters, memory), constants),
        Case(f"compressing {len(regions)} regions {of}", ours, plain, "compress", (parameters, regions), constants, 2),
    ]  # fmt: skip


PARTS = {
    "roi_align": regions_case,
    "nms": suppression_cases,
    "adaptive_conv": convolution_case,
    "matching": matching_case,
    "embedding": embedding_cases,
}


def maps(rng: np.random.Generator, shape: Sequence[int], dtype: Any, spread: float = 1.0) -> jax.Array:
    """Random numbers of a normal distribution."""
    return jnp.asarray(rng.normal(0, spread, shape), dtype)


def with_gradients(function: Callable[..., Any], learnt: int) -> Callable[..., Any]:
    """The result and the gradients to the first `learnt` arguments, if that to the result is its sine.

    Were it the result itself, nothing would be left of it behind a normalisation.
    """

    def both(*arguments: Any) -> tuple[Any, Any]:
        result, pull = jax.vjp(lambda *first: function(*first, *arguments[learnt:]), *arguments[:learnt])
        return result, pull(jnp.sin(result))

    return both


def finish(run: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    """Calls a program and waits for it."""
    jax.block_until_ready(run(*arguments))


def check(name: str, ours: Any, others: Any, tolerance: float, most_different: float) -> None:
    """That both say the same; fails if not."""
    for mine, other in zip(jax.tree.leaves(ours), jax.tree.leaves(others), strict=True):
        mine, other = np.asarray(mine), np.asarray(other)
        assert mine.shape == other.shape, (name, mine.shape, other.shape)
        if jnp.issubdtype(mine.dtype, jnp.floating):
            mine, other = mine.astype(np.float32), other.astype(np.float32)
            distance, largest = np.abs(mine - other).max(), np.abs(mine).max()
            assert distance <= tolerance * largest, (name, distance, largest)
        else:
            assert np.mean(mine != other) <= most_different, (name, np.mean(mine != other))


def compare(case: Case, gradients: bool, options: argparse.Namespace) -> dict[str, Any]:
    """One row: every form, checked and timed."""
    forms = {"here": partial(case.ours, **case.constants), "naive": partial(case.naive, **case.constants)}
    change = partial(with_gradients, learnt=case.learnt) if gradients else lambda function: function
    compiled = {name: jax.jit(change(form)) for name, form in forms.items()}
    results = {name: jax.device_get(run(*case.arguments)) for name, run in compiled.items()}
    tolerance = TOLERANCE[options.precision]
    check(f"{case.name}, naive", results["here"], results["naive"], tolerance, 0)
    programs = {name: partial(finish, run, case.arguments) for name, run in compiled.items()}
    if peer.installed():
        build = getattr(importlib.import_module("benchmarks.torch_ops"), case.theirs)
        program = build(*case.arguments, **case.constants)
        programs["torch"] = program.with_gradients if gradients else program.forward
        said = programs["torch"]()
        leaves = program.in_our_form(*said) if gradients else program.in_our_form(said)
        check(f"{case.name}, torch", results["here"], leaves, tolerance, MOST_DIFFERENT)
    seconds = timing.medians(programs, options.repeats)
    row: dict[str, Any] = {"computation": f"{case.name}, {'with gradients' if gradients else 'forward'}"}
    for name in ("here", "naive", "torch"):
        row[f"ms {name}"] = 1000 * seconds[name] if name in seconds else "n/a"
    for name in ("naive", "torch"):
        row[f"time, here / {name}"] = seconds["here"] / seconds[name] if name in seconds else "n/a"
    return row


def main() -> None:
    """Measures and reports."""
    options = parser().parse_args()
    rows = []
    for part in options.parts:
        for case in PARTS[part](options.size, PRECISIONS[options.precision]):
            rows += [compare(case, gradients, options) for gradients in ([False, True] if case.learnt else [False])]
    tables.report(rows, options.output)


if __name__ == "__main__":
    main()
