"""A backbone of one's own: registered once, it is known wherever the others are."""

import dataclasses
import itertools
import json
from importlib import metadata
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from own_backbone import StripesConfig
from PIL import Image

import deeplab_jax
from deeplab_jax import (
    PRESETS,
    SEPARABLE_HEADS,
    Backbone,
    Config,
    DeepLabV3Config,
    DeepLabV3PlusConfig,
    FCNConfig,
    ModelError,
    ResNetConfig,
    build,
    create,
    fold_batch_norm,
    load,
    named_variables,
    predict,
    register_backbone,
    save,
    summarize,
)
from deeplab_jax import __main__ as deeplab
from deeplab_jax.backbones import registry
from deeplab_jax.fold import Shift
from deeplab_jax.layers import BatchNorm
from port import __main__ as deeplab_port
from train import __main__ as deeplab_train

NAMES = ["deeplabv3_stripes8", "deeplabv3plus_stripes4", "fcn_stripes4"]


@pytest.fixture
def unregistered(monkeypatch):
    """The registry as it is outside this test file; the test may change it."""
    families = {k: f for k, f in registry.families().items() if k != "stripes"}
    monkeypatch.setattr(registry, "_families", families)


def small(**fields):
    options = {"num_classes": 3, "channels": 8, "rngs": nnx.Rngs(0), **fields}
    return create("deeplabv3plus_stripes4", **options)


def images(*shape):
    return np.random.default_rng(0).standard_normal(shape, np.float32)


# ---------------------------------------------------------------------------- from preset to training


def test_its_presets_come_after_the_others_of_their_head():
    assert set(NAMES) <= set(PRESETS)
    assert "lraspp_stripes4" not in PRESETS
    names = list(PRESETS)
    assert names.index("deeplabv3_stripes8") < names.index("deeplabv3plus_resnet18")
    assert PRESETS["deeplabv3plus_stripes4"] == Config(
        StripesConfig(width=4), DeepLabV3PlusConfig()
    )


def test_heads_read_its_stride_and_override_its_fields():
    model = small(output_stride=8, in_channels=5)
    assert model.backbone.channels == {"low": 8, "high": 32}
    branches = model.head.aspp.branches[1:]
    assert [branch.conv.dilation for branch in branches] == [12, 24, 36]
    model.eval()
    assert model(images(1, 33, 40, 5)).shape == (1, 33, 40, 3)


@pytest.mark.parametrize("name", ["model", "model.safetensors"])
def test_it_is_saved_and_loaded(name, tmp_path):
    model = small()
    model.eval()
    loaded = load(save(model, tmp_path / name))
    assert loaded.config == model.config
    x = images(1, 17, 33, 3)
    np.testing.assert_array_equal(loaded(x), model(x))
    assert predict(loaded, np.zeros((20, 30, 3), np.uint8)).shape == (20, 30)


def test_its_summary_has_its_parts_in_the_order_in_which_images_pass():
    rows = summarize(build(PRESETS["deeplabv3plus_stripes8"]), (64, 96))
    backbone = [row for row in rows if row.stage.startswith("backbone.")]
    assert [row.stage.removeprefix("backbone.") for row in backbone] == [
        "stem",
        "early",
        "blocks.0",
        "late",
    ]
    assert [row.receptive_field for row in backbone] == [3, 7, 15, 31]
    assert [row.shape[:2] for row in backbone] == [(32, 48), (16, 24), (8, 12), (4, 6)]
    assert all(row.parameters and row.multiply_adds for row in rows if "pool" not in row.stage)


def test_its_batch_norms_are_folded():
    model = small()
    rng = np.random.default_rng(0)
    norms = [part for _, part in nnx.iter_modules(model) if isinstance(part, BatchNorm)]
    for norm in norms:
        for variable in (norm.scale, norm.bias, norm.mean, norm.var):
            variable[...] = jnp.asarray(rng.uniform(0.5, 1.5, variable.shape), jnp.float32)
    model.eval()
    folded = fold_batch_norm(model)
    parts = [part for _, part in nnx.iter_modules(folded)]
    assert not [part for part in parts if isinstance(part, BatchNorm)]
    assert len([part for part in parts if isinstance(part, Shift)]) == len(norms)
    x = images(1, 33, 40, 3)
    exact = model(x)
    # Fewer than 20 layers round their kernels anew, by 2^-24.
    np.testing.assert_allclose(folded(x), exact, rtol=0, atol=2e-6 * np.abs(exact).max())


def test_the_commands_know_it(monkeypatch, tmp_path, capsys):
    assert run(deeplab.main, monkeypatch, "list") == 0
    assert "deeplabv3_stripes8" in capsys.readouterr().out
    assert run(deeplab.main, monkeypatch, "summary", "fcn_stripes4") == 0
    assert "backbone.late" in capsys.readouterr().out


def test_it_is_trained_for_two_steps_by_the_command(monkeypatch, tmp_path):
    for split, kind in itertools.product(("train", "val"), ("images", "labels")):
        (tmp_path / split / kind).mkdir(parents=True)
        for i in range(8):
            picture = np.full((20, 30, 3) if kind == "images" else (20, 30), i % 2, np.uint8)
            Image.fromarray(picture).save(tmp_path / split / kind / f"{i}.png")
    (tmp_path / "classes.txt").write_text("a\nb\n")
    run_folder = tmp_path / "run"
    options = {"run": run_folder, "data.name": f"folder:{tmp_path}", "model.preset": "fcn_stripes4"}
    options |= {
        "steps": 2,
        "batch-size": 8,
        "augment.crop": "17 17",
        "optim.warmup-steps": 1,
        "plugin": "own_backbone",
    }
    words = [word for n, v in options.items() for word in (f"--{n}", *str(v).split())]
    assert run(deeplab_train.main, monkeypatch, "quickstart", *words) == 0
    trained = load(run_folder / "model")
    assert trained.config.backbone == StripesConfig(width=4)
    new = create(trained.config, rngs=nnx.Rngs(0))
    before, after = (named_variables(m)["backbone.late.look.kernel"][...] for m in (new, trained))
    assert (before != after).any()


# ---------------------------------------------------------------------------- what is no backbone


def test_without_registration_it_is_neither_saved_loaded_nor_checked(
    tmp_path, unregistered, monkeypatch, capsys
):
    model = create(Config(StripesConfig(width=4), FCNConfig(), 3), rngs=nnx.Rngs(0))
    with pytest.raises(
        ModelError, match=r"cannot be saved, .* 'stripes'.*register_backbone.*--plug"
    ):
        save(model, tmp_path / "model")
    register_backbone(StripesConfig)
    path = save(model, tmp_path / "model")
    registry._families.pop("stripes")
    with pytest.raises(ModelError, match=r"cannot be read: kind must be .* 'stripes'.*--plugin"):
        load(path)
    assert run(deeplab.main, monkeypatch, "check", str(path)) == 2  # 1 would be damage
    assert "--plugin MODULE" in capsys.readouterr().err


@dataclasses.dataclass
class Thawed:
    kind: ClassVar[str] = "thawed"


@dataclasses.dataclass(frozen=True)
class Bare:
    kind: ClassVar[str] = "bare"


@dataclasses.dataclass(frozen=True)
class Kindless(StripesConfig):
    kind: ClassVar[None] = None


@dataclasses.dataclass(frozen=True)
class Second(StripesConfig):
    kind: ClassVar[str] = "resnet"


@dataclasses.dataclass(frozen=True)
class Head(StripesConfig):
    kind: ClassVar[str] = "fcn"


@pytest.mark.parametrize(
    ("config", "presets", "messages"),
    [
        (Thawed, {}, ["Thawed cannot be registered:", "a frozen dataclass"]),
        (StripesConfig(), {}, ["a frozen dataclass"]),
        (Kindless, {}, ["name for its kind"]),
        (Bare, {}, ["must have output_stride", "must have in_channels", "must have build"]),
        (Second, {}, ["'resnet' is taken by deeplab_jax.backbones.resnet.ResNetConfig"]),
        (Head, {}, ["'fcn' is taken by FCNConfig"]),
        (
            StripesConfig,
            {"x": ResNetConfig()},
            ["the preset 'x' must be a StripesConfig, got ResNet"],
        ),
        (
            StripesConfig,
            {"resnet18": StripesConfig()},
            ["presets called resnet18 already, of resnet"],
        ),
    ],
)
def test_what_cannot_be_registered_is_refused_with_all_that_is_wrong(config, presets, messages):
    before = registry.families()
    with pytest.raises(ValueError, match="cannot be registered") as error:
        register_backbone(config, presets=presets)
    for message in messages:
        assert message in str(error.value)
    assert registry.families() == before


def test_a_cell_that_runs_twice_registers_the_newer(unregistered):
    def cell(width):
        @dataclasses.dataclass(frozen=True)
        class CellConfig(StripesConfig):
            kind: ClassVar[str] = "cell"
            width: int = 4

        register_backbone(CellConfig, presets={"cell": CellConfig(width=width)})

    cell(4)
    cell(6)
    assert PRESETS["fcn_cell"].backbone.width == 6


def test_a_family_names_its_own_heads(unregistered):
    heads = {**SEPARABLE_HEADS, "wide": DeepLabV3Config(channels=512)}
    register_backbone(StripesConfig, presets={"stripes": StripesConfig()}, heads=heads)
    assert PRESETS["deeplabv3plus_stripes"].head.separable
    assert PRESETS["wide_stripes"].head.channels == 512
    assert "wide_resnet18" not in PRESETS


def test_a_build_that_gives_no_backbone_is_refused():
    @dataclasses.dataclass(frozen=True)
    class OddConfig(StripesConfig):
        def build(self, *, rngs):
            return nnx.Linear(2, 2, rngs=nnx.Rngs(0))

    with pytest.raises(TypeError, match=r"OddConfig\.build must give a .*Backbone, got Linear"):
        build(Config(OddConfig(), FCNConfig()))


def test_layers_of_flax_are_drawn_as_flax_draws_them():
    class FlaxNet(Backbone):
        def __init__(self, config, *, rngs):
            self.config = config
            self.conv = nnx.Conv(3, 4, (3, 3), strides=4, rngs=rngs)

        @property
        def channels(self):
            return {"high": 4}

        def __call__(self, images, *, rngs=None):
            return {"high": self.conv(images)}

    @dataclasses.dataclass(frozen=True)
    class FlaxConfig(StripesConfig):
        kind: ClassVar[str] = "flax_net"

        def build(self, *, rngs):
            return FlaxNet(self, rngs=rngs)

    config = Config(FlaxConfig(), FCNConfig(channels=2), 3)
    model = create(config, rngs=nnx.Rngs(0))
    assert model.config == config
    assert np.asarray(model.backbone.conv.kernel[...]).std() > 0
    model.eval()
    assert jax.jit(model)(images(1, 9, 9, 3)).shape == (1, 9, 9, 3)


# ---------------------------------------------------------------------------- plugins


def run(main, monkeypatch, *arguments):
    monkeypatch.setattr("sys.argv", ["command", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        main()
    return end.value.code


PLUGIN = """
import dataclasses
from typing import ClassVar
import deeplab_jax
from own_backbone import StripesConfig

@dataclasses.dataclass(frozen=True)
class PluginConfig(StripesConfig):
    kind: ClassVar[str] = "{name}"

deeplab_jax.register_backbone(PluginConfig, presets={{"{name}": PluginConfig()}})
"""


@pytest.mark.parametrize("option", [["--plugin", "{}"], ["--plugin={}"]])
def test_a_command_imports_plugins_from_the_current_folder(
    option, monkeypatch, tmp_path, capsys, unregistered
):
    name = f"plugin_{len(option)}"
    (tmp_path / f"{name}.py").write_text(PLUGIN.format(name=name))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))  # and taken off again
    option = [part.format(name) for part in option]
    assert run(deeplab.main, monkeypatch, *option, "summary", f"fcn_{name}") == 0
    assert "backbone.late" in capsys.readouterr().out
    assert run(deeplab.main, monkeypatch, "list", *option) == 0
    assert f"fcn_{name}" in capsys.readouterr().out


def test_installed_plugins_need_no_option(monkeypatch, tmp_path, capsys, unregistered):
    (tmp_path / "installed_plugin.py").write_text(PLUGIN.format(name="installed"))
    monkeypatch.syspath_prepend(str(tmp_path))
    group = "deeplab_jax.plugins"
    point = metadata.EntryPoint("mine", "installed_plugin", group)
    found = metadata.EntryPoints([point])
    monkeypatch.setattr(metadata, "entry_points", lambda **select: found.select(**select))
    assert run(deeplab.main, monkeypatch, "list") == 0
    assert "fcn_installed" in capsys.readouterr().out


@pytest.mark.parametrize("main", [deeplab.main, deeplab_port.main, deeplab_train.main])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--plugin", "no_such_module"],
            "--plugin no_such_module cannot be imported: ModuleNotFound",
        ),
        (["--plugin", "broken_plugin"], "cannot be imported: RuntimeError: it is broken"),
        (["--plugin"], "--plugin takes the name of a module"),
        (["--plugin", "--help"], "--plugin takes the name of a module"),
    ],
)
def test_a_plugin_that_cannot_be_imported_ends_every_command(
    main, arguments, message, monkeypatch, tmp_path, capsys
):
    (tmp_path / "broken_plugin.py").write_text("raise RuntimeError('it is broken')")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert run(main, monkeypatch, *arguments) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("main", [deeplab.main, deeplab_port.main, deeplab_train.main])
def test_help_names_the_option(main, monkeypatch, capsys):
    assert run(main, monkeypatch, "--help") == 0
    assert "--plugin MODULE" in capsys.readouterr().out


def test_the_registry_is_public():
    names = {"Backbone", "BackboneConfig", "register_backbone", "HEADS", "SEPARABLE_HEADS"}
    assert names <= set(deeplab_jax.__all__)
    text = json.dumps(deeplab_jax.config.to_dict(PRESETS["fcn_stripes4"]))
    assert deeplab_jax.config.from_dict(json.loads(text)) == PRESETS["fcn_stripes4"]
