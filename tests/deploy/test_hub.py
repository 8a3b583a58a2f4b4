"""Upload and download against a hub of our own: the HTTP calls of huggingface_hub, answered from a folder."""

import base64
import hashlib
import json
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from isdt_deploy_toys import MLP, observations, tiny_policy

pytestmark = pytest.mark.slow

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(BaseHTTPRequestHandler):
    """One repository; `files` holds what was committed."""

    files: dict[str, bytes]
    private: list[bool]

    def log_message(self, *_):
        pass

    def here(self):
        return f"http://{self.headers['Host']}"

    def answer(self, body, status=200, **headers):
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for key, value in {"Content-Length": str(len(data)), "X-Repo-Commit": COMMIT, **headers}.items():
            self.send_header(key.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers["Authorization"] != "Bearer hf_test":
            return self.answer({"error": "no token"}, 401)
        if self.path == "/api/repos/create":
            settings = json.loads(body)  # "visibility" in newer clients
            self.private.append(settings.get("visibility") == "private" or settings.get("private") is True)
            return self.answer({"url": f"{self.here()}/me/pusht", "name": "me/pusht", "id": "me/pusht"})
        if "/preupload/" in self.path:
            asked = json.loads(body)["files"]
            chosen = [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False, "oid": None} for f in asked]
            return self.answer({"files": chosen})
        if "/commit/" in self.path:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            return self.answer(
                {"commitUrl": f"{self.here()}/me/pusht/commit/{COMMIT}", "commitOid": COMMIT, "success": True}
            )
        if self.path == "/api/validate-yaml":
            return self.answer({"warnings": [], "errors": []})
        return self.answer({"error": self.path}, 404)

    def do_GET(self):
        if found := re.fullmatch(r"/me/pusht/resolve/[^/]+/(.+)", self.path):
            if (data := self.files.get(found[1])) is None:
                return self.answer(b"", 404, X_Error_Code="EntryNotFound")
            return self.answer(data, ETag=f'"{hashlib.sha1(data).hexdigest()}"')
        if re.fullmatch(rf"/api/models/me/pusht(/revision/(main|{COMMIT}))?", self.path) and self.files:
            siblings = [{"rfilename": name} for name in self.files]
            return self.answer({"id": "me/pusht", "sha": COMMIT, "siblings": siblings})
        if re.match(r"/api/models/me/pusht/tree/", self.path) and self.files:
            oids = {name: hashlib.sha1(data).hexdigest() for name, data in self.files.items()}
            rows = [{"type": "file", "path": n, "size": len(self.files[n]), "oid": oid} for n, oid in oids.items()]
            return self.answer(rows)
        return self.answer({"error": "not found"}, 404, X_Error_Code="RepoNotFound")

    do_HEAD = do_GET


@pytest.fixture
def hub():
    handler = type("Handler", (Hub,), {"files": {}, "private": []})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", handler
        server.shutdown()


def run(code, address, cache, token="hf_test"):
    """In a process of its own: huggingface_hub reads its settings when it is imported."""
    import os

    settings = {"HF_ENDPOINT": address, "HF_HOME": str(cache), "HF_TOKEN": token, "HF_HUB_DISABLE_XET": "1"}
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, **settings}, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


SEEDS = np.zeros((2, 2), np.int64)


def test_what_is_pushed_comes_back_and_acts_the_same(hub, tmp_path):
    address, handler = hub
    policy = tiny_policy(network=MLP)
    policy.save_pretrained(tmp_path / "policy")
    (tmp_path / "policy" / "limits.json").write_text(json.dumps({"step": [90, 90]}))
    command = ["export", f"checkpoint={tmp_path / 'policy'}", "format=hub", f"out={tmp_path / 'out'}", "repo=me/pusht"]
    code, said = run(f"from isdt_policy.cli import main; raise SystemExit(main({command!r}))", address, tmp_path / "a")
    assert code == 0, said
    assert f"uploaded: {address}/me/pusht/commit/{COMMIT}" in said
    assert handler.private == [True]
    assert set(handler.files) == {"config.json", "model.safetensors", "limits.json", "README.md"}
    assert 'HubPolicy.from_pretrained("me/pusht")' in handler.files["README.md"].decode()
    for name, data in handler.files.items():
        assert (tmp_path / "out" / name).read_bytes() == data

    obs = observations(2)
    np.savez(tmp_path / "obs.npz", **obs)
    load = f"""
import numpy as np
from isdt_policy.deploy.hub import HubPolicy
policy = HubPolicy.from_pretrained("me/pusht")
assert policy.limits.step == (90, 90)
answer = policy.predict_action(dict(np.load(r"{tmp_path / "obs.npz"}")), noise_seeds=np.zeros((2, 2), np.int64))
np.save(r"{tmp_path / "action.npy"}", answer["action"])
"""
    code, said = run(load, address, tmp_path / "b")
    assert code == 0, said
    expected = policy.predict_action(obs, noise_seeds=SEEDS)["action"]
    assert np.abs(np.load(tmp_path / "action.npy") - expected).max() < 1e-3  # pixels; another process, other last bits

    by_name = f"""
import numpy as np
from isdt_policy import Policy
given = dict(np.load(r"{tmp_path / "obs.npz"}"))
first, *others = [
    policy.predict_action(given, noise_seeds=np.zeros((2, 2), np.int64))["action"]
    for policy in (
        Policy.from_pretrained("me/pusht", revision="main"), Policy.from_pretrained("hub:me/pusht"),
        Policy.from_pretrained("hub:me/pusht@{COMMIT}"),
    )
]
assert all(np.array_equal(first, other) for other in others)
Policy.from_pretrained("me/pusht", revision="v0")
"""
    code, said = run(by_name, address, tmp_path / "names")
    assert "InputError: 'hub:me/pusht@v0' cannot be loaded from the hub: " in said

    damaged = bytearray(handler.files["model.safetensors"])
    damaged[-1] ^= 1
    handler.files["model.safetensors"] = bytes(damaged)
    code, said = run(load, address, tmp_path / "c")
    assert code != 0
    assert "InputError" in said
    assert "model.safetensors" in said


def test_what_the_hub_refuses_is_said_in_one_line(hub, tmp_path):
    address, handler = hub
    load = "from isdt_policy.deploy.hub import HubPolicy; HubPolicy.from_pretrained('me/pusht')"
    assert "'me/pusht' cannot be loaded from the hub" in run(load, address, tmp_path)[1]
    tiny_policy(network=MLP).save_pretrained(tmp_path / "policy")
    push = f"from isdt_policy.deploy.hub import HubPolicy; HubPolicy.from_run(r'{tmp_path / 'policy'}').push_to_hub('me/x')"
    code, said = run(push, address, tmp_path, token="hf_wrong")
    assert code != 0
    assert "InputError: upload to 'me/x' failed: " in said
    assert not handler.files


def test_a_card_says_what_is_true_of_this_policy(tmp_path):
    import dataclasses

    import yaml

    from isdt_policy.deploy.card import About, model_card
    from isdt_policy.method.samplers import Sampling

    policy = tiny_policy(network=MLP)
    folder = tmp_path / "run"
    (folder / "checkpoints" / "0000001").mkdir(parents=True)
    settings = {"data": {"path": "/home/me/arm.zarr"}, "training": {"steps": 700}}
    (folder / "config.json").write_text(json.dumps(settings))
    (folder / "provenance.json").write_text(json.dumps({"command": "isdt train data.path=/home/me/arm.zarr"}))
    about = About.of_run(folder / "checkpoints" / "0000001", "mit")
    card = model_card(policy, None, "me/arm", about)
    front = yaml.safe_load(card.split("---")[1])
    assert (front["license"], front["library_name"]) == ("mit", "isdt-policy")
    assert "| demonstrations | arm.zarr |" in card  # a name, and no folder of somebody's machine
    assert "700 steps" in card
    assert "one network evaluation answers" in card
    policy.config = dataclasses.replace(policy.config, sampling=Sampling("velocity"))
    other = model_card(policy, None)
    assert "flow-matching policy" in other
    assert "one network evaluation" not in other
    assert "license" not in yaml.safe_load(other.split("---")[1])


def test_a_name_that_is_none_is_one_line():
    from isdt_policy.method.from_hub import folder
    from isdt_policy.shared.errors import InputError

    with pytest.raises(InputError, match="must be hub:USER/NAME"):
        folder("hub:pusht")


def test_a_name_without_its_prefix_is_answered_with_it():
    from isdt_policy.method.policy import Policy
    from isdt_policy.shared.errors import InputError

    with pytest.raises(InputError, match=r"no policy at 'me/pusht': .*; from the hub: hub:me/pusht$"):
        Policy.from_pretrained("me/pusht")
    with pytest.raises(InputError, match=r"zoo:pusht_human$"):
        Policy.from_pretrained("outputs/runs/pusht")
