"""A store on another machine, over HTTP, with zarr and fsspec alone: what docs/scale.md says of object storage."""

from __future__ import annotations

import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import zarr

from isdt_policy.datasets.store import DemoStore
from isdt_policy.shared.errors import InputError

pytest.importorskip("aiohttp")  # fsspec's way to HTTP


class Ranges(BaseHTTPRequestHandler):
    """Files of a folder, in part where a part is asked for, as object stores give them."""

    folder: Path
    asked: ClassVar[list[str]] = []
    in_parts = True

    def do_GET(self):
        file = self.folder / self.path.lstrip("/")
        if not file.is_file():
            self.send_error(404)
            return
        data, (first, last) = file.read_bytes(), (0, None)
        if self.in_parts and (wanted := re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))):
            first, last = wanted.groups()
            first, last = (-int(last), None) if not first else (int(first), int(last) + 1 if last else None)
        part = data[slice(first, last)]
        self.asked.append(self.path)
        self.send_response(200 if len(part) == len(data) else 206)
        start = range(len(data))[slice(first, last)].start
        if len(part) < len(data):
            self.send_header("Content-Range", f"bytes {start}-{start + len(part) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(part)))
        if self.in_parts:
            self.send_header("Accept-Ranges", "bytes")
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(part)

    do_HEAD = do_GET

    def log_message(self, *told):
        """What is not there is asked for too."""


@pytest.fixture
def served(tiny_store):
    """Address of the store, and who answers there."""
    handler = type("Handler", (Ranges,), {"folder": tiny_store.parent, "asked": []})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/{tiny_store.name}", handler
        server.shutdown()


def test_zarr_reads_a_store_over_http_bit_for_bit_and_only_what_is_asked_for(served, tiny_store):
    address, handler = served
    here, there = DemoStore.open(tiny_store), zarr.open_group(address, mode="r")
    assert there.attrs["n_episodes"] == here.n_episodes
    assert np.array_equal(there["meta/episode_ends"][: here.n_episodes], here.episode_ends)
    assert np.array_equal(there["data/action"][: here.n_steps], here.read("action"))
    assert not any("data/state/c/" in path for path in handler.asked)
    assert np.array_equal(there["data/state"][40:60], here.read("state", 40, 60))
    assert any("data/state/c/" in path for path in handler.asked)


def test_a_server_that_gives_no_parts_of_files_is_found_out_by_checksums(served):
    """Chunks lie in shards, of which a part is read."""
    address, handler = served
    handler.in_parts = False
    with pytest.raises(ValueError, match="checksum"):
        zarr.open_group(address, mode="r")["data/action"][:10]


def test_a_chunk_that_is_not_there_is_zeros_over_http(served, tiny_store):
    """Why `data.path` takes no address: HTTP lists no folder, so nobody can tell a copy that is cut short."""
    address, _ = served
    next((tiny_store / "data/action").rglob("c/0/0")).rename(tiny_store / "moved")
    try:
        assert not zarr.open_group(address, mode="r")["data/action"][:10].any()
        with pytest.raises(InputError, match="incomplete"):
            DemoStore.open(tiny_store)
    finally:
        (tiny_store / "moved").rename(tiny_store / "data/action/c/0/0")


def test_an_address_in_the_place_of_a_path_is_one_line(served):
    with pytest.raises(InputError, match=r"is an address.*isdt data fetch"):
        DemoStore.open(served[0])
