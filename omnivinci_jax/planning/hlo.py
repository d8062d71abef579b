"""What a compiled program sends between chips, read from its HLO text.

XLA's own cost analysis counts the body of a loop once and knows no collectives. Here each collective counts as often
as the loops around it run, and for the mesh axes along which its groups of devices differ.
"""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

# What a chip sends for an input of one byte in a group of n chips, when every byte takes the shortest way round a ring.
_SENT = {
    "all-gather": lambda n: n - 1,
    "all-reduce": lambda n: 2 * (n - 1) / n,
    "reduce-scatter": lambda n: (n - 1) / n,
    "all-to-all": lambda n: (n - 1) / n,
    "ragged-all-to-all": lambda n: (n - 1) / n,
    "collective-broadcast": lambda n: 1,
    "collective-permute": lambda n: 1,
}

_HEAD = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*?) ([a-z][a-z0-9\-]*)\((.*)$")
_ARRAY = re.compile(r"\b([a-z]+)(\d*)(?:e\w+)?\[([\d,]*)\]")
_NAME = re.compile(r"%([\w.\-]+)")
_CALLED = re.compile(r"\b(?:calls|to_apply|body|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"\b(?:branch_computations|called_computations)=\{([^}]*)\}")


class Instruction(NamedTuple):
    """One line: `shape`, `operands` (names) and `attributes` are as in the text."""

    name: str
    shape: str
    opcode: str
    operands: tuple[str, ...]
    attributes: str
    root: bool

    def find(self, pattern: str) -> str | None:
        """The first group of a pattern in the attributes, or None."""
        found = re.search(pattern, self.attributes)
        return found and found[1]

    def attribute(self, pattern: str) -> str:
        """The first group of a pattern in the attributes, which must have it."""
        found = self.find(pattern)
        if found is None:
            raise ValueError(f"{self.name}: there is no {pattern} in its attributes")
        return found


class Computation(dict[str, Instruction]):
    """Instructions by name."""

    @property
    def root(self) -> Instruction:
        """The result."""
        return next(instruction for instruction in self.values() if instruction.root)


class Collective(NamedTuple):
    """opcode: "all-gather" and so on; axes: mesh axes that it runs along; times: executions in one run of the program.

    sent: bytes that a chip sends in one execution.
    """

    opcode: str
    axes: tuple[str, ...]
    times: int
    sent: float


class Traffic(NamedTuple):
    """collectives: all of one run; unknown_loops: loops with collectives inside whose length the text does not tell."""

    collectives: list[Collective]
    unknown_loops: int

    def by_axes(self) -> dict[tuple[str, ...], dict[str, float]]:
        """Bytes that a chip sends in one run: for each set of mesh axes, by opcode."""
        totals: dict[tuple[str, ...], dict[str, float]] = {}
        for collective in self.collectives:
            kinds = totals.setdefault(collective.axes, defaultdict(float))
            kinds[collective.opcode] += collective.times * collective.sent
        return totals


def read_traffic(text: str, mesh_shape: Mapping[str, int]) -> Traffic:
    """Collectives of a compiled program's text (`Compiled.as_text()`).

    Args:
        text: HLO after all optimizations.
        mesh_shape: size of each mesh axis, in the order in which the program numbers its devices.

    Raises:
        ValueError: text of a kind that this reader does not know.
    """
    computations, entry = parse(text)
    times, unknown = executions(computations, entry)
    found: dict[object, Collective] = {}
    for name, count in times.items():
        for instruction in computations[name].values():
            opcode = instruction.opcode.removesuffix("-start")
            if opcode not in _SENT:
                continue
            # On TPUs an all-reduce of which each chip keeps its part is how a reduce-scatter is written.
            if "all-reduce-scatter" in name:
                opcode = "reduce-scatter"
            groups = _groups(instruction, math.prod(mesh_shape.values()))
            size = sum(_bytes(computations[name][operand].shape) for operand in instruction.operands)
            sent = size * _SENT[opcode](groups.shape[1])
            collective = Collective(opcode, _axes(groups, mesh_shape), count, sent)
            # A TPU runs the steps of one collective inside several fusions, of which the rarest is executed as often
            # as the whole.
            whole = (name, instruction.name)
            if "async_collective_fusion_config" in instruction.attributes:
                whole = (opcode, instruction.find(r"channel_id=(\d+)"))
            if whole not in found or count < found[whole].times:
                found[whole] = collective
    sending = [collective for collective in found.values() if collective.axes]
    return Traffic(sending, unknown)


def parse(text: str) -> tuple[dict[str, Computation], str]:
    """Computations by name, and the name of the entry."""
    computations: dict[str, Computation] = {}
    current, entry = Computation(), ""
    for line in text.splitlines():
        if head := _HEAD.match(line):
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
    """How often one run of the program executes each computation, and how many loops had to be taken as one turn.

    Both branches of a condition count.
    """
    times, unknown = Counter(), set()

    def visit(name: str, count: int) -> None:
        times[name] += count
        for instruction in computations[name].values():
            turns = 1
            if instruction.opcode == "while":
                turns = _turns(instruction, computations[name], computations)
                if turns is None:
                    unknown.add(instruction.attribute(r"body=%?([\w.\-]+)"))
                    turns = 1
            for called in _called(instruction):
                visit(called, count * turns)

    visit(entry, 1)
    counted = sum(_has_collectives(name, computations) for name in unknown)
    return times, counted


def _called(instruction: Instruction) -> Iterator[str]:
    if instruction.opcode in ("async-update", "async-done"):  # the computation that async-start has started
        return
    yield from _CALLED.findall(instruction.attributes)
    for names in _BRANCHES.findall(instruction.attributes):
        yield from re.findall(r"[\w.\-]+", names)


def _has_collectives(name: str, computations: dict[str, Computation]) -> bool:
    return any(
        instruction.opcode.removesuffix("-start") in _SENT
        or any(_has_collectives(called, computations) for called in _called(instruction))
        for instruction in computations[name].values()
    )


def _turns(loop: Instruction, outer: Computation, computations: dict[str, Computation]) -> int | None:
    """Turns of a loop: as the compiler notes them, or of a counter that goes from a constant to below a constant."""
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
    """The operand that a tuple has at `index`; the tuple itself where it is not made here."""
    made = computation[name]
    return made.operands[index] if made.opcode == "tuple" else name


def _constant(name: str, computation: Computation) -> int | None:
    instruction = computation[name]
    while instruction.opcode in ("copy", "bitcast", "convert"):
        instruction = computation[instruction.operands[0]]
    if instruction.opcode != "constant" or not re.match(r"[su]\d+\[\]", instruction.shape):
        return None
    return int(instruction.operands[0])


def _split_operands(rest: str) -> tuple[tuple[str, ...], str]:
    """Names (or a constant's value) up to the parenthesis that closes the operands, and what comes after it."""
    depth = 1
    for position, character in enumerate(rest):
        depth += (character == "(") - (character == ")")
        if not depth:
            inside = rest[:position]
            return tuple(_NAME.findall(inside)) or (inside,), rest[position + 1 :]
    raise ValueError(f"an instruction without an end: {rest[:80]}")


def _bytes(shape: str) -> int:
    """Size of an array or of a tuple of arrays: "(bf16[8,128]{1,0}, f32[])"."""
    total = 0
    for kind, bits, dimensions in _ARRAY.findall(shape):
        width = 8 if kind == "pred" else int(bits or 0)
        total += math.prod(int(size) for size in dimensions.split(",") if size) * width // 8
    return total


def _axes(groups: Int[np.ndarray, "groups members"], mesh_shape: Mapping[str, int]) -> tuple[str, ...]:
    """Mesh axes along which the members of a group differ."""
    places = np.unravel_index(groups, tuple(mesh_shape.values()))
    return tuple(axis for axis, place in zip(mesh_shape, places, strict=True) if (place != place[:, :1]).any())


def _groups(instruction: Instruction, devices: int) -> Int[np.ndarray, "groups members"]:
    """Devices that exchange with each other; of a permutation, each pair of sender and receiver."""
    if pairs := instruction.find(r"source_target_pairs=\{(\{.*?\})\}"):
        return _lists(pairs)
    groups = instruction.find(r"replica_groups=(.*?)(?:, (?!device_ids)[a-z_]+=|$)")
    if groups is None:
        raise ValueError(f"{instruction.name}: a collective without groups of devices")
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
    """[4,2]<=[2,4]T(1,0): 0 ... 7 in the shape 2 x 4, transposed, in the shape 4 x 2; [2,4]T(1,0): in the first."""
    found = re.fullmatch(r"(?:\[([\d,]+)\]<=)?\[([\d,]+)\](?:T\(([\d,]+)\))?", text)
    if not found:
        raise ValueError(f"groups of devices in an unknown form: {text}")
    shape, source, order = ([int(n) for n in part.split(",")] if part else [] for part in found.groups())
    devices = np.arange(math.prod(source)).reshape(source).transpose(order or None)
    return devices.reshape(shape) if shape else devices


def _mesh_groups(text: str) -> Int[np.ndarray, "groups members"]:
    """mesh['a'=4,'b'=2] {'b'}: devices that differ along b alone; 'a':(2)2 is the part of a of size 2 within 2."""
    found = re.fullmatch(r"mesh\[(.*?)\](?:, device_ids=\((.*)\))? \{(.*)\}", text)
    if not found:
        raise ValueError(f"groups of devices in an unknown form: {text}")
    sizes = {name: int(size) for name, size in re.findall(r"([^,=]+)=(\d+)", found[1])}
    devices = np.arange(math.prod(sizes.values()))
    if found[2]:
        devices = (
            _iota(found[2]) if found[2].startswith("[") else np.array([int(n) for n in re.findall(r"\d+", found[2])])
        )
    # Every axis in three parts, of which a group takes the middle one, or no part.
    parts = {name: (1, 1, size) for name, size in sizes.items()}
    for name, before, size in re.findall(r"([^,:]+)(?::\((\d+)\)(\d+))?(?:,|$)", found[3]):
        before, size = (int(before), int(size)) if size else (1, sizes[name])
        parts[name] = (before, size, sizes[name] // before // size)
    devices = devices.reshape([size for part in parts.values() for size in part])
    middle = list(range(1, devices.ndim, 3))
    rest = [axis for axis in range(devices.ndim) if axis not in middle]
    members = math.prod(part[1] for part in parts.values())
    return devices.transpose(rest + middle).reshape(-1, members)
