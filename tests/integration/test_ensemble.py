"""Several models as one, and as a teacher."""

import json
import subprocess
from pathlib import Path

import pytest
import torch
import yaml
from conftest import outside_environment
from forked import run_program
from helpers import CLASSES, random_images, synthetic_split, tiny_model, tiny_net, tiny_recipe
from imports import ROOT
from test_resume import beside_progress, prepare

from leanresnet.config.schema import Evaluate
from leanresnet.data.splits import save_split
from leanresnet.errors import ConfigError, DataError
from leanresnet.evaluation.report import write_report
from leanresnet.files import file_hashes
from leanresnet.models.checkpoint import check_unseen, load_model, save_ensemble, save_model
from leanresnet.scaffold.presets import load_preset
from leanresnet.serving.inference import probabilities
from leanresnet.tracking.log_outputs import log_evaluation
from leanresnet.training.results import Outputs
from leanresnet.training.tasks import distillation_task


def save(folder: Path, seed: int, train_md5: str = "abc", validation_md5: str = "def", **shape: object) -> Path:
    data = {"dataset": "synthetic", "train_md5": train_md5, "validation_md5": validation_md5}
    provenance = {"name": f"model-{seed}", **data}
    save_model(tiny_net(seed, **shape).state_dict(), tiny_model(**shape), CLASSES, provenance, folder)
    return folder


def test_an_ensemble_of_different_shapes_answers_with_the_mean_of_the_logits(tmp_path: Path) -> None:
    members = [
        load_model(save(tmp_path / "a", 0)),
        load_model(save(tmp_path / "b", 1)),
        # One that learned from fewer images, of those that were not held out.
        load_model(save(tmp_path / "c", 2, "fewer", channels=(4, 8))),
    ]
    save_ensemble(members, tmp_path / "all")
    together = load_model(tmp_path / "all")
    images = random_images(4)
    with torch.no_grad():
        expected = sum(member.net(images) for member in members) / 3
        torch.testing.assert_close(together.net(images), expected)
        # Products in bfloat16 are averaged in float32.
        with torch.autocast("cpu", torch.bfloat16):
            assert together.net(images).dtype == torch.float32
    torch.testing.assert_close(probabilities(together, images), expected.softmax(1))
    assert together.parameters == sum(member.parameters for member in members)
    assert together.macs == together.about["macs"] == sum(member.macs for member in members)
    assert [each["sha256"] for each in together.about["members"]] == [member.sha256 for member in members]
    assert (together.about["dataset"], together.about["validation_md5"]) == ("synthetic", "def")


def test_members_held_out_the_same_images_and_are_no_ensembles(tmp_path: Path) -> None:
    one, other = load_model(save(tmp_path / "a", 0)), load_model(save(tmp_path / "b", 1))
    stranger = load_model(save(tmp_path / "c", 2, validation_md5="other"))
    with pytest.raises(DataError, match=r"c/model.json: validation_md5 = other, .*expected: def of .*a/model.json; "):
        save_ensemble([one, stranger], tmp_path / "more")
    with pytest.raises(DataError, match="a member is named twice"):
        save_ensemble([one, one], tmp_path / "more")
    save_ensemble([one, other], tmp_path / "all")
    with pytest.raises(DataError, match="a member is an ensemble"):
        save_ensemble([one, load_model(tmp_path / "all")], tmp_path / "more")
    about = json.loads((tmp_path / "b/model.json").read_text())
    del about["train_md5"]
    (tmp_path / "b/model.json").write_text(json.dumps(about))
    with pytest.raises(DataError, match=r"b/model.json: train_md5 is missing, expected: the data of its training"):
        save_ensemble([one, load_model(tmp_path / "b")], tmp_path / "more")
    assert not (tmp_path / "more").exists()


def test_an_ensemble_is_evaluated_without_a_run_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").touch()
    train, held_out, split = (tmp_path / f"{name}.safetensors" for name in ("train", "validation", "test"))
    save_split(synthetic_split(80, seed=2), train)
    save_split(synthetic_split(40, seed=1), held_out)
    save_split(synthetic_split(60), split)
    used = {"train_md5": file_hashes(train)[0], "validation_md5": file_hashes(held_out)[0]}
    members = [load_model(save(tmp_path / name, seed, **used)) for seed, name in enumerate("ab")]
    save_ensemble(members, tmp_path / "all")
    save(tmp_path / "other", 2, **{**used, "train_md5": "0" * 32})
    settings = Evaluate(batch_size=20, calibration_bins=5, mistakes=4, timing_repeats=3)
    outputs = Outputs(tmp_path / "all", tmp_path / "results")
    evaluated = write_report(settings, outputs, tmp_path / "a", held_out, split, torch.device("cpu"))
    log_evaluation(evaluated, outputs, torch.device("cpu"), split, {})
    report = json.loads((tmp_path / "results" / "test.json").read_text())
    right = probabilities(load_model(tmp_path / "all"), synthetic_split(60).images).argmax(1) == torch.arange(60) % 10
    assert report["test/accuracy"] == pytest.approx(float(right.double().mean()))
    assert not (tmp_path / "mlflow.db").exists()
    for name in ("all", "a"):
        for seen in (train, held_out):
            refused = rf"^{seen}: the training of {tmp_path / name} has used these images, expected: the test split$"
            with pytest.raises(DataError, match=refused):
                check_unseen(load_model(tmp_path / name), seen)
        outputs = Outputs(tmp_path / name, tmp_path)
        with pytest.raises(DataError, match=rf"the training of {tmp_path / name} has used these images"):
            write_report(settings, outputs, tmp_path / "other", held_out, train, torch.device("cpu"))
        check_unseen(load_model(tmp_path / name), split)


@pytest.mark.parametrize(("model", "teacher"), [("vast", "a"), ("a", "vast")])
def test_answers_that_are_not_finite_are_not_evaluated(model: str, teacher: str, tmp_path: Path) -> None:
    """As finite weights give that are large enough."""
    held_out, split = tmp_path / "validation.safetensors", tmp_path / "test.safetensors"
    for seed, file in enumerate((held_out, split)):
        save_split(synthetic_split(20, seed), file)
    provenance = {
        "name": "a",
        "stage": "train@a",
        "params": {"optimizer.name": "sgd", "epochs": 1, "seed": 0},
        "dataset": "synthetic",
        "train_md5": "0" * 32,
        "validation_md5": file_hashes(held_out)[0],
        "teacher_sha256": None,
    }
    for name in ("a", "vast"):
        net = tiny_net()
        if name == "vast":
            net.classifier.weight.data.fill_(3e38)
        save_model(net.state_dict(), tiny_model(), CLASSES, provenance, tmp_path / name)
    settings = Evaluate(batch_size=20, calibration_bins=5, mistakes=4, timing_repeats=3)
    outputs = Outputs(tmp_path / model, tmp_path / "results")
    outputs.results.mkdir()
    outputs.history.write_text("epoch,val/accuracy\n1,0.5\n")
    with pytest.raises(DataError, match=rf"^{tmp_path}/vast: predictions that are not finite, expected: a model that"):
        write_report(settings, outputs, tmp_path / teacher, held_out, split, torch.device("cpu"))
    assert [path.name for path in outputs.results.iterdir()] == ["history.csv"]


def test_an_ensemble_that_pools_a_part_of_its_map_teaches_no_smaller_images(tmp_path: Path) -> None:
    members = [load_model(save(tmp_path / str(seed), seed, pool=8)) for seed in (0, 1)]
    save_ensemble(members, tmp_path / "all")
    student = tiny_recipe(progressive_resizing={"epochs": 1, "size": 24})
    settings = load_preset("demo", ROOT / "presets").params.distill.model_copy(update={"student": student})
    with pytest.raises(ConfigError, match=r"resizing\.epochs = 1 with an external model that pools 8 of 16 pixels"):
        distillation_task(settings, load_model(tmp_path / "all"), "params.yaml")


def test_an_ensemble_teaches_by_its_answers_and_not_by_maps(tmp_path: Path) -> None:
    folder = prepare(tmp_path)
    params = yaml.safe_load((folder / "params.yaml").read_text())
    params["distill"] |= {
        "teacher": "external",
        "student": tiny_recipe(epochs=3, batch_size=20).model_dump(mode="json"),
    }
    for name, seed in (("one", 0), ("other", 1)):
        held_out = file_hashes(folder / "data/validation.safetensors")[0]
        save(folder / "models" / name, seed, validation_md5=held_out)

    def run(*command: str, **distill: object) -> "subprocess.CompletedProcess[str]":
        (folder / "params.yaml").write_text(yaml.safe_dump({**params, "distill": params["distill"] | distill}))
        return run_program(*command, cwd=folder, env=outside_environment())

    made = run("ensemble", "models/one", "models/other")
    assert made.stdout == "models/external: 2 members, 10,532 parameters\n"
    splits = ["--train", "data/train.safetensors", "--validation", "data/validation.safetensors"]
    distill = ["distill", "--teacher", "models/external", *splits, "--model", "models/student", "--results", "results"]
    refused = run(*distill, attention_transfer=1.0)
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert "distill.attention_transfer = 1.0 with an ensemble, expected: 0" in refused.stderr
    done = run(*distill)
    assert (done.returncode, beside_progress(done.stderr)) == (0, "")
    about = json.loads((folder / "models/student/model.json").read_text())
    teacher = json.loads((folder / "models/external/model.json").read_text())
    assert about["teacher_sha256"] == teacher["sha256"]
    assert about["params"]["distill.teacher"] == "ensemble"
