"""Every experiment runs in its quick form and writes what its README shows; bad options end with one sentence."""

import importlib
import json
import pathlib

import pytest

from experiments import common

HERE = pathlib.Path(common.__file__).parent
EXPERIMENTS = sorted(path.parent.name for path in HERE.glob("*/run.py"))


def module_of(name):
    return importlib.import_module(f"experiments.{name}.run")


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_quick_run_writes_result_and_picture(name, tmp_path, capsys):
    module_of(name).main(["--quick", "--out", str(tmp_path)])
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["default"]["quick"] is True and result["default"]["made_with"]["seconds"] > 0
    assert list(tmp_path.glob("*.png"))
    assert "wrote" in capsys.readouterr().out


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_committed_result_is_of_a_full_run_and_readme_names_the_command(name):
    readme = (HERE / name / "README.md").read_text()
    assert f"python -m experiments.{name}.run" in readme
    path = HERE / name / "result.json"
    result = json.loads(path.read_text()) if path.is_file() else {}
    assert not any(part["quick"] for part in result.values())
    assert "default" in result or "Not measured" in readme  # what is missing is said
    for picture in HERE.joinpath(name).glob("*.png"):
        assert picture.name in readme


def test_results_of_other_data_sets_stay(tmp_path, capsys):
    options = common.Options(quick=False, dataset="default", data=None, out=tmp_path, seed=0)
    common.finish(options, {"loss": float("nan")})
    common.finish(common.dataclasses.replace(options, dataset="names"), {"loss": 0.123456789})
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["default"]["loss"] is None and result["names"]["loss"] == 0.12346


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_help_says_what_it_is_about(name, capsys):
    with pytest.raises(SystemExit) as ended:
        module_of(name).main(["--help"])
    assert ended.value.code == 0 and f"experiments.{name}.run" in capsys.readouterr().out


def test_missing_data_is_one_sentence(tmp_path, capsys):
    def parse(argv):
        common.parse(argv, here=tmp_path, doc="", datasets={"names": "surnames"})

    for argument, sentence in ((tmp_path / "mnist", "must be a folder named names"), (tmp_path / "names", "no folder")):
        with pytest.raises(SystemExit) as ended:
            common.run(parse, ["--data", str(argument)])
        assert ended.value.code == 2
        error = capsys.readouterr().err
        assert sentence in error and error.count("\n") == 1 and "Traceback" not in error
