"""Convert published weights to a file of this project: `python -m cfinet_jax.pretrained SOURCE --output=FILE`."""

import sys

from etils import epath

from cfinet_jax import pretrained
from cfinet_jax.errors import Parser, UserError, exit_status
from cfinet_jax.pretrained.names import MEAN, STD, translate
from cfinet_jax.pretrained.weight_files import read
from cfinet_jax.runtime.paths import check_output, user_path


def convert(source: str, output: epath.Path) -> str:
    """Write the weights of a file or URL as safetensors under our names; return a description of them."""
    check_output(output, source)
    published = translate(read(source), source)
    if unknown := sorted(name for name in published.arrays if not name.startswith(("params/", "batch_stats/"))):
        raise UserError(f"{source} has unknown names: {pretrained.shorten(unknown, 5)}. Give a file that fits a model.")
    facts = {"converted_from": source, "mean": MEAN, "std": STD}
    facts |= {"stride_style": published.stride_style} if published.stride_style else {}
    facts |= {"classes": published.classes} if published.classes else {}
    pretrained.save(output, published.arrays, facts)
    return pretrained.describe(published, source, set(published.arrays), set())


def main() -> int:
    """Run the command and return its exit status; a user's mistake is one line and status 2."""
    parser = Parser(prog="python -m cfinet_jax.pretrained", description=__doc__)
    parser.add_argument("source", help="path or URL of an .npz, .safetensors or .pth; URL#sha256=HASH is checked")
    parser.add_argument("--output", type=user_path, required=True, help="the .safetensors to write")

    def command() -> None:
        options = parser.parse_args()
        print(convert(options.source, options.output))
        print(f"Written: {options.output}")

    return exit_status(command)


if __name__ == "__main__":
    sys.exit(main())
