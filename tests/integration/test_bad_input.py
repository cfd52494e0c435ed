"""Every mistake a user can make: one line that says what, where and what instead, an exit code, and nothing changed."""

import copy
import hashlib
import json
import shlex
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import archives
import pytest
import torch
import yaml
from conftest import outside_environment, preset_text
from helpers import pooling_model, synthetic_split, tiny_model, tiny_net

from leanresnet.config.load import load_params
from leanresnet.data.splits import save_split
from leanresnet.files import file_hashes, save_json
from leanresnet.models.checkpoint import save_model
from leanresnet.models.complexity import count_macs, count_parameters
from pipeline.cli import run

CONFIG, DATA, STORAGE = 2, 3, 5
Prepare = Callable[[Path], None]


class Case(NamedTuple):
    """A mistake: what is spoiled in a good workspace, the command, its exit code and what its one line contains."""

    name: str
    command: str
    code: int
    says: tuple[str, ...]
    prepare: Prepare = lambda workspace: None


@cache
def demo() -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load(preset_text("demo"))
    return content


def params(changes: dict[str, Any]) -> Prepare:
    """params.yaml with dotted keys set to values; `...` removes one."""

    def prepare(workspace: Path) -> None:
        content = copy.deepcopy(demo())
        for key, value in changes.items():
            *sections, last = key.split(".")
            section = content
            for name in sections:
                section = section[name]
            section[last] = value
            if value is ...:
                del section[last]
        (workspace / "params.yaml").write_text(yaml.safe_dump(content))

    return prepare


def param(name: str, changes: dict[str, Any], *says: str) -> Case:
    return Case(name, "check", CONFIG, ("params.yaml: ", *says), params(changes))


def file(name: str, content: bytes | None) -> Prepare:
    """A file's content; None removes it."""

    def prepare(workspace: Path) -> None:
        (workspace / name).unlink(missing_ok=True)
        if content is not None:
            (workspace / name).parent.mkdir(parents=True, exist_ok=True)
            (workspace / name).write_bytes(content)

    return prepare


def text(name: str, content: bytes, *says: str) -> Case:
    return Case(name, "check", CONFIG, ("params.yaml:", *says), file("params.yaml", content))


def source(changes: dict[str, bytes | None], *extra: tarfile.TarInfo) -> Prepare:
    """The archive that the split stage reads."""
    return lambda workspace: void(archives.write_archive(workspace / ARCHIVE, changes, extra))


def flipped(name: str) -> Prepare:
    """A file with one byte changed."""

    def prepare(workspace: Path) -> None:
        content = bytearray((workspace / name).read_bytes())
        content[len(content) // 2] ^= 0xFF
        (workspace / name).write_bytes(content)

    return prepare


def cut(name: str) -> Prepare:
    return lambda workspace: void((workspace / name).write_bytes((workspace / name).read_bytes()[:5000]))


def other_model(workspace: Path) -> None:
    """A description whose checksum fits and whose sizes do not."""
    about = json.loads((workspace / "models/baseline/model.json").read_text())
    about["model"]["channels"] = [8, 24]
    (workspace / "models/baseline/model.json").write_text(json.dumps(about))


def held_out(md5: str | None, model: str = "teacher") -> Prepare:
    """A model whose training held out another validation split; None: it does not say which."""

    def prepare(workspace: Path) -> None:
        path = workspace / f"models/{model}/model.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"validation_md5": md5}))

    return prepare


def other_data(name: str) -> Prepare:
    """A split of another data set, whose classes have other names."""
    split = replace(synthetic_split(100), classes=tuple("klmnopqrst"), dataset="other")
    return lambda workspace: save_split(split, workspace / "data" / f"{name}.safetensors")


def void(_: object) -> None:
    pass


POOLING = pooling_model().model_dump(mode="json")
ARCHIVE = "data/source/cifar-10-python.tar"
SPLITS = "--train data/train.safetensors --validation data/validation.safetensors"
SPLIT = "split --source data/source --out data --report results/split"
TRAIN = f"train baseline {SPLITS} --model models/baseline --results results/baseline"
DISTILL = f"distill --teacher models/teacher {SPLITS} --model models/student --results results/student"
EVALUATE = (
    "evaluate --model models/baseline --teacher models/teacher --validation data/validation.safetensors"
    " --test data/test.safetensors --results results/baseline"
)
ENSEMBLE = "ensemble models/baseline models/teacher --out models/external"
DOWNLOAD = "download --out data/source"
BASE, MODEL = "train.baseline", "train.baseline.model"
OPTIMIZER, SCHEDULE = f"{BASE}.optimizer", f"{BASE}.schedule"
CIFAR = {"download.dataset": "cifar10"}
OFFICIAL = str(demo()["download"]["sha256"])

CASES = [
    # keys
    param(
        "unknown key",
        {f"{OPTIMIZER}.momentun": 0.9},
        f"{OPTIMIZER}.momentun = 0.9: unknown key",
        "did you mean momentum?",
    ),
    param("misspelt key", {f"{BASE}.epochs": ..., f"{BASE}.epoch": 8}, f"{BASE}.epoch = 8: ", "did you mean epochs?"),
    param(
        "unknown section", {"trian": {}}, "trian = {}: unknown key (did you mean train?)", "expected: download, split"
    ),
    param("far from any key", {"split.zzz": 1}, "split.zzz = 1: unknown key, expected: validation, training, seed"),
    param("missing section", {"evaluate": ...}, "evaluate: missing", "presets/default.yaml has every key"),
    param("missing key", {"distill.student.epochs": ...}, "distill.student.epochs: missing"),
    param("section as a number", {"split": 5}, "split = 5: expected: ", "a section with keys below it"),
    param(
        "section as a name", {f"{BASE}.optimizer": "sgd"}, "optimizer = 'sgd': expected: a section with keys below it"
    ),
    param("two of three", {f"{BASE}.normalization.mean": [0.5, 0.5]}, "mean = [0.5, 0.5]: expected: 3 values"),
    param("three of two", {f"{BASE}.optimizer.betas": [0.9, 0.9, 0.9]}, "[0.9, 0.9, 0.9]: expected: at most 2 values"),
    # types
    param("text for a number", {f"{BASE}.epochs": "ten"}, f"{BASE}.epochs = 'ten': expected: a valid integer"),
    param("fraction for a count", {f"{BASE}.epochs": 7.5}, f"{BASE}.epochs = 7.5: expected: ", "integer"),
    param(
        "exponent for a count",
        {f"{BASE}.max_parameters": 5e6},
        f"{BASE}.max_parameters = 5000000.0: expected: a valid integer, 5000000",
    ),
    param("yes for a flag", {f"{OPTIMIZER}.nesterov": "yes"}, f"{OPTIMIZER}.nesterov = 'yes': expected: true or false"),
    param("boolean for a count", {"split.seed": True}, "split.seed = True: expected: a valid integer"),
    param("boolean for a rate", {f"{OPTIMIZER}.lr": True}, f"{OPTIMIZER}.lr = True: expected: a valid number"),
    param("number for a boolean", {f"{OPTIMIZER}.nesterov": 1}, f"{OPTIMIZER}.nesterov = 1: expected: true or false"),
    param("nothing for a number", {"distill.alpha": None}, "distill.alpha = None: expected: a valid number"),
    param("number for a list", {f"{MODEL}.blocks": 1}, f"{MODEL}.blocks = 1: expected: a list"),
    # ranges
    param("negative rate", {f"{OPTIMIZER}.lr": -0.1}, f"{OPTIMIZER}.lr = -0.1: expected: greater than 0"),
    param("infinite rate", {f"{OPTIMIZER}.lr": float("inf")}, f"{OPTIMIZER}.lr = inf: expected: a finite number"),
    param(
        "negative decay",
        {f"{OPTIMIZER}.weight_decay": -1.0e-4},
        "weight_decay = -0.0001: expected: greater than or equal to 0",
    ),
    param("momentum of one", {f"{OPTIMIZER}.momentum": 1.0}, f"{OPTIMIZER}.momentum = 1.0: expected: less than 1"),
    param("batch of one", {f"{BASE}.batch_size": 1}, f"{BASE}.batch_size = 1: expected: greater than or equal to 2"),
    param(
        "probability above one", {f"{BASE}.augmentation.flip": 1.5}, f"{BASE}.augmentation.flip = 1.5: expected: less"
    ),
    param(
        "crop beyond the image", {f"{BASE}.augmentation.crop_padding": 17}, "crop_padding = 17: expected: less", "16"
    ),
    param("seed too large", {f"{BASE}.seed": 2**31}, f"{BASE}.seed = 2147483648: expected: less than 2147483648"),
    param("cold temperature", {"distill.temperature": 0.0}, "distill.temperature = 0.0: expected: greater than 0"),
    param("weight above one", {"distill.alpha": 1.1}, "distill.alpha = 1.1: expected: less than or equal to 1"),
    param("one calibration bin", {"evaluate.calibration_bins": 1}, "evaluate.calibration_bins = 1: expected: ", "2"),
    # names
    param(
        "unknown optimizer",
        {f"{OPTIMIZER}.name": "adamx"},
        f"{OPTIMIZER}.name = 'adamx'",
        "'sgd', ",
        "did you mean adam",
    ),
    param(
        "unknown schedule", {f"{SCHEDULE}.name": "onecycel"}, f"{SCHEDULE}.name = 'onecycel'", "did you mean onecycle?"
    ),
    param("unknown precision", {f"{BASE}.precision": "fp16"}, f"{BASE}.precision = 'fp16'", "'auto', 'fp32' or 'bf16'"),
    param("unknown teacher", {"distill.teacher": "student"}, "distill.teacher = 'student'", "'teacher' or 'external'"),
    param("unknown data set", {"download.dataset": "cifar"}, "download.dataset = 'cifar'", "did you mean cifar10?"),
    # models
    param("even kernel", {f"{MODEL}.kernels": [3, 4, 3]}, f"{MODEL}: kernels = [3, 4, 3]: 4 is even", "expected: odd"),
    param(
        "even shortcut", {f"{MODEL}.skip_kernels": [1, 1, 2]}, "skip_kernels = [1, 1, 2]: 2 is even", "expected: odd"
    ),
    param("pool does not divide", {f"{MODEL}.pool": 2}, "pool = 2", "last feature map of 3x3, expected: [1, 3]"),
    param(
        "unequal lists", {f"{MODEL}.channels": [16, 32]}, "channels = [16, 32] has 2 entries", "expected: layers = 3"
    ),
    param("too many layers", {f"{MODEL}.layers": 7}, f"{MODEL}.layers = 7: expected: less than or equal to 6"),
    param(
        "layer without blocks",
        {f"{MODEL}.blocks": [1, 0, 1], f"{MODEL}.downsample": "stride", f"{MODEL}.pool": 8},
        f"{MODEL}: blocks = [1, 0, 1] with downsample = stride, expected: >= 1 in each layer",
    ),
    param(
        "over the budget",
        {f"{BASE}.max_parameters": 30_000},
        f"{MODEL}: 43,634 parameters exceed max_parameters = 30,000 by 13,634",
        "channels = [16, 8, 32] would fit with 27,410",
    ),
    param(
        "far over the budget",
        {"distill.student.max_parameters": 90},
        "distill.student.model: 43,634 ",
        "no single change fits",
    ),
    # training
    param(
        "warm-up without end",
        {f"{BASE}.epochs": 8, f"{SCHEDULE}.warmup_epochs": 8},
        "schedule.warmup_epochs = 8, expected: less than epochs = 8",
    ),
    param(
        "one-cycle down to zero", {f"{SCHEDULE}.final_ratio": 0.0}, f"{SCHEDULE}: final_ratio = 0", "> 0, e.g. 0.001"
    ),
    param(
        "milestones out of order", {f"{SCHEDULE}.milestones": [9, 5]}, "milestones = [9, 5], expected: ", "increasing"
    ),
    param(
        "mean without deviation",
        {f"{BASE}.normalization.mean": [0.5, 0.5, 0.5]},
        "mean and std go together",
        "null for both",
    ),
    param("nesterov alone", {f"{OPTIMIZER}.momentum": 0.0}, "nesterov = True with momentum = 0", "nesterov: false"),
    # download's section
    param(
        "mirror without TLS",
        {"download.mirrors": ["http://a/b"]},
        "download.mirrors.0 = 'http://a/b': expected: ",
        "https://",
    ),
    param("no mirror", {"download.mirrors": []}, "download.mirrors = []: expected: ", "at least 1"),
    param("bad md5", {"download.md5": "c58f"}, "download.md5 = 'c58f': expected: ", "[0-9a-f]{32}"),
    param("bad SHA-256", {"download.sha256": "G" * 64}, "download.sha256 = 'GGG", "[0-9a-f]{64}"),
    # the file itself
    text("empty file", b"", "params.yaml: empty, expected: a mapping with the sections download, split, train"),
    text("list at the top", b"- 1\n- 2\n", "[1, 2] at the top level, expected: a mapping"),
    text("not YAML", b"download: [1,\nsplit: }\n", "line 2, column 8: not valid YAML"),
    text("key given twice", b"split: 1\nsplit: 2\n", 'line 2, column 1: not valid YAML (found duplicate key "split"'),
    text("impossible date", b"split: 2024-13-45\n", "not valid YAML (month must be in 1..12)"),
    text("not UTF-8", b"split: \xe9\n", "not UTF-8 text (byte 7), expected: YAML"),
    Case("no params", "check --params no.yaml", STORAGE, ("no.yaml: cannot be read (No such file or directory)",)),
    Case("folder as params", "check --params data", STORAGE, ("data: cannot be read (Is a directory)",)),
    Case(
        "unknown preset",
        "check --preset demmo",
        CONFIG,
        ("preset = 'demmo': unknown (did you mean demo?)", "expected: default, "),
    ),
    Case(
        "init with an unknown preset",
        "init new --preset papre",
        CONFIG,
        ("preset = 'papre'", "mean paper?", "expected: "),
    ),
    Case("init in braces", "init {a}", CONFIG, ("/{a}: DVC runs no stage where a path has { or }",)),
    Case("init at a colon", "init :a/b", CONFIG, ("/:a/b: MLflow makes no database where a path has",)),
    Case("init in quotes", r'''init "a'b\"c"''', CONFIG, ("MLflow makes no database where a path has",)),
    Case("init not in UTF-8", "init a\udcff", CONFIG, ("/a\\udcff: DVC and MLflow need paths in UTF-8",)),
    Case("init over a workspace", "init .", CONFIG, ("params.yaml: exists already, expected: a folder without it",)),
    Case(
        "init below a file", "init params.yaml/sub", STORAGE, ("params.yaml/sub: cannot be written (Not a directory)",)
    ),
    # download
    Case(
        "no archive",
        f"{DOWNLOAD} --archive no.tar.gz",
        DATA,
        ("no.tar.gz: no such file", "expected: CIFAR-10's"),
        params(CIFAR),
    ),
    Case(
        "unofficial archive",
        f"{DOWNLOAD} --archive {ARCHIVE}",
        DATA,
        (f"{ARCHIVE}: SHA-256 ", f"expected: {OFFICIAL} of download.sha256; if these are the images that you mean, se"),
        params(CIFAR),
    ),
    Case(
        "unofficial folder",
        f"{DOWNLOAD} --archive batches",
        DATA,
        ("batches/data_batch_1: not the official file, expected: md5 c99cafc15224", "set download.sha256 to "),
        params(CIFAR),
    ),
    Case(
        "folder of something else",
        f"{DOWNLOAD} --archive models",
        DATA,
        ("models/batches.meta: cannot be read", "expected: "),
        params(CIFAR),
    ),
    Case(
        "no network",
        DOWNLOAD,
        DATA,
        (
            "no mirror of download.mirrors",
            "https://127.0.0.1:1/a.tar.gz: ",
            "https://127.0.0.1:1/b.tar.gz: ",
            "Connection refused",
            "expected: a network, or a local copy through --archive or LEANRESNET_CIFAR10",
        ),
        params({**CIFAR, "download.mirrors": ["https://127.0.0.1:1/a.tar.gz", "https://127.0.0.1:1/b.tar.gz"]}),
    ),
    Case(
        "download below a file",
        "download --out params.yaml/sub",
        STORAGE,
        ("params.yaml/sub: cannot be written (Not a directory)",),
    ),
    # split
    Case(
        "too many validation images",
        SPLIT,
        CONFIG,
        ("split.validation = 200: expected: 10 to 190 of the 200 training images",),
    ),
    Case(
        "too few validation images",
        SPLIT,
        CONFIG,
        ("split.validation = 9: expected: 10 to 190",),
        params({"split.validation": 9}),
    ),
    Case(
        "too many training images",
        SPLIT,
        CONFIG,
        ("split.training = 151: expected: 10 to 140 of the 150 training images",),
        params({"split.validation": 50, "split.training": 151}),
    ),
    Case(
        "no source", SPLIT, STORAGE, ("data/source/source.json: cannot be read",), file("data/source/source.json", None)
    ),
    Case(
        "source of something else",
        SPLIT,
        DATA,
        ("source.json: not a source", "`leanresnet download`"),
        file("data/source/source.json", b"[1]"),
    ),
    Case(
        "source without its archive",
        SPLIT,
        DATA,
        (f"{ARCHIVE}: not a readable archive", "No such file"),
        file(ARCHIVE, None),
    ),
    Case(
        "cut archive",
        SPLIT,
        DATA,
        (f"{ARCHIVE}: not a readable archive", "expected: CIFAR-10's python archive"),
        cut(ARCHIVE),
    ),
    Case(
        "no archive at all", SPLIT, DATA, (f"{ARCHIVE}: not a readable archive", "expected: "), file(ARCHIVE, b"<html>")
    ),
    Case(
        "archive without a batch",
        SPLIT,
        DATA,
        (f"{ARCHIVE}: lacks cifar-10-batches-py/data_batch_3, expected: ",),
        source({"data_batch_3": None}),
    ),
    Case(
        "code in a pickle",
        SPLIT,
        DATA,
        (f"{ARCHIVE}: data_batch_2 is refused: it calls os.system", "expected: a pickle of numbers"),
        source({"data_batch_2": archives.calling("touch ran")}),
    ),
    Case(
        "member outside",
        SPLIT,
        DATA,
        (f"{ARCHIVE}: member '../evil' lies outside cifar-10-batches-py/", "expected: "),
        source({}, archives.member("../evil")),
    ),
    Case(
        "symbolic link",
        SPLIT,
        DATA,
        ("cifar-10-batches-py/x' is a link or a device, expected: files",),
        source({}, archives.member("cifar-10-batches-py/x", tarfile.SYMTYPE, "/etc/passwd")),
    ),
    Case(
        "label of no class",
        SPLIT,
        DATA,
        (f"{ARCHIVE}: test_batch has labels that do not fit its 40 images, expected: one of 0 to 9 each",),
        source({"test_batch": archives.batch("test_batch", labels=[10] * 40)}),
    ),
    Case(
        "split below a file",
        "split --source data/digits --out params.yaml/sub --report results/split",
        STORAGE,
        ("params.yaml/sub: cannot be written (Not a directory)",),
    ),
    # training
    Case(
        "no GPU",
        f"{TRAIN} --device cuda",
        CONFIG,
        ("device = 'cuda': 0 CUDA devices found, expected here: auto or cpu",),
    ),
    Case(
        "no such GPU",
        f"{EVALUATE} --device cuda:3",
        CONFIG,
        ("device = 'cuda:3': 0 CUDA devices found", "expected here: "),
    ),
    Case("unknown device", f"{TRAIN} --device tpu", CONFIG, ("device = 'tpu': expected: auto, cpu, cuda or cuda:N",)),
    Case(
        "device that cannot compute",
        f"{DISTILL} --device meta",
        CONFIG,
        ("device = 'meta': expected: auto, cpu, cuda or",),
    ),
    Case(
        "training over the budget",
        TRAIN,
        CONFIG,
        ("params.yaml: train.baseline.model: 43,634 parameters exceed max_parameters = 30,000 by 13,634; ",),
        params({f"{BASE}.max_parameters": 30_000}),
    ),
    Case(
        "batch larger than the split",
        TRAIN,
        CONFIG,
        ("params.yaml: train.baseline.batch_size = 101: expected: 2 to 100, ", "data/train.safetensors"),
        params({f"{BASE}.batch_size": 101}),
    ),
    Case(
        "no training split",
        TRAIN,
        DATA,
        ("data/train.safetensors: not a split (No such file", "expected: a file that `leanresnet split` wrote"),
        file("data/train.safetensors", None),
    ),
    Case(
        "cut validation split",
        TRAIN,
        DATA,
        ("data/validation.safetensors: not a split", "expected: "),
        cut("data/validation.safetensors"),
    ),
    Case(
        "model as a split",
        TRAIN.replace("data/train", "models/teacher/model"),
        DATA,
        ("models/teacher/model.safetensors: not a split",),
    ),
    Case(
        "no teacher",
        DISTILL,
        STORAGE,
        ("models/teacher/model.json: cannot be read (No such file or directory)",),
        file("models/teacher/model.json", None),
    ),
    Case(
        "teacher of another split",
        DISTILL,
        DATA,
        (
            "models/teacher/model.json: validation_md5 = 0123, ",
            "expected: ",
            " of data/validation.safetensors; train it",
        ),
        held_out("0123"),
    ),
    Case("teacher of no known split", DISTILL, DATA, ("teacher/model.json: validation_md5 = None, ",), held_out(None)),
    Case("ensemble of two splits", ENSEMBLE, DATA, ("teacher/model.json: validation_md5 = 0123, ",), held_out("0123")),
    Case(
        "validation images of another data set",
        TRAIN,
        DATA,
        ("data/validation.safetensors: other of k, l, ", "expected: ", "data/train.safetensors, synthetic of a, b, "),
        other_data("validation"),
    ),
    Case(
        "external model with other maps",
        DISTILL,
        CONFIG,
        ("distill.attention_transfer = 1 with layers of [15, 7] pixels and an external model's of [32, 16]",),
        params({"distill.teacher": "external", "distill.attention_transfer": 1.0, "distill.student.model": POOLING}),
    ),
    # evaluation
    *(
        Case(
            f"evaluation of {model} by another split",
            EVALUATE,
            DATA,
            (f"{model}/model.json: validation_md5 = 0123, ",),
            held_out("0123", model),
        )
        for model in ("baseline", "teacher")
    ),
    Case(
        "test images of another data set",
        EVALUATE,
        DATA,
        ("data/test.safetensors: other of k, l, ",),
        other_data("test"),
    ),
    Case(
        "no model",
        EVALUATE.replace("models/baseline", "models/no"),
        STORAGE,
        ("models/no/model.json: cannot be read (No such file",),
    ),
    Case(
        "no weights",
        EVALUATE,
        STORAGE,
        ("models/baseline/model.safetensors: cannot be read",),
        file("models/baseline/model.safetensors", None),
    ),
    Case(
        "damaged weights",
        EVALUATE,
        DATA,
        ("models/baseline/model.safetensors: SHA-256 ", "expected: ", " of models/baseline/model.json"),
        flipped("models/baseline/model.safetensors"),
    ),
    Case(
        "damaged teacher",
        EVALUATE,
        DATA,
        ("models/teacher/model.safetensors: SHA-256 ", "expected: "),
        flipped("models/teacher/model.safetensors"),
    ),
    Case(
        "description not JSON",
        EVALUATE,
        STORAGE,
        ("models/baseline/model.json: not valid JSON",),
        file("models/baseline/model.json", b"{garbage"),
    ),
    Case(
        "description not text",
        EVALUATE,
        STORAGE,
        ("models/baseline/model.json: not valid JSON",),
        file("models/baseline/model.json", b"\xff\xfe"),
    ),
    Case(
        "description of nothing",
        EVALUATE,
        DATA,
        ("models/baseline/model.json: not a model's description (sha256: Field required), expected: ",),
        file("models/baseline/model.json", b"{}"),
    ),
    Case(
        "description of another model",
        EVALUATE,
        DATA,
        ("model.safetensors: does not hold the model of models/baseline/model.json",),
        other_model,
    ),
    Case(
        "damaged test split",
        EVALUATE,
        DATA,
        ("data/test.safetensors: not a split", "expected: "),
        file("data/test.safetensors", b""),
    ),
    Case(
        "damaged report",
        "results",
        STORAGE,
        ("results/baseline/test.json: not valid JSON",),
        file("results/baseline/test.json", b"{"),
    ),
    Case(
        "report of something else",
        "results",
        DATA,
        ("results/baseline/test.json: not an evaluation's report (model/parameters: Field required), expected: ",),
        file("results/baseline/test.json", b"{}"),
    ),
    Case(
        "model of unknown training",
        EVALUATE,
        DATA,
        ("models/baseline/model.json: not a model's description (stage: Field required), expected: ",),
    ),
]
BY_NAME = {case.name: case for case in CASES}


@pytest.fixture(scope="session")
def good_workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All that the stages read and write, small and whole, for the digits' params."""
    folder = tmp_path_factory.mktemp("good")
    params({})(folder)
    for name, seed in (("train", 0), ("validation", 1), ("test", 2)):
        save_split(synthetic_split(100, seed), folder / "data" / f"{name}.safetensors")
    for name in ("baseline", "teacher", "student"):
        about = {"name": name, "validation_md5": file_hashes(folder / "data/validation.safetensors")[0]}
        save_model(tiny_net().state_dict(), tiny_model(), tuple("abcdefghij"), about, folder / "models" / name)
        (folder / "results" / name).mkdir(parents=True)
        (folder / "results" / name / "train.json").write_text("{}\n")
    archives.write_archive(folder / ARCHIVE)
    archives.write_folder(folder / "batches")
    save_json({"dataset": "cifar10", "archive": Path(ARCHIVE).name}, folder / "data" / "source" / "source.json")
    save_json({"dataset": "digits"}, folder / "data" / "digits" / "source.json")
    return folder


@pytest.fixture
def workspace(good_workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy to spoil, as the current folder of a machine without a network or a GPU."""
    shutil.copytree(good_workspace, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    return tmp_path


def files(folder: Path) -> dict[str, str]:
    """SHA-256 of every file, temporary ones too; a lock is no content."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file() and not (".work" in path.parts and path.suffix == ".lock")
    }


def assert_refused(case: Case, code: object, stderr: str) -> None:
    assert code == case.code
    assert stderr.startswith("error: ")
    assert stderr.endswith("\n")
    assert len(stderr.splitlines()) == 1
    assert "Traceback" not in stderr
    for said in case.says:
        assert said in stderr


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_mistake_is_one_line_and_changes_nothing(
    case: Case, workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    case.prepare(workspace)
    before = files(workspace)
    monkeypatch.setattr(sys, "argv", ["leanresnet", *shlex.split(case.command)])
    code = run()
    assert_refused(case, code, capsys.readouterr().err)
    assert files(workspace) == before


@pytest.mark.parametrize("name", ["unknown optimizer", "over the budget", "not UTF-8", "no params"])
def test_the_program_itself_ends_the_same_way(name: str, workspace: Path) -> None:
    case = BY_NAME[name]
    case.prepare(workspace)
    before = files(workspace)
    command = [sys.executable, "-m", "pipeline", *shlex.split(case.command)]
    done = subprocess.run(
        command, cwd=workspace, env=outside_environment(), capture_output=True, text=True, check=False
    )
    assert_refused(case, done.returncode, done.stderr)
    assert files(workspace) == before


def test_the_names_of_the_cases_are_their_own() -> None:
    assert len(BY_NAME) == len(CASES)


def test_the_model_that_would_fit_fits(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    params({f"{BASE}.max_parameters": 30_000, f"{MODEL}.channels": [16, 8, 32]})(workspace)
    assert "of the budget of 30,000" in accepted("check", monkeypatch, capsys)


def test_a_model_without_a_budget_is_exempt(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    params({"train.teacher.model.channels": [512, 1024, 2048]})(workspace)
    assert "exempt from the budget" in accepted("check", monkeypatch, capsys)


def accepted(command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    monkeypatch.setattr(sys, "argv", ["leanresnet", *shlex.split(command)])
    code = run()
    printed = capsys.readouterr()
    assert (code, printed.err) == (0, "")
    return printed.out


def test_a_proxy_is_counted(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    params({f"{BASE}.selection.keep": 0.5, f"{BASE}.selection.width": 0.5})(workspace)
    said = accepted("check", monkeypatch, capsys)
    proxy = load_params(workspace / "params.yaml").train.baseline.model.model_copy(update={"channels": (8, 16, 16)})
    sizes = f"{count_parameters(proxy):,} parameters, {count_macs(proxy) / 1e6:.1f} million MACs"
    assert f"learns from 50% of each batch, chosen by a proxy: {sizes}" in said
