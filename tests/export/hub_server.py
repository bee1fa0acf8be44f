"""A stand-in for the Hugging Face Hub: as much of its HTTP API as pushing and loading a model need."""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

Repos = dict[str, dict[str, bytes]]


class Hub(BaseHTTPRequestHandler):
    """Repositories in memory; a request without a token may read and not write."""

    repos: Repos

    def _send(self, status: int, body: object = b"", **headers: str) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        if "Content_Length" not in headers:
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _none(self) -> None:
        self._send(404, {"error": "Repository not found"}, X_Error_Code="RepoNotFound")

    @staticmethod
    def _sha(files: dict[str, bytes]) -> str:
        return hashlib.sha1(b"".join(name.encode() + data for name, data in sorted(files.items()))).hexdigest()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(/revision/[^/]+|/tree/[^/]+)?", path):
            name, what = found.groups()
            if name not in self.repos:
                return self._none()
            files = self.repos[name]
            if what and what.startswith("/revision/") and what.split("/")[2] not in ("main", self._sha(files)):
                return self._send(404, {"error": "no revision"}, X_Error_Code="RevisionNotFound")
            if what and what.startswith("/tree/"):
                oid = {file: hashlib.sha1(data).hexdigest() for file, data in files.items()}
                tree = [{"type": "file", "path": f, "size": len(d), "oid": oid[f]} for f, d in files.items()]
                return self._send(200, tree)
            siblings = [{"rfilename": file} for file in files]
            return self._send(200, {"id": name, "sha": self._sha(files), "siblings": siblings, "private": False})
        if found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            name, _, file = found.groups()
            if file not in self.repos.get(name, {}):
                return self._send(404, {"error": "no entry"}, X_Error_Code="EntryNotFound")
            data = self.repos[name][file]
            etag = f'"{hashlib.sha1(data).hexdigest()}"'
            return self._send(
                200, data, ETag=etag, X_Repo_Commit=self._sha(self.repos[name]), Content_Length=str(len(data))
            )
        return self._send(404, {"error": path})

    do_HEAD = do_GET  # noqa: N815

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = self.path.partition("?")[0]
        if path == "/api/validate-yaml":
            return self._send(200, {"errors": [], "warnings": []})
        if not self.headers.get("Authorization"):
            return self._send(401, {"error": "Invalid username or password."})
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked.get('organization') or 'me'}/{asked['name']}"
            self.repos.setdefault(name, {})
            return self._send(200, {"url": f"http://{self.headers['Host']}/{name}", "name": name, "id": name})
        name = "/".join(path.split("/")[3:5])
        if path.endswith("/preupload/main"):
            files = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                for file in json.loads(body)["files"]
            ]
            return self._send(200, {"files": files})
        if path.endswith("/commit/main"):
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.repos[name][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            address = f"http://{self.headers['Host']}/{name}/commit/1"
            return self._send(200, {"success": True, "commitOid": "1" * 40, "commitUrl": address, "hookOutput": ""})
        return self._send(404, {"error": path})

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def hub(monkeypatch: pytest.MonkeyPatch, cache: Path) -> Iterator[Repos]:
    """Have `huggingface_hub` talk to a stand-in inside the block; gives its repositories, by name and file."""
    from huggingface_hub import constants

    repos: Repos = {}
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("OneHub", (Hub,), {"repos": repos}))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    address = f"http://127.0.0.1:{server.server_address[1]}"
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setenv("HF_TOKEN", "hf_of_the_test")
    try:
        yield repos
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
