"""Look into trained networks, block by block: ``python recipes/analyse.py RUN... [flags]``."""

import sys

from man_zoo.analysis.command import analyse, parse_args
from man_zoo.training.errors import exit_status

if __name__ == "__main__":
    sys.exit(exit_status("analyse.py", lambda: analyse(parse_args())))
