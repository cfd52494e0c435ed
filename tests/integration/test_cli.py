"""The program as a person runs it."""

import json
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from click.shell_completion import ShellComplete
from click.testing import CliRunner
from conftest import Checkout, edited, outside_environment, preset_text
from databases import place_database
from forked import run_program
from imports import ROOT

from leanresnet import errors
from leanresnet.scaffold.presets import load_preset, merge
from leanresnet.serving import inference
from leanresnet.tracking import connection
from pipeline import options, workspace
from pipeline.check import _duration
from pipeline.cli import cli
from pipeline.port import check_free

PRESETS = sorted(path.stem for path in (ROOT / "presets").glob("*.yaml"))


def forked(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return run_program(*arguments, cwd=cwd, env=outside_environment())


def program(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pipeline", *arguments],
        cwd=cwd,
        env=outside_environment(),
        capture_output=True,
        text=True,
        check=False,
    )


def test_help_imports_nothing_heavy() -> None:
    script = (
        "import sys, pipeline.cli as c\n"
        "try: c.cli(['--help'])\n"
        "except SystemExit: pass\n"
        "print(sorted({m.split('.')[0] for m in sys.modules} & {'torch', 'mlflow', 'numpy', 'pydantic', 'dvc'}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, env=outside_environment()
    )
    assert done.stdout.strip().endswith("[]")


@pytest.mark.parametrize("command", cli.commands)
def test_each_command_explains_itself(command: str) -> None:
    done = CliRunner().invoke(cli, [command, "--help"], prog_name="leanresnet")
    assert done.exit_code == 0
    assert "Usage: leanresnet " + command in done.stdout


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_passes_the_check(preset: str) -> None:
    done = forked("check", "--preset", preset)
    assert done.returncode == 0, done.stderr
    assert "valid" in done.stdout


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"split": {"validation": 5000}}, "split.validation = 5000: expected: 10 to 1427 of the 1,437 training images"),
        ({"split": {"training": 1300}}, "split.training = 1300: expected: 10 to 1227 of the 1,237 training images"),
        (
            {"distill": {"student": {"batch_size": 1238}}},
            "distill.student.batch_size = 1238: expected: 2 to 1237, the training images",
        ),
        ({"split": {"training": 1237}}, None),
    ],
)
def test_check_knows_how_many_images_there_are(values: dict[str, Any], said: str | None, tmp_path: Path) -> None:
    demo = load_preset("demo", ROOT / "presets").params.model_dump(mode="json")
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(merge(demo, values)))
    done = forked("check", "--estimate", "--params", str(tmp_path / "params.yaml"))
    if said is None:
        assert done.returncode == 0, done.stderr
    else:
        assert (done.returncode, done.stderr) == (2, f"error: {tmp_path}/params.yaml: {said}\n")


def test_check_takes_a_file_or_a_preset(tmp_path: Path) -> None:
    done = forked("check", "--preset", "demo", "--params", str(tmp_path / "params.yaml"))
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    done = run_program(
        "check", "--preset", "folder", cwd=ROOT, env=outside_environment(LEANRESNET_FOLDER=str(tmp_path))
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("command", ["lineage", "init"])
def test_a_name_that_is_too_long_is_one_line(command: str, tmp_path: Path) -> None:
    (tmp_path / "params.yaml").touch()
    done = forked(command, 300 * "n", cwd=tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (5, 1), done.stderr
    assert "File name too long" in done.stderr


def test_check_counts_the_papers_network_exactly_and_by_layer() -> None:
    done = program("check", "--preset", "paper", "--layers")
    assert "4,935,242 parameters" in done.stdout
    assert "layers.3.0.shortcut.0" in done.stdout


def test_check_says_which_stages_would_run_and_why(checkout: Checkout) -> None:
    file = checkout.folder / "params.yaml"
    assert "none, all are up to date" in checkout.shell("leanresnet", "check").stdout
    with edited(file, file.read_text().replace("temperature: 4.0", "temperature: 3.0")):
        shown = checkout.shell("leanresnet", "check").stdout
    assert "stages to run: distill" in shown
    assert "params.yaml distill modified" in shown
    assert "train@" not in shown


def test_check_says_in_one_line_that_a_stage_has_not_run(checkout: Checkout) -> None:
    file = checkout.folder / "dvc.lock"
    lock = yaml.safe_load(file.read_text())
    del lock["stages"]["evaluate@student"]
    with edited(file, yaml.safe_dump(lock)):
        shown = checkout.shell("leanresnet", "check").stdout.splitlines()
    assert [line for line in shown if "evaluate@student" in line] == [
        "stages to run: evaluate@student",
        "    evaluate@student: has not run yet",
    ]


def test_a_duration_is_in_the_unit_that_suits_it() -> None:
    assert [_duration(seconds) for seconds in (0.4, 48, 150, 79_716)] == ["0 s", "48 s", "2.5 min", "22.1 h"]


def test_check_estimates_without_training() -> None:
    done = forked("check", "--preset", "demo", "--estimate")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("s an epoch") == 3


def test_an_estimate_is_of_all_epochs_and_of_the_teacher_beside_the_student(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("leanresnet.analysis.estimate.training_seconds", lambda *given: (10.0, 2.0))
    monkeypatch.setattr("leanresnet.analysis.estimate.seconds_per_inference", lambda *given: 3.0)
    params = merge(yaml.safe_load(preset_text("demo")), {"distill": {"student": {"epochs": 10, "batch_size": 16}}})
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(params))
    done = CliRunner().invoke(cli, ["check", "--estimate", "--params", str(path), "--device", "cpu"])
    rows = [line.split() for line in done.output.splitlines() if " epochs" in line]
    assert [(row[0], row[1], " ".join(row[5:])) for row in rows] == [
        ("baseline", "2.0", "18 s for 4 epochs"),
        ("teacher", "2.0", "18 s for 4 epochs"),
        ("student", "5.0", "60 s for 10 epochs"),
    ]
    assert "together  96 s on " in done.output


@pytest.mark.parametrize(
    ("name", "value", "option"),
    [
        ("LEANRESNET_NPROC", "two", "--nproc"),
        ("LEANRESNET_SNAPSHOT_SECONDS", "-1", "--snapshot-seconds"),
        ("LEANRESNET_SNAPSHOT_SECONDS", "nan", "--snapshot-seconds"),
        ("LEANRESNET_SNAPSHOT_SECONDS", "inf", "--snapshot-seconds"),
        ("LEANRESNET_EXTEND", "perhaps", "--extend"),
    ],
)
@pytest.mark.parametrize("command", [["train", "baseline"], ["distill", "--teacher", "t"]])
def test_an_option_of_a_training_can_be_a_variable(name: str, value: str, option: str, command: list[str]) -> None:
    """So that DVC's stages receive it."""
    paths = ["--train", "a", "--validation", "b", "--model", "c", "--results", "d"]
    done = CliRunner().invoke(cli, [*command, *paths], env={name: value})
    assert (done.exit_code, f"Invalid value for '{option}'" in done.output) == (2, True), done.output


def test_each_mistake_has_the_exit_code_of_the_reference() -> None:
    table = re.findall(r"^\| ([2-8]) \| (\w+)", (ROOT / "docs/reference.md").read_text(), re.MULTILINE)
    of = {int(code): first for code, first in table}
    names = {
        errors.ConfigError: "configuration",
        errors.DataError: "data",
        errors.DivergedError: "diverged",
        errors.StorageError: "storage",
        errors.SnapshotError: "all",
        errors.MemoryLimitError: "out",
        errors.LostProcessError: "one",
    }
    assert {error.exit_code: first for error, first in names.items()} == of


@pytest.mark.parametrize("arguments", [["check", "--params", "nowhere.yaml"], ["check", "--params", ""]])
def test_an_error_is_printed_by_one_process_of_those_that_torchrun_started(
    arguments: list[str], tmp_path: Path
) -> None:
    """Other launchers set RANK as well."""
    printed = {}
    for rank, launcher in (("1", {}), ("0", {"TORCHELASTIC_RUN_ID": "1"}), ("1", {"TORCHELASTIC_RUN_ID": "1"})):
        failure = tmp_path / "failure.json"
        environment = outside_environment(RANK=rank, TORCHELASTIC_ERROR_FILE=str(failure), **launcher)
        done = run_program(*arguments, cwd=ROOT, env=environment)
        assert done.returncode in (2, 5)
        printed[rank, *launcher] = done.stderr
    assert printed.pop(("1", "TORCHELASTIC_RUN_ID")) == ""
    (error,) = set(printed.values())
    assert error.startswith("error: ")
    assert json.loads(failure.read_text())["message"] == error.rstrip("\n")


def test_results_shows_the_models_side_by_side(checkout: Checkout) -> None:
    shown = checkout.shell("leanresnet", "results").stdout.splitlines()
    assert [line.split()[0] for line in shown] == ["model", "baseline", "teacher", "student"]
    test = json.loads((checkout.folder / "results/student/test.json").read_text())
    assert f"{test['test/accuracy']:.2%}" in shown[3]
    assert shown[2].endswith("+0.00")


def test_search_lists_architectures_that_fill_the_budget() -> None:
    common = ("search", "--params", str(ROOT / "params.yaml"), "--least", "0.5", "--count", "3")
    narrow = ("--layers", "3", "--blocks", "1-2", "--channels", "64,128,256", "--kernels", "3", "--skip-kernels", "1")
    done = forked(*common, *narrow)
    assert done.returncode == 0, done.stderr
    *rows, last = done.stdout.splitlines()
    assert len(rows) == 3
    assert all(2_500_000 <= int(row.split()[1].replace(",", "")) <= 5_000_000 for row in rows)
    # Ten ways to widen three layers, two blocks or one in each.
    assert last.startswith("80 architectures counted in ")
    assert last.endswith("with 50 to 100 % of 5,000,000")
    runs = yaml.safe_load(forked(*common, *narrow, "--format", "yaml").stdout)
    assert [run["name"] for run in runs] == [row.split()[0] for row in rows]
    assert all(len(run["recipe"]["model"]["channels"]) == 3 for run in runs)


def test_search_recommends_what_it_takes_and_counts_what_is_named_twice_once() -> None:
    common = ("search", "--params", str(ROOT / "params.yaml"), "--layers", "3,3", "--blocks", "1", "--channels", "64")
    assert forked(*common, "--kernels=1-4").stderr.endswith("expected: odd numbers from 1 to 15, such as 1,3\n")
    assert "1 architectures counted" in forked(*common, "--kernels=3,3", "--skip-kernels=1").stdout


@pytest.mark.parametrize("numbers", ["", "a", "0", "3-1", "1,,2", "-1", "1-2-", "4", "17", f"1-{10**8}", "9" * 5000])
def test_search_refuses_what_are_no_sizes(numbers: str) -> None:
    done = forked("search", "--params", str(ROOT / "params.yaml"), f"--kernels={numbers}")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "expected: odd numbers from 1 to 15" in done.stderr


@pytest.mark.parametrize("arguments", [["compare", "--out", "."], ["compare", "--html", "."], ["sync", "."]])
def test_a_folder_that_cannot_be_meant_is_a_mistake(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(cli, arguments)
    assert (done.exit_code, done.output.count("\nError: ")) == (2, 1)
    assert list(tmp_path.iterdir()) == []


def test_a_path_is_not_empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As that of a shell's variable without a value; otherwise it would be the current folder."""
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(cli, ["init", ""])
    assert (done.exit_code, list(tmp_path.iterdir())) == (2, [])
    assert "'FOLDER': the path is empty" in done.output
    commands = [cli]
    for command in commands:
        commands.extend(command.commands.values() if isinstance(command, click.Group) else [])
        paths = [each.type for each in command.params if isinstance(each.type, click.Path)]
        assert all(isinstance(kind, options.FilePath) for kind in paths), command.name
    assert len(commands) > 20


def test_seeds_are_compared_in_rows_that_share_them() -> None:
    done = forked("compare", "--against", "a", "--group-by", "none")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "--against compares seeds, expected: no --group-by none with it" in done.stderr


def test_experiments_are_compared_outside_of_a_workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a server, whose runs need no folder here."""
    place_database(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    refused = CliRunner().invoke(cli, ["compare", "--experiment", "mine"]).exception
    assert isinstance(refused, errors.DataError)
    where = f"the experiment leanresnet of sqlite+pysqlite:///{tmp_path / 'mlflow.db'}"
    assert str(refused).startswith(f"experiment = mine: no finished run in {where}, expected: names from")


def test_the_list_of_commands_is_in_whole_sentences() -> None:
    shown = CliRunner().invoke(cli, ["--help"], terminal_width=80).stdout.partition("Commands:\n")[2].splitlines()
    assert len(shown) == len(cli.commands)
    assert [line for line in shown if not line.endswith(".") or line.endswith("...")] == []


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("init there --preset pa", ["paper", "paper-cpu", "paper-short"]),
        ("check --preset d", ["default", "demo"]),
        ("params distill.t", ["distill.teacher", "distill.temperature"]),
        ("experiments run opt", ["optimizers"]),
    ],
)
def test_a_shell_completes_presets_keys_and_questions(words: str, offered: list[str]) -> None:
    *before, begun = words.split()
    completed = ShellComplete(cli, {}, "leanresnet", "_LEANRESNET_COMPLETE").get_completions(before, begun)
    assert [item.value for item in completed] == offered


def test_a_shell_that_completes_starts_no_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with the variable in a shell's startup file."""
    monkeypatch.setenv("LEANRESNET_NPROC", "2")
    monkeypatch.setattr("leanresnet.jobs.launcher.launch", lambda processes: pytest.fail("launched"))
    shell = ShellComplete(cli, {}, "leanresnet", "_LEANRESNET_COMPLETE")
    completed = shell.get_completions(["train", "baseline"], "--np")
    assert [item.value for item in completed] == ["--nproc"]


def test_help_lists_the_presets() -> None:
    shown = CliRunner().invoke(cli, ["init", "--help"]).stdout
    assert set(PRESETS) <= set(re.split(r"[\s\[\]|]+", shown))


def test_without_a_command_the_program_shows_its_help() -> None:
    done = program()
    assert "Usage: leanresnet " in done.stdout + done.stderr
    assert "Commands:" in done.stdout + done.stderr
    assert "error:" not in done.stderr


def test_no_results_are_one_line(tmp_path: Path) -> None:
    done = forked("results", str(tmp_path))
    assert (done.returncode, done.stderr.count("\n")) == (5, 1)
    assert "no evaluated model" in done.stderr


def test_a_default_is_of_the_workspace_and_what_is_given_of_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @click.command()
    @options.model_option
    @options.params_option
    def command(model: Path, params: Path) -> None:
        click.echo(f"{model} {params}")

    (tmp_path / "results").mkdir()
    (tmp_path / "params.yaml").touch()
    for folder, default in (("results", "../models/student ../params.yaml"), (".", "models/student params.yaml")):
        monkeypatch.chdir(tmp_path / folder)
        assert CliRunner().invoke(command, []).output == f"{default}\n"
        assert CliRunner().invoke(command, ["--model", "m", "--params", "p"]).output == "m p\n"
    (tmp_path / "params.yaml").unlink()
    assert CliRunner().invoke(command, ["--model", "m", "--params", "p"]).output == "m p\n"


def test_a_file_that_need_not_exist_needs_no_workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    command = click.command()(options.test_option(lambda test: click.echo(test)))
    assert CliRunner().invoke(command, []).output == "data/test.safetensors\n"


def test_check_in_a_subfolder_is_of_the_workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "results").mkdir()
    (tmp_path / "params.yaml").write_text(preset_text("demo"))
    monkeypatch.chdir(tmp_path / "results")
    done = CliRunner().invoke(cli, ["check"])
    assert (done.exit_code, done.output.splitlines()[-1]) == (0, "../params.yaml: valid")


@pytest.fixture
def checkout_of_init(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout from which `init` takes its files, in a folder whose name means something in YAML."""
    folder = tmp_path / 'it\'s: a #1 "checkout", {really}'
    for name in (".dvc/config", ".dvc/plots.html", ".gitignore", ".dvcignore", "dvc.yaml"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    shutil.copytree(ROOT / "presets", folder / "presets")
    monkeypatch.setattr(workspace, "released", lambda name: folder / name)
    return folder


def test_init_takes_the_remote_of_a_team_along(tmp_path: Path, checkout_of_init: Path) -> None:
    checkout, folder = checkout_of_init, tmp_path / "space"
    subprocess.run(["git", "init", "--quiet"], cwd=checkout, check=True)
    assert workspace.dvc("remote", "add", "--default", "team", "s3://leanresnet/dvc", folder=checkout).returncode == 0
    assert CliRunner().invoke(cli, ["init", str(folder)]).exit_code == 0
    assert workspace.dvc("config", "core.no_scm", folder=folder).stdout == "true\n"
    assert workspace.dvc("config", "remote.team.url", folder=folder).stdout == "s3://leanresnet/dvc\n"
    assert (folder / "dvc.yaml").read_text() == (checkout / "dvc.yaml").read_text()
    assert (folder / "src/leanresnet").readlink() == ROOT / "src/leanresnet"
    # Git tracks the link, and nothing behind it, which an experiment of DVC would add.
    subprocess.run(["git", "init", "--quiet"], cwd=folder, check=True)
    subprocess.run(["git", "add", "--all"], cwd=folder, check=True)
    tracked = subprocess.run(["git", "ls-files", "src"], cwd=folder, check=True, capture_output=True, text=True).stdout
    assert tracked == "src/leanresnet\n"
    (folder / "src/leanresnet").unlink()
    (folder / "src/leanresnet").mkdir()
    (folder / "src/leanresnet/files.py").touch()
    ignored = subprocess.run(["git", "check-ignore", "src/leanresnet/files.py"], cwd=folder, check=False)
    assert ignored.returncode == 0


@pytest.mark.parametrize("there", [[], [".gitignore", ".dvcignore", "notes.txt"]])
def test_an_init_that_failed_can_be_tried_again(
    there: list[str], tmp_path: Path, checkout_of_init: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "space"
    for name in there:
        folder.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"mine \xe9\n")
    with monkeypatch.context() as patched:
        patched.setattr(workspace, "dvc", lambda *_, **__: subprocess.CompletedProcess([], 1, "", "ERROR: no disk\n"))
        failed = CliRunner().invoke(cli, ["init", str(folder)])
    assert str(failed.exception) == f"{folder}: dvc init failed (no disk)"
    assert sorted(path.name for path in folder.iterdir()) == sorted(there)
    assert CliRunner().invoke(cli, ["init", str(folder)]).exit_code == 0
    made = {"params.yaml", "params.schema.json", "dvc.yaml", "src", ".dvc", ".gitignore", ".dvcignore"}
    assert {path.name for path in folder.iterdir()} == made | set(there)
    for name in there:
        lines = (folder / name).read_bytes().splitlines()
        assert lines[0] == b"mine \xe9"
        # In a repository that has its own, git and DVC leave out the data and the models all the same.
        added = {b"/src/leanresnet/"} if name == ".gitignore" else set()
        expected = set() if name == "notes.txt" else {*(ROOT / name).read_bytes().splitlines(), *added}
        assert set(lines[1:]) == expected


@pytest.mark.parametrize(
    ("stderr", "said"),
    [
        ("ERROR: unexpected error - no room\n\nHaving any troubles? Hit us up at https://dvc.org/support", "no room"),
        ("WARNING: old\nERROR: cannot lock\nTo see more: <https://man.dvc.org/status>", "cannot lock"),
        (
            "ERROR: 'params.yaml' is corrupted: a mapping\n  in line 3\n\nTo suppress:\n    https://yaml.dev",
            "a mapping",
        ),
        (
            "'./dvc.yaml' is invalid.\n\nExpected ',', in line 2\n  2 │ a: [b\n",
            "'./dvc.yaml' is invalid. Expected ',', in line 2",
        ),
        (
            "ERROR: 'a.png' is busy, it is being blocked by:\n  (PID 7): dvc repro\n  (PID 8): dvc repro\n\nIf there",
            "'a.png' is busy, it is being blocked by: (PID 7): dvc repro, (PID 8): dvc repro",
        ),
        ("", "no reason given"),
    ],
)
def test_of_what_dvc_says_the_fault_is_quoted(stderr: str, said: str) -> None:
    reason = workspace.reason(subprocess.CompletedProcess([], 1, "", stderr))
    assert reason.endswith(said)
    assert "http" not in reason


def test_a_real_fault_of_dvc_is_quoted(tmp_path: Path) -> None:
    assert "not inside of a DVC repository" in workspace.reason(workspace.dvc("status", "--json", folder=tmp_path))


def test_ui_with_a_server_of_its_own_that_is_dead_is_one_line(tmp_path: Path) -> None:
    environment = outside_environment(MLFLOW_TRACKING_URI="http://ann:secret@127.0.0.1:9")
    done = run_program("ui", cwd=tmp_path, env=environment)
    assert (done.returncode, done.stderr.count("\n")) == (5, 1)
    assert done.stderr.startswith("error: http://***@127.0.0.1:9: MLflow does not answer")
    assert "secret" not in done.stderr


@pytest.mark.parametrize(
    "command",
    ["champion", "check", "compare", "ensemble a", "export", "playground", "predict a.png", "search", "sync", "ui"],
)
def test_a_command_outside_of_a_workspace_says_so_and_creates_nothing(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(cli, command.split())
    assert f"{tmp_path}: no workspace, expected: a folder with params.yaml" in str(done.exception)
    assert list(tmp_path.iterdir()) == []


def test_a_page_is_not_announced_where_another_program_serves(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "params.yaml").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(connection, "page_addresses", lambda: {"results": "#"})
    monkeypatch.setattr(inference, "find_models", lambda models: ["student"])
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        for command in ("ui", "playground"):
            done = CliRunner().invoke(cli, [command, "--port", str(port)])
            assert done.output == ""
            assert str(done.exception).startswith(f"--port = {port}: Address already in use, expected: ")
    check_free(port)
