"""A Hub on loopback: the endpoints that HfApi publishes through, on local git repositories.

It takes what the real one takes (create, delete, branch, preupload, LFS batch and upload, commit,
pull request), knows what it has already, and fails where a test tells it to. Repositories lie in
``root/models/ORG/NAME``, where olah serves them from.
"""

import base64
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

TOKEN = "hf_loopback"
USER = "user:secret"  # as a proxy before the Hub may want it, in the address
ACCEPTED = (f"Bearer {TOKEN}", f"Basic {base64.b64encode(USER.encode()).decode()}")
ORGANIZATION = "me"


def git(repository: Path, *words: str) -> str:
    config = ("user.name=test", "user.email=test@localhost", "core.compression=0")
    options = [word for setting in config for word in ("-c", setting)]
    command = ["git", "-C", str(repository), *options, *words]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


class LoopbackHub(ThreadingHTTPServer):
    """The server; ``faults`` maps a part of a path to a status, ``"cut"`` or ``"Ctrl-C"``."""

    def __init__(self, root: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.root = root
        self.faults: dict[str, Any] = {}
        self.requests: list[str] = []
        self.private: dict[str, bool] = {}
        self.objects: dict[str, bytes] = {}

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def folder(self, repository: str) -> Path:
        return self.root / "models" / repository


class Handler(BaseHTTPRequestHandler):
    server: LoopbackHub
    protocol_version = "HTTP/1.1"

    def handle_any(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.server.requests.append(f"{self.command} {path}")
        size = int(self.headers.get("Content-Length", 0))
        fault = next((f for part, f in self.server.faults.items() if part in self.path), None)
        if fault == "cut":
            self.rfile.read(size // 2)
            self.close_connection = True
            self.connection.shutdown(2)
            return
        if fault == "Ctrl-C":
            os.kill(os.getpid(), signal.SIGINT)
            fault = 500
        body = self.rfile.read(size)
        if fault is not None:
            self.answer(fault, {"error": "injected"})
        elif not path.startswith("/lfs/") and self.headers.get("Authorization") not in ACCEPTED:
            self.answer(401, {"error": "Invalid credentials"})
        else:
            for method, pattern, handle in ROUTES:
                match = re.fullmatch(pattern, path)
                if method == self.command and match:
                    self.answer(*handle(self, body, *match.groups()))
                    return
            self.answer(404, {"error": f"no such endpoint: {path}"})

    do_GET = do_POST = do_PUT = do_DELETE = handle_any

    def answer(self, status: int, content: Any) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args: Any) -> None:
        pass

    def create(self, body: bytes) -> tuple[int, Any]:
        asked = json.loads(body)
        repository = f"{asked['organization']}/{asked['name']}"
        if asked["organization"] != ORGANIZATION:
            return 403, {"error": "You don't have the rights to create a model there"}
        folder = self.server.folder(repository)
        if folder.exists():
            return 409, {"error": "You already created this model repo"}
        folder.mkdir(parents=True)
        git(folder, "init", "--quiet", "--initial-branch=main")
        git(folder, "commit", "--quiet", "--allow-empty", "--message=initial commit")
        private = asked.get("private") or asked.get("visibility") == "private"
        self.server.private[repository] = bool(private)
        return 200, {"url": f"{self.server.endpoint}/{repository}"}

    def delete(self, body: bytes) -> tuple[int, Any]:
        asked = json.loads(body)
        shutil.rmtree(self.server.folder(f"{asked['organization']}/{asked['name']}"))
        return 200, {}

    def branch(self, body: bytes, repository: str, branch: str) -> tuple[int, Any]:
        git(self.server.folder(repository), "branch", "--force", branch, "main")
        return 200, {}

    def validate(self, body: bytes) -> tuple[int, Any]:
        bad = "license:" not in json.loads(body)["content"]
        return (400 if bad else 200), {"errors": [{"message": "no license"}] * bad, "warnings": []}

    def preupload(self, body: bytes, repository: str, revision: str) -> tuple[int, Any]:
        folder = self.server.folder(repository)
        if not folder.exists():
            return 404, {"error": "Repository not found"}
        files = []
        for path in (file["path"] for file in json.loads(body)["files"]):
            lfs = path.endswith(".safetensors")
            known = {"oid": object_id(folder / path, lfs)} if (folder / path).exists() else {}
            mode = "lfs" if lfs else "regular"
            files.append({"path": path, "uploadMode": mode, "shouldIgnore": False, **known})
        return 200, {"files": files}

    def info(self, body: bytes, repository: str) -> tuple[int, Any]:
        head = git(self.server.folder(repository), "rev-parse", "main")
        return 200, {"id": repository, "sha": head}

    def batch(self, body: bytes, repository: str) -> tuple[int, Any]:
        objects = [
            one | {"actions": {"upload": {"href": f"{self.server.endpoint}/lfs/{one['oid']}"}}}
            for one in json.loads(body)["objects"]
        ]
        return 200, {"transfer": "basic", "objects": objects}

    def upload(self, body: bytes, oid: str) -> tuple[int, Any]:
        self.server.objects[oid] = body
        return 200, {}

    def commit(self, body: bytes, repository: str, revision: str) -> tuple[int, Any]:
        folder = self.server.folder(repository)
        pull_request = "create_pr=1" in self.path
        branch = "pr/1" if pull_request else revision
        git(folder, "checkout", "--quiet", "-B", branch, "main" if pull_request else revision)
        header, *operations = (json.loads(line) for line in body.splitlines())
        for operation in operations:
            value = operation["value"]
            if operation["key"] == "lfsFile":
                data = self.server.objects[value["oid"]]
            else:
                data = base64.b64decode(value["content"])
            (folder / value["path"]).write_bytes(data)
        git(folder, "add", "--all")
        git(folder, "commit", "--quiet", f"--message={header['value']['summary']}")
        oid = git(folder, "rev-parse", "HEAD")
        git(folder, "checkout", "--quiet", "main")
        url = f"{self.server.endpoint}/{repository}"
        answer = {"success": True, "commitOid": oid, "commitUrl": f"{url}/commit/{oid}"}
        return 200, answer | {"pullRequestUrl": f"{url}/discussions/1" if pull_request else None}


def object_id(file: Path, lfs: bool) -> str:
    data = file.read_bytes()
    if lfs:
        return hashlib.sha256(data).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


_REPOSITORY = "([^/]+/[^/]+)"
ROUTES = (
    ("POST", "/api/repos/create", Handler.create),
    ("DELETE", "/api/repos/delete", Handler.delete),
    ("POST", f"/api/models/{_REPOSITORY}/branch/(.+)", Handler.branch),
    ("POST", "/api/validate-yaml", Handler.validate),
    ("POST", f"/api/models/{_REPOSITORY}/preupload/(.+)", Handler.preupload),
    ("GET", f"/api/models/{_REPOSITORY}/revision/main", Handler.info),
    ("POST", f"/{_REPOSITORY}.git/info/lfs/objects/batch", Handler.batch),
    ("PUT", "/lfs/([0-9a-f]+)", Handler.upload),
    ("POST", f"/api/models/{_REPOSITORY}/commit/(.+)", Handler.commit),
)


@contextmanager
def loopback_hub(root: Path) -> Iterator[LoopbackHub]:
    """A Hub for as long as the context lasts."""
    server = LoopbackHub(root)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
