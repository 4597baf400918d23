import hashlib
import io
import random
import tarfile
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from parp_cli.data import downloads
from parp_cli.data.downloads import download_librilight, download_librispeech, fetch, unpack
from parp_cli.data.librispeech import LIBRISPEECH_SPLITS
from parp_cli.errors import DataError, ResourceError
from parp_cli.storage.download import check_sha256, download


class Server:
    """Serves `content` on 127.0.0.1; breaks off after `break_after` bytes; may ignore ranges."""

    def __init__(self) -> None:
        self.content = b""
        self.break_after: int | None = None
        self.knows_ranges = True
        self.ranges: list[str | None] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                asked = self.headers.get("Range")
                server.ranges.append(asked)
                start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and server.knows_ranges else 0
                if start and start >= len(server.content):
                    self.send_error(416)
                    return
                body = server.content[start:]
                self.send_response(206 if start else 200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body if server.break_after is None else body[: server.break_after])

            def log_message(self, *_: object) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._http.server_port}/corpus.tar.gz"
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()


@pytest.fixture
def server() -> Iterator[Server]:
    running = Server()
    yield running
    running.close()


def expecting(digest: str) -> Callable[[Path], None]:
    return partial(check_sha256, sha256=digest)


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def tar_of(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def test_a_file_arrives_with_progress(tmp_path, server):
    server.content = bytes(range(256)) * 10_000
    seen: list[tuple[int, int]] = []
    path = tmp_path / "new" / "a.bin"
    download(
        server.url,
        path,
        verify=expecting(sha256(server.content)),
        progress=lambda done, total: seen.append((done, total)),
    )
    assert path.read_bytes() == server.content
    assert seen[-1] == (len(server.content), len(server.content))
    assert seen == sorted(seen)
    assert len(seen) > 1
    assert [p.name for p in path.parent.iterdir()] == ["a.bin"]


@pytest.mark.parametrize("knows_ranges", [True, False])
def test_a_broken_download_goes_on_where_it_stopped(tmp_path, server, knows_ranges):
    server.content = bytes(range(256)) * 40
    server.knows_ranges = knows_ranges
    server.break_after = 1000
    path = tmp_path / "a.bin"
    with pytest.raises(DataError, match="cannot download") as caught:
        download(server.url, path, verify=expecting(sha256(server.content)))
    assert "try again" in (caught.value.hint or "")
    assert not path.exists()
    assert (tmp_path / "a.bin.part").stat().st_size == 1000
    server.break_after = None
    seen: list[tuple[int, int]] = []
    download(
        server.url,
        path,
        verify=expecting(sha256(server.content)),
        progress=lambda done, total: seen.append((done, total)),
    )
    assert server.ranges == [None, "bytes=1000-"]
    assert path.read_bytes() == server.content
    assert seen[-1] == (10_240, 10_240)


def test_a_part_that_is_whole_is_only_checked(tmp_path, server):
    server.content = b"whole"
    (tmp_path / "a.bin.part").write_bytes(b"whole")
    download(server.url, tmp_path / "a.bin", verify=expecting(sha256(b"whole")))
    assert (tmp_path / "a.bin").read_bytes() == b"whole"


def test_a_wrong_checksum_is_refused_and_forgotten(tmp_path, server):
    server.content = b"something else"
    with pytest.raises(DataError, match="not the file expected") as caught:
        download(server.url, tmp_path / "a.bin", verify=expecting(sha256(b"the corpus")))
    assert sha256(b"something else") in caught.value.details[0]
    assert list(tmp_path.iterdir()) == []


def test_nobody_there(tmp_path, server):
    server.close()
    with pytest.raises(DataError, match=r"cannot download http://127\.0\.0\.1") as caught:
        download(server.url, tmp_path / "a.bin", verify=expecting(""))
    assert "connection" in (caught.value.hint or "")
    with pytest.raises(DataError, match="cannot download"):
        download((tmp_path / "none").as_uri(), tmp_path / "a.bin", verify=expecting(""))


def test_no_space_left(tmp_path, server, monkeypatch):
    server.content = b"x"

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("parp_cli.storage.download._download_rest", full)
    with pytest.raises(ResourceError, match="no space left"):
        download(server.url, tmp_path / "a.bin", verify=expecting(""))


def test_a_fetched_archive_is_unpacked_beside_what_is_there(tmp_path):
    content = tar_of({"LibriSpeech/README": b"new", "LibriSpeech/dev-clean/1/1/a.txt": b"a"})
    source, root = tmp_path / "corpus.tar.gz", tmp_path / "root"
    source.write_bytes(content)
    (root / "LibriSpeech").mkdir(parents=True)
    (root / "LibriSpeech" / "README").write_bytes(b"old")
    fetch(source.as_uri(), root, sha256=sha256(content))
    assert [p.name for p in root.iterdir()] == ["LibriSpeech"]
    assert (root / "LibriSpeech/README").read_bytes() == b"old"
    assert (root / "LibriSpeech/dev-clean/1/1/a.txt").read_bytes() == b"a"


def test_an_archive_that_lies_there_is_used_and_kept(tmp_path):
    content = tar_of({"a.txt": b"a"})
    (tmp_path / "x.tgz").write_bytes(content)
    fetch("http://127.0.0.1:9/x.tgz", tmp_path, sha256=sha256(content))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.txt", "x.tgz"]
    (tmp_path / "x.tgz").write_bytes(content[:-10])
    with pytest.raises(DataError, match="not the file expected"):
        fetch("http://127.0.0.1:9/x.tgz", tmp_path, sha256=sha256(content))
    assert (tmp_path / "x.tgz").exists()


@pytest.mark.parametrize("name", ["../outside.txt", "inside/../../outside.txt"])
def test_an_archive_cannot_write_outside(tmp_path, name):
    root = tmp_path / "root"
    root.mkdir()
    (root / "bad.tar.gz").write_bytes(tar_of({"good.txt": b"", name: b"evil"}))
    with pytest.raises(DataError, match="cannot unpack"):
        unpack(root / "bad.tar.gz", root)
    assert [p.name for p in root.iterdir()] == ["bad.tar.gz"]
    assert not list(tmp_path.glob("**/outside.txt"))


@pytest.mark.parametrize("keep", [5, 60, 5000])
def test_a_damaged_archive_leaves_nothing(tmp_path, keep):
    content = tar_of({"a.bin": random.Random(0).randbytes(10_000)})
    (tmp_path / "x.tgz").write_bytes(content[:keep])
    with pytest.raises(DataError, match="cannot unpack"):
        unpack(tmp_path / "x.tgz", tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["x.tgz"]


@pytest.mark.parametrize("inner", ["", "LibriSpeech"])
def test_librispeech_is_put_where_the_loader_looks(tmp_path, monkeypatch, inner):
    content = tar_of({"LibriSpeech/dev-clean/1/1/a.flac": b""})
    (tmp_path / "dev-clean.tar.gz").write_bytes(content)
    url = (tmp_path / "dev-clean.tar.gz").as_uri()
    monkeypatch.setattr(downloads, "_librispeech_archive", lambda _: (url, sha256(content)))
    download_librispeech("dev-clean", tmp_path / "root" / inner)
    assert (tmp_path / "root/LibriSpeech/dev-clean/1/1/a.flac").exists()


def test_librilight_is_put_where_the_loader_looks(tmp_path, monkeypatch):
    content = tar_of({"librispeech_finetuning/1h/0/clean/1/1/a.flac": b""})
    source: Path = tmp_path / "librispeech_finetuning.tgz"
    source.write_bytes(content)
    monkeypatch.setattr(downloads, "_librilight_archive", lambda: (source.as_uri(), sha256(content)))
    download_librilight(tmp_path / "root")
    assert (tmp_path / "root/librispeech_finetuning/1h/0/clean/1/1/a.flac").exists()


def test_published_archives_are_known():
    for split in LIBRISPEECH_SPLITS:
        url, digest = downloads._librispeech_archive(split)
        assert url.endswith(f"/{split}.tar.gz")
        assert len(digest) == 64
    url, digest = downloads._librilight_archive()
    assert url.endswith("/librispeech_finetuning.tgz")
    assert len(digest) == 64
    with pytest.raises(DataError, match="no split dev-dirty"):
        download_librispeech("dev-dirty", Path("nowhere"))
