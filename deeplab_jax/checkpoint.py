"""Models on disk: a model folder, or one safetensors file.

A model folder is `config.json` (what the model is, its class names and preprocessing) and `weights/`
(Orbax). A safetensors file has the same config in its header. Both are written beside their place and
renamed into it, so that there is never half a model. Both keep a digest of the weights, which `load`
checks: neither format notices a flipped bit by itself.

A bucket cannot rename folders. There each save has weights under a name of its own, and the config, which
names them, is written last. What is on the Hugging Face hub is read here, and written by `push`.
"""

import contextlib
import json
import logging
import os
import re
import tempfile
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from deeplab_jax import buckets, hub
from deeplab_jax.beside import folder_beside, remove_leftovers
from deeplab_jax.config import Config, from_dict, to_dict
from deeplab_jax.digests import ALGORITHM, Digest, digest_of, kept_digest
from deeplab_jax.model import (
    SegmentationModel,
    build,
    named_values,
    named_variables,
    with_values,
)
from deeplab_jax.paths import check_local

log = logging.getLogger(__name__)

FORMAT = 1
CONFIG, WEIGHTS = "config.json", "weights"
RUN_CHECKPOINTS, RUN_MODEL = "checkpoints", "model"  # in the folder of a training run
HEADER = "deeplab_jax"  # key of the config in the header of a safetensors file
_WEIGHTS_NAME = re.compile(rf"{WEIGHTS}(-[0-9a-f]+)?")  # each save to a bucket has another


class ModelError(ValueError):
    """A path that is no model, or not one that this version can read; the message says what to do."""


def save(model: SegmentationModel, path: str | os.PathLike, *, overwrite: bool = False) -> Path:
    """Writes a model that has a config: a file where the name ends in .safetensors, else a folder.

    A model with a backbone of your own is saved once that is registered, see `register_backbone`.

    Args:
      path: its parent is made where it does not exist. A URL of a bucket (gs://, s3://) will do.
      overwrite: replace a model that is there; anything else that is there is never replaced. What earlier
        saves to the same place left there when they were killed is removed, see `beside`.

    Raises:
      ModelError: when something is there that may not be replaced, or `load` could not read the model, or
        the disk is full or may not be written to.
    """
    path = Path(path)
    _check_loadable(model)
    check_place(path, overwrite=overwrite)
    if (url := buckets.url_of(path)) is not None:
        _save_to_bucket(model, url)
        return path
    with _writing(path):
        _save_here(model, path)
    # Not before: of a save that was killed at the worst moment, the old model is in what it left.
    remove_leftovers(path)
    return path


def _save_here(model: SegmentationModel, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with folder_beside(path) as beside:
        new = beside / "new"
        if path.suffix == ".safetensors":
            _write_file(model, new)
            os.replace(new, path)
        else:
            _write_folder(model, new)
            old = beside / "old"
            try:
                if path.exists():
                    path.rename(old)
                new.rename(path)
            except BaseException:
                if old.exists():
                    old.rename(path)
                raise


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Turns errors of a disk that cannot be written to into ModelErrors."""
    try:
        yield
    except Exception as error:
        if (reason := why_unwritable(error)) is None:
            raise
        raise ModelError(f"{path} cannot be written: {reason}") from error


def _save_to_bucket(model: SegmentationModel, url: str) -> None:
    parent, _, name = url.rpartition("/")
    with tempfile.TemporaryDirectory() as here:
        made = Path(here) / name
        if made.suffix == ".safetensors":
            _write_file(model, made)
            buckets.upload(made.parent, parent, [name])
            return
        before = _weights_in_bucket(url)
        _write_folder(model, made, weights=f"{WEIGHTS}-{os.urandom(4).hex()}")
        buckets.upload(made, url, files_of(made), last=CONFIG)
        if before is not None:
            buckets.remove(f"{url}/{before}")


def _weights_in_bucket(url: str) -> str | None:
    """The name of the weights of a model in a bucket; None where there is no model."""
    try:
        return weights_of(buckets.read_text(f"{url}/{CONFIG}") or "", url)
    except ModelError:
        return None


def _check_loadable(model: SegmentationModel) -> None:
    """Raises ModelError where `load` would refuse what `save` writes."""
    if not isinstance(model, SegmentationModel):
        raise ModelError(f"a SegmentationModel can be saved, got {type(model).__name__}")
    try:
        config = model.config
    except ValueError as error:
        raise ModelError(str(error)) from error
    try:
        again = from_dict(json.loads(json.dumps(to_dict(config))))
    except (TypeError, ValueError) as error:
        raise ModelError(
            f"the model cannot be saved, as `load` could not read its config: {error}"
        ) from error
    if again != config:
        raise ModelError(
            f"the model cannot be saved: `load` would read its config as {again}, not as {config}"
        )
    wanted = {name: tuple(v.shape) for name, v in named_variables(build(config)).items()}
    found = {name: tuple(v.shape) for name, v in named_variables(model).items()}
    if differing := _unlike(wanted, found):
        raise ModelError(
            "the model cannot be saved, as its variables are not those of its config (was it folded, or "
            f"changed by hand?): {', '.join(differing)}"
        )


def check_place(path: Path, *, overwrite: bool) -> None:
    """Raises ModelError where `save` would: what is there may not be replaced."""
    if (repository := hub.repository_of(path)) is not None:
        raise ModelError(
            f"a model is saved on this machine or in a bucket, got {repository}: save it to a folder, then "
            f"`deeplab push FOLDER {repository}`"
        )
    if (url := buckets.url_of(path)) is not None:
        is_model = url.endswith(".safetensors") or _weights_in_bucket(url) is not None
        if buckets.exists(url) and not (overwrite and is_model):
            way_out = "pass overwrite=True (--overwrite)" if is_model else "choose another name"
            raise ModelError(f"{url} exists: {way_out}")
        return
    if path.exists() and not (overwrite and _is_model(path)):
        way_out = "pass overwrite=True (--overwrite)" if _is_model(path) else "choose another name"
        raise ModelError(f"{path} exists: {way_out}")
    check_parent(path)


def check_parent(path: Path) -> None:
    """Raises ModelError where no file or folder can be made at `path`, ValueError where it is a URL."""
    check_local({"the output": path})
    nearest = next(folder for folder in path.absolute().parents if folder.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        raise ModelError(f"{path} cannot be made: {nearest} is not a folder that you may write to")


def load(
    path: str | os.PathLike, *, dtype: jax.typing.DTypeLike = jnp.float32
) -> SegmentationModel:
    """The model at `path`, a model folder, a .safetensors file or a run's folder, in eval mode.

    Of a URL of a bucket (gs://, s3://) or of the Hugging Face hub (hf://USER/NAME, hf://USER/NAME@REVISION)
    a copy is kept on this machine, see `buckets.local_copy` and `hub.local_copy`.

    Args:
      dtype: what the convolutions compute in.

    Raises:
      ModelError: when it is not a model.
      OSError: the bucket or the hub cannot be reached.
    """
    path = model_path(path)
    if not path.exists():
        raise ModelError(f"{path} does not exist; `deeplab-port` and trainings make model folders")
    if not path.is_dir() and not path.is_file():
        raise ModelError(f"{path} is a pipe or a device, not a model")
    try:
        return _load_here(path, dtype)
    except MemoryError as error:  # a few bytes of a config can ask for any number
        raise ModelError(
            f"{path} cannot be read: its config asks for more memory than there is"
        ) from error


def _load_here(path: Path, dtype: jax.typing.DTypeLike) -> SegmentationModel:
    if path.is_file():
        config, read_weights = _read_file(path)
    elif _is_model(path):
        header = _read_header((path / CONFIG).read_bytes(), path)
        config, read_weights = header.config, _read_folder(path, header)
    else:
        raise ModelError(
            f"{path} is not a model folder: it must hold {CONFIG} and {WEIGHTS}/. A PyTorch checkpoint "
            "becomes one with `deeplab-port CHECKPOINT FOLDER`."
        )
    model = build(config, dtype=dtype)
    model = with_values(model, read_weights(named_variables(model)))
    model.eval()
    return model


def is_sealed(path: str | os.PathLike) -> bool:
    """Whether a model that can be read keeps a digest, as all do but those of early versions."""
    path = model_path(path)
    if path.is_file():
        from safetensors import safe_open

        with safe_open(path, "np") as file:
            return kept_digest(file.metadata() or {}) is not None
    return kept_digest(json.loads((path / CONFIG).read_bytes())) is not None


def steps_in(checkpoints: Path) -> list[Path]:
    """The folders of a run's checkpoints, in the order of their steps; none that is half written."""
    return sorted(
        (p for p in checkpoints.glob("*") if p.name.isdecimal()), key=lambda p: int(p.name)
    )


def model_path(path: str | os.PathLike) -> Path:
    """The path on this machine of the model that is meant: of a training run's folder, the model inside.

    Raises ModelError for a run that has no model yet, and for a repository of the hub that has none.
    """
    if (repository := hub.repository_of(path)) is not None:
        return _copy_from_hub(repository)
    if (url := buckets.url_of(path)) is not None:
        if buckets.exists(f"{url}/{RUN_CHECKPOINTS}"):
            url = f"{url}/{RUN_MODEL}"
            if not buckets.exists(url):
                raise _without_model(path)
        return buckets.local_copy(url)
    path = Path(path)
    if not (path / RUN_CHECKPOINTS).is_dir():
        return path
    if not (path / RUN_MODEL).is_dir():
        raise _without_model(path)
    return path / RUN_MODEL


def _copy_from_hub(repository: hub.Repository) -> Path:
    """The model in a repository; other libraries' weights, which may be large, are not fetched for long."""
    # With the card, which is nearly always there: the client warns where nothing matches.
    folder = hub.local_copy(repository, [CONFIG, "README.md"])
    if (folder / CONFIG).is_file():
        text = (folder / CONFIG).read_bytes()
        if _is_of_another_library(text):
            raise _nothing_of_ours(repository)
        weights = weights_of(text, str(repository))
        folder = hub.local_copy(repository, [CONFIG, f"{weights}/*"])
        if not (folder / weights).is_dir():
            raise _nothing_of_ours(repository)
        return folder
    folder = hub.local_copy(repository, ["*.safetensors"], ignore=["*/*"])
    files = list(folder.glob("*.safetensors"))
    if len(files) != 1 or not _is_model(files[0]):
        raise _nothing_of_ours(repository)
    return files[0]


def _is_of_another_library(config: bytes) -> bool:
    try:
        found = json.loads(config)
    except (ValueError, RecursionError):  # damaged, which `_read_header` says
        return False
    return not (isinstance(found, dict) and {"format", "config"} <= found.keys())


def _nothing_of_ours(repository: hub.Repository) -> ModelError:
    return ModelError(
        f"{repository} has no model of deeplab_jax, which is {CONFIG} with {WEIGHTS}/, or one .safetensors "
        "file at its root. If PyTorch or TensorFlow code wrote what is there, "
        f"`deeplab-port {repository} OUT` makes a model of it"
    )


def _without_model(run: str | os.PathLike) -> ModelError:
    return ModelError(
        f"{run} is a run that has not ended: make a model of one of its checkpoints with "
        f"`deeplab-train export-model {run} FOLDER`"
    )


def _is_model(path: Path) -> bool:
    """Whether `path` is of our making: other libraries have a config.json and safetensors too."""
    if not path.is_file():
        return (path / CONFIG).is_file() and any(path.glob(f"{WEIGHTS}*/"))
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "np") as file:
            return HEADER in (file.metadata() or {})
    except (SafetensorError, OSError):
        return False


def _check_digest(
    path: Path, kept: Digest | None, weights: Mapping[str, np.ndarray | jax.Array], *texts: str
) -> None:
    """Raises ModelError for damage, and logs where a model was saved without a digest."""
    if kept is None:
        log.warning("%s keeps no digest of its weights: damage would not be noticed", path)
    elif kept.value != digest_of(weights, *texts, algorithm=kept.algorithm):
        raise ModelError(
            f"{path} is damaged: its weights are not those that were saved, by the {kept.algorithm} kept "
            "with them. Copy or port it again"
        )


# ---------------------------------------------------------------------------- config


def _header(config: Config) -> dict[str, Any]:
    return {"format": FORMAT, "config": to_dict(config)}


class _Header(NamedTuple):
    """What config.json, or the header of a safetensors file, says of a model.

    Attributes:
      digest: of the weights; None where none is kept.
      weights: the name of their folder.
    """

    config: Config
    digest: Digest | None
    weights: str


def _read_header(text: str | bytes, path: str | os.PathLike) -> _Header:
    """Raises ModelError where it is not ours, or damaged."""
    try:
        header = json.loads(text)
        if header["format"] > FORMAT:
            raise ModelError(
                f"{path} was written by a newer version (format {header['format']}, this one reads "
                f"up to {FORMAT}): upgrade deeplab-jax"
            )
        weights = header.get(WEIGHTS, WEIGHTS)
        if not _WEIGHTS_NAME.fullmatch(weights):  # no path that leads elsewhere
            raise ValueError(f"{WEIGHTS} must be the name of a folder in it, got {weights!r}")
        return _Header(from_dict(header["config"]), kept_digest(header), weights)
    except RecursionError as error:
        raise ModelError(
            f"the config of {path} cannot be read: it is nested too deeply, and damaged. Copy or port the "
            "model again"
        ) from error
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, ModelError):
            raise
        raise ModelError(f"the config of {path} cannot be read: {error}") from error


def weights_of(config: str | bytes, path: str | os.PathLike) -> str:
    """The name of the weights' folder by the content of a config.json; ModelError where it is not ours."""
    return _read_header(config, path).weights


def files_of(folder: Path) -> list[str]:
    """The names of a model folder's files, relative to it; of those that are not the model's, none."""
    weights = folder / weights_of((folder / CONFIG).read_bytes(), folder)
    files = (path.relative_to(folder).as_posix() for path in weights.rglob("*") if path.is_file())
    return [CONFIG, *sorted(files)]


def _check_shapes(
    wanted: dict[str, nnx.Variable], found: dict[str, tuple[int, ...]], path: Path
) -> None:
    shapes = {name: tuple(variable.shape) for name, variable in wanted.items()}
    if differing := _unlike(shapes, {name: tuple(shape) for name, shape in found.items()}):
        raise ModelError(f"the weights of {path} are not those of its config: {differing}")


def _unlike(a: Mapping[str, tuple[int, ...]], b: Mapping[str, tuple[int, ...]]) -> list[str]:
    """The first names that only one of two has, or that have another shape in the other."""
    return sorted(name for name in {**a, **b} if a.get(name) != b.get(name))[:10]


# ---------------------------------------------------------------------------- Orbax


def _write_folder(model: SegmentationModel, folder: Path, weights: str = WEIGHTS) -> None:
    folder.mkdir()
    values = named_values(model)
    with _orbax() as checkpointer:
        checkpointer.save((folder / weights).absolute(), values)
        digest = digest_of(values)  # while Orbax writes them
    header = _header(model.config) | {ALGORITHM: digest}
    header |= {} if weights == WEIGHTS else {WEIGHTS: weights}
    (folder / CONFIG).write_text(json.dumps(header, indent=2) + "\n")


def _orbax():
    """A checkpointer that does not wait for other processes: of several, one writes a model folder."""
    import orbax.checkpoint as ocp

    this = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(
        primary_host=this, active_processes={this}, barrier_sync_key_prefix=f"process_{this}"
    )
    return ocp.StandardCheckpointer(multiprocessing_options=alone)


def _read_folder(path: Path, header: _Header):
    def read(wanted: dict[str, nnx.Variable]) -> dict[str, jax.Array]:
        here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        target = {
            name: jax.ShapeDtypeStruct(variable.shape, variable.dtype, sharding=here)
            for name, variable in wanted.items()
        }
        weights = (path / header.weights).absolute()
        with _orbax() as checkpointer:
            try:
                metadata = checkpointer.metadata(weights).item_metadata
                if metadata is not None:  # else it is no checkpoint, and to restore it says why
                    found = {name: array.shape for name, array in metadata.tree.items()}
                    _check_shapes(wanted, found, path)
                found = checkpointer.restore(weights, target)
            except Exception as error:
                reason = why_unreadable(error)
                if reason is None or isinstance(error, ModelError):
                    raise
                raise ModelError(
                    f"the weights of {path} cannot be read: {reason_of(reason)}. It is damaged: copy or "
                    "port it again"
                ) from error
        _check_digest(path, header.digest, found)
        return found

    return read


def why_unreadable(error: Exception) -> Exception | None:
    """What is wrong with the files, where that is why Orbax could not read them; None elsewhere.

    What tensorstore says of a damaged file, Orbax wraps in an `Exception` of no kind of its own. On names
    in its metadata that it does not know, its own code stumbles.
    """
    reason = error.__cause__ if type(error) is Exception else error
    if isinstance(reason, AttributeError | TypeError | NotImplementedError):
        return reason if _raised_by_orbax(reason) else None
    return reason if isinstance(reason, ValueError | KeyError | OSError) else None


def why_unwritable(error: Exception) -> str | None:
    """What a disk that cannot be written to says through Orbax or safetensors; None of other errors."""
    from safetensors import SafetensorError

    text = reason_of(error)
    if isinstance(error, OSError):
        return error.strerror or text
    of_the_disk = isinstance(error, SafetensorError) or "os_error_code" in str(error)
    return text.rpartition(": ")[2] if of_the_disk else None


def reason_of(error: Exception) -> str:
    """What an error says, without the specification of the file that tensorstore adds, of a page or two."""
    return str(error).partition(" [tensorstore_spec")[0].partition(" [os_error_code")[0]


def _raised_by_orbax(error: Exception) -> bool:
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    return bool(frames) and frames[-1].f_globals.get("__name__", "").startswith("orbax.")


# ---------------------------------------------------------------------------- safetensors


def _write_file(model: SegmentationModel, file: Path) -> None:
    from safetensors.numpy import save_file

    arrays = {name: np.ascontiguousarray(array) for name, array in named_values(model).items()}
    header = json.dumps(_header(model.config))
    save_file(arrays, file, metadata={HEADER: header, ALGORITHM: digest_of(arrays, header)})
    # safetensors makes files that nobody else may read; one in `file`'s place has what the umask gives.
    like = file.with_name(f"{file.name}.mode")
    like.touch()
    file.chmod(like.stat().st_mode)
    like.unlink()


def _read_file(path: Path):
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "np") as file:
            metadata = file.metadata() or {}
            if HEADER not in metadata:
                raise ModelError(
                    f"{path} was not saved by deeplab_jax: its header has no config. If PyTorch code wrote "
                    "it, port it with `deeplab-port`."
                )
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ModelError(
            f"{path} is not a model: {error}. A PyTorch checkpoint becomes one with `deeplab-port`."
        ) from error

    def read(wanted: dict[str, nnx.Variable]) -> dict[str, jax.Array]:
        _check_shapes(wanted, {name: array.shape for name, array in arrays.items()}, path)
        _check_digest(path, kept_digest(metadata), arrays, metadata[HEADER])
        return jax.device_put({name: np.array(array) for name, array in arrays.items()})

    return _read_header(metadata[HEADER], path).config, read
