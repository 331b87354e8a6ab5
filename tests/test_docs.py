"""The README and the pages of the site say what is: tables, commands and Python."""

import functools
import re
import shlex
from types import ModuleType
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torchvision
from flax import nnx
from PIL import Image

import benchmarks.__main__ as benchmarks
import deeplab_jax
import port
from deeplab_jax import Config, ResNetConfig, build, save
from deeplab_jax import __main__ as deeplab
from deeplab_jax.backbones import registry
from deeplab_jax.heads import FCNConfig
from deeplab_jax.model import fill
from docs import tables
from port import __main__ as deeplab_port
from train import __main__ as deeplab_train

ROOT = tables.ROOT
README = (ROOT / "README.md").read_text()
PAGES = {"README.md": README} | {p.name: p.read_text() for p in sorted(tables.PAGES.glob("*.md"))}

# ---- tables


@pytest.mark.parametrize("name", ["layouts", "speed"])  # test_golden.py has the third
def test_the_tables_are_of_what_is(name):
    page, make = tables.TABLES[name]
    text = PAGES[page]
    assert tables.with_table(text, name, make()) == text, f"run `python -m docs.tables {name}`"


def test_every_layout_has_a_row():
    for name in port.LAYOUTS:
        assert f"\n| `{name}` |" in PAGES["convert.md"]


def test_a_page_without_marks_is_refused():
    with pytest.raises(ValueError, match="must have the lines"):
        tables.with_table("# a page", "speed", "")


def test_an_unknown_table_is_refused():
    with pytest.raises(SystemExit, match="must be one of layouts, exactness, speed"):
        tables.main("nosuch")


@pytest.mark.parametrize("name", deeplab_jax.__all__)
def test_every_public_name_has_a_docstring(name):
    value = getattr(deeplab_jax, name)
    assert name == "PRESETS" or value.__doc__


# ---- blocks


class Block(NamedTuple):
    language: str
    code: str
    needs: str


def blocks(text):
    """The fenced blocks of a page, and the indented ones, which are commands."""
    fenced = r"^```(?P<language>\w+)(?: title=\"(?P<needs>needs [^\"]+)\")?\n(?P<code>.*?)^```$"
    for found in re.finditer(fenced + r"|(?P<commands>(?:^    [^\n]*\n)+)", text, re.M | re.S):
        if found["commands"]:
            yield Block("bash", re.sub(r"^    ", "", found["commands"], flags=re.M), "")
        else:
            yield Block(found["language"], found["code"], found["needs"] or "")


@pytest.mark.parametrize("page", PAGES)
def test_blocks_are_of_a_known_kind(page):
    """So that each is run or parsed below; `text` is what a command prints."""
    found = list(blocks(PAGES[page]))
    assert {block.language for block in found} <= {"bash", "python", "text"}
    fences = len(re.findall(r"^```", PAGES[page], re.M))
    assert fences == 2 * len(re.findall(r"^```\w", PAGES[page], re.M)), "a block has no language"


def test_what_the_readme_links_to_is_there():
    links = re.findall(r"\]\(([^)]+)\)", README)
    assert len(links) > 10
    for link in links:
        path, _, heading = link.partition("#")
        assert (ROOT / path).is_file(), link
        headings = re.findall(r"^#+ (.*)$", (ROOT / path).read_text(), re.M) if heading else [""]
        assert heading in {title.lower().replace(" ", "-") for title in headings}, link


# ---- commands

OURS: dict[str, tuple[ModuleType, tuple[str, ...]]] = {
    "deeplab": (
        deeplab,
        ("predict", "list_presets", "summary", "check", "export", "push_model", "demo"),
    ),
    "deeplab-port": (deeplab_port, ("port",)),
    "deeplab-train": (
        deeplab_train,
        (
            "train",
            "data_command",
            "prepare_command",
            "pack_command",
            "evaluate_command",
            "export_model_command",
            "quantize_command",
        ),
    ),
}
"""Our commands, and what does their work once their arguments are parsed."""

FLAG = re.compile(r"(?<!\S)--[a-z][\w.-]+|(?<=`)--[a-z][\w.-]+")
OTHERS = (
    "python3 -m venv",
    "pip install",
    "python -m pytest",
    "gcloud",
    "cd",
    "mkdocs",
    "git clone",
    "hf upload",
)
"""What our commands stand beside, which has its own tests or is not ours."""


def commands(code):
    """The words of each command of a block, those in quotation marks for another shell among them."""
    for line in code.replace("\\\n", "").splitlines():
        words = shlex.split(line, comments=True)
        yield from _split(words)
        for word in words:
            if "&&" in word and word != "&&":
                yield from _split(shlex.split(word))


def _split(words):
    command = []
    for word in [*words, "&&"]:
        if word not in ("&&", "|", "&"):
            command.append(word)
        elif command:
            yield [command[0].removeprefix(".venv/bin/"), *command[1:]]
            command = []


def shell(page):
    return [
        words
        for block in blocks(PAGES[page])
        if block.language == "bash"
        for words in commands(block.code)
    ]


@pytest.mark.parametrize(
    ("page", "words"), [(page, words) for page in PAGES for words in shell(page)], ids=str
)
def test_a_command_is_one_that_its_parser_takes(page, words, monkeypatch):
    if words[0] not in OURS:
        line = " ".join(words)
        if line.startswith("python -m benchmarks "):
            assert words[3] in benchmarks.COMMANDS
        else:
            assert line.startswith(OTHERS), line
        return
    module, functions = OURS[words[0]]
    asked = []
    for name in functions:
        monkeypatch.setattr(module, name, accepting(getattr(module, name), asked))
    monkeypatch.setattr(module, "keep_compiled_programs", lambda **_: None)
    monkeypatch.setattr("sys.argv", words)
    with pytest.raises(SystemExit) as end:
        module.main()
    assert end.value.code == 0
    assert len(asked) == 1


def accepting(function, asked):
    """A function that takes the same arguments, and does nothing."""

    @functools.wraps(function)
    def accept(*args, **kwargs):
        asked.append((args, kwargs))
        return 0

    return accept


def test_a_flag_that_does_not_exist_is_found(monkeypatch, capsys):
    with pytest.raises(AssertionError):
        test_a_command_is_one_that_its_parser_takes(
            "a page", ["deeplab", "predict", "m", "p.jpg", "--nosuch"], monkeypatch
        )


HELP = [
    *(["deeplab", name] for name in ("predict", "check", "export", "push", "demo", "summary")),
    ["deeplab-port"],
    *(
        ["deeplab-train", name]
        for name in ("camvid", "data", "prepare", "evaluate", "export-model", "quantize")
    ),
]
ELSEWHERE = {
    "--command": "gcloud",
    "--topology": "python -m benchmarks tpu",
    "--target": "python -m benchmarks gpu",
    "--batch-norm": "python -m benchmarks tpu",
    "--plugin": "all commands, before they parse",
}


def test_every_flag_in_the_text_is_one_of_a_command(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "200")
    for words in HELP:
        monkeypatch.setattr("sys.argv", [*words, "--help"])
        with pytest.raises(SystemExit):
            OURS[words[0]][0].main()
    flags = set(re.findall(r"--[a-z][\w.-]+", capsys.readouterr().out)) | ELSEWHERE.keys()
    for page, text in PAGES.items():
        found = {flag for code in re.findall(r"`[^`\n]+`", text) for flag in FLAG.findall(code)}
        assert found <= flags, page


def test_ci_runs_the_test_command_of_the_readme():
    found = re.findall(r"^    (python3 -m venv .*pytest.*)$", README, re.M)
    assert len(found) == 1
    assert "python3 -m venv .*pytest" in (ROOT / ".ci" / "run").read_text()


# ---- Python

LARGE = re.compile(r'"deeplabv3(plus)?_(resnet|mobilenet)\w+"')
"""Networks of the pages; the one that the page on backbones registers compiles in no time."""


@pytest.fixture
def scene(tmp_path, monkeypatch):
    """A folder with the files that the pages name, and what they call `images` and so on."""
    monkeypatch.chdir(tmp_path)
    # What the pages register is forgotten at the end.
    monkeypatch.setattr(registry, "_families", dict(registry.families()))
    config = Config(ResNetConfig(18, output_stride=32), FCNConfig(channels=8), 3)
    save(fill(build(config), nnx.Rngs(0)), tmp_path / "camvid")
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (1, 65, 70, 3), np.uint8)
    Image.fromarray(pixels[0]).save("photo.jpg")
    images = jnp.asarray(rng.standard_normal((2, 33, 33, 3), np.float32))
    labels = jnp.asarray(images[..., 0] > 0, jnp.int32)
    return {"images": images, "pixels": pixels, "batches": [(images, labels)] * 12}


def run_python(page, names):
    for block in blocks(PAGES[page]):
        if block.language == "python":
            exec(compile(LARGE.sub('"fcn_tiny"', block.code), page, "exec"), names)
    return names


def test_the_readme_s_python_runs(scene):
    run_python("backbone.md", {})
    names = run_python("README.md", scene)
    assert names["ids"].shape == (65, 70)
    assert names["logits"].shape == (2, 33, 33, 19)


def test_convert_s_python_runs(scene):
    torch.manual_seed(0)
    module = torchvision.models.segmentation.lraspp_mobilenet_v3_large(
        weights=None, weights_backbone=None, num_classes=4
    ).eval()
    torch.save(module.state_dict(), "deeplabv3_resnet101.pth")
    names = run_python("convert.md", scene | {"torch_module": module})
    assert names["report"].ok
    for name, tensor in module.state_dict().items():
        assert torch.equal(torch.as_tensor(names["state_dict"][name]), tensor), name


def test_predict_s_python_runs(scene):
    assert run_python("predict.md", scene)["ids"].shape == (65, 70)


def test_export_s_python_runs(scene):
    names = run_python("export.md", scene)
    assert (
        names["ids"] == deeplab_jax.predict(names["load"]("camvid"), scene["pixels"])
    ).mean() > 0.999


def test_modules_python_runs_and_its_training_step_trains(scene):
    losses = []
    run_python("backbone.md", {})
    scene["print"] = lambda step, loss: losses.append(float(loss))
    with jax.numpy_dtype_promotion("standard"):  # Optax counts steps in integers
        names = run_python("modules.md", scene)
    assert names["logits"].shape == (2, 33, 33, 19)
    assert len(losses) == 12
    assert losses[-1] < 0.9 * losses[0]


def test_the_backbone_of_the_page_is_known_everywhere(scene):
    model = run_python("backbone.md", scene)["model"]
    assert deeplab_jax.load(deeplab_jax.save(model, "model")).config == model.config
    stages = [row.stage for row in deeplab_jax.summarize(model, (64, 64))]
    assert stages[:2] == ["backbone.stem", "backbone.body"]


def test_speed_s_python_runs(scene):
    names = {"model_of_images": jnp.sin, "train_step": jnp.cos}
    names = run_python("speed.md", names)
    assert names["run"](jnp.zeros(())) == 0
    assert names["step"](jnp.zeros(())) == 1


def test_no_other_page_has_python():
    run = {
        "README.md",
        "convert.md",
        "predict.md",
        "export.md",
        "modules.md",
        "backbone.md",
        "speed.md",
    }
    have = {p for p, text in PAGES.items() if any(b.language == "python" for b in blocks(text))}
    assert have == run
