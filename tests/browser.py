"""A headless Chromium that is told what to do while a page lives: time goes on, and events arrive."""

import asyncio
import base64
import itertools
import json
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import aiohttp

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage",
]  # fmt: skip
WATCH = """
  window.wrong = [];
  addEventListener("error", event => wrong.push("error: " + event.message));
  addEventListener("securitypolicyviolation", event => wrong.push("request: " + event.blockedURI));
  for (const name of ["error", "warn"]) console[name] = (...said) => wrong.push(name + ": " + said.join(" "));
"""
"""Before anything of a page: collects what goes wrong."""
BLANK = "about:blank"
PATIENCE_SECONDS = 60.0


class Browser:
    """One tab of a browser of its own."""

    def __enter__(self) -> Self:
        """Start it."""
        assert CHROMIUM is not None
        self._profile = tempfile.mkdtemp()
        self._runner = asyncio.Runner()
        command = [CHROMIUM, *FLAGS, "--remote-debugging-port=0", f"--user-data-dir={self._profile}", BLANK]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self._numbers = itertools.count(1)
        self._runner.run(self._connect())
        self.do("Page.enable")
        self.do("Page.addScriptToEvaluateOnNewDocument", source=WATCH)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End it."""
        self._runner.run(self._session.close())
        self._runner.close()
        self._process.terminate()
        self._process.wait(timeout=30)
        shutil.rmtree(self._profile, ignore_errors=True)

    def do(self, method: str, **params: Any) -> dict[str, Any]:
        """Return the answer to a command of the DevTools protocol."""
        return self._runner.run(self._do(method, params))

    def open(self, address: str, *, width: int = 1280, height: int = 900, dark: bool = False) -> None:
        """Open a page on a screen of this size, and wait until it is loaded."""
        self.do(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.do("Emulation.setEmulatedMedia", features=[scheme])
        self.do("Page.navigate", url=address)
        is_there = f"(location.href === '{BLANK}') === {json.dumps(address == BLANK)}"
        self.wait(f"document.readyState === 'complete' && {is_there}")

    def ask(self, script: str) -> Any:
        """Return the value of an expression."""
        found = self.do("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def wait(self, script: str) -> Any:
        """Wait until an expression is true, and return its value."""
        end = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < end:
            if value := self.ask(script):
                return value
            time.sleep(0.1)
        raise AssertionError(f"never true: {script}; the page: {self.ask('document.body.innerText')[:2000]}")

    def picture(self, path: Path, *, whole: bool = False) -> None:
        """Write what is seen, or the `whole` page, as PNG."""
        found = self.do("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        if whole:
            size = self.do("Page.getLayoutMetrics")["cssContentSize"]
            clip = {**{key: size[key] for key in ("x", "y", "width", "height")}, "scale": 1}
            found = self.do("Page.captureScreenshot", format="png", captureBeyondViewport=True, clip=clip)
        path.write_bytes(base64.b64decode(found["data"]))

    async def _connect(self) -> None:
        place = Path(self._profile, "DevToolsActivePort")
        for _ in range(600):
            if place.exists() and place.read_text().count("\n"):
                break
            await asyncio.sleep(0.1)
        port = place.read_text().splitlines()[0]
        self._session = aiohttp.ClientSession()
        async with self._session.get(f"http://127.0.0.1:{port}/json") as answer:
            tabs = [tab for tab in await answer.json() if tab["type"] == "page"]
        self._socket = await self._session.ws_connect(tabs[0]["webSocketDebuggerUrl"], max_msg_size=0)

    async def _do(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        number = next(self._numbers)
        await self._socket.send_json({"id": number, "method": method, "params": params})
        while True:
            message = json.loads((await self._socket.receive(timeout=PATIENCE_SECONDS)).data)
            if message.get("id") == number:
                assert "error" not in message, message
                return message["result"]
