"""Take a picture of the live dashboard in a headless Chromium.

    .venv/bin/python scripts/dashboard_shot.py --url http://127.0.0.1:8000/dashboard \
        --after-s 60 --out docs/figures/dashboard.png

Drives the browser by its own debugging protocol, so that the page runs at its real pace.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

START_S_MAX = 20.0
FLAGS = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--no-first-run",
    "--disable-extensions",
    "--remote-debugging-port=0",
]


def chromium() -> str | None:
    """Return the browser's program, or None where there is none."""
    return shutil.which("chromium") or shutil.which("chromium-browser")


class Tab:
    """One page of a browser."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._asked = 0
        self.complaints: list[str] = []  # what the page threw or wrote to its console as an error

    async def ask(self, method: str, **params: Any) -> dict[str, Any]:
        """Return the result of one command of the debugging protocol."""
        self._asked += 1
        await self._socket.send_json({"id": self._asked, "method": method, "params": params})
        while True:
            said = await self._socket.receive_json()
            if said.get("method") == "Runtime.exceptionThrown":
                self.complaints.append(str(said["params"]["exceptionDetails"]))
            elif said.get("method") == "Log.entryAdded":
                entry = said["params"]["entry"]
                if entry["level"] == "error":
                    self.complaints.append(entry["text"])
            elif said.get("id") == self._asked:
                return said.get("result", {})

    async def open(self, url: str, width: int, height: int, *, dark: bool = False) -> None:
        """Go to `url` in a window of that size."""
        for domain in ("Page", "Runtime", "Log"):
            await self.ask(f"{domain}.enable")
        await self.ask(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        await self.ask("Emulation.setEmulatedMedia", features=[scheme])
        await self.ask("Page.navigate", url=url)

    async def value(self, script: str) -> Any:
        """Return what an expression gives in the page."""
        result = await self.ask("Runtime.evaluate", expression=script, returnByValue=True)
        return result["result"].get("value")

    async def picture(self) -> bytes:
        """Return the page as PNG."""
        shot = await self.ask("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        return base64.b64decode(shot["data"])


@asynccontextmanager
async def browser_tab(program: str) -> AsyncIterator[Tab]:
    """Start a browser with a fresh profile, yield its page, and end it."""
    with tempfile.TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True) as folder:
        process = await asyncio.create_subprocess_exec(
            program,
            *FLAGS,
            f"--user-data-dir={folder}",
            "about:blank",
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )
        try:
            port_file = Path(folder) / "DevToolsActivePort"
            async with asyncio.timeout(START_S_MAX):
                while not (port_file.exists() and port_file.read_text().strip()):
                    await asyncio.sleep(0.05)
            port = port_file.read_text().split()[0]
            async with aiohttp.ClientSession() as session:
                async with session.get(f"http://127.0.0.1:{port}/json/list") as answer:
                    pages = [one for one in await answer.json() if one["type"] == "page"]
                address = pages[0]["webSocketDebuggerUrl"]
                async with session.ws_connect(address, max_msg_size=0) as socket:
                    yield Tab(socket)
        finally:
            if process.returncode is None:
                process.terminate()
            await process.wait()


async def shoot(url: str, after_s: float, width: int, height: int, dark: bool) -> bytes:
    program = chromium()
    if program is None:
        raise SystemExit("dashboard_shot: no chromium on the PATH; install it")
    async with browser_tab(program) as tab:
        await tab.open(url, width, height, dark=dark)
        await asyncio.sleep(after_s)
        for complaint in tab.complaints:
            print(f"the page complains: {complaint}")
        return await tab.picture()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", default="http://127.0.0.1:8000/dashboard")
    parser.add_argument("--after-s", type=float, default=60.0)
    parser.add_argument("--width", type=int, default=1280)
    parser.add_argument("--height", type=int, default=1000)
    parser.add_argument("--dark", action="store_true")
    parser.add_argument("--out", type=Path, required=True)
    asked = parser.parse_args()
    png = asyncio.run(shoot(asked.url, asked.after_s, asked.width, asked.height, asked.dark))
    asked.out.write_bytes(png)
    print(f"wrote {asked.out.name}, {len(png) // 1024} KiB")


if __name__ == "__main__":
    main()
