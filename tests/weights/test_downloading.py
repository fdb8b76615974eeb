import hashlib
import http.server
import re
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from nfnets_jax.errors import InputError
from nfnets_jax.weights.downloading import cache_folder, download

CONTENT = bytes(range(256)) * 20_000


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves ``server.content``; of each answer at most ``server.limit`` bytes."""

    server: "Server"

    def do_GET(self) -> None:
        content, start, ranges = self.server.content, 0, self.headers.get("Range")
        self.server.requests.append(ranges)
        tag = f'"{hashlib.md5(content).hexdigest()}"'
        if self.path != "/F0.npz":
            return self.send_error(404)
        asked = self.headers["If-Range"]
        if ranges and self.server.resumable and (asked == tag or not self.server.has_tag):
            start = int(re.fullmatch(r"bytes=(\d+)-", ranges)[1])  # type: ignore[index]
            if start >= len(content):
                return self.send_error(416)
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        else:
            self.send_response(200)
        if self.server.has_tag:
            self.send_header("ETag", tag)
        elif self.server.modified:
            self.send_header("Last-Modified", self.server.modified)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        self.wfile.write(content[start:][: self.server.limit])

    def log_message(self, *_: object) -> None:
        pass


class Server(http.server.ThreadingHTTPServer):
    """Serves content, and records the ranges that are requested."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content, self.limit, self.resumable = CONTENT, len(CONTENT), True
        self.has_tag, self.modified = True, ""
        self.requests: list[str | None] = []
        self.url = f"http://127.0.0.1:{self.server_port}/F0.npz"


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("NFNETS_CACHE", str(tmp_path / "cache"))
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_a_file_is_downloaded_once(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    path = download(server.url)
    assert path.read_bytes() == CONTENT
    assert path.name.endswith("-F0.npz")
    assert [path] == list(cache_folder().iterdir())
    assert "3 of 5 MB" in capsys.readouterr().err
    assert download(server.url) == path
    assert server.requests == [None]


def test_a_download_resumes_where_it_stopped(server: Server) -> None:
    server.limit = 2_000_000
    for done in (2_000_000, 4_000_000):
        with pytest.raises(InputError, match=f"stopped after {done} of {len(CONTENT)} bytes"):
            download(server.url)
        assert not [path for path in cache_folder().iterdir() if path.name.endswith(".npz")]
    assert download(server.url).read_bytes() == CONTENT
    assert server.requests == [None, "bytes=2000000-", "bytes=4000000-"]


@pytest.mark.parametrize("resumable", [True, False])
def test_parts_of_two_versions_are_not_joined(server: Server, resumable: bool) -> None:
    server.limit, server.resumable = 2_000_000, resumable
    with pytest.raises(InputError, match="stopped after"):
        download(server.url)
    server.content, server.limit = CONTENT[::-1], len(CONTENT)
    assert download(server.url).read_bytes() == CONTENT[::-1]
    assert server.requests == [None, "bytes=2000000-"]


@pytest.mark.parametrize("modified", ["", "Tue, 01 Sep 2026 10:00:00 GMT"])
def test_a_file_that_changed_is_fetched_anew_from_a_server_without_tags(
    server: Server, modified: str
) -> None:
    """Such a server sends the rest of whatever it has now."""
    server.has_tag, server.modified, server.limit = False, modified, 2_000_000
    with pytest.raises(InputError, match="stopped after 2000000"):
        download(server.url)
    server.content, server.limit = bytes(reversed(CONTENT)) + b"more", 10**8
    assert download(server.url).read_bytes() == server.content


def test_a_folder_in_the_place_of_the_file_is_named(server: Server) -> None:
    path = download(server.url)
    path.unlink()
    path.mkdir()
    with pytest.raises(InputError, match="is a folder where the file of http.* should be"):
        download(server.url)


def test_another_file_is_removed(server: Server) -> None:
    right, wrong = (hashlib.sha256(content).hexdigest() for content in (CONTENT, b""))
    with pytest.raises(InputError, match=f"has SHA-256 {right}, not {wrong}"):
        download(server.url, sha256=wrong)
    assert not [path for path in cache_folder().iterdir() if path.name.endswith(".npz")]
    path = download(server.url, sha256=right)
    path.write_bytes(b"damaged")
    with pytest.raises(InputError, match="removed"):
        download(server.url, sha256=right)
    assert not path.exists()


def test_failures_are_reported_in_a_line(server: Server) -> None:
    with pytest.raises(InputError, match="F1.npz: the server answers 404 Not Found"):
        download(server.url.replace("F0", "F1"))
    server.server_close()
    server.shutdown()
    with pytest.raises(InputError, match="could not be downloaded: "):
        download(server.url)
