"""`python -m cfinet_jax.pretrained SOURCE --output=FILE`: weights of others as a file of this project."""

import sys

from etils import epath

from cfinet_jax import pretrained
from cfinet_jax.errors import Parser, UserError, exit_status
from cfinet_jax.pretrained.names import MEAN, STD, translate
from cfinet_jax.pretrained.weight_files import read
from cfinet_jax.runtime.paths import user_path


def convert(source: str, output: epath.PathLike) -> str:
    """Writes the weights of a file or URL as safetensors under our names; returns the account of it."""
    published = translate(read(source), source)
    if strangers := sorted(name for name in published.arrays if not name.startswith(("params/", "batch_stats/"))):
        raise UserError(f"{source} has names that are not known: {pretrained.shorten(strangers, 5)}.")
    facts = {"converted_from": source, "mean": MEAN, "std": STD}
    facts |= {"stride_style": published.stride_style} if published.stride_style else {}
    facts |= {"classes": published.classes} if published.classes else {}
    pretrained.save(epath.Path(output), published.arrays, facts)
    return pretrained.tell(published, source, set(published.arrays), set())


def main() -> int:
    """The command line; a user's mistake becomes one line and exit status 2."""
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
