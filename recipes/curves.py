"""How runs went, in one picture: ``python recipes/curves.py RUN... [flags]``."""

import sys

from man_zoo.commands.curves import main

if __name__ == "__main__":
    sys.exit(main(program="curves.py"))
