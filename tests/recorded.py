"""The code bases that no package has, by what they computed once.

A file of `tests/golden` holds the outputs of an original model in float64, how far the same model in
float32 was from them (`rounding`), and the batch-norm statistics that were measured on it; its other
weights are drawn from the names of the tensors, the same on every machine.
"""

import json
import zlib
from pathlib import Path

import numpy as np
from flax import nnx
from references import quick_comparison, relative_error

import port

FOLDER = Path(__file__).parent / "golden"
NAMES = sorted(path.stem for path in FOLDER.glob("*.npz"))


def meta(name):
    """What a file says of itself."""
    return json.loads(np.load(FOLDER / f"{name}.npz")["meta"].tobytes())


def tensor(name, shape):
    """The value of a state_dict entry: He's normal for kernels, gains near 1, small biases."""
    rng = np.random.RandomState(zlib.crc32(name.encode()))
    kind = name.rpartition(".")[2]
    if kind == "num_batches_tracked":
        return np.asarray(1, np.int64)
    if kind == "bias":
        return (0.1 * rng.standard_normal(shape)).astype(np.float32)
    if len(shape) == 1:
        return rng.uniform(0.5, 1.5, shape).astype(np.float32)
    return (np.sqrt(2 / np.prod(shape[1:])) * rng.standard_normal(shape)).astype(np.float32)


def read(name):
    """(meta, state_dict, inputs and outputs `[B, H, W, C]`) of a file."""
    file, found = np.load(FOLDER / f"{name}.npz"), meta(name)
    statistics, at, state = file["bn_stats"], 0, {}
    for key, shape in found["entries"]:
        if key.endswith(("running_mean", "running_var")):
            state[key], at = statistics[at : at + shape[0]], at + shape[0]
        else:
            state[key] = tensor(key, tuple(shape))
    inputs = [
        np.random.RandomState(seed).standard_normal(shape).astype(np.float32).transpose(0, 2, 3, 1)
        for seed, shape in found["inputs"]
    ]
    outputs = {
        key.removeprefix("out_"): file[key].transpose(0, 2, 3, 1)
        for key in file.files
        if key.startswith("out_")
    }
    return found, state, inputs, outputs


@nnx.jit
def run(model, *inputs):
    return model(*inputs)


def errors(name):
    """How far the outputs of the ported model are from each recorded one, relative to its largest value."""
    found, state, inputs, outputs = read(name)
    model = port.load_torch(state, **found["options"])
    with quick_comparison():
        got = {"out": run(model, *inputs)} if "out" in outputs else {"decoder": run(model, *inputs)}
        if "aspp" in outputs:
            got["aspp"] = run(model.aspp, inputs[0])
    assert got.keys() == outputs.keys()
    stride = found["stride"]  # the files keep every so many rows and columns
    return {
        key: relative_error(np.asarray(got[key])[:, ::stride, ::stride], expected)
        for key, expected in outputs.items()
    }
