"""Drives Debian's Chromium, with a microphone and a camera that are simulated."""

import base64
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver import Chrome, ChromeOptions, ChromeService
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

# Without these flags Chromium calls Google's servers.
_FLAGS = (
    "--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --use-fake-device-for-media-stream --use-fake-ui-for-media-stream "
    "--autoplay-policy=no-user-gesture-required"
)
_DROP = """
const [name, type, data] = arguments;
const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
const dataTransfer = new DataTransfer();
dataTransfer.items.add(new File([bytes], name, { type }));
for (const event of ["dragenter", "dragover", "drop"])
  document.body.dispatchEvent(new DragEvent(event, { dataTransfer, bubbles: true, cancelable: true }));
"""


class Browser(Chrome):
    """Chromium with short ways to find, wait and look."""

    def find(self, selector: str) -> WebElement:
        return self.find_element(By.CSS_SELECTOR, selector)

    def find_all(self, selector: str) -> list[WebElement]:
        return self.find_elements(By.CSS_SELECTOR, selector)

    def wait_for(self, selector: str, count: int = 1, seconds: float = 20) -> list[WebElement]:
        """Waits until the page has so many visible elements, and returns them."""
        message = f"the page has not {count} of {selector}"
        return WebDriverWait(self, seconds, 0.05, [StaleElementReferenceException]).until(
            lambda _: len(found := [e for e in self.find_all(selector) if e.is_displayed()]) >= count and found, message
        )

    def wait_for_text(self, selector: str, text: str, seconds: float = 20) -> None:
        """Waits until an element has this text."""
        message = f"{selector} is not {text!r}"
        WebDriverWait(self, seconds, 0.05).until(lambda _: self.find(selector).text == text, message)

    def look(self, width: int, height: int, scheme: str = "light", scale: float = 1) -> None:
        """Sets the size of the page in CSS pixels and the preferred colours."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": scale, "mobile": width < 600}
        self.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})

    def drop(self, file: Path, kind: str) -> None:
        """Drops a file of this MIME type onto the page."""
        self.execute_script(_DROP, file.name, kind, base64.b64encode(file.read_bytes()).decode())


@contextmanager
def open_browser(profile: Path) -> Iterator[Browser]:
    """Starts Chromium with an empty profile; skips the test where there is none."""
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not chromium or not driver:
        pytest.skip("no browser: apt-get install chromium chromium-driver")
    options = ChromeOptions()
    options.binary_location = chromium
    for flag in [*_FLAGS.split(), f"--user-data-dir={profile}"]:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = Browser(options, ChromeService(driver, env=os.environ | {"no_proxy": "*"}))
    try:
        yield browser
    finally:
        browser.quit()
