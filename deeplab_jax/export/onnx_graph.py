"""An ONNX graph that grows node by node, and the values that its nodes give.

An array of ours is `[B, H, W, C]`, one of ONNX's convolutions `[B, C, H, W]`. Nothing is transposed for it:
a value knows in which order its axes are stored, and what reads it asks for the order that it needs.
"""

import collections
import dataclasses
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import onnx
from onnx import helper, numpy_helper

from deeplab_jax.export.program import ExportError
from deeplab_jax.symbols import compute

OPSET = 18
"""Of ONNX's operators: since release 1.13, of December 2022."""

_SMALL = 64  # numbers in an array of which equal ones are sought
_IR_VERSION = 8  # of the file, of the same release

_NODES: dict[Callable[..., Any], str] = {
    operator.add: "Add",
    operator.sub: "Sub",
    operator.mul: "Mul",
    operator.floordiv: "Div",
    operator.mod: "Mod",
    max: "Max",
    min: "Min",
}

Order = tuple[int, ...]
"""Of the stored axes: which axis of ours each of them is."""


@dataclasses.dataclass(frozen=True, eq=False)
class Value:
    """An array in the graph.

    Attributes:
      name: of ONNX's tensor; of a constant, of the weight that it is, or "".
      shape: of our array; sizes may be symbols.
      dtype: of our array.
      order: see `Order`.
      repeated: our axes that are stored with size 1, whatever their size: what reads it repeats them.
      constant: the stored array, where it is known.
    """

    name: str
    shape: tuple[Any, ...]
    dtype: np.dtype
    order: Order
    repeated: frozenset[int] = frozenset()
    constant: np.ndarray | None = None

    @property
    def stored(self) -> tuple[Any, ...]:
        """The shape as it is stored."""
        return tuple(1 if axis in self.repeated else self.shape[axis] for axis in self.order)

    def place(self, axis: int) -> int:
        """Which stored axis an axis of ours is."""
        return self.order.index(axis)


class Graph:
    """The graph while it grows."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: dict[str, np.ndarray] = {}
        self._inputs: list[onnx.ValueInfoProto] = []
        self._count = 0
        self._makers: dict[str, onnx.NodeProto] = {}
        self._small: dict[tuple[Any, ...], str] = {}
        self._sizes: dict[str, int | str] = {}
        self._orders: dict[tuple[str, Order], Value] = {}

    def input(
        self, name: str, shape: Sequence[Any], dtype: np.dtype, fixed: Mapping[str, int]
    ) -> Value:
        """A value that is given to the graph; what its symbols are is read off it, or fixed."""
        self._sizes |= fixed
        symbols = {str(n): axis for axis, n in enumerate(shape) if not isinstance(n, int)}
        free = {symbol: axis for symbol, axis in symbols.items() if symbol not in fixed}
        if free:
            sizes = self.node("Shape", name)
            for symbol, axis in free.items():
                self._sizes[symbol] = self.node("Gather", sizes, self.integers([axis]))
        self._inputs.append(self._info(name, shape, dtype))
        return Value(name, tuple(shape), np.dtype(dtype), tuple(range(len(shape))))

    # ------------------------------------------------------------------ nodes and constants

    def name(self, kind: str) -> str:
        """A name that is not taken."""
        self._count += 1
        return f"{kind}_{self._count}"

    def node(self, kind: str, *inputs: str, outputs: int = 1, **attributes: Any) -> Any:
        """Adds a node; the name of its output, or a list of several."""
        names = [self.name(kind.lower()) for _ in range(outputs)]
        node = helper.make_node(kind, list(inputs), names, names[0], **attributes)
        self.nodes.append(node)
        self._makers |= dict.fromkeys(names, node)
        return names if outputs > 1 else names[0]

    def maker(self, value: Value) -> onnx.NodeProto | None:
        """The node that gives a value; None of the input and of constants."""
        return self._makers.get(value.name)

    def constant(self, array: np.ndarray, name: str = "") -> str:
        """The name of an array that is kept in the file, once if it is small or has a name.

        Args:
          name: of a weight; the same weight with its axes in another order gets a name that is like it.
        """
        array = np.asarray(array)
        if not name and array.size <= _SMALL:
            key = (array.dtype.str, array.shape, array.tobytes())
            name = self._small.setdefault(key, f"constant_{len(self._small)}")
        name = name or self.name("constant")
        while not np.array_equal(self.initializers.setdefault(name, array), array):
            name = self.name(name)
        return name

    def integers(self, values: Iterable[int]) -> str:
        """A constant vector of int64."""
        return self.constant(np.asarray(list(values), np.int64))

    # ------------------------------------------------------------------ values

    def known(self, array: np.ndarray, name: str = "") -> Value:
        """A value that is an array."""
        array = np.asarray(array)
        return Value(name, array.shape, array.dtype, tuple(range(array.ndim)), constant=array)

    def read(self, value: Value) -> str:
        """The name under which a node reads a value as it is stored."""
        if value.constant is None:
            return value.name
        return self.constant(value.constant, value.name)

    def in_order(self, value: Value, order: Order) -> Value:
        """The value with its axes stored in another order."""
        if value.order == order:
            return value
        steps = tuple(value.place(axis) for axis in order)
        if value.constant is not None:
            turned = np.ascontiguousarray(value.constant.transpose(steps))
            return dataclasses.replace(value, order=order, constant=turned)
        found = self._orders.get((value.name, order))
        if found is None:
            name = self.node("Transpose", value.name, perm=steps)
            found = dataclasses.replace(value, name=name, order=order)
            self._orders[value.name, order] = found
            self._orders[name, value.order] = value  # and back again
        return found

    def plain(self, value: Value) -> Value:
        """The value with its axes in our order."""
        return self.in_order(value, tuple(range(len(value.shape))))

    def whole(self, value: Value) -> Value:
        """The value with every axis stored at its size."""
        wanting = [axis for axis in value.repeated if value.shape[axis] != 1]
        plain = dataclasses.replace(value, repeated=frozenset())
        if not wanting:
            return plain
        shape = tuple(value.shape[axis] for axis in value.order)
        if value.constant is not None and all(isinstance(n, int) for n in shape):
            return dataclasses.replace(plain, constant=np.broadcast_to(value.constant, shape))
        name = self.node("Expand", self.read(value), self.shape(shape))
        return dataclasses.replace(plain, name=name, constant=None)

    def cast(self, name: str, dtype: np.dtype) -> str:
        """A tensor in another type."""
        return self.node("Cast", name, to=helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))

    # ------------------------------------------------------------------ sizes

    def size(self, size: Any) -> int | str:
        """A size: a number where it is known, else a vector of one, computed of the input's sizes."""
        try:
            return compute(size, self._sizes, self._operation)
        except ValueError as error:
            raise ExportError(f"{error}, which ONNX can compute") from error

    def shape(self, sizes: Sequence[Any]) -> str:
        """Sizes as one vector of int64."""
        found = [self.size(size) for size in sizes]
        numbers = [size for size in found if isinstance(size, int)]
        if len(numbers) == len(found):
            return self.integers(numbers)
        return self.node("Concat", *map(self._vector, found), axis=0)

    def _vector(self, size: int | str) -> str:
        return self.integers([size]) if isinstance(size, int) else size

    def _operation(
        self, function: Callable[[Any, Any], int], left: int | str, right: int | str
    ) -> str:
        a, b = self._vector(left), self._vector(right)
        if function is operator.floordiv:  # down, where ONNX's division goes towards zero
            a = self.node("Sub", a, self.node("Mod", a, b))
        return self.node(_NODES[function], a, b)

    # ------------------------------------------------------------------ the end

    def model(self, name: str, result: Value) -> onnx.ModelProto:
        """The graph as a model with one output, without what that does not need."""
        result = self.plain(self.whole(result))
        self.nodes.append(helper.make_node("Identity", [self.read(result)], [name], name))
        nodes = _needed(_with_biases(self.nodes, self.initializers), name)
        read = {name for node in nodes for name in node.input}
        kept = [
            numpy_helper.from_array(np.ascontiguousarray(array), name)
            for name, array in self.initializers.items()
            if name in read
        ]
        output = self._info(name, result.shape, result.dtype)
        graph = helper.make_graph(nodes, "deeplab_jax", self._inputs, [output], kept)
        return helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=_IR_VERSION,
            producer_name="deeplab_jax",
        )

    def _info(self, name: str, shape: Sequence[Any], dtype: np.dtype) -> onnx.ValueInfoProto:
        sizes = [self._known_size(size) for size in shape]
        return helper.make_tensor_value_info(name, tensor_type(dtype), sizes)

    def _known_size(self, size: Any) -> int | str:
        if isinstance(size, int):
            return size
        found = self._sizes.get(str(size))
        return found if isinstance(found, int) else str(size)


def _with_biases(
    nodes: Sequence[onnx.NodeProto], constants: dict[str, np.ndarray]
) -> list[onnx.NodeProto]:
    """The nodes, with the bias that is added to a convolution as an input of that."""
    uses = collections.Counter(name for node in nodes for name in node.input)
    convolutions = {node.output[0]: node for node in nodes if node.op_type == "Conv"}
    kept = []
    for node in nodes:
        images = [name for name in node.input if name in convolutions and uses[name] == 1]
        biases = [name for name in node.input if _is_of_channels(constants.get(name))]
        if node.op_type != "Add" or not images or not biases:
            kept.append(node)
            continue
        conv, (bias,) = convolutions.pop(images[0]), biases
        conv.input.append(f"{bias}.of.{images[0]}")
        constants[conv.input[-1]] = constants[bias].reshape(-1)
        conv.output[0] = node.output[0]
    return kept


def _is_of_channels(array: np.ndarray | None) -> bool:
    """Whether a constant has a number for each channel of `[B, C, H, W]`."""
    return array is not None and array.ndim == 4 and array.shape[1] == array.size


def _needed(nodes: Sequence[onnx.NodeProto], output: str) -> list[onnx.NodeProto]:
    wanted, kept = {output}, []
    for node in reversed(nodes):
        if wanted.intersection(node.output):
            kept.append(node)
            wanted.update(node.input)
    return kept[::-1]


def tensor_type(dtype: jax.typing.DTypeLike) -> int:
    """ONNX's number of a type."""
    return helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
