"""A headless Chromium driven over its debugging port (Chrome DevTools Protocol over RFC 6455), and a server for it."""

import base64
import contextlib
import json
import os
import socket
import struct
import subprocess
import threading
import time
import urllib.request

import uvicorn


@contextlib.contextmanager
def served(app):
    """The address of an application that runs in a thread."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=2))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]}, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{bound.getsockname()[1]}/"
        finally:
            server.should_exit = True
            thread.join(20)


class Browser:
    """One page of a browser; `problems` holds what its console complained about."""

    def __init__(self, program, folder):
        self.folder, self.number, self.problems = folder / "browser", 0, []
        self.process = subprocess.Popen(
            [program, "--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0", "--no-first-run",
             "--window-size=1200,1000", f"--user-data-dir={self.folder}", "about:blank"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip

    def __enter__(self):
        ready, end = self.folder / "DevToolsActivePort", time.monotonic() + 60
        while not (ready.is_file() and ready.read_text().strip()):
            assert time.monotonic() < end and self.process.poll() is None, "the browser does not start"
            time.sleep(0.1)
        port = int(ready.read_text().split()[0])
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/json", timeout=30) as answer:
            page = next(t for t in json.load(answer) if t["type"] == "page")
        self.socket = socket.create_connection(("127.0.0.1", port), 30)
        key = base64.b64encode(os.urandom(16)).decode()
        path = page["webSocketDebuggerUrl"].split(str(port), 1)[1]
        self.socket.sendall(
            f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
        )
        self.file = self.socket.makefile("rb")
        while self.file.readline().strip():
            pass
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")
        return self

    def __exit__(self, *_):
        self.socket.close()
        self.process.terminate()
        self.process.wait(20)

    def call(self, method, **params):
        self.number += 1
        data = json.dumps({"id": self.number, "method": method, "params": params}).encode()
        size = bytes([0x80 | 126]) + struct.pack(">H", len(data)) if len(data) > 125 else bytes([0x80 | len(data)])
        self.socket.sendall(b"\x81" + size + b"\0\0\0\0" + data)  # a mask of zeros
        while True:
            answer = json.loads(self._message())
            if answer.get("method") in ("Runtime.exceptionThrown", "Log.entryAdded"):
                self.problems.append(answer["params"])
            if answer.get("id") == self.number:
                assert "error" not in answer, answer
                return answer["result"]

    def _message(self):
        found = b""
        while True:
            first, size = self.file.read(2)
            if size == 126:
                (size,) = struct.unpack(">H", self.file.read(2))
            elif size == 127:
                (size,) = struct.unpack(">Q", self.file.read(8))
            found += self.file.read(size)
            if first & 0x80:
                return found

    def open(self, address):
        self.call("Page.navigate", url=address)

    def run(self, code):
        found = self.call("Runtime.evaluate", expression=code, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def wait(self, code, seconds=30):
        end = time.monotonic() + seconds
        tried = f"(() => {{ try {{ return {code} }} catch (e) {{ return false }} }})()"  # a page may be on its way
        while not self.run(tried):
            assert time.monotonic() < end, f"never came true: {code}"
            time.sleep(0.05)

    def screenshot(self, path):
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))
