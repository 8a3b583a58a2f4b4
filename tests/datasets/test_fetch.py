"""Downloads, against a server on this machine: once, checked, resumed, and honest about failure."""

import hashlib
import http.server
import re
import sys
import threading
import types
import urllib.request

import pytest

from isdt_policy.cli import main
from isdt_policy.datasets.fetch import SOURCES, Source, _SameScheme, download, find
from isdt_policy.shared.errors import InputError

CONTENT = bytes(range(256)) * 8000  # 2 MB
DIGEST = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def server():
    """A file server that can break off (`break_after` bytes) and notes each request's range."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            facts.requests.append(self.headers.get("Range"))
            if self.path != "/demos.bin":
                self.send_error(404)
                return
            start = 0
            asked = re.match(r"bytes=(\d+)-", self.headers.get("Range") or "")
            if asked and self.headers.get("If-Range") == facts.etag:
                start = int(asked.group(1))
            body = facts.content[start:]
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("ETag", facts.etag)
            self.end_headers()
            self.wfile.write(body[: facts.break_after])

        def log_message(self, *_):
            pass

    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    facts = types.SimpleNamespace(
        url=f"http://127.0.0.1:{httpd.server_port}", requests=[], break_after=None, content=CONTENT, etag='"1"'
    )
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    yield facts
    httpd.shutdown()
    httpd.server_close()


def test_a_file_is_fetched_once_into_the_cache(server, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("ISDT_DATA", str(tmp_path))
    monkeypatch.setitem(SOURCES, "local", Source(f"{server.url}/demos.bin", "demos.bin", DIGEST))
    for _ in range(2):
        assert main(["data", "fetch", "local"]) == 0
        assert capsys.readouterr().out.splitlines()[-1] == str(tmp_path / "demos.bin")
    assert (tmp_path / "demos.bin").read_bytes() == CONTENT
    assert server.requests == [None]


def test_a_broken_download_goes_on_where_it_stopped(server, tmp_path):
    target = tmp_path / "demos.bin"
    server.break_after = 1_000_000
    with pytest.raises(InputError, match="1000000 bytes are kept"):
        download(f"{server.url}/demos.bin", target)
    assert not target.exists()
    server.break_after = None
    assert download(f"{server.url}/demos.bin", target) == DIGEST
    assert target.read_bytes() == CONTENT
    assert server.requests == [None, "bytes=1000000-"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["demos.bin", "demos.bin.sha256"]


def test_a_file_that_changed_meanwhile_is_fetched_from_its_beginning(server, tmp_path):
    server.break_after = 1_000_000
    with pytest.raises(InputError):
        download(f"{server.url}/demos.bin", tmp_path / "demos.bin")
    server.break_after, server.content, server.etag = None, CONTENT[::-1], '"2"'
    download(f"{server.url}/demos.bin", tmp_path / "demos.bin")
    assert (tmp_path / "demos.bin").read_bytes() == CONTENT[::-1]


def test_another_digest_is_refused_and_not_kept(server, tmp_path):
    with pytest.raises(InputError, match=f"has sha256 {DIGEST}, expected 00"):
        download(f"{server.url}/demos.bin", tmp_path / "demos.bin", "00")
    assert not [p for p in tmp_path.iterdir() if p.suffix in (".bin", ".part")]


def test_a_cached_file_that_changed_is_refused(server, tmp_path):
    target = tmp_path / "demos.bin"
    download(f"{server.url}/demos.bin", target)
    target.write_bytes(CONTENT[:-1])
    with pytest.raises(InputError, match="Delete it to download it again"):
        download(f"{server.url}/demos.bin", target)


def test_only_an_encrypted_address_or_a_known_digest_is_trusted(tmp_path):
    with pytest.raises(InputError, match=r"is not encrypted.*Give its https address, or sha256="):
        download("http://example.org/demos.bin", tmp_path / "demos.bin")
    request = urllib.request.Request("https://example.org/demos.bin")
    with pytest.raises(InputError, match="points to http://elsewhere/x, which is not https"):
        _SameScheme().redirect_request(request, None, 302, "", None, "http://elsewhere/x")


def test_a_part_that_is_a_link_is_not_written_through(server, tmp_path):
    (tmp_path / "precious").write_text("years")
    (tmp_path / ".demos.bin.part").symlink_to(tmp_path / "precious")
    with pytest.raises(InputError, match="is a link"):
        download(f"{server.url}/demos.bin", tmp_path / "demos.bin")
    assert (tmp_path / "precious").read_text() == "years"


def test_a_part_without_a_tag_is_fetched_from_its_beginning(server, tmp_path):
    server.break_after, tag = 1_000_000, server.etag
    with pytest.raises(InputError):
        download(f"{server.url}/demos.bin", tmp_path / "demos.bin")
    (tmp_path / ".demos.bin.part.etag").unlink()
    server.break_after, server.content = None, CONTENT[::-1]
    assert server.etag == tag
    download(f"{server.url}/demos.bin", tmp_path / "demos.bin")
    assert (tmp_path / "demos.bin").read_bytes() == CONTENT[::-1]


def test_a_server_that_sends_next_to_nothing_is_given_up(server, tmp_path, monkeypatch):
    monkeypatch.setattr("isdt_policy.datasets.fetch._PATIENCE_S", -1.0)
    monkeypatch.setattr("isdt_policy.datasets.fetch._LEAST_BYTES", 2**30)
    with pytest.raises(InputError, match="only 262144 bytes came"):
        download(f"{server.url}/demos.bin", tmp_path / "demos.bin")


def test_without_a_server_it_says_what_to_do(server, tmp_path, capsys):
    assert main(["data", "fetch", f"{server.url}/other.bin", f"out={tmp_path / 'x'}"]) == 2
    assert "answered 404" in capsys.readouterr().err
    assert main(["data", "fetch", "http://127.0.0.1:9/demos.bin", f"out={tmp_path / 'x'}"]) == 2
    error = capsys.readouterr().err.strip()
    assert "Without network: download it elsewhere" in error
    assert len(error.splitlines()) == 1
    assert main(["data", "fetch", "pusht_humen"]) == 2
    assert "Did you mean 'pusht_human'?" in capsys.readouterr().err


def test_robomimic_addresses_come_from_its_registry(monkeypatch):
    fake = types.ModuleType("robomimic")
    fake.HF_REPO_ID = "robomimic/robomimic_datasets"
    fake.DATASET_REGISTRY = {
        "lift": {"ph": {"low_dim": {"url": "http://host/low.hdf5"}, "image": {"url": "v1.5/lift/ph/image.hdf5"}}},
        "can": {"ph": {"raw": {"url": None}}},
    }
    monkeypatch.setitem(sys.modules, "robomimic", fake)
    assert find("robomimic:lift/ph/low_dim").url == "https://host/low.hdf5"
    assert find("robomimic:lift/ph/image").url.endswith("robomimic_datasets/resolve/main/v1.5/lift/ph/image.hdf5")
    for path, expected in (("lft/ph", "Did you mean 'lift'"), ("lift/ph", "TASK/TYPE/KIND"), ("can/ph/raw", "no file")):
        with pytest.raises(InputError, match=expected):
            find(f"robomimic:{path}")
    monkeypatch.setitem(sys.modules, "robomimic", None)
    with pytest.raises(InputError, match="pip install --no-deps robomimic"):
        find("robomimic:lift/ph/low_dim")


def test_what_the_real_registry_names_may_be_downloaded():
    robomimic = pytest.importorskip("robomimic")
    found = 0
    for task, kinds in robomimic.DATASET_REGISTRY.items():
        for kind, files in kinds.items():
            for name, entry in files.items():
                if entry["url"]:
                    assert find(f"robomimic:{task}/{kind}/{name}").url.startswith("https://")
                    found += 1
    assert found > 20
