"""Downloads against a server on this machine that breaks, forgets, lies and refuses."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from equisynth.datasets import download
from equisynth.datasets.download import RemoteFile, fetch, require_licence
from equisynth.errors import UserError
from equisynth.files import read_json
from equisynth.stages import raw
from stages.test_damage import KINDS, write

CONTENT = bytes(range(256)) * 4000  # 1 MB
DIGEST = hashlib.sha256(CONTENT).hexdigest()


class Server(ThreadingHTTPServer):
    """Serves one file, or several by name; its attributes say what goes wrong."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content = CONTENT
        self.files: dict[str, bytes] = {}  # by name; any other is `content`
        self.sent = 0  # bytes of files, over all requests
        self.etag: str | None = '"one"'
        self.knows_ranges = True
        self.shift = 0  # of the range that comes, against the one asked for
        self.announced: int | None = None  # length that the first header claims; None: the true one
        self.chunked = False
        self.breaks: list[int] = []  # bytes of the body after which each request in turn is cut off
        self.refusals: list[int] = []  # status codes of the first requests
        self.asked: list[str | None] = []  # the Range of every request
        self.conditions: list[str | None] = []  # and its If-Range

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/data/archive.zip?version=1"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, *arguments: object) -> None:
        pass

    def do_GET(self) -> None:
        server, asked = self.server, self.headers.get("Range")
        server.asked.append(asked)
        server.conditions.append(self.headers.get("If-Range"))
        self.close_connection = True
        if server.refusals:
            self.send_error(server.refusals.pop(0))
            return
        whole = server.files.get(Path(urlsplit(self.path).path).name, server.content)
        start, body = 0, whole
        same = self.headers.get("If-Range") in (None, server.etag)
        if asked and server.knows_ranges and same:
            start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1]) + server.shift
            body = body[start:]
            if not body:
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(whole)}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(whole) - 1}/{len(whole)}")
        else:
            self.send_response(200)
        if server.etag:
            self.send_header("ETag", server.etag)
        if server.chunked:
            self.send_header("Transfer-Encoding", "chunked")
        else:
            self.send_header("Content-Length", str(server.announced or len(body)))
        self.end_headers()
        stop = server.breaks.pop(0) if server.breaks else len(body)
        server.sent += min(stop, len(body))
        if server.chunked:
            for first in range(0, stop, 50_000):
                block = body[first : min(first + 50_000, stop)]
                self.wfile.write(b"%x\r\n%s\r\n" % (len(block), block))
            if stop == len(body):
                self.wfile.write(b"0\r\n\r\n")
        else:
            self.wfile.write(body[:stop])


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "*")
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def fetched(server: Server, folder: Path, **known: object) -> bytes:
    path = fetch(RemoteFile.model_validate({"url": server.url, **known}), folder, wait=0)
    assert path == folder / "archive.zip"
    assert names(folder) == ["archive.zip", "archive.zip.json"]
    return path.read_bytes()


def test_a_file_comes_whole(server: Server, tmp_path: Path) -> None:
    assert fetched(server, tmp_path / "new", size=len(CONTENT), sha256=DIGEST) == CONTENT
    assert server.asked == [None]


def test_a_file_that_is_there_is_not_fetched_again(server: Server, tmp_path: Path) -> None:
    fetched(server, tmp_path)
    for known in ({}, {"sha256": DIGEST}, {"size": len(CONTENT)}):
        assert fetched(server, tmp_path, **known) == CONTENT
    assert len(server.asked) == 1


@pytest.mark.parametrize("change", ["content", "address", "expected size", "cut"])
def test_another_file_is_fetched(server: Server, tmp_path: Path, change: str) -> None:
    fetched(server, tmp_path)
    server.content = CONTENT[::-1]
    known: dict[str, object] = {}
    if change == "content":
        known["sha256"] = hashlib.sha256(server.content).hexdigest()
    elif change == "address":
        known["url"] = server.url + "1"
    elif change == "expected size":
        server.content = CONTENT[::-1] + b"more"
        known["size"] = len(server.content)
    else:
        (tmp_path / "archive.zip").write_bytes(b"cut")
    assert fetched(server, tmp_path, **known) == server.content


def test_a_broken_connection_continues_where_it_stopped(server: Server, tmp_path: Path) -> None:
    server.breaks = [300_000, 200_000, 0, 100_000]
    assert fetched(server, tmp_path, sha256=DIGEST) == CONTENT
    assert server.asked == [None, "bytes=300000-", "bytes=500000-", "bytes=500000-", "bytes=600000-"]
    assert server.sent == len(CONTENT)  # no byte came twice


def test_a_second_run_continues(server: Server, tmp_path: Path) -> None:
    server.breaks = [300_000] + [0] * download.ATTEMPTS
    with pytest.raises(UserError, match=r"archive\.zip\?version=1: broke off 5 times after 300000 bytes .*run again"):
        fetched(server, tmp_path)
    assert names(tmp_path) == ["archive.zip.json", "archive.zip.part"]
    assert fetched(server, tmp_path, sha256=DIGEST) == CONTENT
    assert server.asked[-1] == "bytes=300000-"


def test_a_server_without_ranges_starts_again(server: Server, tmp_path: Path) -> None:
    server.knows_ranges, server.breaks = False, [300_000, 400_000]
    assert fetched(server, tmp_path, sha256=DIGEST) == CONTENT
    assert len(server.asked) == 3


@pytest.mark.parametrize("breaks", [[300_000], [300_000, 200_000]])
def test_a_server_without_ranges_that_always_breaks_is_given_up(
    server: Server, tmp_path: Path, breaks: list[int]
) -> None:
    server.knows_ranges, server.breaks = False, breaks * 10
    with pytest.raises(UserError, match="broke off"):
        fetched(server, tmp_path)
    assert len(server.asked) == 1 + download.ATTEMPTS


def test_a_file_that_changes_on_the_way_starts_again(server: Server, tmp_path: Path) -> None:
    server.breaks = [300_000] + [0] * download.ATTEMPTS
    with pytest.raises(UserError, match="broke off"):
        fetched(server, tmp_path)
    server.content, server.etag = CONTENT[::-1], '"two"'
    assert fetched(server, tmp_path) == CONTENT[::-1]


@pytest.mark.parametrize("etag", [None, 'W/"weak"'])
def test_without_a_version_the_length_tells(server: Server, tmp_path: Path, etag: str | None) -> None:
    server.etag, server.breaks = etag, [300_000] + [0] * download.ATTEMPTS
    with pytest.raises(UserError, match="broke off"):
        fetched(server, tmp_path)
    server.content = CONTENT[::-1] + b"more"
    assert fetched(server, tmp_path) == server.content
    assert set(server.conditions) == {None}  # weak ones never hold for ranges


def test_a_wrong_range_is_not_appended(server: Server, tmp_path: Path) -> None:
    server.breaks, server.shift = [300_000], 7
    assert fetched(server, tmp_path, sha256=DIGEST) == CONTENT
    assert server.asked == [None, "bytes=300000-", None]


def test_a_complete_part_is_taken(server: Server, tmp_path: Path) -> None:
    """A run that was killed between the last byte and its name."""
    (tmp_path / "archive.zip.part").write_bytes(CONTENT)
    (tmp_path / "archive.zip.json").write_text(json.dumps({"url": server.url, "version": None, "total": len(CONTENT)}))
    assert fetched(server, tmp_path, sha256=DIGEST) == CONTENT
    assert server.asked == [f"bytes={len(CONTENT)}-"]


@pytest.mark.parametrize("part", [CONTENT + b"too much", b"of another address"])
def test_a_wrong_part_is_not_kept(server: Server, tmp_path: Path, part: bytes) -> None:
    url = server.url if part.startswith(CONTENT) else "http://127.0.0.1/other"
    (tmp_path / "archive.zip.part").write_bytes(part)
    (tmp_path / "archive.zip.json").write_text(json.dumps({"url": url, "version": None, "total": None}))
    assert fetched(server, tmp_path, sha256=DIGEST) == CONTENT


def test_unknown_length(server: Server, tmp_path: Path) -> None:
    server.chunked, server.breaks = True, [300_000]
    assert fetched(server, tmp_path, sha256=DIGEST) == CONTENT
    assert server.asked == [None, "bytes=300000-"]


def test_an_announced_length_that_never_comes(server: Server, tmp_path: Path) -> None:
    server.announced, server.knows_ranges = len(CONTENT) + 1000, False
    with pytest.raises(UserError, match=rf"broke off 5 times after {len(CONTENT)} bytes \(.*announced"):
        fetched(server, tmp_path)


@pytest.mark.parametrize(("known", "message"), [({"size": len(CONTENT)}, "size"), ({"sha256": DIGEST}, "sha256")])
def test_a_length_that_is_too_short_is_found(
    server: Server, tmp_path: Path, known: dict[str, object], message: str
) -> None:
    server.announced = 1000
    with pytest.raises(UserError, match="the server has 1000 bytes, expected|sha256 is"):
        fetched(server, tmp_path, **known)
    assert "archive.zip" not in names(tmp_path), message


def test_more_than_expected_is_not_stored(server: Server, tmp_path: Path) -> None:
    server.chunked = True
    with pytest.raises(UserError, match="sends more than 1000 bytes"):
        fetched(server, tmp_path, size=1000)
    assert (tmp_path / "archive.zip.part").stat().st_size <= 1000


def test_a_wrong_checksum_is_not_kept(server: Server, tmp_path: Path) -> None:
    server.content = CONTENT[::-1]
    with pytest.raises(UserError, match=rf"sha256 is [0-9a-f]{{64}}, expected {DIGEST}; what came was removed"):
        fetched(server, tmp_path, sha256=DIGEST)
    assert names(tmp_path) == ["archive.zip.json"]
    server.content = CONTENT
    assert fetched(server, tmp_path, sha256=DIGEST) == CONTENT


@pytest.mark.parametrize("code", [404, 403, 401, 501])
def test_a_refusal_is_said_at_once(server: Server, tmp_path: Path, code: int) -> None:
    server.refusals = [code]
    with pytest.raises(UserError, match=rf"archive\.zip\?version=1: the server says {code} .*kind: path"):
        fetched(server, tmp_path)
    assert len(server.asked) == 1
    assert names(tmp_path) == []


def test_a_busy_server_is_asked_again(server: Server, tmp_path: Path) -> None:
    server.refusals = [503, 429, 500]
    assert fetched(server, tmp_path, sha256=DIGEST) == CONTENT


def test_no_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")
    with Server() as closed:
        url = closed.url
    with pytest.raises(UserError, match=r"broke off 5 times after 0 bytes \(.*refused"):
        fetch(RemoteFile(url=url), tmp_path, wait=0)


def test_a_full_disk_is_said_before_it_is_full(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = download.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(download.shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(UserError, match="1024000 bytes are to come and 1000 are free"):
        fetched(server, tmp_path)


def test_a_folder_that_cannot_be_made(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file/folder: cannot be made"):
        fetch(RemoteFile(url=server.url), tmp_path / "file" / "folder")


def test_progress_is_shown_on_standard_error(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fetched(server, tmp_path / "quiet")
    assert capsys.readouterr() == ("", "Downloading archive.zip\n")
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "120")
    fetched(server, tmp_path / "terminal")
    out, err = capsys.readouterr()
    assert out == ""
    assert "1.0/1.0 MB" in re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", err)


def test_licences_are_accepted_by_a_parameter() -> None:
    require_licence(True, "sources.x.licence_accepted", "CC BY 4.0", "https://example.org/terms")
    with pytest.raises(UserError, match=r"sources\.x\.licence_accepted: found false.*CC BY 4\.0.*example\.org/terms"):
        require_licence(False, "sources.x.licence_accepted", "CC BY 4.0", "https://example.org/terms")


@pytest.mark.parametrize(
    "wrong", [{"sha256": "abc"}, {"size": 0}, {"url": "file:///etc/passwd"}, {"url": "https://example.org/"}]
)
def test_what_is_known_of_a_file_is_checked(wrong: dict[str, object]) -> None:
    RemoteFile(url="https://example.org/a.zip", sha256=DIGEST, size=1)
    with pytest.raises(ValueError, match="url|sha256|size"):
        RemoteFile.model_validate({"url": "https://example.org/a.zip", **wrong})


# --- the stage raw of the layouts whose archives are public


def public(name: str, server: Server, folder: Path) -> dict[str, Any]:
    """A layout's archives and lists of splits on the server, and the parameters that point there."""
    kind = KINDS[name]
    write(folder / "public", kind, kind.files())
    for path in sorted((folder / "public").iterdir()):
        server.files[path.name] = path.read_bytes()
    for split, cases in kind.splits.items():
        server.files[f"{split}_cases.json"] = json.dumps(cases).encode()
    top = server.url.partition("/data/")[0]
    files = {
        path: {"url": f"{top}/data/{path}", "sha256": hashlib.sha256(content).hexdigest()}
        for path, content in server.files.items()
    }
    scans = {path.removesuffix(".tar").removeprefix("IXI-"): files[path] for path in kind.archives}
    archives = {"scans": scans} if name == "ixi" else {"pictures": files[kind.archives[0]]}
    splits = {split: files[f"{split}_cases.json"] for split in kind.splits}
    return {"kind": "download", "licence_accepted": True, **archives, "splits": splits}


@pytest.mark.parametrize("name", ["ixi", "coco"])
def test_archives_of_a_layout_come_once_however_often_they_break(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(raw.layout(name, "layout").downloads, "fetch", partial(fetch, wait=0))
    source = public(name, server, tmp_path)
    run = partial(raw.run, source, name, Path("data/raw") / name)
    with pytest.raises(UserError, match=rf"sources\.{name}\.licence_accepted: found false"):
        raw.run(source | {"licence_accepted": False}, name, Path("data/raw") / name)
    assert server.asked == []

    server.breaks = [1000] + [0] * download.ATTEMPTS  # a connection that is gone for good, in the first archive
    with pytest.raises(UserError, match=r"broke off 5 times after 1000 bytes .*it continues where it stopped"):
        run()
    assert not Path("data/raw").exists() or not (Path("data/raw") / name).exists()
    run()
    assert server.sent == sum(map(len, server.files.values()))  # 1000 bytes of it in the first run: none came twice
    asked = len(server.asked)
    run()
    assert len(server.asked) == asked  # what is there is not asked for

    found = read_json(Path("data/raw") / name / "source.json")
    for path in found["archives"].values():
        archive = Path("data/raw") / name / path
        assert archive.resolve().parent == tmp_path / ".equisynth/downloads" / name  # beside what DVC keeps
        assert archive.read_bytes() == server.files[archive.name]
    assert read_json(Path("data/raw") / name / "splits.json") == KINDS[name].splits


def test_an_archive_of_another_size_than_known_is_refused_before_it_comes(server: Server, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"the server has {len(CONTENT)} bytes, expected 77; check the address"):
        fetched(server, tmp_path, size=77)
    assert not (tmp_path / "archive.zip").exists()
