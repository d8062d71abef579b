"""The page in a real browser: clips, questions, streamed answers, the timeline."""

import base64
import io
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
import soundfile
from selenium.webdriver.common.keys import Keys

from omnivinci_jax.av_world.generate import write_clip
from omnivinci_jax.av_world.timeline import draw_clips
from omnivinci_jax.serve.service import Settings
from tests.serve.browser import Browser, open_browser
from tests.serve.conftest import serving
from tests.serve.scripted import ANSWER, Script, scripted_server

WORDS = ANSWER.replace("*", "").replace("- ", "").split()


@pytest.fixture(scope="module")
def server(assistant) -> Iterator[Script]:
    with scripted_server(assistant) as script:
        yield script


@pytest.fixture(scope="module")
def browser(tmp_path_factory) -> Iterator[Browser]:
    with open_browser(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture
def page(browser, server) -> Iterator[Browser]:
    """The page, just opened, in a wide window; it must log no error."""
    server.bodies.clear()
    yield open_page(browser, server.address)
    errors = [line["message"] for line in browser.get_log("browser") if "/v1/" not in line["message"]]
    assert not errors


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    """An mp4 clip of av_world."""
    folder = tmp_path_factory.mktemp("av_world")
    (clip,) = draw_clips(7, "held_out", 1)
    (folder / "clips").mkdir()
    write_clip(folder, clip)
    return folder / "clips" / clip.name


def open_page(browser: Browser, address: str) -> Browser:
    browser.look(1280, 860)
    browser.get(address)
    browser.wait_for("#model:not(:empty)")
    return browser


def ask(page: Browser, question: str) -> None:
    page.find("#question").send_keys(question + Keys.ENTER)


def answers(page: Browser, count: int) -> list[str]:
    return [answer.text for answer in page.wait_for(".answer[aria-busy=false] .prose", count)]


def asked(server: Script) -> list[dict]:
    return server.bodies[-1]["messages"]


def video_part(clip: Path) -> dict:
    url = f"data:video/mp4;base64,{base64.b64encode(clip.read_bytes()).decode()}"
    return {"type": "video_url", "video_url": {"url": url}}


def test_conversation_about_a_clip(page, server, clip):
    page.drop(clip, "video/mp4")
    ask(page, "What happens?")
    assert answers(page, 1)[0].split() == WORDS
    first = {"role": "user", "content": [video_part(clip), {"type": "text", "text": "What happens?"}]}
    assert asked(server) == [first]
    ask(page, "And then?")
    assert answers(page, 2)[1].split() == WORDS
    second = {"role": "user", "content": [{"type": "text", "text": "And then?"}]}
    assert asked(server) == [first, {"role": "assistant", "content": ANSWER}, second]
    speed = page.find(".answer footer p").text
    assert "first token" in speed and "tokens/s" in speed and f"{len(ANSWER.split())} tokens" in speed, speed
    announced = " ".join(p.get_property("textContent") for p in page.find_all("#announcer p"))
    assert announced.split() == ANSWER.split()
    page.find("#new").click()
    assert page.wait_for("#welcome") and not page.find_all("#turns > li, .timeline")
    ask(page, "Hello")
    answers(page, 1)
    assert asked(server) == [{"role": "user", "content": [{"type": "text", "text": "Hello"}]}]


def test_answers_of_the_model(browser, assistant, clip):
    with serving(assistant, Settings(rows=2, workers=1)) as address:
        page = open_page(browser, address)
        page.drop(clip, "video/mp4")
        ask(page, "What happens?")
        turns = [
            {
                "role": "user",
                "content": [{"type": "video", "video": str(clip)}, {"type": "text", "text": "What happens?"}],
            }
        ]
        for count, question in enumerate(("And then?", "")):
            expected = assistant.generate(turns).text
            assert answers(page, count + 1)[count].split() == expected.split()
            turns += [{"role": "assistant", "content": expected}, {"role": "user", "content": question}]
            if question:
                ask(page, question)


def test_timeline_shows_what_the_model_sees(page, server, assistant, clip):
    page.drop(clip, "video/mp4")
    page.wait_for(".timeline .mel")
    body = {"messages": [{"role": "user", "content": [video_part(clip)]}]}
    (item,) = httpx.post(f"{server.address}/v1/timeline", json=body, timeout=60).json()["items"]
    strip, frames = page.find(".strip"), page.find_all(".frame")
    places = [frame.get_property("offsetLeft") / strip.size["width"] for frame in frames]
    np.testing.assert_allclose(places, [frame["time"] / item["seconds"] for frame in item["frames"]], atol=0.005)
    assert [frame.get_attribute("src") for frame in frames] == [frame["jpeg"] for frame in item["frames"]]
    assert page.find(".mel").get_attribute("src") == item["mel"]
    edges = [group.get_property("offsetLeft") / strip.size["width"] for group in page.find_all(".group")]
    np.testing.assert_allclose(edges, [group["start"] / item["seconds"] for group in item["groups"]], atol=0.005)
    tokens = item["tokens"]
    assert page.find(".timeline .legend").text.split() == [
        str(tokens["vision"]), "vision", str(tokens["audio"]), "audio",
    ]  # fmt: skip

    first = item["frames"][0]["time"]
    strip.send_keys(Keys.HOME)
    assert strip.get_attribute("aria-valuetext") == f"frame 1 of {len(frames)} · {first:.2f} s · group 1"
    strip.send_keys(Keys.RIGHT + Keys.RIGHT)
    assert page.find(".lens").get_attribute("src") == item["frames"][2]["jpeg"]

    ask(page, "What happens?")
    page.wait_for("#meter p")
    count = assistant.generate([clip, "What happens?"], max_new_tokens=1).prompt_tokens
    assert page.find("#meter p").text.startswith(f"{count} tokens")


def test_refused_question_comes_back(page, clip):
    page.drop(clip, "video/mp4")
    page.wait_for(".timeline")
    ask(page, "Please refuse")
    assert page.wait_for("#error")[0].text == "The prompt has 9000 tokens; this server takes at most 4096."
    assert page.find("#question").get_property("value") == "Please refuse"
    assert page.find("#draft b").text == clip.name and not page.find_all("#turns > li")


def test_what_came_before_an_error_stays(page):
    ask(page, "Please break off")
    assert page.wait_for("#error")[0].text == "The model ran out of memory."
    assert answers(page, 1) == ["The"]


def test_damaged_and_foreign_files(page, tmp_path):
    (tmp_path / "notes.txt").write_text("notes")
    page.drop(tmp_path / "notes.txt", "text/plain")
    assert page.wait_for("#error")[0].text == "notes.txt: this is not a picture, a sound or a video."
    (tmp_path / "damaged.png").write_bytes(b"not a picture")
    page.drop(tmp_path / "damaged.png", "image/png")
    page.wait_for("#draft .failed")
    error = page.find("#error").text
    assert "image" in error and "\n" not in error
    page.find("#draft button").click()
    assert not page.find_all("#draft li")


def test_answers_are_markdown_and_never_html(page):
    text = "# Two `<b>` *and* 1 * 2\n1. one\n2. <img src=x onerror=alert(1)>\n\n```py\nif a:\n    **b**\n```\nend"
    page.execute_script("document.getElementById('question').value = arguments[0]", f"Say {text}")
    page.find("#question").send_keys(Keys.ENTER)
    answers(page, 1)
    assert page.find(".prose").get_property("innerHTML") == (
        "<h3>Two <code>&lt;b&gt;</code> <em>and</em> 1 * 2</h3>"
        '<ol start="1"><li>one</li><li>&lt;img src=x onerror=alert(1)&gt;</li></ol>'
        '<pre tabindex="0"><code>if a:\n    **b**</code></pre><p>end</p>'
    )


def test_stop_ends_the_answer(page, server):
    server.disconnected.clear()
    ask(page, "Answer without end")
    page.wait_for(".prose strong")
    page.switch_to.active_element.send_keys(Keys.ESCAPE)
    assert server.disconnected.wait(10)
    answers(page, 1)
    assert page.find(".answer footer p").text.endswith("stopped")
    ask(page, "Go on")
    assert answers(page, 2)[1].split() == WORDS


def test_new_conversation_ends_the_answer(page, server):
    server.disconnected.clear()
    ask(page, "Answer without end")
    page.wait_for(".prose strong")
    page.find("#new").click()
    assert server.disconnected.wait(10)
    ask(page, "Hello")
    assert [answer.split() for answer in answers(page, 1)] == [WORDS]
    assert asked(server) == [{"role": "user", "content": [{"type": "text", "text": "Hello"}]}]


def test_spoken_question_and_spoken_answer(page, server):
    page.find("#aloud").click()
    page.find("#microphone").click()
    page.wait_for("#microphone.recording")
    assert page.wait_for("#recorded:not(:empty)")[0].text == "0:00"
    page.wait_for_text("#recorded", "0:01")
    page.find("#send").click()
    answers(page, 1)
    (message,) = asked(server)
    (part,) = message["content"]
    assert part["type"] == "input_audio" and part["input_audio"]["format"] == "wav"
    sound, rate = soundfile.read(io.BytesIO(base64.b64decode(part["input_audio"]["data"])))
    assert rate == 16000 and sound.ndim == 1 and 0.8 < len(sound) / rate < 5
    assert np.abs(sound).max() > 0.01  # Chromium's simulated microphone beeps once a second
    assert server.bodies[-1]["modalities"] == ["text", "audio"]
    page.wait_for("button[aria-label='Hear the answer again']")


def test_camera_records_a_video(page):
    page.find("#camera").click()
    page.wait_for("#view")
    page.find("#film").click()
    page.wait_for_text("#film .time", "0:01")
    page.find("#film").click()
    assert int(page.wait_for(".timeline header p")[0].text.split(" · ")[2].split()[0]) >= 1, "frames"
    assert page.find_all(".timeline .mel")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_phone(page, clip, scheme):
    page.look(390, 844, scheme)
    page.drop(clip, "video/mp4")
    page.wait_for("#draft small")
    page.wait_for("#sight")[0].click()
    page.wait_for(".timeline .mel")
    assert page.execute_script("return document.documentElement.scrollWidth") == 390
    red, green, blue = page.execute_script(
        "return getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)"
    )
    assert (min(red, green, blue) > 200) == (scheme == "light")
    page.switch_to.active_element.send_keys(Keys.ESCAPE)
    assert not page.find("#panel").is_displayed() and page.switch_to.active_element == page.find("#sight")


def test_theme_switch_is_remembered(page):
    dark = "return document.documentElement.dataset.theme"
    page.find("#theme").click()
    page.refresh()
    assert page.execute_script(dark) == "dark" and page.find("#theme").get_attribute("aria-pressed") == "true"
    page.find("#theme").click()
    assert page.execute_script(dark) == "light"
    page.execute_script("localStorage.clear()")


def test_every_control_has_a_name(page):
    controls = page.find_all("button, textarea, [role=slider]")
    assert len(controls) > 10
    shown = [control for control in controls if control.is_displayed()]
    assert all(control.accessible_name for control in shown), [c.get_attribute("outerHTML") for c in shown]
