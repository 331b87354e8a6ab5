"""Benchmarks: fair turns, honest checks, and a record without names of machines."""

import importlib.util
import json
import os
import platform
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from benchmarks import gpu, peers
from benchmarks.measure import OURS, PLAIN, Case, Result, check, difference, measure
from benchmarks.report import report, table
from benchmarks.tpu import collectives, estimated_cycles, memory_traffic
from deeplab_jax import lowering, ops


def test_contestants_take_turns_of_one_run_that_does_not_count_and_one_that_does():
    order = []
    case = Case("x", {name: lambda name=name: order.append(name) for name in (OURS, "a", "b")})
    (result,) = measure([case], rounds=3)
    assert order == [OURS, OURS, "a", "a", "b", "b"] * 3
    assert [len(seconds) for seconds in result.seconds.values()] == [3, 3, 3]


def test_what_is_not_to_be_warm_runs_once_a_round():
    runs = []
    case = Case("x", {OURS: lambda: runs.append(1)}, warm=False)
    list(measure([case], rounds=3))
    assert len(runs) == 3


def test_times_are_those_of_the_runs():
    case = Case("x", {OURS: lambda: time.sleep(0.01), "slow": lambda: time.sleep(0.05)})
    (result,) = measure([case], rounds=3)
    assert min(result.seconds[OURS]) >= 0.01
    assert result.ratio("slow") < 0.9


def test_the_ratio_is_of_medians():
    result = Result("x", None, {OURS: [1.0, 2.0, 9.0], "a": [4.0, 1.0, 8.0]})
    assert result.ratio("a") == 0.5
    assert table(result).row_count == 2


def test_other_numbers_are_refused():
    ours, theirs = np.array([1.0, 2.0]), np.array([1.0, 4.0])
    assert difference(ours, theirs) == 0.5
    assert check("x", 1e-7, 1e-6) == 1e-7
    for wrong in (1e-5, float("nan")):
        with pytest.raises(ValueError, match="differ by"):
            check("x", wrong, 1e-6)


def test_the_record_says_what_was_measured_and_names_no_machine(tmp_path):
    result = Result("x", 1e-7, {OURS: [0.1, 0.2], "a": [0.3, 0.4]})
    assert report("kind", [result], tmp_path / "new") == 0
    text = (tmp_path / "new" / "kind.json").read_text()
    record = json.loads(text)
    assert record["results"][0]["seconds"] == {OURS: [0.1, 0.2], "a": [0.3, 0.4]}
    assert {"date", "processor", "cores", "python", "versions"} <= record.keys()
    assert "jax" in record["versions"]
    for name in (platform.node(), str(tmp_path)):
        assert name not in text
    assert (tmp_path / "new" / "kind.png").read_bytes().startswith(b"\x89PNG")


def test_plain_models_leave_every_convolution_to_xla():
    x, kernel = jnp.ones((1, 5, 5, 2)), jnp.ones((3, 3, 1, 2))
    spec = lowering.Spec(1, 1, ((1, 1), (1, 1)), 2)
    with peers.plain_xla():
        for forms in (lowering.cpu_forms, lowering.cuda_forms):
            assert forms(x.shape, kernel.shape, spec)[0] is lowering.native
        plain = ops.conv(x, kernel, padding=1, groups=2)
    assert lowering.cpu_forms(x.shape, kernel.shape, spec)[0] is not lowering.native
    native = lax.conv_general_dilated(
        x,
        kernel,
        (1, 1),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=2,
    )
    np.testing.assert_array_equal(plain, native)


def test_plain_forms_are_those_of_a_tpu_on_every_platform():
    def resized(x):
        return ops.max_pool(ops.resize_bilinear(x, (9, 9)))

    def lowered(platform):
        x = jax.ShapeDtypeStruct((1, 5, 5, 2), jnp.float32)
        return jax.jit(resized).trace(x).lower(lowering_platforms=(platform,)).as_text()

    ours = lowered("cuda")
    jax.clear_caches()  # `jit` would remember what it has traced
    with gpu.plain_forms():
        plain = lowered("cuda")
    jax.clear_caches()
    assert "dot_general" in plain
    assert "dot_general" not in ours


PROGRAM = """
%fused { %inner = f32[2]{0} add(%a, %b), metadata={op_name="no"}, x={"estimated_cycles":"7"} }

ENTRY %main {
  %one = f32[]{:T(128)} all-reduce(%x), metadata={op_name="step/jvp()/reduce_sum"}
  %many = (f32[64]{0:T(128)}, bf16[2,3]{1,0}, f32[1]{0}, /*index=5*/f32[5]{0}) all-reduce-start(%x, %y)
  %conv = f32[8] fusion(%x), metadata={op_name="step/jvp()/conv"}, c={"estimated_cycles":"30"}
  %back = f32[8] fusion(%x), metadata={op_name="step/transpose(jvp())/conv"}, c={"estimated_cycles":"50"}
  %also = f32[8] fusion(%x), metadata={op_name="step/jvp()/b/conv"}, c={"estimated_cycles":"4"}
}
"""


def test_collectives_are_counted_with_those_that_were_merged():
    assert collectives(PROGRAM) == {"all-reduce": {"count": 2, "bytes": 4 + 4 * 70 + 2 * 6}}


def test_the_compilers_estimates_are_added_up_by_operation():
    assert estimated_cycles(PROGRAM) == {"conv, backward": 50, "conv": 34}


TPU_PROGRAM = """
ENTRY %main.1_spmd (p: f32[8,4]) -> (f32[8,4]) {
  %p = f32[8,4]{1,0:T(8,128)} parameter(0), sharding={replicated}
  %part-start = ((f32[8,4]{1,0:T(8,128)}), f32[2,4]{1,0:T(8,128)S(1)}, s32[]{:S(2)}) slice-start(%p), slice={[0:2], [0:4]}
  %part-done = f32[2,4]{1,0:T(8,128)S(1)} slice-done(%part-start)
  %y = (f32[8,4]{1,0:T(8,128)}, bf16[8,4]{1,0:T(8,128)S(1)}) fusion(%p, %part-done), kind=kLoop, calls=%f
  ROOT %t = (f32[8,4]{1,0:T(8,128)}) tuple(%p)
}
"""  # noqa: E501 - as XLA prints it


def test_what_a_tpu_moves_is_told_by_memory():
    # The slice from one to the other; the fusion reads p and the slice, and writes one result to each.
    assert memory_traffic(TPU_PROGRAM) == {"memory": 32 + 128 + 128, "on chip": 32 + 32 + 64}


GPU_PROGRAM = """
HloModule jit_step, is_scheduled=true

%fused_slice (param_0: f32[8,4], param_1.1: f32[4]) -> f32[2,4] {
  %param_0 = f32[8,4]{1,0} parameter(0)
  %slice.1 = f32[2,4]{1,0} slice(%param_0), slice={[0:2], [0:4]}
  %param_1.1 = f32[4]{0} parameter(1)
  %broadcast.1 = f32[2,4]{1,0} broadcast(%param_1.1), dimensions={1}
  ROOT %add.1 = f32[2,4]{1,0} add(%slice.1, %broadcast.1)
}

%gemm_fusion (a: bf16[8,4], b: bf16[8,6]) -> bf16[4,6] {
  %a = bf16[8,4]{1,0} parameter(0)
  %b = bf16[8,6]{1,0} parameter(1)
  ROOT %dot.1 = bf16[4,6]{1,0} dot(%a, %b), lhs_contracting_dims={0}, rhs_contracting_dims={0}
}

ENTRY %main.1 (x: bf16[2,9,9,4], k: bf16[6,3,3,4]) -> bf16[4,6] {
  %x = bf16[2,9,9,4]{3,2,1,0} parameter(0), metadata={op_name="images"}
  %k = bf16[6,3,3,4]{3,2,1,0} parameter(1)
  %bias = bf16[6]{0} constant({...})
  %conv.1 = (bf16[2,9,9,6]{3,2,1,0}, u8[0]{0}) custom-call(%x, %k), window={size=3x3 pad=1_1x1_1}, dim_labels=b01f_o01i->b01f, custom_call_target="__cudnn$convForward"
  %y = bf16[2,9,9,6]{3,2,1,0} get-tuple-element(%conv.1), index=0
  %conv.2 = (bf16[2,9,9,6]{3,2,1,0}, u8[0]{0}) custom-call(%x, %k, %bias), window={size=3x3 pad=1_1x1_1}, dim_labels=b01f_o01i->b01f, custom_call_target="__cudnn$convBiasActivationForward"
  %conv.3 = (bf16[6,5,7,4]{3,2,1,0}, u8[0]{0}) custom-call(%x, %y), window={size=5x7}, dim_labels=b01f_o01i->b01f, custom_call_target="__cudnn$convBackwardFilter"
  %rows = f32[8,4]{1,0} constant({...})
  %weights = f32[4]{0} constant({...})
  %sliced = f32[2,4]{1,0} fusion(%rows, %weights), kind=kLoop, calls=%fused_slice
  %left = bf16[8,4]{1,0} bitcast(%x)
  %right = bf16[8,6]{1,0} bitcast(%y)
  ROOT %gemm = bf16[4,6]{1,0} fusion(%left, %right), kind=kCustom, calls=%gemm_fusion
}
"""  # noqa: E501


def test_what_a_gpus_kernels_move_and_multiply_is_counted():
    x, y, kernel = 2 * 2 * 81 * 4, 2 * 2 * 81 * 6, 2 * 6 * 9 * 4
    forward = x + kernel + y
    moved = {
        "conv.1": forward,
        "conv.2": forward + 2 * 6,
        "conv.3": x + y + 2 * 6 * 5 * 7 * 4,
        "sliced": 4 * 8 + 4 * 4 + 4 * 8,  # two of the eight rows, the weights, the result
        "gemm": 2 * (8 * 4 + 8 * 6 + 4 * 6),
    }
    flops = {
        "conv": 2 * 2 * (2 * 81 * 6) * (9 * 4),
        "conv.3": 2 * (2 * 81 * 6) * (5 * 7 * 4),
        "gemm": 2 * 8 * 4 * 6,
    }
    assert gpu.count(GPU_PROGRAM) == {
        "kernels": 5,
        "bytes": sum(moved.values()),
        "flops": sum(flops.values()),
        "convolutions": 3,
        "fused_convolutions": 1,
        "largest_window": 7,
    }


def compile_for_gpu(*words):
    """What the command did, in a process of its own, as XLA's compiler for GPUs is a plugin."""
    return subprocess.run(
        [sys.executable, "-m", "benchmarks", "gpu", *words],
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )


HAS_GPU_COMPILER = importlib.util.find_spec("jax_cuda13_plugin") is not None


@pytest.mark.skipif(HAS_GPU_COMPILER, reason="XLA's compiler for NVIDIA GPUs is installed")
def test_without_a_compiler_for_gpus_it_says_what_to_install():
    done = compile_for_gpu()
    assert done.returncode == 2
    assert "error: nothing compiles for NVIDIA H100" in done.stderr
    assert "pip install 'jax[cuda13]" in done.stderr


def test_options_of_a_model_need_the_model():
    done = compile_for_gpu("--train")
    assert done.returncode == 2
    assert "--train and --output-stride are of a --model" in done.stderr


@pytest.mark.skipif(
    not HAS_GPU_COMPILER,
    reason="without its plugin (pip install 'jax[cuda13]') nothing compiles for NVIDIA GPUs",
)
@pytest.mark.parametrize("target", ["h100", "a100"])
def test_programs_for_a_gpu_are_compared_with_plain_ones(target, tmp_path):
    small = ["--model", "deeplabv3_resnet18", "--train", "--size", "129", "--batch", "2"]
    done = compile_for_gpu("--target", target, *small, "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "nothing of this was timed" in done.stdout
    record = json.loads((tmp_path / "gpu.json").read_text())
    assert not record["timed"]
    (result,) = record["results"]
    ours, plain = (result["programs"][name] for name in (OURS, PLAIN))
    assert ours["largest_window"] == 7  # the stem's kernel
    assert plain["largest_window"] > 7  # an atrous kernel's gradient
    assert ours["bytes"] < plain["bytes"]


def compile_for_tpu(**flags):
    """What the command did, in a process of its own: libtpu is loaded by one at a time."""
    words = [
        w for name, value in flags.items() for w in (f"--{name.replace('_', '-')}", str(value))
    ]
    return subprocess.run(
        [sys.executable, "-m", "benchmarks", "tpu", *words],
        env=os.environ | {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1"},
        capture_output=True,
        text=True,
    )


def test_a_slice_that_is_none_is_an_error_with_a_way_out():
    done = compile_for_tpu(topology="v5e:3x7")
    assert done.returncode == 2
    assert "error: nothing compiles for 'v5e:3x7'" in done.stderr
    assert "written as v5e:4x4" in done.stderr


@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="without libtpu (pip install 'jax[tpu]') nothing compiles for TPU",
)
@pytest.mark.parametrize(
    ("topology", "slices", "chips", "space"),
    [("v5e:4x4", 1, 16, 2), ("v5e:4x4", 2, 32, 2), ("v4:4x4x4", 1, 64, 1)],
)
def test_the_training_step_compiles_for_tpu_slices(topology, slices, chips, space, tmp_path):
    out = tmp_path / "tpu.json"
    small = {"preset": "fcn_resnet18", "crop": 65, "batch_per_chip": 2}
    done = compile_for_tpu(topology=topology, slices=slices, space=space, out=out, **small)
    assert done.returncode == 0, done.stderr
    numbers = json.loads(out.read_text())
    assert numbers["chips"] == chips
    assert numbers["flops"] > 0
    kinds = set(numbers["collectives"])
    assert "all-reduce" in kinds  # of gradients and of the global batch's statistics
    assert ("collective-permute" in kinds) == (space > 1)  # rows of the neighbours
