"""The scheduler, with a fake batch that stores only the identities of slots."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omnivinci_jax.generate.request import Prompt, Request, Sampling
from omnivinci_jax.generate.scheduler import CopyRow, Decode, Prefill, Resize, Scheduler, Start, capacity_for

END, NONE = 7, -1


def request(identity, new: int, **options) -> Request:
    identity = np.array(identity, np.int64)
    prompt = Prompt(np.abs(identity).astype(np.int32), np.zeros((0, 1), np.float32), identity)
    return Request(prompt, Sampling(max_new_tokens=new), **options)


class FakeBatch:
    """Executes the scheduler's actions, with the identities of slots in place of keys and values."""

    def __init__(self, scheduler: Scheduler, shards: int):
        self.scheduler, self.shards = scheduler, shards
        self.slots: list[list[int]] = []
        self.answering: dict[int, Request] = {}
        self.filled, self.actions = 0, []

    def answer(self, request: Request, index: int) -> int:
        """Returns the model's token: a function of the prompt and of the token's index."""
        return END if (int(request.prompt.identity.sum()) + 3 * index) % 11 == 0 else 100 + index

    def step(self) -> bool:
        action = self.scheduler.next()
        self.actions.append(action)
        match action:
            case None:
                return False
            case Resize(rows, capacity):
                assert len(rows) % self.shards == 0
                self.slots = [list(self.slots[row]) if row >= 0 else [] for row in rows]
                moved = {old: new for new, old in enumerate(rows) if old >= 0}
                self.answering = {moved[row]: answer for row, answer in self.answering.items()}
                self.capacity = capacity
            case CopyRow(source, target):
                assert target not in self.answering
                self.slots[target] = list(self.slots[source])
            case Prefill(pieces, width):
                per_shard = len(self.slots) // self.shards
                assert [piece.row // per_shard for piece in pieces] == list(range(self.shards))
                for row, start, end, owner in pieces:
                    assert 0 <= start <= end <= start + width and start <= len(self.slots[row])
                    if owner:
                        assert row not in self.answering
                        self.slots[row][start:] = owner.prompt.identity[start:end].tolist()
                        self.filled += end - start
                    else:  # a copied row that was cancelled has more slots than its prompt needed
                        assert start == end <= len(self.slots[row])
                        del self.slots[row][end:]
            case Start(row, owner):
                assert self.slots[row][: len(owner.prompt) - 1] == owner.prompt.identity[:-1].tolist()
                del self.slots[row][len(owner.prompt) - 1 :]
                self.answering[row] = owner
            case Decode(steps):
                assert steps >= 1
                rows = self.scheduler.answering_rows()
                assert set(self.answering) <= set(rows) and len(set(rows)) == len(rows)
                assert len(set(np.bincount(rows * self.shards // len(self.slots), minlength=self.shards))) == 1
                tokens = np.full((len(rows), steps), NONE)
                for row, owner in list(self.answering.items()):
                    for step in range(steps):
                        count = len(owner.tokens) + step
                        last = owner.prompt.identity[-1] if not count else self.answer(owner, count - 1)
                        self.slots[row].append(int(last))
                        tokens[rows == row, step] = self.answer(owner, count)
                        if self.answer(owner, count) == END or count + 1 == owner.sampling.max_new_tokens:
                            del self.answering[row]
                            break
                self.scheduler.record(rows, tokens, np.zeros(tokens.shape), END, NONE)
        for row, slots in zip(self.scheduler.rows, self.slots, strict=True):
            assert len(slots) <= self.capacity
            if row.phase == "idle" and not isinstance(action, CopyRow):
                assert row.content.tolist() == slots[: len(row.content)]
        return True

    def cancel(self, owner: Request) -> None:
        row = self.scheduler.remove(owner)
        if row is not None:
            self.answering.pop(row, None)


REQUESTS = st.lists(
    st.tuples(st.integers(0, 3), st.integers(1, 700), st.integers(1, 40), st.integers(0, 12), st.booleans()),
    min_size=1,
    max_size=12,
)


@settings(deadline=None, max_examples=60)
@given(asked=REQUESTS, shards=st.sampled_from([1, 2]), rows=st.sampled_from([None, 2, 4]))
def test_every_request_is_answered_in_a_row_with_its_prompt(asked, shards, rows):
    scheduler = Scheduler(shards=shards, rows=rows, capacity=1024 if rows else None)
    batch, waiting, all_requests = FakeBatch(scheduler, shards), [], []
    for topic, length, new, pause, cancelled in asked:
        # Prompts of a topic share a prefix and end with a unique number.
        identity = [*(1000 * topic + np.arange(length)), 5000 + len(all_requests)]
        waiting.append((request(identity, new), pause, cancelled))
        all_requests.append(waiting[-1])
    for owner, pause, cancelled in waiting:
        scheduler.add(owner)
        for _ in range(pause):
            batch.step()
        if cancelled:
            batch.cancel(owner)
    for _ in range(5000):
        if not batch.step():
            break
    assert scheduler.idle and not batch.answering
    for owner, _, cancelled in all_requests:
        assert owner.finish
        expected = [batch.answer(owner, index) for index in range(len(owner.tokens))]
        assert owner.tokens == expected
        if not cancelled:
            last = owner.tokens[-1] == END
            assert (owner.finish == "end") == last and (last or len(owner.tokens) == owner.sampling.max_new_tokens)


def run(batch: FakeBatch, *requests: Request) -> None:
    for owner in requests:
        batch.scheduler.add(owner)
    while batch.step():
        pass


def test_prefill_starts_where_a_prompt_differs_from_a_row():
    batch = FakeBatch(Scheduler(), 1)
    first = list(range(1000, 1300))
    run(batch, request(first, 3))
    assert batch.filled == 299
    run(batch, request([*first[:250], 1, 2, 3], 3))
    assert batch.filled == 299 + 2
    run(batch, request([8, 9, 10], 3))  # nothing in common
    assert batch.filled == 299 + 2 + 2


def test_samples_of_one_prompt_are_prefilled_once():
    batch = FakeBatch(Scheduler(), 1)
    prompt = list(range(2000, 2400))
    run(batch, *(request(prompt, 5, sample=sample) for sample in range(5)))
    assert batch.filled == 399
    assert sum(isinstance(action, CopyRow) for action in batch.actions) == 4


def test_a_long_prompt_does_not_delay_other_answers():
    batch = FakeBatch(Scheduler(rows=2, capacity=8192), 1)
    batch.answer = lambda request, index: 100
    short, long = request([1, 2, 3], 200), request(list(range(5000)), 5)
    batch.scheduler.add(short)
    for _ in range(12):
        batch.step()
    batch.scheduler.add(long)
    began = len(batch.actions)
    while not long.tokens:
        batch.step()
    kinds = [type(action) for action in batch.actions[began:]]
    assert kinds.count(Prefill) == 20
    assert all(later is not Prefill for now, later in itertools.pairwise(kinds) if now is Prefill)


def test_decode_steps_grow_with_the_youngest_answer():
    batch = FakeBatch(Scheduler(), 1)
    batch.answer = lambda request, index: 100
    run(batch, request([1, 2, 3], 60))
    assert [action.steps for action in batch.actions if isinstance(action, Decode)] == [1, 1, 2, 4, 8, 16, 16, 12]


def test_capacities_are_rounded_up():
    assert [capacity_for(slots) for slots in (1, 1024, 1025, 1536, 1537, 3000, 4000)] == [
        1024, 1024, 1536, 1536, 2048, 3072, 4096,
    ]  # fmt: skip


@pytest.mark.parametrize("needed", [1100, 3000])
def test_a_batch_grows_for_a_long_request_and_shrinks_when_it_is_idle(needed):
    batch = FakeBatch(Scheduler(), 1)
    run(batch, request(range(needed), 3))
    assert batch.capacity == capacity_for(needed + 3)
    run(batch, request([1, 2, 3], 3), request([4, 5, 6], 3), request([7, 8, 9], 3))
    assert batch.capacity == 1024 and len(batch.slots) == 4
    run(batch, request([1, 2, 3], 3))
    assert len(batch.slots) == 1
