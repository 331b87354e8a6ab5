"""Planted bugs, and the test that finds each: `python -m tests.mutations [WORD ...]`, by hand or weekly.

Each is planted alone in a copy of the project, and its test has 60 seconds of processor time to fail. A
survivor, or a row whose text has gone from its file, ends this with status 1. With words, only the bugs
whose file or test has one of them in it. `test_mutations.py` checks the table itself.
"""

import dataclasses
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
COPIED = ("deeplab_jax", "port", "train", "tests", "docs", "pyproject.toml")
SECONDS = 60
"""Of processor time: another load on the machine must not decide."""

FAILED = 1
"""pytest's status where tests ran and one did not pass; others are of tests that did not run."""


@dataclasses.dataclass(frozen=True)
class Bug:
    """A change to a file, which a test must find.

    Attributes:
      file: of the project.
      old: what is there, once.
      new: what takes its place.
      test: file::name of `tests/`.
    """

    file: str
    old: str
    new: str
    test: str

    def planted(self, text: str) -> str:
        """The file's text with the bug. Raises ValueError where the row is stale."""
        if (count := text.count(self.old)) != 1:
            raise ValueError(f"{self.file} has {self.old!r} {count} times: mend this row")
        return text.replace(self.old, self.new)


BUGS = (
    # ---- operations and layers
    Bug(
        "deeplab_jax/layers.py",
        "momentum: float = 0.1, epsilon: float = 1e-5):",
        "momentum: float = 0.1, epsilon: float = 1e-3):",
        "test_layers.py::test_the_epsilon_is_torchs_by_default_and_the_given_one_otherwise",
    ),
    Bug(
        "deeplab_jax/layers.py",
        "y = centred / jnp.sqrt(var + self.epsilon)",
        "y = centred / (jnp.sqrt(var) + self.epsilon)",
        "test_layers.py::test_layer_norm_is_torchs_its_epsilon_too",
    ),
    Bug(
        "deeplab_jax/layers.py",
        "(1 - self.momentum) * running[...] + self.momentum * new",
        "self.momentum * running[...] + (1 - self.momentum) * new",
        "test_layers.py::test_three_steps_of_training_then_evaluation_equal_torch",
    ),
    Bug(
        "deeplab_jax/layers.py",
        "self._update(mean, var * (count / (count - 1)))",
        "self._update(mean, var)",
        "test_layers.py::test_three_steps_of_training_then_evaluation_equal_torch",
    ),
    Bug(
        "deeplab_jax/layers.py",
        "padding = dilation * (kernel_size - 1) // 2",
        "padding = (kernel_size - 1) // 2",
        "test_layers.py::test_by_default_stride_1_keeps_the_size",
    ),
    Bug(
        "deeplab_jax/ops.py",
        "return total // 2, total - total // 2",
        "return total - total // 2, total // 2",
        "test_ops.py::test_same_padding_is_that_of_tensorflow",
    ),
    Bug(
        "deeplab_jax/ops.py",
        "slope = gain * inverse * scale_gradient / count",
        "slope = gain * scale_gradient / count",
        "test_layers.py::test_gradients_equal_torch",
    ),
    Bug(
        "deeplab_jax/lowering.py",
        "constant_values=-np.inf)",
        "constant_values=0)",
        "test_ops.py::test_max_pool_and_its_gradient_equal_torch",
    ),
    Bug(
        "deeplab_jax/lowering.py",
        "source = np.maximum(scale * (position + half) - half, np.float32(0))",
        "source = scale * position",
        "test_properties.py::test_a_resize_of_any_size_equals_torchs_by_both_corner_rules",
    ),
    Bug(
        "deeplab_jax/lowering.py",
        "scale = np.float32(size - 1) / np.float32(whole - 1) if whole > 1 else np.float32(0)",
        "scale = np.float32(size) / np.float32(whole)",
        "test_properties.py::test_a_resize_of_any_size_equals_torchs_by_both_corner_rules",
    ),
    Bug(
        "deeplab_jax/lowering.py",
        "(size - 1 - offset) // stride)",
        "(size - 2 - offset) // stride)",
        "test_properties.py::test_cropped_products_compute_any_convolution",
    ),
    Bug(
        "deeplab_jax/lowering.py",
        "starts = [i * spec.dilation - spec.pads[0][0]",
        "starts = [i * spec.dilation - spec.pads[1][0]",
        "test_properties.py::test_shifted_images_compute_any_depthwise_convolution",
    ),
    Bug(
        "deeplab_jax/lowering.py",
        "jnp.eye(merged, dtype=kernel.dtype)",
        "jnp.ones((merged, merged), kernel.dtype)",
        "test_properties.py::test_dense_slices_compute_any_grouped_convolution",
    ),
    # ---- networks
    Bug(
        "deeplab_jax/heads.py",
        "rate * 16 // output_stride for rate",
        "rate * output_stride // 16 for rate",
        "test_heads.py::test_rates_follow_the_output_stride",
    ),
    Bug(
        "deeplab_jax/backbones/dilation.py",
        "dilation, stride = dilation * stride, 1",
        "dilation, stride = dilation, 1",
        "test_backbones.py::test_strides_beyond_the_output_stride_become_dilation",
    ),
    Bug(
        "deeplab_jax/backbones/dilation.py",
        'previous if first_block == "previous" else dilation',
        "dilation",
        "test_backbones.py::test_strides_beyond_the_output_stride_become_dilation",
    ),
    Bug(
        "deeplab_jax/fold.py",
        "gain = scale / np.sqrt(var + np.float32(norm.epsilon))",
        "gain = scale / np.sqrt(var)",
        "test_fold.py::test_the_epsilon_of_a_norm_is_folded_with_it",
    ),
    Bug(
        "deeplab_jax/preprocessing.py",
        'FULL_SCALE = {"uint8": 255,',
        'FULL_SCALE = {"uint8": 256,',
        "test_predict.py::test_normalisation_is_to_0_and_1_and_then_by_mean_and_deviation",
    ),
    # ---- prediction
    Bug(
        "deeplab_jax/predict.py",
        "logits = logits[:, :, ::-1] if mirrored else logits",
        "logits = logits",
        "test_predict.py::test_flip_averages_probabilities_with_the_mirror_image_s",
    ),
    Bug(
        "deeplab_jax/orientation.py",
        "if tag in (2, 3, 6, 7):",
        "if tag in (2, 3, 5, 8):",
        "test_predict.py::test_pixels_are_turned_as_pillow_turns_them",
    ),
    Bug(
        "deeplab_jax/visualize.py",
        '"road": (128, 64, 128),\n        "sidewalk"',
        '"road": (128, 64, 129),\n        "sidewalk"',
        "test_visualize.py::test_known_names_have_their_data_set_s_colors_in_any_order_and_spelling",
    ),
    # ---- files
    Bug(
        "deeplab_jax/checkpoint.py",
        "elif kept.value != digest_of(",
        "elif not digest_of(",
        "test_checkpoint.py::test_a_flipped_bit_among_the_weights_of_a_file_is_an_error",
    ),
    Bug(
        "deeplab_jax/digests.py",
        'digest.update(f"{name} {array.dtype.str} {array.shape}".encode())',
        "pass",
        "test_checkpoint.py::test_names_and_shapes_are_part_of_the_digest",
    ),
    Bug(
        "deeplab_jax/checkpoint.py",
        "if not _WEIGHTS_NAME.fullmatch(weights):",
        "if not _WEIGHTS_NAME.match(weights):",
        "test_checkpoint.py::test_weights_outside_of_the_folder_are_refused",
    ),
    Bug(
        "deeplab_jax/digests.py",
        "if found.get(name) != wanted[name]",
        "if name not in found",
        "test_train_checkpoint.py::test_a_flipped_bit_anywhere_is_damage",
    ),
    Bug(
        "deeplab_jax/whole_file.py",
        "partial.unlink(missing_ok=True)",
        "pass",
        "test_whole_file.py::test_a_failure_leaves_the_old_file_and_nothing_beside_it",
    ),
    Bug(
        "deeplab_jax/beside.py",
        "if file.read() == running_kernel():",
        "if True:",
        "test_checkpoint.py::test_what_a_killed_save_left_is_removed_by_the_next_and_nothing_else",
    ),
    # ---- checkpoints of others
    Bug(
        "port/unpickle.py",
        'return type("Foreign", (Foreign,), {"name": f"{module}.{name}"})',
        'return getattr(__import__(module, fromlist=["_"]), name)',
        "test_port_read.py::test_a_trainers_own_objects_are_passed_by_without_their_packages",
    ),
    Bug(
        "port/unpickle.py",
        "if package in HOSTILE_MODULES or builtin:",
        "if builtin:",
        "test_port_read.py::test_a_pickle_that_runs_code_is_refused_and_does_not_run",
    ),
    Bug(
        "port/unpickle.py",
        "return getattr(torch._utils, name, None) if name in TENSORS else None",
        "return getattr(torch._utils, name, None)",
        "test_port_read.py::test_of_torch_only_what_makes_tensors_is_called",
    ),
    Bug(
        "port/unpickle.py",
        "return found if isinstance(found, plain) or found is torch.device or storage else None",
        "return found",
        "test_port_read.py::test_of_torch_only_what_makes_tensors_is_called",
    ),
    Bug(
        "port/read.py",
        "if f.name != n or not f.is_file()",
        "if not f.is_file()",
        "test_port_read.py::test_an_index_that_leads_out_of_its_folder_is_refused",
    ),
    Bug(
        "port/read.py",
        "if claimed > max(storage.nbytes(), SMALL):",
        "if claimed > 2**60:",
        "test_port_read.py::test_a_tensor_that_claims_more_than_the_file_has_is_refused",
    ),
    Bug(
        "port/convert.py",
        "array = np.roll(array, -channels, axis)",
        "array = np.roll(array, channels, axis)",
        "test_golden.py::test_the_ported_model_gives_the_recorded_outputs_as_the_page_says"
        "[jfzhang_deeplabv3plus_mobilenet_os16]",
    ),
    Bug(
        "train/data/unpack.py",
        'archive.extract(member, folder, filter="data")',
        'archive.extract(member, folder, filter="fully_trusted")',
        "test_data_tfds.py::test_an_archive_writes_nothing_outside",
    ),
    # ---- training
    Bug(
        "train/metrics.py",
        "cell = labels * num_classes + predictions",
        "cell = predictions * num_classes + labels",
        "test_properties.py::test_confusions_are_scikit_learns",
    ),
    Bug(
        "train/metrics.py",
        "(labels >= 0) & (labels < num_classes) & (labels != IGNORE_LABEL)",
        "(labels >= 0) & (labels < num_classes)",
        "test_metrics.py::test_label_255_is_ignored_however_many_classes_there_are",
    ),
    Bug(
        "train/metrics.py",
        "_ratio(found, labelled + predicted - found)",
        "_ratio(found, labelled + predicted)",
        "test_properties.py::test_confusions_are_scikit_learns",
    ),
    Bug(
        "train/metrics.py",
        "distances)[index] <= tolerance",
        "distances)[index] < tolerance - 1",
        "test_properties.py::test_boundary_scores_are_those_of_scipys_distances",
    ),
    Bug(
        "train/loss.py",
        "jnp.where(valid, loss, 0).sum(), jnp.where(valid, share, 0).sum()",
        "loss.sum(), share.sum()",
        "test_loss.py::test_ignored_pixels_change_neither_loss_nor_gradient",
    ),
    Bug(
        "train/loss.py",
        "dice = 2 * both / jnp.maximum(",
        "dice = both / jnp.maximum(",
        "test_loss.py::test_dice_is_the_mean_over_labelled_classes",
    ),
    Bug(
        "train/optim.py",
        "fall = (1 - progress) ** config.power",
        "fall = 1 - progress**config.power",
        "test_optim.py::test_schedules_rise_and_fall",
    ),
    Bug(
        "train/optim.py",
        "rise = jnp.minimum((step + 1) / max(warmup, 1), 1)",
        "rise = jnp.minimum(step / max(warmup, 1), 1)",
        "test_optim.py::test_schedules_rise_and_fall",
    ),
    Bug(
        "train/optim.py",
        'config.decay_all or name.split(".")[-1] not in _UNDECAYED',
        "True",
        "test_optim.py::test_adamw_is_pytorch_s_with_the_gradient_clipped_and_no_decay_of_norms_and_biases",
    ),
    Bug(
        "train/steps.py",
        "decay * v + (1 - decay) * values[n]",
        "(1 - decay) * v + decay * values[n]",
        "test_steps.py::test_the_moving_average_decays_as_it_is_told_once_it_is_warm",
    ),
    Bug(
        "train/steps.py",
        "jnp.minimum(config.ema, (1 + count)",
        "jnp.maximum(config.ema, (1 + count)",
        "test_steps.py::test_the_moving_average_decays_as_it_is_told_once_it_is_warm",
    ),
    Bug(
        "train/steps.py",
        'values = new["params"] | stats',
        'values = state["params"] | stats',
        "test_steps.py::test_the_moving_average_decays_as_it_is_told_once_it_is_warm",
    ),
    Bug(
        "train/steps.py",
        'return state["ema"] if "ema" in state else',
        'return state["ema"] if "average" in state else',
        "test_steps.py::test_the_moving_average_is_what_is_evaluated_and_saved",
    ),
    Bug(
        "train/steps.py",
        "lambda g: g / config.accumulate, grads",
        "lambda g: g, grads",
        "test_steps.py::test_a_batch_in_parts_moves_the_weights_as_a_whole_one",
    ),
    Bug(
        "train/data/augment.py",
        "label = cv2.flip(label, 1)",
        "label = label.copy()",
        "test_properties.py::test_a_picture_and_its_label_map_stay_together",
    ),
    Bug(
        "train/data/augment.py",
        "interpolation=cv2.INTER_NEAREST_EXACT",
        "interpolation=cv2.INTER_NEAREST",
        "test_data_augment.py::test_the_label_moves_with_the_picture",
    ),
    Bug(
        "train/data/augment.py",
        '"flags": cv2.INTER_NEAREST, "borderValue": _IGNORED',
        '"flags": cv2.INTER_NEAREST, "borderValue": 0',
        "test_properties.py::test_a_picture_and_its_label_map_stay_together",
    ),
    Bug(
        "train/data/pipeline.py",
        "self._batches = parts[process_index::process_count]",
        "self._batches = parts[::process_count]",
        "test_data_pipeline.py::test_all_processes_together_have_the_batch_of_one",
    ),
    Bug(
        "train/data/pipeline.py",
        "batches = self._batches[start:].to_iter_dataset(",
        "batches = self._batches[:].to_iter_dataset(",
        "test_data_pipeline.py::test_a_resumed_run_gets_the_batches_it_would_have_had",
    ),
    Bug(
        "train/sharding.py",
        "longest = max(fitting, key=lambda axis: array.shape[axis])",
        "longest = fitting[0]",
        "test_properties.py::test_arrays_are_cut_where_it_saves_memory_and_only_into_equal_parts",
    ),
    Bug(
        "train/checkpoint.py",
        "latest_is_good = not lines",
        "latest_is_good = True",
        "test_train_checkpoint.py::test_of_several_damaged_checkpoints_all_are_moved",
    ),
    Bug(
        "train/lock.py",
        "fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)",
        "fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)",
        "test_lock.py::test_a_second_run_is_told_whose_the_folder_is",
    ),
    # ---- sigmoids
    Bug(
        "train/loss.py",
        "there, not_there = jax.nn.softplus(-logits), jax.nn.softplus(logits)",
        "there, not_there = jax.nn.softplus(logits), jax.nn.softplus(-logits)",
        "test_loss.py::test_each_term_of_a_sigmoid_is_smps_in_value_and_gradient",
    ),
    Bug(
        "train/loss.py",
        "jnp.where(label_is, positive, 1), spread, share",
        "jnp.where(label_is, positive, 1), spread, share * positive",
        "test_loss.py::test_each_term_of_a_sigmoid_is_smps_in_value_and_gradient",
    ),
    Bug(
        "train/loss.py",
        "errors = jax.nn.relu(1 - jnp.where(label_is, logits, -logits))",
        "errors = jax.nn.relu(-jnp.where(label_is, logits, -logits))",
        "test_loss.py::test_each_term_of_a_sigmoid_is_smps_in_value_and_gradient",
    ),
    Bug(
        "train/targets.py",
        "jnp.arange(1, channels + 1)",
        "jnp.arange(channels)",
        "test_evaluate.py::test_several_labels_are_scored_each_for_itself[plain]",
    ),
    Bug(
        "train/targets.py",
        "return 1 if num_classes == 1 else 0",
        "return 0",
        "test_evaluate.py::test_an_image_without_foreground_is_right_where_none_is_found",
    ),
    Bug(
        "train/metrics.py",
        "return confusion[:, 1, 1], confusion[:, 1].sum(-1), confusion[:, :, 1].sum(-1)",
        "return confusion[:, 1, 1], confusion[:, :, 1].sum(-1), confusion[:, 1].sum(-1)",
        "test_metrics.py::test_labels_are_counted_and_scored_each_for_itself",
    ),
    Bug(
        "train/data/augment.py",
        "_IGNORED = (IGNORE_LABEL,) * 4",
        "_IGNORED = (IGNORE_LABEL, 0, 0, 0)",
        "test_train_sigmoid.py::test_each_label_is_augmented_as_it_would_be_alone",
    ),
    # ---- bands, scenes, several labels
    Bug(
        "deeplab_jax/bands.py",
        "[index - 1 for index in indices]",
        "[index - 2 for index in indices]",
        "test_bands.py::test_the_four_channels_of_a_png_are_bands",
    ),
    Bug(
        "deeplab_jax/scenes.py",
        "slice(s.start + kept.start, s.start + kept.stop)",
        "slice(s.start, s.start + kept.stop - kept.start)",
        "test_bands.py::test_windows_of_a_scene_are_those_of_a_picture",
    ),
    Bug(
        "deeplab_jax/scenes.py",
        "source.dataset_mask(window=window) > 0",
        "source.dataset_mask(window=window) >= 0",
        "test_bands.py::test_labels_of_a_scene_are_in_its_place_on_earth",
    ),
    Bug(
        "deeplab_jax/predict.py",
        "there = scores > threshold",
        "there = scores == scores.max(-1, keepdims=True)",
        "test_multilabel.py::test_each_label_is_where_its_own_probability_is_above_a_half",
    ),
    Bug(
        "train/data/statistics.py",
        "np.maximum(square / number - mean**2, 0)",
        "np.maximum(square / number, 0)",
        "test_data_bands.py::test_statistics_are_those_of_all_pixels_that_have_data",
    ),
)


def main(words: list[str]) -> int:
    """Plants the bugs one by one, and prints what became of each; returns the exit status."""
    chosen = [bug for bug in BUGS if not words or any(w in bug.file + bug.test for w in words)]
    with tempfile.TemporaryDirectory() as place:
        copy = Path(place)
        for name in COPIED:
            source = ROOT / name
            (shutil.copytree if source.is_dir() else shutil.copy)(source, copy / name)
        if status := _status(copy, sorted({bug.test for bug in chosen}), seconds=None):
            print(f"the tests do not pass without a bug (pytest's status is {status})")
            return 1
        outcomes = [_outcome(copy, bug) for bug in chosen]
    survivors = sum(outcome != "caught" for outcome in outcomes)
    print(f"{len(chosen)} bugs, {len(chosen) - survivors} caught, {survivors} not")
    return int(survivors > 0)


def _outcome(copy: Path, bug: Bug) -> str:
    """Plants a bug, runs its test, takes it out again; prints and returns what happened."""
    file, began = copy / bug.file, time.monotonic()
    text = file.read_text()
    file.write_text(bug.planted(text))
    try:
        status = _status(copy, [bug.test], seconds=SECONDS)
    finally:
        file.write_text(text)
    others = {0: "SURVIVED", FAILED: "caught"}
    outcome = others.get(status, f"NOT DECIDED (status {status})")
    print(
        f"{outcome:9} {time.monotonic() - began:4.0f} s  {bug.file}: "
        f"{' '.join(bug.old.split())[:50]}  {bug.test}",
        flush=True,
    )
    return outcome


def _status(copy: Path, tests: list[str], *, seconds: int | None) -> int:
    """pytest's status, or the negative number of a signal, as of a process that takes too long."""
    # The shell sets the limit: a function of Python's would have to run in a fork of this process.
    limit = "unlimited" if seconds is None else seconds
    command = ["sh", "-c", f'ulimit -t {limit} && exec "$@"', "sh"]
    command += [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"]
    # Not the project's own packages, where it is installed to be edited.
    environment = os.environ | {"PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(
        [*command, *(f"tests/{test}" for test in tests)],
        cwd=copy,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
