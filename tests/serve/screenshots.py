"""Takes the screenshots of docs/serving.md.

python -m tests.serve.screenshots http://127.0.0.1:8000 clip.webm "What happens?"
"""

import mimetypes
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image
from selenium.webdriver.common.keys import Keys

from tests.serve.browser import open_browser
from tests.tiny import REPOSITORY

_PICTURES = {"serve_wide": (1280, 860, "light"), "serve_phone": (390, 844, "dark")}


def take(address: str, clip: Path, question: str) -> None:
    """Asks a server about a clip, and writes what the page shows to docs/."""
    kind, _ = mimetypes.guess_type(clip)
    assert kind, clip
    with tempfile.TemporaryDirectory() as profile, open_browser(Path(profile)) as browser:
        for name, look in _PICTURES.items():
            browser.look(*look)
            browser.get(address)
            browser.wait_for("#model:not(:empty)")
            browser.drop(clip, kind)
            browser.wait_for("#sight")
            browser.find("#question").send_keys(question + Keys.ENTER)
            browser.wait_for(".answer[aria-busy=false]", seconds=120)
            if name == "serve_phone":
                browser.find("#sight").click()
            browser.wait_for(".timeline .lens")
            browser.execute_script("document.querySelector('video').currentTime = 4.5; document.activeElement.blur()")
            time.sleep(1)
            path = REPOSITORY / "docs" / f"{name}.png"
            browser.save_screenshot(str(path))
            Image.open(path).convert("RGB").quantize(256).save(path, optimize=True)


if __name__ == "__main__":
    take(sys.argv[1], Path(sys.argv[2]), sys.argv[3])
