"""A page in a real headless browser."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from conftest import skip

#: Opens all that is folded, and the beginning of one sound. The page allows no script of its own.
_SEEN = """(async () => {
  const sounds = [...document.querySelectorAll("audio")];
  document.querySelectorAll("details").forEach(folded => folded.open = true);
  let seconds = null;
  if (sounds.length) seconds = await new Promise(told => {
    sounds[0].onloadedmetadata = () => told(sounds[0].duration);
    sounds[0].onerror = () => told(sounds[0].error.message);
    sounds[0].preload = "metadata";
    sounds[0].load();
  });
  return {
    overflow: document.documentElement.scrollWidth - innerWidth,
    sounds: sounds.length,
    seconds,
    pictures: [...document.images].map(picture => picture.naturalWidth),
  };
})()"""


def _command(profile: Path, *options: str) -> list[str]:
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        skip("no chromium to open the report in")
    always = [
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--hide-scrollbars",
    ]
    return [browser, *always, f"--user-data-dir={profile}", *options]


def opened(path: Path, profile: Path) -> str:
    """The document after the browser has rendered the page."""
    command = _command(profile, "--timeout=20000", "--dump-dom", path.as_uri())
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


def at_widths(path: Path, profile: Path, *widths: int) -> list[dict]:
    """What is seen of the page at each width: its horizontal overflow in pixels, the width of each picture, 0 where it
    does not load, the number of sounds, and the seconds of the first, or why it cannot be played."""
    found = []
    with _Browser.started(profile) as browser:
        target = browser.ask("Target.createTarget", url="about:blank")["targetId"]
        session = browser.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        browser.ask("Page.enable", session)
        for width in widths:
            screen = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": False}
            browser.ask("Emulation.setDeviceMetricsOverride", session, **screen)
            browser.events.clear()
            browser.ask("Page.navigate", session, url=path.as_uri())
            browser.wait_for("Page.loadEventFired")
            asked = {"expression": _SEEN, "awaitPromise": True, "returnByValue": True}
            found.append(browser.ask("Runtime.evaluate", session, **asked)["result"]["value"])
    return found


class _Browser:
    """The DevTools protocol over a pipe: messages of JSON, each ended by a zero byte."""

    def __init__(self, to: int, said: int):
        self.to, self.said = os.fdopen(to, "wb", buffering=0), os.fdopen(said, "rb")
        self.number = 0
        self.events: list[str] = []

    @classmethod
    @contextmanager
    def started(cls, profile: Path) -> Iterator[_Browser]:
        (theirs, to), (said, answers) = os.pipe(), os.pipe()
        # The browser reads from 3 and writes to 4, which must not be one of ours.
        ends = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (theirs, answers)]
        os.close(theirs)
        os.close(answers)
        script = f'exec "$@" 3<&{ends[0]} 4>&{ends[1]}'
        command = ["bash", "-c", script, "bash", *_command(profile, "--remote-debugging-pipe")]
        process = subprocess.Popen(command, pass_fds=ends, stderr=subprocess.DEVNULL)
        for end in ends:
            os.close(end)
        browser = cls(to, said)
        try:
            yield browser
            browser.ask("Browser.close")
            process.wait(timeout=60)
        finally:
            process.kill()
            process.wait()
            browser.to.close()
            browser.said.close()

    def ask(self, method: str, session: str = "", **values: Any) -> dict:
        self.number += 1
        message = {"id": self.number, "method": method, "params": values}
        message |= {"sessionId": session} if session else {}
        self.to.write(json.dumps(message).encode() + b"\0")
        while (told := self._read()).get("id") != self.number:
            self.events.append(told.get("method", ""))
        assert "error" not in told, told
        return told["result"]

    def wait_for(self, event: str) -> None:
        while event not in self.events:
            self.events.append(self._read().get("method", ""))

    def _read(self) -> dict:
        message = bytearray()
        while (byte := self.said.read(1)) != b"\0":
            assert byte, "the browser has ended"
            message += byte
        return json.loads(message)
