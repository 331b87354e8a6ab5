"""Repositories of the Hugging Face hub, hf://USER/NAME: read by its client, which keeps copies; written.

The client knows where the cache is, who the user is and whether to go without a network (HF_HOME, `hf auth
login`, HF_HUB_OFFLINE). What it raises becomes a sentence with the way out, in which no token is.
"""

import contextlib
import dataclasses
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from deeplab_jax.buckets import url_of

SCHEME = "hf://"
_NAME = re.compile(rf"{SCHEME}([^/@]+/[^/@]+)(?:@(.+))?")
_TOKEN = re.compile(r"hf_\w+|(?<=Bearer )[^\s'\"]+")
_NOT_READ = (401, 404)
_NOT_WRITTEN = (401, 403)


class HubError(OSError):
    """What is asked for is not on the hub, or the hub cannot be reached; the message says which."""


@dataclasses.dataclass(frozen=True)
class Repository:
    """A repository of models.

    Attributes:
      name: USER/NAME.
      revision: a branch, a tag or a commit; None is the hub's default branch.
    """

    name: str
    revision: str | None = None

    def __str__(self) -> str:
        return f"{SCHEME}{self.name}" + (f"@{self.revision}" if self.revision else "")


@dataclasses.dataclass(frozen=True)
class Contents:
    """What is in a repository.

    Attributes:
      commit: the latest.
      private: whether only some may read it.
      files: their names, from the root.
    """

    commit: str
    private: bool
    files: tuple[str, ...]


def repository_of(path: str | os.PathLike[str]) -> Repository | None:
    """The repository that a path names; None where it is no hf:// URL. Raises HubError for a wrong one."""
    url = url_of(path)
    if url is None or not url.startswith(SCHEME):
        return None
    if (found := _NAME.fullmatch(url)) is None:
        raise HubError(
            f"a model on the hub is {SCHEME}USER/NAME or {SCHEME}USER/NAME@REVISION, got {url}"
        )
    return Repository(*found.groups())


def local_copy(repository: Repository, names: Iterable[str], *, ignore: Iterable[str] = ()) -> Path:
    """A folder of the client's cache with some of a repository's files.

    Without a network it is what an earlier call has fetched.

    Args:
      names, ignore: patterns of files, in which * stands for slashes too.

    Raises:
      HubError: there is no such repository, or it cannot be reached and no copy is kept.
    """
    with _reaching(repository) as client:
        folder = client.snapshot_download(
            repository.name,
            revision=repository.revision,
            allow_patterns=list(names),
            ignore_patterns=list(ignore),
        )
    return Path(folder)


def contents(repository: Repository) -> Contents | None:
    """What is there now; None where no such repository or revision is found.

    The hub does not tell a repository that others keep private from one that is not there.
    """
    with _reaching(repository) as client:
        try:
            found = client.HfApi().model_info(repository.name, revision=repository.revision)
        except client.errors.HfHubHTTPError as error:
            if _status(error) in _NOT_READ:
                return None
            raise
    files = tuple(file.rfilename for file in found.siblings)
    return Contents(found.sha, bool(found.private), files)


def read_text(repository: Repository, name: str) -> str:
    """The content of a small file."""
    with _reaching(repository) as client:
        file = client.hf_hub_download(repository.name, name, revision=repository.revision)
    return Path(file).read_text("utf-8")


def check_writable() -> None:
    """Raises HubError where the client knows of nobody in whose name it could write."""
    if _client().get_token() is None:
        raise HubError(
            "to push needs a token of the hub that may write: `hf auth login`, or set HF_TOKEN"
        )


def commit(
    repository: Repository,
    files: Mapping[str, Path | bytes],
    *,
    message: str,
    removed: Iterable[str] = (),
    private: bool = False,
    new: bool = False,
    new_branch: bool = False,
    parent: str | None = None,
) -> str:
    """Writes and removes files in one commit, so that all of it is there or nothing, and returns its id.

    Args:
      repository: its revision is the branch.
      files: by their names in the repository, a file of this machine or the content.
      private, new: whether to make the repository, and for whom.
      new_branch: whether to make the branch, from the default one.
      parent: the commit that must be the latest still.

    Raises:
      HubError: the hub refuses, or cannot be reached.
    """
    with _reaching(repository, writing=True) as client:
        api = client.HfApi()
        add, delete = client.CommitOperationAdd, client.CommitOperationDelete
        if new:
            api.create_repo(repository.name, private=private, exist_ok=True)
        if new_branch:
            api.create_branch(repository.name, branch=repository.revision, exist_ok=True)
        done = api.create_commit(
            repository.name,
            [
                *(add(name, file) for name, file in files.items()),
                *(delete(name) for name in removed),
            ],
            commit_message=message,
            revision=repository.revision,
            parent_commit=parent,
        )
    return done.oid


def _client() -> ModuleType:
    try:
        import huggingface_hub
        import huggingface_hub.errors
    except ImportError as error:
        raise HubError(
            f"{SCHEME} needs a package that is not installed: pip install 'deeplab-jax[hub]' ({error})"
        ) from error
    return huggingface_hub


@contextlib.contextmanager
def _reaching(repository: Repository, *, writing: bool = False) -> Iterator[ModuleType]:
    """The hub's client; whatever it raises, of any class, becomes a HubError."""
    client = _client()
    try:
        yield client
    except Exception as error:
        # Not `from error`: its message, and those of its causes, may have headers in them.
        raise HubError(f"{repository}{_what_went_wrong(error, client.errors, writing)}") from None


def _what_went_wrong(error: Exception, errors: ModuleType, writing: bool) -> str:
    """What follows the repository in the message."""
    # Neither had from there, which the cause explains, nor kept here.
    lost = isinstance(error, errors.LocalEntryNotFoundError)
    cause = error.__cause__ if lost and error.__cause__ is not None else error
    status = _status(cause)
    if isinstance(cause, errors.OfflineModeIsEnabled):
        kept = ", and no copy of it is kept on this machine" if lost else ""
        return f": HF_HUB_OFFLINE forbids the network{kept}. Unset it, and try again"
    if isinstance(error, errors.HFValidationError):
        return f" is no name that a repository can have: {_said(error)}"
    if isinstance(error, errors.GatedRepoError):
        return " is for those whom its owners let in: ask on its page, then `hf auth login`"
    if isinstance(error, errors.RevisionNotFoundError):
        return ": the repository has no such branch, tag or commit. Check the name after @"
    if isinstance(error, errors.RepositoryNotFoundError) or (not writing and status in _NOT_READ):
        return (
            " is not found: check the name of the repository and, if it is private, `hf auth login` as "
            "somebody who may read it"
        )
    if lost:
        return (
            f" cannot be reached ({_said(cause)}), and no copy of it is kept on this machine. Check the "
            "network, and try again"
        )
    if writing and status in _NOT_WRITTEN:
        return (
            " may not be written to by you: check the name of the repository, or `hf auth login` with a "
            "token that may write"
        )
    way_out = "" if isinstance(error, ValueError) else ". Check the network, or try again later"
    return f": {_said(error)}{way_out}"


def _status(error: BaseException) -> int | None:
    """The HTTP status that an error is about."""
    response: Any = getattr(error, "response", None)
    return getattr(response, "status_code", None)


def _said(error: BaseException) -> str:
    """The first lines of an error, as one; a client of HTTP may name headers, and so the token."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return _TOKEN.sub("...", ": ".join([type(error).__name__, *lines[:2]]))
