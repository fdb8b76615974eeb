"""Downloads files once, into a folder; an interrupted download resumes.

The folder is ``$NFNETS_CACHE``, or else ``~/.cache/nfnets_jax``.
"""

import contextlib
import hashlib
import http.client
import os
import re
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from nfnets_jax.errors import InputError

_CHUNK = 2**20
_TIMEOUT = 60.0  # seconds without a byte


def cache_folder() -> Path:
    """Returns the folder of downloaded files."""
    return Path(os.environ.get("NFNETS_CACHE") or Path.home() / ".cache" / "nfnets_jax")


def is_url(text: str) -> bool:
    """Returns whether the text is a URL."""
    return text.startswith(("http://", "https://"))


def download(
    url: str, *, sha256: str | None = None, log: Callable[[str], None] | None = None
) -> Path:
    """Downloads the file at a URL, once.

    An interrupted download is kept, and the next call asks for the rest, unless the file has
    changed on the server. The file gets its name when it is whole.

    Args:
      url: http or https.
      sha256: hexadecimal digest that the file must have, checked on every call.
      log: called with lines about the progress; standard error by default.

    Returns:
      The file's path in ``cache_folder()``.

    Raises:
      InputError: the file cannot be fetched as a whole, or has another digest.
    """
    log = log or (lambda line: print(line, file=sys.stderr, flush=True))
    name = re.sub(r"[^\w.-]", "_", urllib.parse.urlsplit(url).path.rpartition("/")[2]) or "file"
    path = cache_folder() / f"{hashlib.sha256(url.encode()).hexdigest()[:12]}-{name}"
    if path.is_dir():
        raise InputError(f"{path} is a folder where the file of {url} should be: remove it")
    if not path.exists():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = path.with_name(f"{path.name}.partial")
            with _alone(partial, url):
                _fetch(url, partial, log)
                _check(partial, sha256, url)
                _version(partial).unlink(missing_ok=True)
                os.replace(partial, path)
        except urllib.error.HTTPError as error:
            raise InputError(f"{url}: the server answers {error.code} {error.reason}") from error
        except (OSError, http.client.HTTPException, ValueError) as error:
            if isinstance(error, InputError):
                raise
            reason = getattr(error, "reason", None) or error
            raise InputError(f"{url} could not be downloaded: {reason}") from error
        log(f"downloaded {url} to {path}")
    else:
        _check(path, sha256, url)
    return path


def _fetch(url: str, partial: Path, log: Callable[[str], None]) -> None:
    """Fetches the rest of the file and appends it to ``partial``."""
    version = _version(partial)
    begun = version.read_text(encoding="utf-8") if version.exists() else ""
    known, _, whole_size = begun.partition("\n")
    done = partial.stat().st_size if known else 0
    request = urllib.request.Request(url, headers={"Accept-Encoding": "identity"})
    if done:
        request.add_header("Range", f"bytes={done}-")
        request.add_header("If-Range", known)
    try:
        response = urllib.request.urlopen(request, timeout=_TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code != http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE or not done:
            raise
        partial.write_bytes(b"")  # The server has no rest, yet the file was not whole.
        return _fetch(url, partial, log)
    with response:
        start, size = _extent(response, done)
        # Only a mark of the version says whether a rest belongs to it.
        mark = response.headers.get("ETag") or response.headers.get("Last-Modified")
        # A server may send a rest whatever If-Range says.
        if start and (mark, str(size)) != (known, whole_size):
            log(f"{url}: the file may have changed on the server; it is fetched from the start")
            version.unlink()
            return _fetch(url, partial, log)
        if mark and not mark.startswith("W/"):
            version.write_text(f"{mark}\n{size}", encoding="utf-8")
        else:
            version.unlink(missing_ok=True)
        with partial.open("r+b") as file:
            file.truncate(start)
            file.seek(start)
            for received in _copied(response, file, start):
                if size and received * 10 // size > (received - _CHUNK) * 10 // size:
                    log(f"{url}: {received / 1e6:.0f} of {size / 1e6:.0f} MB")
    received = partial.stat().st_size
    if size is not None and received != size:
        raise InputError(
            f"{url} stopped after {received} of {size} bytes: the same again goes on from there"
        )


def _copied(response: Any, file: Any, received: int) -> Iterator[int]:
    """Copies in chunks; gives the number of bytes in the file after each."""
    while chunk := response.read(_CHUNK):
        file.write(chunk)
        received += len(chunk)
        yield received


def _extent(response: Any, asked: int) -> tuple[int, int | None]:
    """Returns the response's first byte in the file, and the whole file's size if known."""
    if response.status == http.HTTPStatus.PARTIAL_CONTENT:
        match = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", response.headers.get("Content-Range", ""))
        if not match or int(match[1]) != asked:
            raise InputError(f"{response.url}: the server sends another part than requested")
        return asked, int(match[2])
    length = response.headers.get("Content-Length")
    return 0, int(length) if length else None


def _check(path: Path, sha256: str | None, url: str) -> None:
    """Removes a file with another digest than it should have, and raises an error."""
    if sha256 is None:
        return
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256.lower():
        path.unlink()
        raise InputError(f"{url} has SHA-256 {found}, not {sha256}: it was removed from the cache")


def _version(partial: Path) -> Path:
    """Returns the file that holds the server's mark of a partial file's version, and its size."""
    return partial.with_name(f"{partial.name}.version")


@contextlib.contextmanager
def _alone(partial: Path, url: str) -> Iterator[None]:
    """Locks a partial file, as two processes must not append to it."""
    import fcntl

    with partial.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(f"{url} is being downloaded by another process") from error
        yield
