"""Objects of a remote file system, through fsspec: byte ranges, many at a time, retried and checked."""

from __future__ import annotations

import hashlib
import os
import re
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple

from scdd import _csr
from scdd.data.formats.address import shown
from scdd.data.formats.layout import FileIdentity
from scdd.errors import DataFileError, InputError, ScddError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

# What an object is known by: its checksum or generation, else the time of its last change.
_CHECKSUMS = ("etag", "e_tag", "generation", "content_md5", "md5hash", "digest")
_TIMES = ("last_modified", "lastmodified", "updated", "modified", "mtime", "created", "ino")
# A request is made this often; the second time after so many seconds, then four times as many, and so on.
ATTEMPTS = 4
FIRST_WAIT = 0.25
_NOTICE = 0.05
# Some stores refuse what is missing too, where they may not be listed.
_REFUSED, _GONE = (401, 403), (404, 410)
_FINAL = (FileNotFoundError, IsADirectoryError, PermissionError, NotImplementedError, ScddError)
# Few requests at once for what comes one by one: the size and time of an object.
_ASKED_AT_ONCE = 32
# What is too large to come whole because one range of it was asked for; bytes that tell whether it would.
_LARGE, _PROBED = 1 << 24, 1 << 10
# Objects that one answer to a listing holds.
_LISTED = 1_000


class Range(NamedTuple):
    """Bytes ``start:stop`` of an object."""

    path: str
    start: int
    stop: int


def never() -> bool:
    """Nobody stops this."""
    return False


class RemoteFiles:
    """A remote file or folder, and what lies in it; every process opens the file system for itself.

    Credentials are those that fsspec finds: the environment, the files of the provider, fsspec's own
    configuration. Requests that fail are made again, four times in all within some five seconds, unless the
    object is missing or access to it refused.

    Attributes
    ----------
    address : as given
    url : as shown in messages, without a signature or password; objects are ``url`` or ``url/...``

    Raises
    ------
    InputError
        fsspec, or its driver of this protocol, is not installed.
    """

    def __init__(self, address: str):
        self.address, self.url = address, shown(address)
        self._opened: tuple[int, Any, str] | None = None
        self._open()

    def __str__(self) -> str:
        return self.url

    @property
    def name(self) -> str:
        """Last part of the URL."""
        return self.url.rpartition("/")[2]

    @property
    def lists(self) -> bool:
        """Whether a folder can be listed with sizes; web servers have no way to tell."""
        return not self.url.startswith(("http://", "https://"))

    def fetch(self, ranges: Sequence[Range], *, stopped: Callable[[], bool] = never) -> list[bytes]:
        """The bytes of some ranges, all of them asked for at once.

        Raises
        ------
        Cancelled
            ``stopped()`` says so before an attempt.
        DataFileError
            An object is missing, shorter than it should be or out of reach after several attempts; the last
            error of the file system is its cause.
        """
        _refuse_if(stopped)
        got: list[Any] = self._ask(ranges)
        wait = FIRST_WAIT
        for _ in range(ATTEMPTS - 1):
            failed = [k for k, answer in enumerate(got) if _fault(ranges[k], answer)]
            # A server without ranges sent all of the object, and would again.
            if not failed or any(is_final(got[k]) or _whole(ranges[k], got[k]) for k in failed):
                break
            _sleep(wait, stopped)
            wait *= 4
            for k, answer in zip(failed, self._ask([ranges[k] for k in failed]), strict=True):
                got[k] = answer
        for part, answer in zip(ranges, got, strict=True):
            if fault := _fault(part, answer):
                cause = answer if isinstance(answer, BaseException) else None
                remedy = "" if _whole(part, answer) else "check the network and the object, or "
                raise DataFileError(
                    f"{part.path} cannot be read at bytes {part.start}:{part.stop} ({fault}); "
                    f"{remedy}copy the file to a local disk"
                ) from cause
        return got

    def identity(self, path: str) -> FileIdentity:
        """What changes when the object is replaced, as the file system tells it now."""
        error: Exception | None = None
        for attempt in range(ATTEMPTS):
            if attempt:
                time.sleep(FIRST_WAIT * 4 ** (attempt - 1))
            try:
                fs, inner = self._open()[0], self._inner(path)
                fs.invalidate_cache(inner)
                return _identity(path, fs.info(inner))
            except Exception as failure:  # each file system has errors of its own
                error = _met(failure)
                if is_final(error):
                    break
        if isinstance(error, DataFileError):
            raise error
        reason = _missing(error) if isinstance(error, FileNotFoundError) else said(error)
        raise DataFileError(
            f"{path} cannot be read ({reason}); check the URL, the network and your access to it"
        ) from error

    def identity_or_none(self, path: str) -> FileIdentity | None:
        """The same, or None where there is no such object."""
        try:
            return self.identity(path)
        except DataFileError as error:
            if isinstance(error.__cause__, (FileNotFoundError, IsADirectoryError)):
                return None
            raise

    def refuse_without_ranges(self, path: str, size: int) -> None:
        """Ask a web server for a byte of a large object: who serves no ranges would send all of it.

        Raises
        ------
        DataFileError
            It serves none; the answer was not read further.
        """
        if self.lists or size < _LARGE:
            return
        try:
            # fsspec reads such an answer as it comes in a file of its own, else at once.
            with self._open()[0].open(self._inner(path), block_size=_PROBED, size=size) as file:
                file.seek(1)
                file.read(1)
        except ValueError as error:
            if "range" in str(error):
                raise DataFileError(
                    f"{path} cannot be read (its server does not serve ranges); copy the file to a local disk"
                ) from error
        except Exception:  # whatever it is, `fetch` meets it as well, and says so
            pass

    def identities(self, paths: Sequence[str]) -> dict[str, FileIdentity | None]:
        """The same of some objects, asked for at once."""
        if len(paths) < 2:
            return {path: self.identity_or_none(path) for path in paths}
        with ThreadPoolExecutor(_ASKED_AT_ONCE) as pool:
            return dict(zip(paths, pool.map(self.identity_or_none, paths), strict=True))

    def listing(self, folder: str) -> dict[str, FileIdentity]:
        """Objects that lie in a folder, by their names there; none where there is no such folder."""
        try:
            fs, inner = self._open()[0], self._inner(folder)
            fs.invalidate_cache(inner)
            found = fs.ls(inner, detail=True)
        except FileNotFoundError:
            return {}
        except Exception as error:
            raise DataFileError(
                f"{folder} cannot be listed ({said(error)}); check the network and your access to it"
            ) from error
        files = [info for info in found if info.get("type") != "directory"]
        names = [str(info["name"]).rpartition("/")[2] for info in files]
        return {name: _identity(f"{folder}/{name}", info) for name, info in zip(names, files, strict=True)}

    def changed(self, paths: Sequence[str], known: Sequence[FileIdentity], *, among: int) -> str | None:
        """The first of some objects that is no longer the one that was opened.

        ``among`` objects lie in the folders of these: where asking for each costs more, they are listed.
        """
        now: dict[str, FileIdentity | None] = {}
        if self.lists and len(paths) > 1 + among // _LISTED:
            for folder in {path.rpartition("/")[0] for path in paths}:
                now |= {f"{folder}/{name}": own for name, own in self.listing(folder).items()}
        else:
            now = self.identities(paths)
        return next((p for p, own in zip(paths, known, strict=True) if now.get(p) != own), None)

    def _ask(self, ranges: Sequence[Range]) -> list[Any]:
        """Bytes, or the error, of each range."""
        try:
            fs = self._open()[0]
            paths = [self._inner(part.path) for part in ranges]
            bounds = [part.start for part in ranges], [part.stop for part in ranges]
            return list(fs.cat_ranges(paths, *bounds, on_error="return"))
        except Exception as error:  # each file system has errors of its own
            return [error] * len(ranges)

    def _inner(self, path: str) -> str:
        """Name of an object as the file system has it."""
        rest = path[len(self.url) :]
        root = self._open()[1]
        return root.rstrip("/") + rest if rest else root

    def _open(self) -> tuple[Any, str]:
        if self._opened is None or self._opened[0] != os.getpid():
            self._opened = (os.getpid(), *_file_system(self.address))
        return self._opened[1:]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_opened": None}


def _file_system(address: str) -> tuple[Any, str]:
    try:
        from fsspec.core import url_to_fs
    except ImportError as error:
        raise InputError(f"{shown(address)} is read through fsspec; pip install 'scdd[remote]'") from error
    try:
        return url_to_fs(address)
    except (ImportError, ValueError) as error:
        raise InputError(
            f"{shown(address)} cannot be opened ({error}); install the fsspec driver of its protocol, "
            "e.g. s3fs for s3://, gcsfs for gs://, adlfs for az://, aiohttp for https://"
        ) from error


def _identity(path: str, info: dict[str, Any]) -> FileIdentity:
    known = {key.lower().replace("-", "_"): value for key, value in info.items() if value is not None}
    if known.get("type") == "directory":
        raise DataFileError(f"{path} is a folder, not a file; check the URL") from IsADirectoryError(path)
    if not isinstance(known.get("size"), int):
        raise DataFileError(f"{path}: the server does not tell its size; copy the file to a local disk")
    # Not both: listings tell the time to another precision than the object itself.
    keys = [key for key in _CHECKSUMS if key in known][:1] or [key for key in _TIMES if key in known]
    told = repr([str(known[key]).removeprefix("W/").strip('"') for key in keys])
    digest = hashlib.sha256(told.encode()).digest()
    return FileIdentity(int.from_bytes(digest[:7], "little"), int(known["size"]), 0)


def _fault(part: Range, answer: Any) -> str | None:
    if isinstance(answer, BaseException):
        return "it does not exist" if isinstance(answer, FileNotFoundError) else said(answer)
    wanted = part.stop - part.start
    if len(answer) == wanted:
        return None
    if _whole(part, answer):
        return f"{len(answer)} bytes came for {wanted}: the server does not serve ranges"
    return f"{len(answer)} bytes came for {wanted}"


def _whole(part: Range, answer: Any) -> bool:
    """Whether more came than was asked for: the server sends whole objects."""
    return not isinstance(answer, BaseException) and len(answer) > part.stop - part.start


def _met(error: Exception) -> Exception:
    """What a file system met: fsspec says of a web server that is not there that the object is missing."""
    cause = error.__cause__
    if not isinstance(error, FileNotFoundError) or not isinstance(cause, Exception):
        return error
    return error if getattr(cause, "status", None) in (*_REFUSED, *_GONE) else cause


def _missing(error: BaseException) -> str:
    refused = getattr(error.__cause__, "status", None) in _REFUSED
    return "it does not exist, or access to it is refused" if refused else "it does not exist"


def is_final(answer: Any) -> bool:
    """Whether asking again is of no use."""
    status = getattr(answer, "status", None)
    if isinstance(status, int) and 400 <= status < 500 and status not in (408, 425, 429):
        return True
    return isinstance(answer, _FINAL)


def said(error: BaseException | None) -> str:
    """An error in words, without a signature that it may quote."""
    # Errors of HTTP clients quote the whole URL.
    return re.sub(r"\?[^\s'\")]+", "", f"{type(error).__name__}: {error}".strip(": "))


def _refuse_if(stopped: Callable[[], bool]) -> None:
    if stopped():
        raise _csr.Cancelled


def _sleep(seconds: float, stopped: Callable[[], bool]) -> None:
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        _refuse_if(stopped)
        time.sleep(min(left, _NOTICE))
