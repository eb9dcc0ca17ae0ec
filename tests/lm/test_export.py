"""An exported model is the model, and a damaged one says so; what `info` and `export` print."""

import json
import pathlib

import jax
import numpy as np
import pytest
from safetensors import numpy as safetensors

import rnnjax
from rnnjax.files import write_json
from rnnjax.fit.checkpoint import named_arrays
from rnnjax.lm.export import card_text, export, load_export
from rnnjax.lm.options import ModelOptions
from rnnjax.lm.run import Run, open_run
from tests.lm import tiny_run

CELL = """
from rnnjax.cells.gru import GRU
class MyCell(GRU): pass
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return tiny_run.make_run(tmp_path_factory.mktemp("export") / "run")


@pytest.fixture(scope="module")
def run(folder: pathlib.Path) -> Run:
    return open_run(folder)


def test_there_and_back(run: Run, tmp_path: pathlib.Path) -> None:
    paths = export(run, tmp_path / "new" / "model")
    assert [path.name for path in paths] == ["model.safetensors", "config.json", "README.md"]
    assert sorted(path.name for path in paths[0].parent.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    model, params, vocabulary = load_export(paths[0].parent)
    assert (model, vocabulary) == (run.model, run.vocabulary)
    jax.tree.map(np.testing.assert_array_equal, params, run.params)
    card = paths[2].read_text(encoding="utf-8")
    assert "| validation loss | 2.2500 nats (3.2461 bits) a char |" in card and "| layers | LSTM(hidden_size=8" in card
    program = (
        card.split("```python\n")[1].split("```")[0].replace("this folder", str(paths[0].parent)).replace("text", "abc")
    )
    exec(program, found := {})  # as a reader of the card would: nothing is imported but what it says
    assert found["logits"].shape == (3, 1, len(vocabulary))
    described = json.loads(paths[1].read_text(encoding="utf-8"))
    assert described["val_loss"] == 2.25 and described["step"] == 2
    assert described["layers"] == [repr(cell) for cell in run.model.stack.cells]
    assert described["provenance"] == run.provenance


def test_card_says_the_sizes_that_were_taken(tmp_path: pathlib.Path) -> None:
    run = open_run(tiny_run.make_run(tmp_path / "run", model=ModelOptions(hidden=8)))
    assert run.config.model.embed == -1 and "| inputs | embedding of 128 numbers |" in card_text(run)
    counted, stream = (card_text(run._replace(provenance={"sources": "x", "n_symbols": n})) for n in (1000, 0))
    assert "| trained on | x, 1,000 symbols |" in counted and "| trained on | x |" in stream
    odd = card_text(run._replace(provenance={"sources": "a|b\n\x1b[31m\udcff.txt", "n_symbols": 0}))
    assert "| trained on | a\\|b ␛[31m\\udcff.txt |\n" in odd and odd.encode()


def test_arrays_are_readable_without_this_library(run: Run, tmp_path: pathlib.Path) -> None:
    export(run, tmp_path / "model")
    arrays = safetensors.load_file(tmp_path / "model" / "model.safetensors")
    assert {"stack.layers[0].w_ih", "stack.layers[1].w_hh", "w_out", "b_out"} <= arrays.keys()
    np.testing.assert_array_equal(arrays["stack.layers[1].w_hh"], run.params.stack.layers[1].w_hh)


def test_folder_that_is_not_empty_needs_force(run: Run, tmp_path: pathlib.Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="must be empty or new, got files in it"):
        export(run, tmp_path)
    export(run, tmp_path, force=True)
    export(run, tmp_path, force=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
        "notes.txt",
    ]
    with pytest.raises(FileExistsError, match="must be a folder, got a file"):
        export(run, tmp_path / "notes.txt", force=True)
    before = run.paths.config.read_bytes()
    with pytest.raises(FileExistsError, match=r"is the folder of a run, whose config\.json would go"):
        export(run, run.paths.root, force=True)
    assert run.paths.config.read_bytes() == before


def change(folder: pathlib.Path, arrays: dict | None = None, **described) -> None:
    if arrays is not None:
        safetensors.save_file(arrays, folder / "model.safetensors")
    path = folder / "config.json"
    data = json.loads(path.read_text(encoding="utf-8")) | described
    del data["sha256"]
    write_json(path, data)


def test_damage_is_named(run: Run, tmp_path: pathlib.Path) -> None:
    export(run, tmp_path)
    good = {path: path.read_bytes() for path in tmp_path.iterdir() if path.name != "README.md"}
    arrays = named_arrays(run.params)

    def message() -> str:
        with pytest.raises(ValueError) as caught:
            load_export(tmp_path)
        for path, data in good.items():
            path.write_bytes(data)
        return str(caught.value)

    for path, data in good.items():
        for size in (0, 5, len(data) // 2, len(data) - 1):
            path.write_bytes(data[:size])
            assert f"{path} is truncated or damaged" in message()
    change(tmp_path, {name: array for name, array in arrays.items() if name != "stack.layers[1].b"})
    assert "there is no leaf 'stack.layers[1].b'" in message()
    change(tmp_path, arrays | {"w_out": arrays["w_out"][:-1]})
    assert "leaf 'w_out' is f32[7,20], but the model has f32[8,20]" in message()
    change(tmp_path, arrays | {"more": np.zeros(1)})
    assert "leaf 'more' is none of the model's" in message()
    change(tmp_path, arrays | {"b_out": arrays["b_out"] + 1})
    assert "do not belong together" in message()
    change(tmp_path, model={"cell": "lstm", "breadth": 3})
    assert "config.json is truncated or damaged" in message()
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"must hold model\.safetensors"):
        load_export(tmp_path)


def test_code_of_a_cell_is_not_run_on_loading(tmp_path: pathlib.Path) -> None:
    source = tmp_path / "cells.py"
    source.write_text(CELL)
    folder = tiny_run.make_run(tmp_path / "run", model=ModelOptions(cell=f"{source}:MyCell", hidden=6))
    with pytest.raises(ValueError, match=r"is Python code in .*cells\.py, which a run folder alone does not start"):
        open_run(folder)
    run = open_run(folder, trust_code=True)
    export(run, tmp_path / "model")
    source.write_text("raise SystemExit('was run')")
    with pytest.raises(ValueError, match=r"cells\.py is not what .* was trained with"):
        open_run(folder, trust_code=True)
    with pytest.raises(ValueError, match=r"is not run from here; pass stack="):
        load_export(tmp_path / "model")
    stack = rnnjax.Stack((rnnjax.GRU(6),))  # computes the same
    model, params, _ = load_export(tmp_path / "model", stack=stack)
    assert model.stack == stack
    jax.tree.map(np.testing.assert_array_equal, params.stack.layers[0], run.params.stack.layers[0])


def test_command(folder: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = tiny_run.rnnjax(capsys, "export", folder, tmp_path / "model", "--checkpoint", "last")
    assert result.code == 0
    lines = [line.rsplit("  ", 1) for line in result.out.splitlines()]
    assert [pathlib.Path(line[0]).name for line in lines] == ["model.safetensors", "config.json", "README.md"]
    assert json.loads((tmp_path / "model" / "config.json").read_text(encoding="utf-8"))["step"] == 3
    again = tiny_run.rnnjax(capsys, "export", folder, tmp_path / "model")
    assert again.code == 2 and "--force" in again.err
    assert tiny_run.rnnjax(capsys, "export", folder, tmp_path / "model", "--force").code == 0


def test_info(folder: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = tiny_run.rnnjax(capsys, "info", folder, "--json")
    assert (result.code, result.err) == (0, "")
    facts = json.loads(result.out)
    # Two LSTMs of 8 units on 20 symbols: 4 gates, each with input weights, recurrent weights and a bias.
    count = 4 * 8 * (20 + 8 + 1) + 4 * 8 * (8 + 8 + 1) + 20 * (8 + 1)
    assert facts["total"] == {"count": count, "bytes": 4 * count}
    assert facts["best"]["step"] == 2 and facts["last"]["eval"]["step"] == 3 and facts["last"]["done"] is None
    assert facts["seconds"] == 75.0
    assert [(c["step"], c["val_loss"]) for c in facts["checkpoints"]] == [(2, 2.25), (3, 2.75)]
    text = tiny_run.rnnjax(capsys, "info", folder).out
    assert max(len(line) for line in text.splitlines() if "/" not in line) <= 100
    assert facts["network"] == "2 x LSTM(hidden_size=8)"
    assert facts["layers"] == [repr(rnnjax.LSTM(8))] * 2
    for part in (
        "layers: 2 x LSTM(hidden_size=8)\n",
        f"{count:,}",
        "stack.layers[1].w_hh",
        "[8, 32]",
        "2.2500 nats",
        "training time: 1:15",
        "step 3",
    ):
        assert part in text


def test_a_run_that_is_none(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in (["info"], ["sample"], ["eval"], ["export"]):
        result = tiny_run.rnnjax(capsys, *command, tmp_path, *([tmp_path / "out"] if command == ["export"] else []))
        assert result.code == 2 and "there is no run in" in result.err and len(result.err.splitlines()) == 1
