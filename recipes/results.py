"""Make ``docs/results.md`` and its pictures anew: ``python recipes/results.py``."""

import sys
from pathlib import Path

from man_zoo.console import exit_status, user_errors
from man_zoo.results.page import Page


def main() -> None:
    with user_errors():
        page = Page(Path(__file__).parents[1] / "docs")
    print("\n".join(page.write()) or "docs/results.md is up to date")


if __name__ == "__main__":
    sys.exit(exit_status("results.py", main))
