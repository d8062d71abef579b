"""Time series and control charts: what is read, what is drawn, what is refused."""

import json

import numpy as np
import pytest
from PIL import Image

from omnivinci_jax.cli import main
from omnivinci_jax.data.processor import MediaReader
from omnivinci_jax.data.records import Jsonl
from omnivinci_jax.downstream.control_charts import CLASSES, LIMIT, MEAN, draw_chart
from omnivinci_jax.downstream.line_plot import MARGIN, SIDE, line_plot
from omnivinci_jax.downstream.time_series import read_ts, vary
from omnivinci_jax.errors import DataError
from tests.tiny import tiny_config

HEADER = "# a comment\n@problemName Tiny\n@univariate true\n@equalLength true\n@classLabel true 1 2\n@data\n"
BLUE, ORANGE = (31, 119, 180), (255, 127, 14)


@pytest.fixture
def ts(tmp_path):
    def write(text: str, name: str = "a.ts"):
        path = tmp_path / name
        path.write_text(text)
        return path

    return write


def test_a_ts_file_becomes_plots_with_questions(ts, tmp_path, capsys):
    train, test = ts(HEADER + "0,1,2:1\n2,1,?:2\n\n"), ts(HEADER + "5,5,5:2\n", "b.ts")
    assert main(["convert-data", "ucr", str(train), str(test), "--copies=2", f"--out={tmp_path / 'out'}"]) == 0
    assert capsys.readouterr().out.splitlines()[0] == f"{tmp_path}/out/train.jsonl: 6 conversations"
    rows = [json.loads(line) for line in (tmp_path / "out" / "train.jsonl").read_text().splitlines()]
    assert [row["messages"][1]["content"] for row in rows] == ["1", "2", "1", "1", "2", "2"]
    question = "What class do these images belong to? The possible classes are: 1, 2."
    assert rows[0]["messages"][0]["content"][1]["text"] == question
    with Image.open(tmp_path / "out" / "images" / "train-000000.png") as picture:
        assert picture.size == (SIDE, SIDE)
        assert picture.getpixel((MARGIN + 2, SIDE - MARGIN - 2)) == BLUE  # rises from the bottom left
        assert picture.getpixel((SIDE // 2, SIDE // 2)) == BLUE
        assert picture.getpixel((SIDE // 2, SIDE - MARGIN - 2)) == (255, 255, 255)
    records = Jsonl(tmp_path / "out" / "test.jsonl")
    (entry,) = records.entries()
    _, tiles, _ = MediaReader(tiny_config()).load(records.conversation(entry))
    assert tiles.shape[0] == 14


def test_dimensions_are_separate_curves_and_missing_values_gaps(ts):
    (series, *_), classes = read_ts(ts(HEADER + "0,0,?,0,0:9,9,9,9,9:2\n"))
    assert classes == ("1", "2") and series.label == "2" and series.values.shape == (2, 5)
    picture = line_plot(series.values)
    bottom, top, middle = SIDE - MARGIN, MARGIN, SIDE // 2
    assert tuple(picture[top, middle]) == ORANGE
    assert tuple(picture[bottom, middle]) == (255, 255, 255)
    flat = line_plot(np.array([[3.0, 3.0, np.nan, 3.0, 3.0]]))
    assert tuple(flat[middle, middle]) == (255, 255, 255) and tuple(flat[middle, MARGIN + 30]) == BLUE
    assert tuple(picture[bottom, MARGIN + 30]) == tuple(picture[bottom, SIDE - MARGIN - 30]) == BLUE


def test_limits_and_levels_fix_the_vertical_axis():
    picture = line_plot(np.array([[0.0, 0.0]]), (-10.0, 10.0), (5.0,))
    assert tuple(picture[SIDE // 2, SIDE // 2]) == BLUE
    assert tuple(picture[MARGIN + (SIDE - 2 * MARGIN) // 4, SIDE // 2]) == (192, 192, 192)


def test_variants_stay_near_the_series_of_their_class(ts):
    series, _ = read_ts(ts(HEADER + "0,10:1\n0,20:1\n100,0:2\n"))
    varied = vary(series, 50, np.random.default_rng(0))
    assert [item.label for item in varied] == ["1"] * 100 + ["2"] * 50
    ends = np.array([item.values[0, 1] for item in varied])
    assert ends[:50].mean() == pytest.approx(11.25, abs=0.6)  # half of the partners are 20, with a mean weight of 1/4
    assert ends[:100].min() > 5 and ends[:100].max() < 25
    assert np.std([item.values[0, 0] for item in varied[100:]]) == pytest.approx(5, rel=0.35)  # a tenth of 50


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (HEADER + "1,2:3\n", "a.ts:7: unknown class '3'; @classLabel has 1, 2"),
        (HEADER + "1,x:1\n", "a.ts:7: could not convert string to float: 'x'"),
        (HEADER + "1,2\n", "a.ts:7: no ':'"),
        (HEADER + "1,inf:1\n", "a.ts:7: an infinite value"),
        (HEADER + "1,2:1:1\n", "a.ts:7: dimensions of different lengths: 2, 1"),
        (HEADER, "a.ts: no series after @data"),
        (HEADER.replace("@data\n", ""), "a.ts: no @data line"),
        (HEADER.replace("@classLabel true 1 2", "@targetLabel true"), "a.ts: no '@classLabel true CLASS ...' line"),
        ("@timeStamps true\n" + HEADER, "a.ts: series with time stamps"),
    ],
)
def test_other_ts_files_are_refused_in_one_line(ts, text, message):
    with pytest.raises(DataError) as error:
        read_ts(ts(text))
    assert message in str(error.value) and "\n" not in str(error.value)


def test_the_command_refuses_a_missing_file_and_different_classes(ts, tmp_path, capsys):
    train, out = ts(HEADER + "0,1:1\n"), f"--out={tmp_path / 'out'}"
    assert main(["convert-data", "ucr", str(train), str(tmp_path / "no.ts"), out]) == 2
    assert "no.ts: cannot be read: No such file or directory" in capsys.readouterr().err
    other = ts(HEADER.replace("1 2", "1 3") + "0,1:1\n", "b.ts")
    assert main(["convert-data", "ucr", str(train), str(other), out]) == 2
    assert "its classes 1, 3 are not those of" in capsys.readouterr().err


def test_control_charts_have_the_properties_of_their_classes():
    charts = {
        kind: np.stack([draw_chart(kind, np.random.default_rng(seed))[0] for seed in range(40)]) - MEAN
        for kind in CLASSES
    }
    spread = {kind: values.std(axis=1) for kind, values in charts.items()}
    assert all(6 <= count <= 20 for count in np.isnan(charts["missing"]).sum(axis=1))
    assert np.nanmax(np.abs(charts["missing"])) <= LIMIT
    assert max(spread["constant"]) < 0.2
    steps = charts["shift"][:, -20:].mean(axis=1) - charts["shift"][:, :20].mean(axis=1)
    assert np.all(np.abs(steps) > 4) and (steps > 0).any() and (steps < 0).any()
    slopes = np.abs(np.polyfit(np.arange(60), charts["trending"].T, 1)[0])
    assert slopes.min() > 0.15 and slopes.max() < 0.55
    for kind in ("cycling", "period_trending"):
        waves = charts[kind] - np.stack([np.polyval(np.polyfit(range(60), v, 1), range(60)) for v in charts[kind]])
        peaks = np.abs(np.fft.rfft(waves)).argmax(axis=1)
        assert np.isin(peaks, (4, 5, 6)).mean() > 0.9  # periods of 10 to 15 points in 60
    assert np.all(np.abs(charts["periodic_patterns"]).max(axis=1) > LIMIT)
    assert np.median(np.abs(np.diff(charts["cluster"])), axis=1).max() < 2.5  # most steps stay within a bunch
    windows = np.lib.stride_tricks.sliding_window_view(charts["uneven"], 10, axis=1).std(axis=2)
    assert np.all(windows.max(axis=1) > 4 * windows.min(axis=1))


def test_control_charts_are_written_in_turns_and_asked_as_in_the_paper(tmp_path):
    assert main(["convert-data", "control_charts", "--train=9", "--test=2", f"--out={tmp_path}"]) == 0
    rows = [json.loads(line) for line in (tmp_path / "train.jsonl").read_text().splitlines()]
    assert [row["kind"] for row in rows] == list(CLASSES)
    assert rows[0]["messages"][0]["content"][1]["text"] == (
        "What class do these images belong to? The possible classes are: cluster, constant, cycling, missing, "
        "period_trending, periodic_patterns, shift, trending, uneven."
    )
    assert len((tmp_path / "test.jsonl").read_text().splitlines()) == 2
