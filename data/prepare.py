"""Prepare a data set: `python data/prepare.py KIND --data_dir=DIR [--source=DIR ...]`; see data/README.md."""

import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this checkout, whatever else is installed

from cfinet_jax import errors  # noqa: E402

if __name__ == "__main__":
    for number in errors.SIGNALS:  # the imports below take seconds: Ctrl-C ends them in one line
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, errors.leave)

from cfinet_jax.preparation.__main__ import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main())
