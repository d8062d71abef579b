"""WM-811K's pickle is read without executing anything; wafer maps are drawn as published."""

import io
import json
import os
import pickle
import sys
import types

import numpy as np
import pytest
from PIL import Image

from omnivinci_jax.cli import main
from omnivinci_jax.downstream.wafer_maps import CLASSES, COLOURS, QUESTION, draw_wafer
from omnivinci_jax.downstream.wafer_pickle import cell, read_table
from omnivinci_jax.errors import DataError


class DataFrame:
    """Pickles as pandas' class of the name does: an empty object, then its state."""

    def __init__(self, state):
        self.state = state

    def __getstate__(self):
        return self.state


class BlockManager(DataFrame):
    pass


class Index:
    def __init__(self, **fields):
        self.fields = fields

    def __reduce__(self):
        return _new_Index, (Index, self.fields)


def _new_Index(cls, fields):
    raise AssertionError("only its name is pickled")


class Pickler(pickle.Pickler):
    """Writes arrays as NumPy did under Python 2, whose bytes read as Latin-1 texts."""

    def reducer_override(self, obj):
        if not isinstance(obj, np.ndarray):
            return NotImplemented
        fortran = obj.flags.f_contiguous and not obj.flags.c_contiguous
        content = obj.ravel("A").tolist() if obj.dtype == object else obj.tobytes("A").decode("latin-1")
        rebuild = np.zeros(0).__reduce__()[0]
        return rebuild, (np.ndarray, (0,), "b"), (1, obj.shape, obj.dtype, fortran, content)


def objects(*values) -> np.ndarray:
    array = np.empty(len(values), object)
    array[:] = values
    return array


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Writes a table as pandas 0.19 under Python 2 did."""
    for name, members in {
        "pandas.core.frame": [DataFrame],
        "pandas.core.internals": [BlockManager],
        "pandas.indexes.base": [Index, _new_Index],
    }.items():
        module = types.ModuleType(name)
        for member in members:
            monkeypatch.setattr(member, "__module__", name)
            setattr(module, member.__name__, member)
        for parent in ("pandas", "pandas.core", "pandas.indexes"):
            monkeypatch.setitem(sys.modules, parent, types.ModuleType(parent))
        monkeypatch.setitem(sys.modules, name, module)

    def write(maps, splits, kinds, names=("waferMap", "dieSize", "trianTestLabel", "failureType"), fortran=False):
        columns = np.stack([objects(*maps), objects(*splits), objects(*kinds)])
        columns = np.asfortranarray(columns) if fortran else columns
        sizes = np.arange(len(maps), dtype=float)[None]
        blocks = [
            {"values": columns, "mgr_locs": np.array([0, 2, 3])},
            {"values": sizes, "mgr_locs": slice(1, 2, 1)},
        ]
        axes = [Index(data=objects(*names), name=None), Index(start=0, stop=len(maps), step=1, name=None)]
        manager = BlockManager((axes, [], [], {"0.14.1": {"axes": axes, "blocks": blocks}}))
        content = io.BytesIO()
        Pickler(content, 2).dump(DataFrame({"_data": manager, "_typ": "dataframe", "_metadata": []}))
        path = tmp_path / "LSWMD.pkl"
        path.write_bytes(content.getvalue().replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n"))
        return path

    return write


WAFER = np.array([[0, 1, 0], [1, 2, 1]], np.uint8)
UNLABELLED = np.zeros((0, 0))


def test_the_published_layout_becomes_pictures_with_the_papers_question(write, tmp_path, capsys):
    maps = [WAFER, np.asfortranarray(WAFER.T), WAFER, WAFER]
    splits = [np.array([["Training"]]), np.array([["Test"]]), UNLABELLED, np.array([["Training"]])]
    kinds = [np.array([["Edge-Loc"]]), np.array([["Near-full"]]), UNLABELLED, np.array([["none"]])]
    path, out = write(maps, splits, kinds), tmp_path / "out"
    assert main(["convert-data", "wm811k", str(path), f"--out={out}"]) == 0
    assert capsys.readouterr().out == f"{out}/train.jsonl: 1 conversations\n{out}/test.jsonl: 1 conversations\n"
    (train,) = (json.loads(line) for line in (out / "train.jsonl").read_text().splitlines())
    (test,) = (json.loads(line) for line in (out / "test.jsonl").read_text().splitlines())
    assert train["messages"][1]["content"] == "edge-loc" and test["kind"] == "near-full"
    assert train["messages"][0]["content"][1]["text"] == QUESTION
    with Image.open(out / "images" / "train-000000.png") as picture:
        pixels = np.array(picture)
    assert tuple(pixels[100, 100]) == (68, 1, 84)  # outside
    assert tuple(pixels[330, 220]) == (253, 231, 37)  # fails
    with Image.open(out / "images" / "test-000001.png") as picture:
        assert tuple(np.array(picture)[220, 330]) == (253, 231, 37)  # the Fortran order is kept


def test_numbers_and_texts_of_the_table_are_read(write):
    table = read_table(write([WAFER, WAFER], ["Training", "Test"], ["Loc", "Loc"]))
    assert table["dieSize"] == [0.0, 1.0] and table["trianTestLabel"] == ["Training", "Test"]
    np.testing.assert_array_equal(cell(table["waferMap"][1]), WAFER)
    table = read_table(write([WAFER, WAFER], ["Training", "Test"], ["Loc", "Donut"], fortran=True))
    assert table["trianTestLabel"] == ["Training", "Test"] and table["failureType"] == ["Loc", "Donut"]


class Call:
    """Calls a function when it is unpickled."""

    def __init__(self, function, *arguments):
        self.reduced = function, arguments

    def __reduce__(self):
        return self.reduced


@pytest.mark.parametrize("protocol", range(6))
def test_a_pickle_that_calls_something_is_refused_before_it_does(tmp_path, capsys, protocol):
    path, victim = tmp_path / "a.pkl", tmp_path / "victim"
    path.write_bytes(pickle.dumps(Call(os.mkdir, str(victim)), protocol))
    assert main(["convert-data", "wm811k", str(path), f"--out={tmp_path / 'out'}"]) == 2
    message = capsys.readouterr().err
    assert "a.pkl: refused: it names" in message and ".mkdir" in message and message.count("\n") == 1
    assert not victim.exists()


def test_other_files_are_refused_in_one_line(write, tmp_path, capsys):
    def refused(path) -> str:
        assert main(["convert-data", "wm811k", str(path), f"--out={tmp_path / 'out'}"]) == 2
        message = capsys.readouterr().err
        assert message.count("\n") == 1
        return message

    assert "no.pkl: cannot be read: No such file or directory" in refused(tmp_path / "no.pkl")
    kind, split = np.array([["Loc"]]), np.array([["Training"]])
    path = write([WAFER], [split], [np.array([["Comet"]])])
    assert "row 0: unknown class 'comet'" in refused(path)
    assert "row 0: trianTestLabel is 'Later'" in refused(write([WAFER], [np.array([["Later"]])], [kind]))
    assert "row 0: waferMap is not a matrix of 0, 1 and 2" in refused(write([WAFER + 1], [split], [kind]))
    assert "no column failureType; it has waferMap, trianTestLabel, kind, dieSize" in refused(
        write([WAFER], [split], [kind], ("waferMap", "dieSize", "trianTestLabel", "kind"))
    )
    content = write([WAFER], [split], [kind]).read_bytes()
    for size in (0, 1, 100, len(content) - 1):
        path.write_bytes(content[:size])
        assert "LSWMD.pkl: refused: " in refused(path)
    path.write_bytes(pickle.dumps([1, 2]))
    assert "LSWMD.pkl: refused: " in refused(path)


def test_generated_maps_have_their_defects():
    def failing(kind: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Shares of failing dies near the centre, half-way, and at the edge, of 30 maps."""
        shares = []
        for seed in range(30):
            wafer = draw_wafer(kind, np.random.default_rng(seed))
            axis = np.linspace(-1, 1, len(wafer))
            radius = np.hypot(axis[:, None], axis)
            rings = [(low <= radius) & (radius < high) & (wafer > 0) for low, high in ((0, 0.2), (0.4, 0.55), (0.9, 1))]
            shares.append([(wafer[ring] == 2).mean() for ring in rings])
        return tuple(np.array(shares).T)

    shares = {kind: failing(kind) for kind in CLASSES}
    assert shares["center"][0].min() > 0.4 and shares["center"][2].max() < 0.2
    assert shares["donut"][1].min() > 0.4 and shares["donut"][0].max() < 0.25
    assert shares["edge-ring"][2].min() > 0.3 and shares["edge-ring"][1].max() < 0.2
    assert shares["near-full"][1].min() > 0.6
    assert 0.2 < np.mean(shares["random"][1]) < 0.5
    for kind in ("loc", "scratch", "edge-loc"):
        assert np.mean(shares[kind][1]) < 0.35, kind
    assert 0.05 < np.mean(shares["edge-loc"][2]) < 0.4


def test_generated_maps_are_written_in_turns(tmp_path):
    assert main(["convert-data", "wafer_maps", "--train=8", "--test=1", f"--out={tmp_path}"]) == 0
    rows = [json.loads(line) for line in (tmp_path / "train.jsonl").read_text().splitlines()]
    assert [row["messages"][1]["content"] for row in rows] == list(CLASSES)
    with Image.open(tmp_path / rows[0]["messages"][0]["content"][0]["image"]) as picture:
        assert {colour for _, colour in picture.getcolors()} == {tuple(map(int, colour)) for colour in COLOURS}


def test_an_unknown_class_is_refused():
    with pytest.raises(DataError, match="unknown class 'none'"):
        draw_wafer("none", np.random.default_rng(0))
