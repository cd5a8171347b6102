"""Look into trained networks, block by block: ``python recipes/analyse.py RUN... [flags]``."""

import sys

from man_zoo.commands.analyse import main

if __name__ == "__main__":
    sys.exit(main(program="analyse.py"))
