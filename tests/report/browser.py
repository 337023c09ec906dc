"""A page in a real headless browser."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

from conftest import skip

#: Loads the page into a frame of each width, opens all that is folded, and plays the beginning of one sound. The page
#: itself allows no script; this one stands outside of it.
_FRAMES = """<!doctype html>
{frames}
<pre id="found"></pre>
<script>
async function seen(frame) {{
  const page = frame.contentDocument, sounds = [...page.querySelectorAll("audio")];
  page.querySelectorAll("details").forEach(folded => folded.open = true);
  let seconds = null;
  if (sounds.length) seconds = await new Promise(told => {{
    sounds[0].onloadedmetadata = () => told(sounds[0].duration);
    sounds[0].onerror = () => told(sounds[0].error.message);
    sounds[0].preload = "metadata";
    sounds[0].load();
  }});
  return {{
    overflow: page.documentElement.scrollWidth - page.documentElement.clientWidth,
    sounds: sounds.length,
    seconds,
    pictures: [...page.images].map(picture => picture.naturalWidth),
  }};
}}
onload = async () => found.textContent = JSON.stringify(
  await Promise.all([...document.querySelectorAll("iframe")].map(seen)));
</script>
"""


def opened(path: Path, profile: Path, *options: str) -> str:
    """The document after the browser has rendered the page."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        skip("no chromium to open the report in")
    command = [browser, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
    command += [f"--user-data-dir={profile}", "--timeout=20000", *options, "--dump-dom", path.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


def at_widths(path: Path, profile: Path, *widths: int) -> list[dict]:
    """What is seen of the page at each width: its horizontal overflow in pixels, the width of each picture, 0 where it
    does not load, the number of sounds, and the seconds of the first, or why it cannot be played."""
    frames = "\n".join(
        f'<iframe src="{path.name}" style="width:{width}px; height:800px"></iframe>' for width in widths
    )
    outside = path.with_name("frames.html")
    outside.write_text(_FRAMES.format(frames=frames), encoding="utf-8")
    document = opened(outside, profile, "--allow-file-access-from-files", "--virtual-time-budget=10000")
    (found,) = re.findall(r'<pre id="found">(.*?)</pre>', document, re.DOTALL)
    return json.loads(html.unescape(found))
