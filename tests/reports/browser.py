"""Headless Chromium, driven through its DevTools pipe: messages of JSON, each with a NUL at its end."""

import base64
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path

import pytest


CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_chromium = pytest.mark.skipif(
    CHROMIUM is None, reason="needs Chromium (such as `apt-get install chromium`), which is not installed here"
)
_SECONDS = 120


class Browser:
    """One page at a time. `requests` has the addresses that it asked for, `errors` what it could not do."""

    def __init__(self, folder):
        inputs, self._to = os.pipe()
        self._from, outputs = os.pipe()
        options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
        options += [f"--user-data-dir={folder}", "--remote-debugging-pipe", "--hide-scrollbars"]
        # It reads from 3 and writes to 4
        script = f'exec "$0" "$@" 3<&{inputs} 4>&{outputs}'
        self._process = subprocess.Popen(
            ["bash", "-c", script, CHROMIUM, *options],
            pass_fds=(inputs, outputs),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(inputs)
        os.close(outputs)
        self._buffer, self._number, self._session = b"", 0, None
        self.requests, self.errors = [], []
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self._call(f"{domain}.enable")
        self._call("Emulation.setFocusEmulationEnabled", enabled=True)

    def close(self):
        os.close(self._to)  # at the end of its input, it ends
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._from)

    def open(self, path, state="", width=1200, height=800, dark=False):
        """Open a page, in a state (the part of an address after `#`), and wait until it has drawn itself."""
        self._call("Page.navigate", url="about:blank")
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self._call("Emulation.setDeviceMetricsOverride", **size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._call("Emulation.setEmulatedMedia", features=[scheme])
        self.requests.clear()
        self.errors.clear()
        self._call("Page.navigate", url=f"{Path(path).resolve().as_uri()}#{state}")
        end = time.monotonic() + _SECONDS
        while self.run("document.documentElement?.dataset.ready") != "yes":
            assert time.monotonic() < end and not self.errors, self.errors or "the page is not ready"
            time.sleep(0.01)

    def run(self, code):
        """The value of an expression in the page, which its policy does not apply to."""
        result = self._call("Runtime.evaluate", expression=code, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def texts(self, selector):
        """The texts of all elements that a selector finds."""
        return self.run(f"[...document.querySelectorAll({json.dumps(selector)})].map((found) => found.textContent)")

    def text(self, selector):
        (text,) = self.texts(selector)
        return text

    def count(self, selector):
        return len(self.texts(selector))

    def press(self, key):
        text = {"text": key} if len(key) == 1 else {}
        self._call("Input.dispatchKeyEvent", type="keyDown", key=key, **text)
        self._call("Input.dispatchKeyEvent", type="keyUp", key=key)

    def point_at(self, selector):
        """Move the mouse to the middle of an element."""
        code = f"(({{x, y, width, height}}) => [x + width / 2, y + height / 2])(document.querySelector({selector!r})"
        x, y = self.run(f"{code}.getBoundingClientRect())")
        self._call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def screenshot(self):
        """The page as the bytes of a PNG file."""
        return base64.b64decode(self._call("Page.captureScreenshot")["data"])

    def _call(self, method, **params):
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == self._number:
                assert "error" not in answer, (method, answer["error"])
                return answer["result"]
            self._note(answer.get("method"), answer.get("params"))

    def _read(self):
        while b"\0" not in self._buffer:
            assert select.select([self._from], [], [], _SECONDS)[0], "Chromium does not answer"
            read = os.read(self._from, 1 << 20)
            assert read, "Chromium has ended"
            self._buffer += read
        message, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)

    def _note(self, event, params):
        if event == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
        elif event in ("Runtime.exceptionThrown", "Inspector.targetCrashed", "Log.entryAdded"):
            self.errors.append(params)
