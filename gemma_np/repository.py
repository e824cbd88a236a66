"""A repository on the Hugging Face hub: its files, downloaded or from the cache, and what can go wrong."""

import glob
import os
import re
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gemma_np.errors import HubError, InputError
from gemma_np.gguf import choosing

NETWORK = (ConnectionError, TimeoutError, socket.gaierror)  # of the system's errors; the others are about files


@dataclass(frozen=True)
class Repository:
    """A model's repository, and how it is reached, as in hub.locate. What goes wrong are HubErrors in our words: an
    error's own text may hold a token or a page of HTML."""

    name: str
    revision: str | None
    token: str | bool | None = field(repr=False)
    cache_folder: str | os.PathLike[str] | None
    local_files_only: bool

    def snapshot(self, files: Sequence[str]) -> Path:
        """The folder with those of its files that some patterns name, downloaded unless they are in the cache."""
        with self._explained():
            return self._snapshot(files, self.local_files_only)

    def gguf_files(self) -> list[str]:
        """Its GGUF files; where the hub cannot be asked, those that are in the cache."""
        with self._explained():
            return [name for name in self._names() if name.lower().endswith(".gguf")]

    def chosen(self, names: Sequence[str], wanted: str | None) -> str:
        """One of its GGUF files, see choosing.chosen."""
        try:
            return choosing.chosen(names, wanted)
        except LookupError as error:
            raise HubError(f"{self.name}: {error}") from None

    def file(self, name: str) -> Path:
        """One of its files, downloaded unless it is in the cache."""
        return self.snapshot([glob.escape(name)]) / name

    def _names(self) -> list[str]:
        from huggingface_hub import HfApi

        asked: Exception | None = None
        if not self.local_files_only:
            try:
                about = HfApi().model_info(self.name, revision=self.revision, token=checked_token(self.token))
                return [file.rfilename for file in about.siblings or []]
            except Exception as error:  # the cache may have it: that is for the lines below to say
                asked = error
        try:
            folder = self._snapshot([], True)
        except Exception:
            if asked is None:
                raise
            raise asked from None
        return [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]

    def _snapshot(self, files: Sequence[str], local_files_only: bool) -> Path:
        from huggingface_hub import snapshot_download

        folder = snapshot_download(
            self.name,
            revision=self.revision,
            token=checked_token(self.token),
            cache_dir=None if self.cache_folder is None else Path(self.cache_folder),
            local_files_only=local_files_only,
            allow_patterns=list(files),
        )
        return Path(folder)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except InputError:
            raise
        except Exception as error:  # the client's, its HTTP library's and the system's have no other base in common
            why = unkept(self.cache_folder, error) or why_not(self.name, self.revision, error)
            raise HubError(f"{self.name}: {why}") from None


def checked_token(token: Any) -> Any:
    """A token without the newline with which one that was read from a file ends."""
    if not isinstance(token, str):
        return token
    token = token.strip()
    if re.fullmatch(r"[!-~]+", token) is None:  # the client would log a header that cannot be sent
        raise InputError("token holds characters that no token has (or none at all); copy it again")
    return token


def unkept(cache_folder: str | os.PathLike[str] | None, error: BaseException) -> str | None:
    """What to do when a file cannot be written; None if that is not the error."""
    from huggingface_hub import constants

    if not isinstance(error, OSError) or error.errno is None or isinstance(error, NETWORK):
        return None
    where = error.filename2 or error.filename or f"the cache ({cache_folder or constants.HF_HUB_CACHE})"
    return (
        f"there is no such folder here, and its download cannot be kept: {where}: {error.strerror}; mend this, or "
        "name another place with cache_folder=, or with HF_HOME in the environment"
    )


def why_not(name: str, revision: str | None, error: BaseException) -> str:
    """What went wrong and what to do, in our words: an error's own text may hold a token or a page of HTML."""
    from huggingface_hub import errors

    if isinstance(error, errors.LocalEntryNotFoundError) and error.__cause__ is not None:
        error = error.__cause__  # the hub failed first, then the cache was tried
    login = "log in with `hf auth login` (or set HF_TOKEN) and try again"
    page = f"https://huggingface.co/{name}"
    status = error.response.status_code if isinstance(error, errors.HfHubHTTPError) else None
    if isinstance(error, errors.GatedRepoError):
        return f"it is gated; accept its licence at {page} with your account, then {login}"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"there is no revision {revision!r}; see {page}/commits"
    if isinstance(error, errors.RepositoryNotFoundError):
        return (
            "there is no such folder here, and no such model on the hub that you may see; check the name, and for a "
            f"private or gated model {login}"
        )
    if status in (401, 403):
        return f"the hub refuses access ({status}); accept the licence at {page} with your account, then {login}"
    if status is not None:
        return f"the hub answers with status {status}; try again later"
    if isinstance(error, errors.LocalEntryNotFoundError | errors.OfflineModeIsEnabled):
        return (
            "there is no such folder here, it is not (or not completely) in the cache, and the network may not be used "
            "(local_files_only, HF_HUB_OFFLINE); download it once with the network, or pass the path of a folder"
        )
    if isinstance(error, errors.HFValidationError):
        return "there is no such folder here, and no model on the hub can have this name"
    if isinstance(error, errors.LocalTokenNotFoundError):
        return f"token=True asks for a stored token, but there is none; {login}"
    system = error.strerror if isinstance(error, OSError) else None
    return (
        f"there is no such folder here, and it cannot be downloaded: {system or type(error).__name__}; check the "
        "connection, and try again"
    )
