"""TensorFlow's frozen graphs: their variables, the options that they were built with, and running them.

A frozen graph is a whole program with its weights in it, preprocessing included, and so a reference that
owes nothing to what we assume of the code that made it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from deeplab_jax.heads import rates_for
from deeplab_jax.quiet_tensorflow import import_tensorflow

PICTURE, LABELS = "ImageTensor", "ArgMax"  # the operations at both ends
OUTPUT_STRIDES = (8, 16, 32)
BACKBONE = re.compile(r"(xception_\d+|resnet_v1_\d+|MobilenetV[23])/")
RESNETS_LAST = re.compile(r"resnet_v1_\d+/block4/unit_\d/bottleneck_v1/conv2$")
STEM_POOL = re.compile(r"(^|/)pool1/")
CONVOLUTIONS = ("Conv2D", "DepthwiseConv2dNative")
NORMS = ("FusedBatchNormV3", "FusedBatchNormV2", "FusedBatchNorm")
RESIZE = "ResizeBilinear"

RUN = frozenset(
    """
    Abs Add AddV2 ArgMax Assert AvgPool BatchToSpaceND BiasAdd Cast Ceil ConcatV2 Const Conv2D
    DepthwiseConv2dNative Equal Exp ExpandDims Fill Floor FloorDiv FloorMod FusedBatchNorm FusedBatchNormV2
    FusedBatchNormV3 Greater GreaterEqual Identity Less LessEqual LogicalAnd LogicalNot LogicalOr MatMul Max
    MaxPool Maximum Mean Merge Min Minimum Mul Neg NoOp NotEqual Pack Pad PadV2 Placeholder Prod Range Rank
    RealDiv Relu Relu6 Reshape ResizeBilinear ResizeNearestNeighbor ReverseV2 Round Rsqrt Select SelectV2
    Shape Sigmoid Size Slice Softmax SpaceToBatchND Split SplitV Sqrt Square Squeeze StopGradient
    StridedSlice Sub Sum Switch Tile Transpose Unpack ZerosLike
    """.split()  # noqa: SIM905 - a line for each would be ninety
)
"""The operations that are run: all compute, and none reads or writes a file, as others of TensorFlow's do
for whoever made the graph."""


@dataclass(frozen=True)
class FrozenGraph:
    """A GraphDef whose variables are constants.

    Attributes:
      definition: the GraphDef.
      name: of its file.
    """

    definition: Any
    name: str

    @classmethod
    def read(cls, path: Path) -> FrozenGraph:
        """Raises ValueError for a file that is no frozen graph of floats."""
        definition, data = import_tensorflow().compat.v1.GraphDef(), path.read_bytes()
        try:
            definition.ParseFromString(data)
        except Exception as error:  # protobuf's own type
            raise ValueError(
                f"{path} is no frozen graph of TensorFlow's, or it is cut ({error}). Download it again"
            ) from error
        if not definition.node:
            raise ValueError(f"{path} is no frozen graph of TensorFlow's: it has no operations")
        if any(node.op.startswith(("FakeQuant", "Quantize")) for node in definition.node):
            raise ValueError(
                f"{path} is a quantised model, which computes in 8 bits; pass one that was trained without "
                "quantisation"
            )
        return cls(definition, path.name)

    # ---- what it holds ----

    def constants(self) -> dict[str, np.ndarray]:
        """The values of all constants by their names."""
        return {name: _value(node) for name, node in self._nodes.items() if node.op == "Const"}

    def options(self) -> dict[str, Any]:
        """Fields of a model's config that its operations tell, and variables do not."""
        convs = self._convolutions
        strided = [
            n for scope, n in convs.items() if BACKBONE.match(scope) and "shortcut" not in scope
        ]
        strided += [
            n for n in self.definition.node if n.op == "MaxPool" and STEM_POOL.search(n.name)
        ]
        stride = math.prod(node.attr["strides"].list.i[1] for node in strided)
        if not strided or stride not in OUTPUT_STRIDES:
            return {}
        branches = [f"aspp{i}{half}" for i in range(1, 10) for half in ("", "_depthwise")]
        rates = tuple(self._rate(convs[scope]) for scope in branches if scope in convs)
        follow = rates == rates_for(stride)  # and so would be others at another stride
        options: dict[str, Any] = {"output_stride": stride, "rates": None if follow else rates}
        if last := [node for scope, node in convs.items() if RESNETS_LAST.match(scope)]:
            factors = tuple(self._rate(node) * stride // 32 for node in last)
            options["multi_grid"] = factors if set(factors) != {1} else ()
        return options

    @cached_property
    def _convolutions(self) -> dict[str, Any]:
        """The scope of a convolution's kernel -> its operation."""
        return {
            self._source(node.input[1]).name.rpartition("/")[0]: node
            for node in self.definition.node
            if node.op in CONVOLUTIONS
        }

    def _rate(self, node: Any) -> int:
        """The atrous rate of a convolution."""
        before = self._nodes[_plain(node.input[0])]
        if before.op == "SpaceToBatchND":
            return int(_value(self._source(before.input[1]))[0])
        return int((node.attr["dilations"].list.i or (1, 1))[1])

    # ---- what it computes ----

    @property
    def why_not_run(self) -> str | None:
        """Why it is not run to compare with; None for a graph as export_model.py makes it.

        That takes pictures as they are, once, gives logits, and does nothing but compute.
        """
        if others := sorted({node.op for node in self.definition.node} - RUN):
            return (
                "it has operations that are not run here, as they may do more than compute: "
                + ", ".join(others[:10])
            )
        norms = sum(node.op in NORMS for node in self.definition.node)
        gains = sum(name.endswith(".BatchNorm") for name in self._outputs)
        if {PICTURE, LABELS} <= self._nodes.keys() and norms == gains:
            return None
        return f"it does not go from one {PICTURE} to {LABELS}, as export_model.py's do"

    def size(self) -> tuple[int, int]:
        """Rows and columns that pictures are filled up to, which must not be larger; (1, 1) for any."""
        resize = self._nodes[self._logits]
        if resize.op != RESIZE:
            return 1, 1
        picture = np.zeros((1, 1, 1, 3), np.uint8)
        (size,) = _run(self.definition, picture, [_plain(resize.input[1])])
        rows, columns = map(int, size)
        return rows, columns

    def run(
        self, picture: np.ndarray, names: Mapping[str, str]
    ) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """Outputs of layers `[B, h, w, C]`, and "logits", in float64 and in float32.

        Resizes, which TensorFlow computes in float32 only, are so in both.

        Args:
          picture: uint8 `[1, H, W, 3]`.
          names: of layers as PyTorch would call them, by our paths; those that the graph lacks are left
            out.
        """
        nodes = {path: self._outputs[name] for path, name in names.items() if name in self._outputs}
        nodes["logits"] = self._logits
        fetched = list(nodes.values())
        results = []
        for definition in (self._in_float64(fetched), self.definition):
            results.append(dict(zip(nodes, _run(definition, picture, fetched), strict=True)))
        exact, rounded = results
        return exact, rounded

    # ---- its operations ----

    @cached_property
    def _nodes(self) -> dict[str, Any]:
        """Every operation by its name."""
        return {node.name: node for node in self.definition.node}

    @cached_property
    def _outputs(self) -> dict[str, str]:
        """Names of batch norms and of convolutions with a bias -> the operations that end them."""
        outputs = {}
        for node in self.definition.node:
            leaf = {"BiasAdd": "biases"}.get(node.op, "gamma" if node.op in NORMS else None)
            if leaf is None:
                continue
            scope, _, called = self._source(node.input[1]).name.rpartition("/")
            if called == leaf:
                outputs[scope.replace("/", ".")] = node.name
        return outputs

    @property
    def _logits(self) -> str:
        """The operation whose largest channels are the labels."""
        return _plain(self._nodes[LABELS].input[0])

    def _source(self, name: str) -> Any:
        """The operation that an input comes from, through those that change nothing."""
        node = self._nodes[_plain(name)]
        return self._source(node.input[0]) if node.op == "Identity" else node

    def _in_float64(self, fetched: list[str]) -> Any:
        """The part of the program that gives `fetched`, in float64."""
        v1 = import_tensorflow().compat.v1
        part = v1.graph_util.extract_sub_graph(self.definition, fetched)
        exact = v1.GraphDef(versions=part.versions)
        for node in part.node:
            exact.node.extend(self._norm(node) if node.op in NORMS else _widened(node))
        return exact

    def _norm(self, node: Any) -> list[Any]:
        """A batch norm as a product and a sum: TensorFlow has none of float64."""
        gamma, beta, mean, var = (
            _value(self._source(name)).astype(np.float64) for name in node.input[1:]
        )
        gain = gamma / np.sqrt(var + node.attr["epsilon"].f)
        parts = {"gain": gain, "offset": beta - mean * gain}
        nodes = [_constant(f"{node.name}/{part}", value) for part, value in parts.items()]
        nodes.append(_binary("Mul", f"{node.name}/product", node.input[0], f"{node.name}/gain"))
        return [*nodes, _binary("AddV2", node.name, f"{node.name}/product", f"{node.name}/offset")]


def _run(definition: Any, picture: np.ndarray, fetched: list[str]) -> list[np.ndarray]:
    """The first outputs of operations of a graph that may be run, see `FrozenGraph.why_not_run`.

    Raises ValueError where TensorFlow cannot run them.
    """
    tensorflow = import_tensorflow()
    v1 = tensorflow.compat.v1
    options = v1.ConfigProto(device_count={"GPU": 0})  # which would multiply in TF32
    try:
        with tensorflow.Graph().as_default() as graph:
            v1.import_graph_def(definition, name="")
            with v1.Session(graph=graph, config=options) as session:
                tensors = [f"{name}:0" for name in fetched]
                return session.run(tensors, {f"{PICTURE}:0": picture})
    except (ValueError, tensorflow.errors.OpError) as error:
        cause = str(error).splitlines()[0]
        raise ValueError(f"TensorFlow cannot run the frozen graph: {cause}") from error


def _widened(node: Any) -> list[Any]:
    """An operation in float64 where it was in float32."""
    types = import_tensorflow().dtypes
    single, double = types.float32.as_datatype_enum, types.float64.as_datatype_enum
    if node.op == "Const" and node.attr["dtype"].type == single:
        return [_constant(node.name, _value(node).astype(np.float64))]
    wide = type(node)()
    wide.CopyFrom(node)
    for value in wide.attr.values():
        if value.type == single:
            value.type = double
    if wide.op != RESIZE:
        return [wide]
    wide.name = f"{node.name}/float32"
    cast = type(node)(op="Cast", name=node.name, input=[wide.name])
    cast.attr["SrcT"].type, cast.attr["DstT"].type = single, double
    return [wide, cast]


def _constant(name: str, value: np.ndarray) -> Any:
    tensorflow = import_tensorflow()
    node = tensorflow.compat.v1.NodeDef(op="Const", name=name)
    node.attr["dtype"].type = tensorflow.dtypes.as_dtype(value.dtype).as_datatype_enum
    node.attr["value"].tensor.CopyFrom(tensorflow.make_tensor_proto(value))
    return node


def _binary(op: str, name: str, left: str, right: str) -> Any:
    tensorflow = import_tensorflow()
    node = tensorflow.compat.v1.NodeDef(op=op, name=name, input=[left, right])
    node.attr["T"].type = tensorflow.dtypes.float64.as_datatype_enum
    return node


def _value(node: Any) -> np.ndarray:
    """That of a constant."""
    return import_tensorflow().make_ndarray(node.attr["value"].tensor)


def _plain(name: str) -> str:
    """An operation's name from that of an input: without the output's number."""
    return name.lstrip("^").partition(":")[0]
