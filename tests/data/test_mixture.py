"""Mixtures: shares, epochs, order and errors."""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from etils import epath

from omnivinci_jax.data.index import Index
from omnivinci_jax.data.loader import Plan, read_batches
from omnivinci_jax.data.mixture import Blocks, Mixture
from omnivinci_jax.data.processor import Processor
from omnivinci_jax.data.records import Jsonl
from omnivinci_jax.data.setup import open_mixture
from omnivinci_jax.data.sources import training_sources
from omnivinci_jax.errors import ConfigError, DataError
from omnivinci_jax.sequence.batch import Capacity
from omnivinci_jax.sequence.tokenizer import Tokenizer
from omnivinci_jax.settings import DataConfig, Source, load_config, to_config_dict
from tests.tiny import REPOSITORY, tiny_config, tiny_tokenizer

CAPACITY = Capacity(rows=2, slots=64, tiles=1, windows=1, clips=1)


def mixture_of(sizes: dict[str, int], weights: dict[str, float]) -> Mixture:
    """Makes a mixture of sources with these sample counts; only the sample sizes exist."""

    def index(name: str) -> Index:
        count = sizes[name]
        numbers = np.arange(count)
        needs, frames = np.full((count, 4), (20, 0, 0, 0)), np.zeros(count, np.int32)
        return Index(Jsonl(Path(name)), numbers, numbers + 1, needs, frames, ())

    sources = tuple(Source(name, name, "text", weights[name]) for name in sizes)
    return Mixture(sources, tuple(map(index, sizes)))


@pytest.mark.parametrize(
    "sizes, weights",
    [
        ({"a": 5000, "b": 300, "c": 40}, {"a": 5, "b": 3, "c": 2}),
        ({"a": 3, "b": 100_000}, {"a": 0.001, "b": 0.999}),
        ({"a": 1, "b": 1}, {"a": 1, "b": 3}),
        ({"a": 3001}, {"a": 0.7}),
    ],
)
def test_shares_are_exact_and_epochs_are_whole(sizes, weights):
    mixture = mixture_of(sizes, weights)
    blocks = Blocks(mixture, seed=1)
    drawn = np.concatenate([blocks[number] for number in range(60)])
    of = mixture.source_of(drawn)
    found = np.bincount(of, minlength=len(sizes))
    assert np.abs(found - mixture.shares * len(drawn)).max() <= len(sizes) / 2 + 0.5
    for number, count in enumerate(sizes.values()):
        samples = drawn[of == number]
        for start in range(0, len(samples) - count + 1, count):
            assert np.unique(samples[start : start + count]).size == count


def test_a_block_is_a_function_of_its_index_and_the_seed():
    mixture = mixture_of({"a": 5000, "b": 300}, {"a": 1, "b": 1})
    in_order, on_its_own = Blocks(mixture, seed=1), Blocks(mixture, seed=1)
    blocks = [in_order[number] for number in range(5)]
    assert np.array_equal(on_its_own[4], blocks[4])
    assert not np.array_equal(Blocks(mixture, seed=2)[4], blocks[4])


def test_the_order_of_a_source_does_not_depend_on_the_others():
    def order(mixture: Mixture) -> list[int]:
        drawn = np.concatenate([Blocks(mixture, seed=1)[number] for number in range(5)])
        source = [source.name for source in mixture.sources].index("b")
        return (drawn[mixture.source_of(drawn) == source] - mixture.starts[source]).tolist()

    on_its_own = order(mixture_of({"b": 300}, {"b": 1}))
    for other in ("a", "c"):
        mixed = order(mixture_of(dict(sorted({"b": 300, other: 400}.items())), {"b": 1, other: 3}))
        assert mixed[:300] == on_its_own[:300]


@pytest.fixture(scope="module")
def processor() -> Processor:
    return Processor(tiny_config(), tiny_tokenizer())


def write_text(path: Path, count: int) -> Path:
    """Writes short conversations, all different."""
    turns = [
        [{"role": "user", "content": f"{path.stem} {number}"}, {"role": "assistant", "content": "yes"}]
        for number in range(count)
    ]
    path.write_text("".join(json.dumps({"messages": messages}) + "\n" for messages in turns))
    return path


def test_slots_record_their_source(processor, tmp_path):
    sources = tuple(Source(name, str(write_text(tmp_path / f"{name}.jsonl", 9)), "text") for name in ("a", "b"))
    settings = DataConfig(sources=sources, groups=1, capacity=CAPACITY, workers=0, cache=str(tmp_path))
    mixture = open_mixture(processor, settings)
    plan, seen = Plan(mixture, CAPACITY, seed=0), set()
    for step, (batch, _) in enumerate(read_batches(mixture, plan, processor, settings, [0], start=0, stop=6)):
        for row, samples in enumerate(plan[step]):
            for segment, sample in enumerate(samples, start=1):
                slots = batch.segment_ids[0, row] == segment
                text = tiny_tokenizer().decode(batch.tokens[0, row][slots].tolist())
                name = sources[mixture.source_of(sample)].name
                assert f"{name} " in text and set(batch.sources[0, row][slots]) == {mixture.source_of(sample)}
                seen.add(name)
    assert seen == {"a", "b"}


@dataclass
class Counted:
    """Counts the calls of a function."""

    times: int = 0

    def of(self, function):
        def count(*arguments, **options):
            self.times += 1
            return function(*arguments, **options)

        return count


def test_many_sources_read_no_more_than_one(tmp_path, monkeypatch):
    """30 sources of 20 samples and one of 600 both read the tokenizer once, no file twice, and each sample once."""
    many = tuple(Source(f"s{n}", str(write_text(tmp_path / f"s{n}.jsonl", 20)), "text") for n in range(30))
    one = (Source("one", str(write_text(tmp_path / "one.jsonl", 600)), "text"),)
    for sources in (many, one):
        settings = DataConfig(sources=sources, groups=1, capacity=CAPACITY, workers=0, cache=str(tmp_path))
        open_mixture(Processor(tiny_config(), tiny_tokenizer()), settings)
        processor = Processor(tiny_config(), Tokenizer(REPOSITORY / "configs" / "tiny_tokenizer"))
        tokenizer_reads, listings, reads = Counted(), Counted(), Counted()
        with monkeypatch.context() as patch:
            patch.setattr(epath.Path, "read_bytes", tokenizer_reads.of(epath.Path.read_bytes))
            patch.setattr(Jsonl, "entries", listings.of(Jsonl.entries))
            patch.setattr(Jsonl, "read", reads.of(Jsonl.read))
            mixture = open_mixture(processor, settings)
            plan = Plan(mixture, CAPACITY, seed=0)
            assert len(list(read_batches(mixture, plan, processor, settings, [0], start=0, stop=5))) == 5
        samples = sum(len(row) for number in range(5) for row in plan[number])
        assert (tokenizer_reads.times, listings.times, reads.times) == (1, 0, samples)


def test_a_mixture_without_samples_or_weights_raises_one_line_errors(processor, tmp_path):
    def opened(*sources: Source, **settings) -> Mixture:
        return open_mixture(
            processor, DataConfig(sources=sources, capacity=CAPACITY, workers=0, cache=str(tmp_path), **settings)
        )

    good = Source("good", str(write_text(tmp_path / "good.jsonl", 3)), "text")
    content = [{"type": "audio", "audio": "gone.wav"}]
    (tmp_path / "bad.jsonl").write_text(json.dumps({"messages": [{"role": "user", "content": content}]}) + "\n")
    bad = Source("bad", str(tmp_path / "bad.jsonl"), "sound")
    with pytest.raises(
        DataError, match=r"bad\.jsonl: no sample of source 'bad' can be used:\n.*gone\.wav: no such file"
    ):
        opened(good, bad, max_skipped=1.0)
    assert len(opened(good, replace(bad, weight=0.0))) == 3
    for weights, message in (
        ((0.0, 0.0), r"config\.data\.sources: the weights sum to 0"),
        ((1.0, -1.0), r"config\.data\.sources\.bad\.weight is -1\.0: give 0 or more"),
        ((1.0, float("nan")), r"config\.data\.sources\.bad\.weight is nan"),
    ):
        with pytest.raises(ConfigError, match=message):
            opened(replace(good, weight=weights[0]), replace(bad, weight=weights[1]))
    with pytest.raises(ConfigError, match=r"set config\.data\.train \(one file\).*: both are given"):
        opened(good, train=good.path)
    with pytest.raises(ConfigError, match="neither is given"):
        opened()
    with pytest.raises(ConfigError, match=r"sources: two entries are named 'good'"):
        to_config_dict(DataConfig(sources=(good, good)))


def test_two_sources_of_one_name_raise_a_one_line_error(tmp_path):
    lines = [
        "from omnivinci_jax.settings import DataConfig, Source, TrainConfig, to_config_dict",
        "sources = (Source('a', 'a.jsonl', 'text'), Source('a', 'b.jsonl', 'text'))",
        "def get_config(): return to_config_dict(TrainConfig(data=DataConfig(sources=sources)))",
    ]
    (tmp_path / "config.py").write_text("\n".join(lines))
    with pytest.raises(ConfigError, match=r"^sources: two entries are named 'a'; give each a unique name$"):
        load_config([f"--config={tmp_path / 'config.py'}"])


def test_shares_match_the_paper_and_can_be_overridden():
    arguments = [f"--config={REPOSITORY / 'configs' / 'mixture.py'}:shards"]
    sources = training_sources(load_config(arguments).data)
    shares = {}
    for source in sources:
        shares[source.modality] = shares.get(source.modality, 0) + source.weight
    assert shares == {"image": 36, "sound": 21, "speech": 17, "omni": 15, "video": 11}
    assert {"implicit_video_qa", "explicit_omni_qa"} <= {source.name for source in sources}
    without = training_sources(load_config([*arguments, "--config.data.sources.explicit_omni_qa.weight=0"]).data)
    assert {source.name for source in sources} - {source.name for source in without} == {"explicit_omni_qa"}
    with pytest.raises(
        ConfigError, match=r"config\.data\.sources\.explicit_qa: no such key; did you mean explicit_omni_qa"
    ):
        load_config([*arguments, "--config.data.sources.explicit_qa.weight=0"])
