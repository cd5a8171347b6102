"""Publish an exported folder on the Hugging Face Hub, and put it into the index."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import CommitInfo, CommitOperationAdd, HfApi, constants, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, HTTPError

from ..console import UserError, log_without_credentials, noted, without_credentials
from ..weights import CARD, CONFIG, DECODER, WEIGHTS, Weights, is_installed, read_index
from .card import card_of, is_dense, read_metadata
from .index import add_to_index


def push(
    folder: Path,
    repository: str,
    *,
    private: bool = False,
    update: bool = False,
    revision: str | None = None,
    create_pr: bool = False,
) -> tuple[CommitInfo, Weights | None]:
    """Publish a folder in one commit, and put it into the index under that commit.

    A proposal is not in the index: nobody knows yet which commit it will be, and whether. Nor are
    weights of a dense task: the index is one of classifiers. An installed package's index stays as
    it is. A new repository that could not be filled is deleted again.

    Args:
        folder: As :func:`man_zoo.hub.export.export_run` writes it.
        repository: ``ORG/NAME``; a new one, unless one of the next three is given.
        private: Whether a new repository is private.
        update: Put a new version into a repository that is there.
        revision: Put it on this branch of a repository that is there; made if need be.
        create_pr: Propose it as a pull request.

    Returns:
        The commit, and the index's entry if there is one.

    Raises:
        UserError: If the folder is no export, the index cannot be read, there is no token, or the
            Hub refuses or cannot be reached; nothing is published then, and the index is as before.
    """
    operations = plan_push(folder, repository)
    read_index()  # before anything is published that could not be put there
    if get_token() is None:
        raise UserError("The Hub needs a token; log in with `hf auth login` or set HF_TOKEN.")
    api = HfApi(library_name="man_zoo")
    new = not (update or revision or create_pr)
    with _sentences(repository):
        if new:
            api.create_repo(repository, private=private)
    try:
        with _sentences(repository):
            if revision:
                api.create_branch(repository, branch=revision, exist_ok=True)
            commit = api.create_commit(
                repository,
                operations,
                commit_message=f"Weights of {_title(folder)}",
                revision=revision,
                create_pr=create_pr,
            )
    except (UserError, KeyboardInterrupt) as error:
        if new:
            _delete(api, repository, error)
        raise
    if create_pr or is_installed() or is_dense(read_metadata(folder)):
        return commit, None
    with noted(
        f"published as {without_credentials(commit.commit_url)}, and `man-zoo push {folder} "
        f"--repo {repository} --update` puts it into the index."
    ):
        return commit, add_to_index(folder, repository, commit.oid)


def plan_push(folder: Path, repository: str) -> list[CommitOperationAdd]:
    """The files that a push would add, the card with its repository's name.

    Raises:
        UserError: If the folder is no export of man_zoo, or has links in place of files.
    """
    files = [WEIGHTS, CONFIG]
    for name in (*files, CARD):
        _need_file(folder / name)
    if is_dense(read_metadata(folder)):
        _need_file(folder / DECODER)
        files.append(DECODER)
    return [
        *(CommitOperationAdd(name, folder / name) for name in files),
        CommitOperationAdd(CARD, card_of(folder, repository).encode()),
    ]


def _need_file(path: Path) -> None:
    if path.is_symlink():
        raise UserError(
            f"{path} is a link to {path.readlink()}; expected the file itself, so that nothing "
            "is published that lies elsewhere."
        )
    if not path.is_file():
        raise UserError(f"{path.parent} has no {path.name}; expected a folder of `man-zoo export`.")


def _title(folder: Path) -> str:
    metadata = read_metadata(folder)
    return f"{metadata['name']}.{metadata['tag']}"


def _delete(api: HfApi, repository: str, error: BaseException) -> None:
    try:
        api.delete_repo(repository)
    except HTTPError:
        raise UserError(f"{error} The new, empty repository {repository} remains.") from error


@contextmanager
def _sentences(repository: str) -> Iterator[None]:
    """What the Hub says, as one sentence that says what to do.

    Raises:
        UserError: For every answer but success, and for none.
    """
    try:
        with log_without_credentials("huggingface_hub"):
            yield
    except HfHubHTTPError as error:
        status = error.response.status_code
        raise UserError(
            _SENTENCES.get(status, _OTHER).format(
                repository=repository, endpoint=constants.ENDPOINT, status=status
            )
        ) from None
    except HFValidationError as error:
        raise UserError(f"--repo {repository}: expected ORG/NAME ({error}).") from None
    except ValueError as error:
        said = " ".join(str(error).split())
        raise UserError(f"The Hub refuses the push: {said}.") from None
    except (HTTPError, OSError) as error:
        raise UserError(
            f"The connection to {constants.ENDPOINT} failed or broke off ({type(error).__name__}); "
            "nothing was published, check the network and push again."
        ) from None


_SENTENCES = {
    401: "{endpoint} does not accept the token; log in anew with `hf auth login` or set HF_TOKEN.",
    403: "The token may not write to {repository}; use one that may, or another --repo.",
    404: "There is no {repository} that the token can see; push without --update, --revision and "
    "--create-pr to make it.",
    409: "{repository} is taken already; choose another --repo, or add to it with --update, "
    "--revision or --create-pr.",
    412: "{repository} was changed at the same time; nothing was published, push again.",
}
_OTHER = "{endpoint} failed with status {status}; nothing was published, push again later."
