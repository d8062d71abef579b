"""Traffic between chips of a compiled program, from its HLO text.

XLA's cost analysis counts a loop body once and ignores collectives. Here each collective is multiplied by the trip
counts of the loops around it, and attributed to the mesh axes along which its device groups extend.
"""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

# Bytes that a chip sends per input byte in a ring of n chips.
_SENT_PER_BYTE = {
    "all-gather": lambda n: n - 1,
    "all-reduce": lambda n: 2 * (n - 1) / n,
    "reduce-scatter": lambda n: (n - 1) / n,
    "all-to-all": lambda n: (n - 1) / n,
    "ragged-all-to-all": lambda n: (n - 1) / n,
    "collective-broadcast": lambda n: 1,
    "collective-permute": lambda n: 1,
}

_HEADER = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*?) ([a-z][a-z0-9\-]*)\((.*)$")
_ARRAY = re.compile(r"\b([a-z]+)(\d*)(?:e\w+)?\[([\d,]*)\]")
_NAME = re.compile(r"%([\w.\-]+)")
_CALLED = re.compile(r"\b(?:calls|to_apply|body|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"\b(?:branch_computations|called_computations)=\{([^}]*)\}")


class Instruction(NamedTuple):
    """One line of HLO; `shape`, `operands` (names) and `attributes` are as in the text."""

    name: str
    shape: str
    opcode: str
    operands: tuple[str, ...]
    attributes: str
    root: bool

    def find(self, pattern: str) -> str | None:
        """Returns the first group of a pattern in the attributes, or None."""
        found = re.search(pattern, self.attributes)
        return found and found[1]

    def attribute(self, pattern: str) -> str:
        """Like `find`; raises ValueError if the pattern does not match."""
        found = self.find(pattern)
        if found is None:
            raise ValueError(f"{self.name}: no {pattern} in its attributes")
        return found


class Computation(dict[str, Instruction]):
    """Instructions by name."""

    @property
    def root(self) -> Instruction:
        """The root instruction."""
        return next(instruction for instruction in self.values() if instruction.root)


class Collective(NamedTuple):
    """opcode: "all-gather" and so on; axes: its mesh axes; times: executions per run of the program.

    sent: bytes that a chip sends per execution.
    """

    opcode: str
    axes: tuple[str, ...]
    times: int
    sent: float


class Traffic(NamedTuple):
    """collectives: all of one run; unknown_loops: loops with collectives whose trip count is unknown."""

    collectives: list[Collective]
    unknown_loops: int

    def by_axes(self) -> dict[tuple[str, ...], dict[str, float]]:
        """Bytes that a chip sends per run, by mesh axes and opcode."""
        totals: dict[tuple[str, ...], dict[str, float]] = {}
        for collective in self.collectives:
            kinds = totals.setdefault(collective.axes, defaultdict(float))
            kinds[collective.opcode] += collective.times * collective.sent
        return totals


def read_traffic(text: str, mesh_shape: Mapping[str, int]) -> Traffic:
    """Reads the collectives from a compiled program's text (`Compiled.as_text()`).

    Args:
        text: HLO after all optimizations.
        mesh_shape: size of each mesh axis, in the program's device order.

    Raises:
        ValueError: text in an unknown form.
    """
    computations, entry = parse(text)
    times, unknown = executions(computations, entry)
    found: dict[object, Collective] = {}
    for name, count in times.items():
        for instruction in computations[name].values():
            opcode = instruction.opcode.removesuffix("-start")
            if opcode not in _SENT_PER_BYTE:
                continue
            # TPUs write a reduce-scatter as an all-reduce of which each chip keeps its shard.
            if "all-reduce-scatter" in name:
                opcode = "reduce-scatter"
            groups = _groups(instruction, math.prod(mesh_shape.values()))
            size = sum(_bytes(computations[name][operand].shape) for operand in instruction.operands)
            sent = size * _SENT_PER_BYTE[opcode](groups.shape[1])
            collective = Collective(opcode, _axes(groups, mesh_shape), count, sent)
            # A TPU splits an async collective into several fusions: count it as often as the rarest one.
            key = (name, instruction.name)
            if "async_collective_fusion_config" in instruction.attributes:
                key = (opcode, instruction.find(r"channel_id=(\d+)"))
            if key not in found or count < found[key].times:
                found[key] = collective
    between_chips = [collective for collective in found.values() if collective.axes]
    return Traffic(between_chips, unknown)


def parse(text: str) -> tuple[dict[str, Computation], str]:
    """Parses HLO text; returns the computations by name, and the name of the entry."""
    computations: dict[str, Computation] = {}
    current, entry = Computation(), ""
    for line in text.splitlines():
        if head := _HEADER.match(line):
            current = computations[head[1]] = Computation()
            entry = head[1] if line.startswith("ENTRY") else entry
        elif found := _INSTRUCTION.match(line):
            root, name, shape, opcode, rest = found.groups()
            operands, attributes = _split_operands(rest)
            current[name] = Instruction(name, shape, opcode, operands, attributes, bool(root))
    if not entry:
        raise ValueError("the program's text has no ENTRY computation")
    return computations, entry


def executions(computations: dict[str, Computation], entry: str) -> tuple[Counter[str], int]:
    """Counts executions of each computation per program run, and the loops of unknown trip count (taken as 1).

    Both branches of a conditional count.
    """
    times, unknown = Counter(), set()

    def visit(name: str, count: int) -> None:
        times[name] += count
        for instruction in computations[name].values():
            trips = 1
            if instruction.opcode == "while":
                trips = _trip_count(instruction, computations[name], computations)
                if trips is None:
                    unknown.add(instruction.attribute(r"body=%?([\w.\-]+)"))
                    trips = 1
            for called in _called(instruction):
                visit(called, count * trips)

    visit(entry, 1)
    counted = sum(_has_collectives(name, computations) for name in unknown)
    return times, counted


def _called(instruction: Instruction) -> Iterator[str]:
    if instruction.opcode in ("async-update", "async-done"):  # async-start has counted the computation
        return
    yield from _CALLED.findall(instruction.attributes)
    for names in _BRANCHES.findall(instruction.attributes):
        yield from re.findall(r"[\w.\-]+", names)


def _has_collectives(name: str, computations: dict[str, Computation]) -> bool:
    return any(
        instruction.opcode.removesuffix("-start") in _SENT_PER_BYTE
        or any(_has_collectives(called, computations) for called in _called(instruction))
        for instruction in computations[name].values()
    )


def _trip_count(loop: Instruction, outer: Computation, computations: dict[str, Computation]) -> int | None:
    """Returns a loop's trip count: annotated by the compiler, or from a counter between two constants; else None."""
    known = loop.find(r'"known_trip_count":\{"n":"(\d+)"\}')
    if known:
        return int(known)
    condition, body = (computations[loop.attribute(rf"{part}=%?([\w.\-]+)")] for part in ("condition", "body"))
    test = condition.root
    if test.opcode != "compare" or "direction=LT" not in test.attributes:
        return None
    counter, limit = condition[test.operands[0]], _constant(test.operands[1], condition)
    if counter.opcode != "get-tuple-element" or limit is None:
        return None
    index = int(counter.attribute(r"index=(\d+)"))
    start = _constant(_element(loop.operands[0], index, outer), outer)
    step = body[_element(body.root.name, index, body)]
    increments = [value for value in (_constant(operand, body) for operand in step.operands) if value is not None]
    if start is None or step.opcode != "add" or len(increments) != 1:
        return None
    return -(-(limit - start) // increments[0])


def _element(name: str, index: int, computation: Computation) -> str:
    """Returns the operand of a tuple at `index`, or `name` if this computation does not build the tuple."""
    producer = computation[name]
    return producer.operands[index] if producer.opcode == "tuple" else name


def _constant(name: str, computation: Computation) -> int | None:
    instruction = computation[name]
    while instruction.opcode in ("copy", "bitcast", "convert"):
        instruction = computation[instruction.operands[0]]
    if instruction.opcode != "constant" or not re.match(r"[su]\d+\[\]", instruction.shape):
        return None
    return int(instruction.operands[0])


def _split_operands(rest: str) -> tuple[tuple[str, ...], str]:
    """Splits after the closing parenthesis of the operands: operand names (or a constant's value), attributes."""
    depth = 1
    for position, character in enumerate(rest):
        depth += (character == "(") - (character == ")")
        if not depth:
            inside = rest[:position]
            return tuple(_NAME.findall(inside)) or (inside,), rest[position + 1 :]
    raise ValueError(f"an instruction is not terminated: {rest[:80]}")


def _bytes(shape: str) -> int:
    """Returns the size of an array or of a tuple of arrays: "(bf16[8,128]{1,0}, f32[])"."""
    total = 0
    for kind, bits, dimensions in _ARRAY.findall(shape):
        width = 8 if kind == "pred" else int(bits or 0)
        total += math.prod(int(size) for size in dimensions.split(",") if size) * width // 8
    return total


def _axes(groups: Int[np.ndarray, "groups members"], mesh_shape: Mapping[str, int]) -> tuple[str, ...]:
    """Returns the mesh axes along which the members of a group differ."""
    coordinates = np.unravel_index(groups, tuple(mesh_shape.values()))
    return tuple(axis for axis, index in zip(mesh_shape, coordinates, strict=True) if (index != index[:, :1]).any())


def _groups(instruction: Instruction, devices: int) -> Int[np.ndarray, "groups members"]:
    """Returns the device groups of a collective; for a permutation, the pairs of sender and receiver."""
    if pairs := instruction.find(r"source_target_pairs=\{(\{.*?\})\}"):
        return _lists(pairs)
    groups = instruction.find(r"replica_groups=(.*?)(?:, (?!device_ids)[a-z_]+=|$)")
    if groups is None:
        raise ValueError(f"{instruction.name}: a collective without device groups")
    if groups == "{}":
        return np.arange(devices)[None]
    if groups.startswith("{"):
        return _lists(groups[1:-1])
    if groups.startswith("["):
        return _iota(groups)
    return _mesh_groups(groups)


def _lists(text: str) -> Int[np.ndarray, "groups members"]:
    return np.array([[int(number) for number in group.split(",")] for group in re.findall(r"\{([\d,]+)\}", text)])


def _iota(text: str) -> Int[np.ndarray, "..."]:
    """Parses [4,2]<=[2,4]T(1,0): 0 ... 7 as 2 x 4, transposed, reshaped to 4 x 2; [2,4]T(1,0): not reshaped."""
    found = re.fullmatch(r"(?:\[([\d,]+)\]<=)?\[([\d,]+)\](?:T\(([\d,]+)\))?", text)
    if not found:
        raise ValueError(f"device groups in an unknown form: {text}")
    shape, source, order = ([int(n) for n in part.split(",")] if part else [] for part in found.groups())
    devices = np.arange(math.prod(source)).reshape(source).transpose(order or None)
    return devices.reshape(shape) if shape else devices


def _mesh_groups(text: str) -> Int[np.ndarray, "groups members"]:
    """Parses mesh['a'=4,'b'=2] {'b'}: groups along b; 'a':(2)2 is the sub-axis of a of size 2 after 2."""
    found = re.fullmatch(r"mesh\[(.*?)\](?:, device_ids=\((.*)\))? \{(.*)\}", text)
    if not found:
        raise ValueError(f"device groups in an unknown form: {text}")
    sizes = {name: int(size) for name, size in re.findall(r"([^,=]+)=(\d+)", found[1])}
    devices = np.arange(math.prod(sizes.values()))
    if found[2]:
        devices = (
            _iota(found[2]) if found[2].startswith("[") else np.array([int(n) for n in re.findall(r"\d+", found[2])])
        )
    # Splits every axis in three; groups extend along the middle one, which may have size 1.
    parts = {name: (1, 1, size) for name, size in sizes.items()}
    for name, before, size in re.findall(r"([^,:]+)(?::\((\d+)\)(\d+))?(?:,|$)", found[3]):
        before, size = (int(before), int(size)) if size else (1, sizes[name])
        parts[name] = (before, size, sizes[name] // before // size)
    devices = devices.reshape([size for part in parts.values() for size in part])
    middle = list(range(1, devices.ndim, 3))
    rest = [axis for axis in range(devices.ndim) if axis not in middle]
    members = math.prod(part[1] for part in parts.values())
    return devices.transpose(rest + middle).reshape(-1, members)
