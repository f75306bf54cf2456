"""Score any detector: `python -m cfinet_jax.metrics --protocol=NAME --annotations=JSON --detections=JSON`."""

import argparse
import gc
import json
import sys

from etils import epath

from cfinet_jax.errors import Parser, exit_status
from cfinet_jax.metrics.json_files import read_detections, read_ground_truth
from cfinet_jax.metrics.protocols import PROTOCOLS
from cfinet_jax.metrics.score import score
from cfinet_jax.metrics.score_table import table
from cfinet_jax.runtime.files import replace_text
from cfinet_jax.runtime.paths import check_output, user_path


def parser() -> argparse.ArgumentParser:
    """Describe the command line."""
    result = Parser(prog="python -m cfinet_jax.metrics", description=__doc__)
    result.add_argument("--protocol", required=True, choices=PROTOCOLS, help="the rules to score by")
    truth = "COCO ground truth, oriented boxes as rbox"
    result.add_argument("--annotations", type=user_path, required=True, metavar="JSON", help=truth)
    found = "COCO results, boxes x y width height or cx cy w h angle"
    result.add_argument("--detections", type=user_path, required=True, metavar="JSON", help=found)
    result.add_argument("--output", type=user_path, metavar="JSON", help="file to write all metrics to, as fractions")
    return result


def score_files(protocol: str, annotations: epath.Path, detections: epath.Path, output: epath.Path | None) -> None:
    """Print the table of scores, and write the metrics to `output` if it is given."""
    if output:
        check_output(output, annotations, detections)
    rules = PROTOCOLS[protocol]
    ground_truth = read_ground_truth(annotations, rules.boxes)
    metrics = score(ground_truth, read_detections(detections, ground_truth, rules.boxes), rules)
    print(table(metrics, min_boxes=1), end="")
    if output:
        replace_text(output, json.dumps(metrics, indent=1))


def main() -> int:
    """Run the command and return its exit status; a user's mistake is one line and status 2."""
    gc.disable()  # everything read is kept to the end; searching it for garbage would take a third of the time
    try:
        return exit_status(lambda: score_files(**vars(parser().parse_args())))
    finally:
        gc.enable()


if __name__ == "__main__":
    sys.exit(main())
