"""Make ``docs/results.md`` and its pictures anew: ``python recipes/results.py``."""

from pathlib import Path

from man_zoo.results.page import Page

if __name__ == "__main__":
    written = Page(Path(__file__).parents[1] / "docs").write()
    print("\n".join(written) or "docs/results.md is up to date")
