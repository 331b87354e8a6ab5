"""The text of a compiled program, as XLA prints it: computations, their instructions, shapes."""

import dataclasses
import math
import re

ENTRY = "ENTRY"
"""Name of the computation that the others are called from."""

FREE = {"parameter", "constant", "get-tuple-element", "tuple", "bitcast"}
"""Instructions at which nothing is read, written or computed."""

_COMPUTATION = re.compile(r"^(?P<entry>ENTRY )?%(?P<name>[\w.-]+) .*\{$")
_INSTRUCTION = re.compile(
    r"^\s+(?:ROOT )?%(?P<name>[\w.-]+) = (?P<shape>.*?) (?P<opcode>[a-z][\w-]*)\((?P<operands>.*?)\)"
    r"(?P<attributes>(?:,.*)?)$"
)
_OPERAND = re.compile(r"%([\w.-]+)")
_CALLED = re.compile(r"calls=%([\w.-]+)")
_ARRAY = re.compile(
    r"\b(?P<dtype>pred|[a-z]+[0-9]+)\[(?P<sides>[0-9,]*)\](?:\{(?P<layout>[^}]*)\})?"
)
_ON_CHIP = "S(1)"  # in a layout: memory space 1


@dataclasses.dataclass(frozen=True)
class Instruction:
    """A line of a compiled program."""

    name: str
    shape: str
    opcode: str
    operands: tuple[str, ...]
    attributes: str

    @property
    def called(self) -> str:
        """The computation that a fusion consists of; "" for others."""
        match = _CALLED.search(self.attributes)
        return match[1] if match else ""


def computations(program: str) -> dict[str, list[Instruction]]:
    """The instructions of each computation, by name; see `ENTRY`."""
    found: dict[str, list[Instruction]] = {}
    lines: list[Instruction] = []
    for line in program.splitlines():
        if header := _COMPUTATION.match(line):
            lines = found[ENTRY if header["entry"] else header["name"]] = []
        elif match := _INSTRUCTION.match(line):
            name, shape, opcode, inside, attributes = match.groups()
            # A parameter's number is where others have operands.
            operands = (inside,) if opcode == "parameter" else tuple(_OPERAND.findall(inside))
            lines.append(Instruction(name, shape, opcode, operands, attributes))
    return found


def sides_of(shape: str) -> list[int]:
    """Of the first array of a shape."""
    match = _ARRAY.search(shape)
    if match is None:
        raise ValueError(f"{shape!r} is the shape of no array")
    return _sides(match)


def arrays_of(shape: str) -> list[tuple[int, bool]]:
    """Bytes of each array in a shape, and whether it lies in the chip's own memory (a TPU's VMEM)."""
    found = []
    for array in _ARRAY.finditer(shape):
        bits = re.search(r"[0-9]+", array["dtype"])
        size = math.prod(_sides(array)) * (int(bits[0]) // 8 if bits else 1)
        found.append((size, _ON_CHIP in (array["layout"] or "")))
    return found


def size_of(shape: str) -> int:
    """Bytes of an array, or of all in a tuple."""
    return sum(size for size, _ in arrays_of(shape))


def _sides(array: re.Match[str]) -> list[int]:
    return list(map(int, filter(None, array["sides"].split(","))))
