"""``man-zoo push FOLDER --repo ORG/NAME``: publish an exported folder on the Hub."""

import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path

from ..console import Parser, UserError, exit_status, without_credentials
from ..hub.push import plan_push, push


def build_parser(program: str | None = None) -> ArgumentParser:
    """Every flag of the command."""
    parser = Parser(
        prog=program, description="Publish an exported folder on the Hub.", allow_abbrev=False
    )
    add = parser.add_argument
    add("folder", type=Path, metavar="FOLDER", help="as `man-zoo export` writes it")
    add("--repo", required=True, metavar="ORG/NAME", help="repository; a new one, unless one of "
        "--update, --revision and --create-pr says that it is there")  # fmt: skip
    add("--private", action="store_true", help="make the new repository a private one")
    add("--update", action="store_true", help="a new version of a repository that is there")
    add("--revision", metavar="BRANCH", help="push to this branch, made if need be")
    add("--create-pr", action="store_true", help="propose it as a pull request")
    add("--dry-run", action="store_true", help="only list what would be published")
    return parser


def run(args: Namespace) -> None:
    """Push, or list what would be pushed.

    Raises:
        UserError: As :func:`man_zoo.hub.push.push`.
    """
    if args.dry_run:
        for operation in plan_push(args.folder, args.repo):
            print(f"{operation.upload_info.size:>12,} bytes  {args.repo}/{operation.path_in_repo}")
        return
    if args.create_pr and args.revision:
        raise UserError("--create-pr is against the main branch; leave --revision out.")
    if args.private and (args.update or args.revision or args.create_pr):
        raise UserError("--private is for a new repository; change one that is there on the Hub.")
    commit, weights = push(
        args.folder,
        args.repo,
        private=args.private,
        update=args.update,
        revision=args.revision,
        create_pr=args.create_pr,
    )
    print(without_credentials(commit.pr_url or commit.commit_url))
    if args.create_pr:
        print("a proposal, so it is not in the index until it is merged; put it there then with\n"
              f"man-zoo push {args.folder} --repo {args.repo} --update")  # fmt: skip
    elif weights:
        print(f"in the index as {weights.title}; commit {weights.folder.parent}")


def main(argv: Sequence[str] | None = None, program: str = "man-zoo push") -> int:
    """Run the command; its exit status."""
    return exit_status(program, lambda: run(build_parser(program).parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
