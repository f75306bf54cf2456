"""`python -m cfinet_jax.metrics --protocol=NAME --annotations=JSON --detections=JSON`: scores of any detector."""

import argparse
import gc
import json
import sys

from etils import epath

from cfinet_jax.errors import Parser, UserError, exit_status
from cfinet_jax.metrics.json_files import read_detections, read_ground_truth
from cfinet_jax.metrics.protocols import PROTOCOLS
from cfinet_jax.metrics.score import score
from cfinet_jax.metrics.score_table import table
from cfinet_jax.runtime.files import replace_text
from cfinet_jax.runtime.paths import user_path


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = Parser(prog="python -m cfinet_jax.metrics", description=__doc__)
    result.add_argument("--protocol", required=True, choices=PROTOCOLS, help="by which rules")
    result.add_argument(
        "--annotations", type=user_path, required=True, metavar="JSON", help="COCO ground truth, oriented boxes as rbox"
    )
    found = "COCO results, boxes x y width height or cx cy w h angle"
    result.add_argument("--detections", type=user_path, required=True, metavar="JSON", help=found)
    result.add_argument("--output", type=user_path, metavar="JSON", help="where to leave every number, as fractions")
    return result


def score_files(protocol: str, annotations: str, detections: str, output: str | None) -> None:
    """Prints the table of scores, and writes them if `output` says where."""
    if output and epath.Path(output).is_dir():
        raise UserError(f"--output={output} is a folder: name a file")
    rules = PROTOCOLS[protocol]
    ground_truth = read_ground_truth(annotations, rules.boxes)
    metrics = score(ground_truth, read_detections(detections, ground_truth, rules.boxes), rules)
    print(table(metrics, min_boxes=1), end="")
    if output:
        replace_text(epath.Path(output), json.dumps(metrics, indent=1))


def main() -> int:
    """The command; a user's mistake becomes one line and exit status 2."""
    gc.disable()  # all that is read is kept to the end: looking for garbage in it would take a third of the time
    try:
        return exit_status(lambda: score_files(**vars(parser().parse_args())))
    finally:
        gc.enable()


if __name__ == "__main__":
    sys.exit(main())
