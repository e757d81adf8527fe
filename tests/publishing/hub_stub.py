"""A stand-in for the Hub on the loopback address: what a push and a load ask of it, and faults on demand."""

import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


TOKENS = {"writer": "hf_" + "w" * 34, "reader": "hf_" + "r" * 34}


class HubStub:
    """Repositories in memory, behind real HTTP; a branch is one named `user/name@branch`.

    Faults: request number `fail_at` (from 0, since `restart`) meets `fault`: `"dropped"` (the connection ends before
    the Hub has done anything), `"lost"` (it did, but the answer never arrives), `"down"` (dropped, as is every later
    request), or a number (that status). Every commit is kept in full, so a test can look at all that was ever public.
    """

    def __init__(self):
        self.repos: dict[str, dict[str, bytes]] = {}
        self.private: dict[str, bool | None] = {}  # as each was created
        self.commits: dict[str, list[dict[str, bytes]]] = {}  # the files after each commit
        self.large: dict[str, bytes] = {}
        self.fail_at, self.fault = None, "dropped"
        self.restart()
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *args):
                pass

            def answer(self):
                hub.handle(self)

            do_GET = do_POST = do_PUT = do_HEAD = answer

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def restart(self, fail_at: int | None = None, fault: str | int = "dropped") -> None:
        self.requests: list[str] = []
        self.fail_at, self.fault = fail_at, fault

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def handle(self, request) -> None:
        number = len(self.requests)
        path = request.path.split("?")[0]
        self.requests.append(f"{request.command} {path}")
        body = request.rfile.read(int(request.headers.get("Content-Length") or 0))
        faulty = self.fail_at is not None and (
            number == self.fail_at or (self.fault == "down" and number > self.fail_at)
        )
        if faulty and isinstance(self.fault, int):
            code, content, headers = self.fault, {"error": "as the test wants it"}, {}
        elif faulty and self.fault != "lost":
            return self.hang_up(request)
        else:
            code, content, headers = self.route(request, path, body)
            if faulty:
                return self.hang_up(request)
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        request.send_response(code)
        for key, value in {"Content-Length": str(len(data)), **headers}.items():
            request.send_header(key, value)
        request.end_headers()
        if request.command != "HEAD":
            request.wfile.write(data)

    @staticmethod
    def hang_up(request) -> None:
        request.close_connection = True
        request.connection.close()

    def route(self, request, path: str, body: bytes) -> tuple[int, bytes | dict | list, dict[str, str]]:
        """(status, content, headers) of one request."""
        token = (request.headers.get("Authorization") or "").removeprefix("Bearer ")
        host = f"http://{request.headers['Host']}"
        if token and token not in TOKENS.values():
            return 401, {"error": "Invalid credentials in Authorization header"}, {}
        if path == "/api/whoami-v2":
            return (200, {"type": "user", "name": "me", "orgs": []}, {}) if token else (401, {"error": "token"}, {})
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}, {}
        if path == "/api/repos/create":
            return self.create(json.loads(body), token, host)
        if match := re.fullmatch(r"/(.+)\.git/info/lfs/objects/batch", path):
            return (
                200,
                {"transfer": "basic", "objects": [self.batch(o, host) for o in json.loads(body)["objects"]]},
                {},
            )
        if match := re.fullmatch(r"/large/([0-9a-f]{64})", path):
            assert hashlib.sha256(body).hexdigest() == match[1]
            self.large[match[1]] = body
            return 200, b"", {}
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/?([a-z]*)/?(.*)", path):
            if match[1] not in self.repos:
                return 404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"}
            return self.api(match[1], match[2], match[3], body, token, host)
        if match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            return self.resolve(match[1], match[3])
        return 404, {"error": f"the stand-in has no {request.command} {path}"}, {}

    def create(self, wanted: dict, token: str, host: str):
        if token != TOKENS["writer"]:
            return (403 if token else 401), {"error": "no write access"}, {}
        repo_id = f"{wanted['organization']}/{wanted['name']}"
        if repo_id in self.repos:
            return 409, {"error": "You already created this model repo", "url": f"{host}/{repo_id}"}, {}
        self.repos[repo_id] = {".gitattributes": b"*.safetensors filter=lfs\n"}
        self.private[repo_id] = {"private": True, "public": False}.get(wanted.get("visibility"))
        self.commits[repo_id] = [dict(self.repos[repo_id])]
        return 200, {"url": f"{host}/{repo_id}", "name": repo_id}, {}

    def batch(self, wanted: dict, host: str) -> dict:
        if wanted["oid"] in self.large:
            return wanted
        return {**wanted, "actions": {"upload": {"href": f"{host}/large/{wanted['oid']}"}}}

    def api(self, repo_id: str, verb: str, revision: str, body: bytes, token: str, host: str):
        if verb == "branch":
            if token != TOKENS["writer"]:
                return 403, {"error": "no write access"}, {}
            if revision == "main" or f"{repo_id}@{revision}" in self.repos:
                return 409, {"error": "Reference already exists"}, {}
            self.repos[f"{repo_id}@{revision}"] = dict(self.repos[repo_id])
            self.commits[f"{repo_id}@{revision}"] = []
            return 200, {}, {}
        revision, _, folder = revision.partition("/")
        if verb in ("tree", "preupload", "commit") and revision != "main":
            repo_id = f"{repo_id}@{revision}"
            if repo_id not in self.repos:
                return 404, {"error": "Invalid rev id"}, {"X-Error-Code": "RevisionNotFound"}
        files = self.repos[repo_id]
        if verb == "tree" and folder:
            inside = {name: data for name, data in files.items() if name.startswith(f"{folder}/")}
            if not inside:
                return 404, {"error": "no such folder"}, {"X-Error-Code": "EntryNotFound"}
            return 200, [self.entry(name, data) for name, data in inside.items()], {}
        if verb == "tree":
            return 200, [self.entry(name, data) for name, data in files.items()], {}
        if verb == "preupload":
            return 200, {"files": [self.mode(file["path"]) for file in json.loads(body)["files"]]}, {}
        if verb == "commit":
            if token != TOKENS["writer"]:
                return 403, {"error": "no write access"}, {}
            self.commit(repo_id, body)
            oid = self.head(repo_id)
            return 200, {"success": True, "commitOid": oid, "commitUrl": f"{host}/{repo_id}/commit/{oid}"}, {}
        info = {"id": repo_id, "modelId": repo_id, "sha": self.head(repo_id), "private": False, "tags": []}
        return 200, info | {"siblings": [{"rfilename": name} for name in files], "downloads": 0, "likes": 0}, {}

    @staticmethod
    def mode(name: str) -> dict:
        mode = "lfs" if name.endswith(".safetensors") else "regular"
        return {"path": name, "uploadMode": mode, "shouldIgnore": False}

    @staticmethod
    def entry(name: str, data: bytes) -> dict:
        git = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
        large = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}
        lfs = {"lfs": large} if HubStub.mode(name)["uploadMode"] == "lfs" else {}
        return {"type": "file", "path": name, "size": len(data), "oid": git, **lfs}

    def commit(self, repo_id: str, body: bytes) -> None:
        files = dict(self.repos[repo_id])
        for item in map(json.loads, body.splitlines()):
            value = item["value"]
            if item["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif item["key"] == "lfsFile":
                files[value["path"]] = self.large[value["oid"]]
            elif item["key"] == "deletedFile":
                del files[value["path"]]
        self.repos[repo_id] = files
        self.commits[repo_id].append(files)

    def head(self, repo_id: str) -> str:
        return hashlib.sha1(f"{repo_id} {len(self.commits[repo_id])}".encode()).hexdigest()

    def resolve(self, repo_id: str, name: str):
        if repo_id not in self.repos:
            return 404, {}, {"X-Error-Code": "RepoNotFound"}
        data = self.repos[repo_id].get(name)
        if data is None:
            return 404, {}, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": self.head(repo_id)}
        return 200, data, {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X-Repo-Commit": self.head(repo_id)}
