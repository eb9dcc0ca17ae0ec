"""``python -m benchmarks gpu`` where there is no GPU: its workers, its order of work, and what a worker measures."""

import contextlib
import itertools
import json
import os
import pathlib
import signal
import subprocess
import sys
import time
import types

import jax
import pytest
from typer.testing import CliRunner

pytest.importorskip("rich", reason="the extra lm is not installed")

from benchmarks import gpu, gpu_programs, gpu_tasks
from benchmarks.commands import app
from benchmarks.contestants import RIVALS
from benchmarks.provenance import provenance

# A worker that takes no JAX to start: it does what its task says, and writes down when.
FAKE = """
import json, os, signal, sys, threading, time

with open(os.environ["LOG"] + ".starts", "a") as log:
    log.write(f"{time.monotonic()}\\n")
print(json.dumps({"next": None}), flush=True)
for line in sys.stdin:
    asked = json.loads(line)
    step, task = asked["step"], asked["task"]
    begin = time.monotonic()
    if task.get("dies") == step:
        print("no more memory", file=sys.stderr, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60 if task.get("hangs") == step else 1.2 if task.get("slow") == step else 0.02)
    if task.get("leaves") == step:
        threading.Timer(0.6, os._exit, (1,)).start()
    with open(os.environ["LOG"], "a") as log:
        log.write(json.dumps([task["name"], step, os.getpid(), begin, time.monotonic()]) + "\\n")
    after = {"prepare": "tune" if task["tuned"] else "load", "tune": "load", "load": "measure"}
    if step in after:
        print(json.dumps({"next": after[step]}), flush=True)
    else:
        row = {"cell": task["name"], "dtype": "float32", "H": 5, "B": 2, "mode": "forward", "floor_us": 1.0}
        row |= {"contestant": "rnnjax", "us_per_step": 2.0}
        last = {"last": True} if task.get("breaks") else {}
        print(json.dumps({"found": {"gpu": [row], "skipped": []}} | last), flush=True)
        if last:
            time.sleep(0.3)
            sys.exit("the card no longer answers")
"""
HEADER = {"command": "", "provenance": provenance()}


def point(cell, *rivals, tuned=True, **more):
    task = {"name": cell, "kind": "point", "cell": cell, "sizes": (4, 2, 3, 5), "dtype": "float32", "rivals": rivals}
    return task | {"tuned": tuned, "alone": False, "rounds": 1} | more


@pytest.fixture
def fake(tmp_path):
    """Runs tasks with two fake workers; gives what they wrote down, ``[name, step, process, begin, end]``."""
    script, log = tmp_path / "fake.py", tmp_path / "log"
    script.write_text(FAKE)

    def run(tasks, results, **options):
        options = {"workers": 2, "budget": 60, "quota": 5.0, "limits": {"measure": 1.5}} | options
        options["env"] = {**os.environ, "LOG": str(log)}
        try:
            gpu.run_tasks(tasks, results, command=[sys.executable, str(script)], **options)
        finally:
            written = log.read_text().splitlines() if log.exists() else []
            log.unlink(missing_ok=True)
            run.log = [json.loads(line) for line in written]
        return run.log

    return run


def overlaps(intervals):
    ordered = sorted(intervals)
    return any(first[1] > second[0] for first, second in itertools.pairwise(ordered))


def test_workers_share_the_work_and_measure_alone(fake, tmp_path):
    """Two prepare or load at once; one tunes at a time; who measures, measures while nobody does anything."""
    path, said = tmp_path / "found.json", []
    results = gpu.Results(path, HEADER)
    tasks = [point(f"cell {i}", tuned=i < 3) for i in range(8)]
    log = fake(tasks, results, say=said.append, held=4)
    assert sorted(name for name, step, *_ in log if step == "measure") == [task["name"] for task in tasks]
    assert sorted(name for name, step, *_ in log if step == "tune") == ["cell 0", "cell 1", "cell 2"]
    assert len({process for _, _, process, *_ in log}) == 2
    first = {step: min(begin for _, s, _, begin, _ in log if s == step) for step in ("load", "measure")}
    last = {step: max(end for _, s, *_, end in log if s == step) for step in ("prepare", "tune", "load")}
    assert max(last["prepare"], last["tune"]) <= first["load"] and last["load"] <= first["measure"]
    assert not overlaps([(begin, end) for _, step, _, begin, end in log if step == "tune"])
    for _, _, _, begin, end in (entry for entry in log if entry[1] == "measure"):
        assert sum(b < end and begin < e for *_, b, e in log) == 1
    written = json.loads(path.read_text())
    # All were ready in the first phase, so they were measured in the order of their weight.
    assert [row["cell"] for row in written["gpu"]] == written["done"] == [task["name"] for task in tasks]
    assert written["not_reached"] == written["skipped"] == []
    assert said[-1].startswith("[8/8] cell 7: us a step: rnnjax forward 2.0; about 0 s left")
    assert "| cell 7 | float32 | 5 | 2 | 2 / - |" in gpu.gpu_table(written)


def test_a_worker_that_dies_or_hangs_loses_the_task_in_its_hands_only(fake, tmp_path):
    """What else it had made ready is made ready again by another worker; who goes on with the file tries again."""
    path = tmp_path / "found.json"
    lost = {"hangs": point("hangs", hangs="measure"), "dies": point("dies", dies="prepare")}
    tasks = [*(point(f"cell {i}") for i in range(3)), *lost.values(), *(point(f"cell {i}") for i in range(3, 6))]
    fake(tasks, gpu.Results(path, HEADER))
    written = json.loads(path.read_text())
    assert sorted(written["done"]) == [f"cell {i}" for i in range(6)] and written["not_reached"] == []
    reasons = {entry["where"]: entry["reason"] for entry in written["skipped"]}
    assert reasons == {
        "dies": "its process ended in prepare (signal SIGKILL: no more memory)",
        "hangs": "took longer than 1.5 s to measure",
    }
    with pytest.raises(ValueError, match=r"exists; take another --out, or --resume"):
        gpu.Results(path, HEADER)
    log = fake([task | {"hangs": None, "dies": None} for task in tasks], gpu.Results(path, HEADER, resume=True))
    assert {name for name, *_ in log} == lost.keys()
    written = json.loads(path.read_text())
    assert len(written["done"]) == len(written["gpu"]) == 8 and written["skipped"] == []
    other = {**HEADER, "provenance": HEADER["provenance"] | {"device": "another"}}
    with pytest.raises(ValueError, match="goes on with results of this machine"):
        gpu.Results(path, other, resume=True)


def test_a_worker_whose_card_no_longer_answers_gets_nothing_more(fake):
    """What it was about to measure is made ready by another."""
    tasks = [point(f"cell {i}", tuned=False, breaks=i == 0) for i in range(4)]
    results = gpu.Results(None, HEADER)
    fake(tasks, results, workers=1)
    assert sorted(results.found["done"]) == [task["name"] for task in tasks] and results.found["skipped"] == []


def test_nobody_starts_while_somebody_measures(fake, tmp_path):
    """What a worker had that ends while it waits is made ready again later."""
    tasks = [point("slow", tuned=False, slow="measure"), point("leaves", tuned=False, leaves="prepare")]
    results = gpu.Results(None, HEADER)
    log = fake(tasks, results, held=1, limits={})
    assert sorted(results.found["done"]) == ["leaves", "slow"]
    ((begin, end),) = [entry[3:] for entry in log if entry[:2] == ["slow", "measure"]]
    starts = [float(line) for line in (tmp_path / "log.starts").read_text().splitlines()]
    assert not any(begin < start < end for start in starts)
    assert sum(entry[:2] == ["leaves", "prepare"] for entry in log) == 2  # once more, since it was lost


def test_ctrl_c_leaves_a_whole_file_and_no_process(fake, tmp_path, request):
    path, done = tmp_path / "found.json", []
    # What a shell starts in the background ignores the signal, and so does what that starts.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))

    def interrupt(line):
        done.append(line)
        if len(done) == 2:
            os.kill(os.getpid(), signal.SIGINT)

    tasks = [point(f"cell {i}", tuned=False) for i in range(5)]
    with pytest.raises(KeyboardInterrupt):
        fake(tasks, gpu.Results(path, HEADER), say=interrupt)
    written = json.loads(path.read_text())
    assert written["done"] == ["cell 0", "cell 1"] and written["not_reached"] == ["cell 2", "cell 3", "cell 4"]
    for process in {entry[2] for entry in fake.log}:
        with pytest.raises(ProcessLookupError):
            os.kill(process, 0)
    fake(tasks, gpu.Results(path, HEADER, resume=True))
    written = json.loads(path.read_text())
    assert len(written["done"]) == 5 and written["not_reached"] == []


def wait_for_the_end(process):
    for _ in range(200):
        try:
            os.kill(process, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.05)
    return False


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a worker ends when it has answered")
def test_no_worker_outlives_who_started_it(tmp_path):
    """Not one in a call that does not end, either, and whatever ends the command."""
    (tmp_path / "own.py").write_text(
        "import os, pathlib, time, rnnjax\n\n\nclass Hangs(rnnjax.GRU):\n    def update(self, *args):\n"
        f"        pathlib.Path({str(tmp_path / 'process')!r}).write_text(str(os.getpid()))\n"
        "        time.sleep(300)\n"
    )
    (tmp_path / "run.py").write_text(
        "from benchmarks import gpu\nfrom tests.test_benchmarks_gpu import HEADER, point\n"
        f"tasks = [point({str(tmp_path / 'own.py:Hangs')!r}, tuned=False)]\n"
        "gpu.run_tasks(tasks, gpu.Results(None, HEADER), workers=1)\n"
    )
    root = str(pathlib.Path(gpu.__file__).parents[1])
    env = os.environ | {"PYTHONPATH": root}
    command = subprocess.Popen([sys.executable, str(tmp_path / "run.py")], env=env, cwd=root)
    try:
        for _ in range(1200):
            if (tmp_path / "process").exists() or command.poll() is not None:
                break
            time.sleep(0.05)
        worker = int((tmp_path / "process").read_text())
    finally:
        command.kill()
        command.wait()
    assert wait_for_the_end(worker)


def stand_in(monkeypatch, tmp_path, tasks):
    """The command with a worker and tasks that need no GPU."""
    (tmp_path / "fake.py").write_text(FAKE)
    monkeypatch.setenv("LOG", str(tmp_path / "log"))
    monkeypatch.setattr(gpu, "WORKER", [sys.executable, str(tmp_path / "fake.py")])
    monkeypatch.setattr(gpu, "gpu_tasks", lambda steps, rounds: tasks)
    monkeypatch.setattr(gpu.jax, "default_backend", lambda: "gpu")


def test_a_command_that_is_ended_writes_what_it_has(monkeypatch, tmp_path):
    """By a time limit, say, while a worker hangs."""
    stand_in(monkeypatch, tmp_path, [point("gru"), point("lstm", hangs="measure")])
    add = gpu.Results.add
    monkeypatch.setattr(gpu.Results, "add", lambda *args: [add(*args), os.kill(os.getpid(), signal.SIGTERM)][0])
    result = CliRunner().invoke(app, ["gpu", "--out", str(tmp_path / "found.json"), "--workers", "1"])
    assert result.exit_code == 130 and "1 tasks were not reached; --resume goes on with" in result.output
    written = json.loads((tmp_path / "found.json").read_text())
    assert written["done"] == ["gru"] and written["not_reached"] == ["lstm"]


def test_every_worker_has_its_part_of_the_memory(monkeypatch):
    """As many as find room for the largest point."""

    def crew(gigabytes, workers=0, **env):
        stats = None if gigabytes is None else {"bytes_limit": gigabytes * 2**30}
        monkeypatch.setattr(gpu.jax, "local_devices", lambda: [types.SimpleNamespace(memory_stats=lambda: stats)])
        monkeypatch.setattr(gpu, "available_cores", lambda: 16)
        for name in ("XLA_PYTHON_CLIENT_MEM_FRACTION", "XLA_CLIENT_MEM_FRACTION"):
            monkeypatch.delenv(name, raising=False)
        for name, value in env.items():
            monkeypatch.setenv(name, value)
        count, found = gpu._crew(workers)
        assert found["XLA_PYTHON_CLIENT_PREALLOCATE"] == "true" and "XLA_PYTHON_CLIENT_MEM_FRACTION" not in found
        return count, float(found["XLA_CLIENT_MEM_FRACTION"])

    assert crew(105) == (14, 0.0536) and crew(59) == (10, 0.075) and crew(2) == (1, 0.75)
    assert crew(59, workers=3) == (3, 0.25) and crew(None) == (14, 0.0536)
    assert crew(59, XLA_PYTHON_CLIENT_MEM_FRACTION="0.5") == (10, 0.05)  # which jaxlib refuses beside the newer name


def test_the_table_says_what_a_row_needs():
    row = {"cell": "gru", "dtype": "float32", "H": 5, "B": 2, "mode": "forward", "floor_us": 1.0, "us_per_step": 2.0}
    row |= {"contestant": "rnnjax", "detail": "rnnjax.unroll, 'cuda'", "note": None}
    document = {"gpu": [row]}
    assert "| 2 / - |" in gpu.gpu_table(document) and "not tuned" not in gpu.gpu_table(document)
    row |= {"detail": "rnnjax.unroll, 'fused'", "note": "XLA's matmuls not tuned"}
    assert "| 2 / - (fused) \\* |" in gpu.gpu_table(document)
    assert "\\* XLA's matmuls not tuned." in gpu.gpu_table(document)


def test_the_budget_ends_a_run_but_not_what_is_ready(fake):
    tasks = [point(f"cell {i}", tuned=False) for i in range(40)]
    results = gpu.Results(None, HEADER)
    fake(tasks, results, budget=-1)
    assert results.found["done"] == [] and results.found["not_reached"] == [task["name"] for task in tasks]
    # The first estimate is that measuring takes a second a task, so that little is begun.
    results = gpu.Results(None, HEADER)
    log = fake(tasks, results, budget=5)
    measured = {name for name, step, *_ in log if step == "measure"}
    assert measured == {name for name, step, *_ in log if step == "prepare"} == set(results.found["done"])
    assert results.found["done"] + results.found["not_reached"] == [task["name"] for task in tasks]


def test_the_command(monkeypatch, tmp_path):
    stand_in(monkeypatch, tmp_path, [point("gru"), point("lstm", dies="tune")])
    arguments = ["gpu", "--out", str(tmp_path / "found.json"), "--workers", "1"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert "[1/2] lstm: lost: its process ended in tune (signal SIGKILL: no more memory)" in result.output
    assert "| gru | float32 | 5 | 2 | 2 / - |" in result.output and "without lstm: its process" in result.output
    assert CliRunner().invoke(app, arguments).exception.args[0].endswith("or --resume to go on with it.")
    monkeypatch.setattr(gpu, "gpu_tasks", lambda steps, rounds: [point("gru"), point("lstm")])
    result = CliRunner().invoke(app, [*arguments, "--resume"])
    assert "[1/1] lstm: us a step" in result.output and "without" not in result.output
    result = CliRunner().invoke(app, ["gpu", "--resume"])
    assert result.exception.args == ("gpu: --resume goes on with a file, got no --out.",)


def test_workers_that_do_not_start_are_an_error():
    with pytest.raises(RuntimeError, match=r"no worker starts; .*ended in start \(exit code 1: .*No module named"):
        gpu.run_tasks([point("gru")], gpu.Results(None, HEADER), workers=2, command=[sys.executable, "-m", "no_such"])


def test_a_real_worker(tmp_path):
    """A process of its own on the CPU, which a cell then ends: what was found before stays."""
    (tmp_path / "own.py").write_text(
        "import os, rnnjax\n\n\nclass Dies(rnnjax.GRU):\n    def update(self, *args):\n        os._exit(3)\n"
    )
    results = gpu.Results(tmp_path / "found.json", HEADER)
    gpu.run_tasks([point("gru"), point(f"{tmp_path}/own.py:Dies", tuned=False)], results, workers=1)
    written = json.loads((tmp_path / "found.json").read_text())
    assert [(row["contestant"], row["mode"], row["T"]) for row in written["gpu"]] == [
        ("rnnjax", "forward", 4),
        ("rnnjax", "training", 4),
    ]
    assert all(row["us_per_step"] > 0 and row["compile_seconds"] > 0 for row in written["gpu"])
    (entry,) = written["skipped"]
    assert "its process ended in prepare (exit code 3" in entry["reason"]


def broken(*args):
    raise RuntimeError("orthogonal: no such dtype")


def through_all_steps(tasks, task):
    step, found = "prepare", None
    while found is None:
        answer = tasks.do(step, task)
        step, found = answer.get("next"), answer.get("found")
    return found


def test_contestants_take_turns_and_failures_are_written_down(monkeypatch):
    """At a small point on a CPU: a rival fails when it is made, one when it is called, another is missing."""
    monkeypatch.setitem(RIVALS, "torch", broken)
    called = RIVALS["bare scan"]

    def breaks(problem):
        one = called(problem)
        prepare = one.prepare
        one.prepare = lambda mode: prepare(mode) if mode == "forward" else types.SimpleNamespace(
            compile=None, lower=None, load=None, several=None, call=broken
        )  # fmt: skip
        return one

    monkeypatch.setitem(RIVALS, "bare scan", breaks)
    found = through_all_steps(gpu_tasks.Tasks(), point("gru", "torch", "bare scan", "equinox", tuned=False))
    rows = [(row["contestant"], row["mode"]) for row in found["gpu"]]
    wanted = [("rnnjax", "forward"), ("rnnjax", "training"), ("bare scan", "forward")]
    assert [row for row in rows if row[0] != "equinox"] == wanted
    assert all(row["us_per_step"] > 0 and row["floor_us"] >= 0.48 for row in found["gpu"])
    assert found["gpu"][0]["note"] == "XLA's matmuls not tuned"
    reasons = {(e["where"]["contestant"], e["where"].get("mode")): e["reason"] for e in found["skipped"]}
    assert reasons["torch", None] == reasons["bare scan", "training"] == "RuntimeError: orthogonal: no such dtype"
    failed = through_all_steps(gpu_tasks.Tasks(), point("no_such_cell"))
    assert failed["gpu"] == [] and failed["skipped"]


def test_programs_that_are_compared_with_each_other(monkeypatch):
    """The smaller measurements; one that fails leaves the reason."""
    doubled = lambda steps: [({"program": "doubled"}, lambda x: 2 * x, (1.0,), gpu_tasks.UNTUNED)]  # noqa: E731
    monkeypatch.setitem(gpu_tasks.PROGRAMS, "resets", doubled)
    monkeypatch.setitem(gpu_tasks.PROGRAMS, "networks", broken)
    extra = lambda kind: {"name": kind, "kind": kind, "steps": 4, "rounds": 1, "tuned": True}  # noqa: E731
    tasks = gpu_tasks.Tasks()
    found = through_all_steps(tasks, extra("resets"))
    assert [row["program"] for row in found["resets"]] == ["doubled"] and found["resets"][0]["us_per_step"] > 0
    assert found["resets"][0]["compile_seconds"] >= 0
    found = through_all_steps(tasks, extra("networks"))
    assert found["networks"] == [] and found["skipped"][0]["where"] == "networks"
    monkeypatch.setattr(gpu_tasks.lm, "ours", broken)
    found = through_all_steps(tasks, extra("language_model"))
    assert found["language_model"] == [] and found["skipped"][0]["reason"].startswith("RuntimeError")


@pytest.mark.thorough
def test_the_smaller_programs_can_be_traced():
    """On a CPU they are lowered, no more."""
    for make in gpu_tasks.PROGRAMS.values():
        for _, function, args, _ in make(2):
            gpu_tasks.jax.jit(function).lower(*args)


def test_the_grid():
    """Every cell, size, batch and dtype once; what has rivals comes first; no point is larger than the memory."""
    tasks = list(gpu.gpu_tasks())
    points = [task for task in tasks if task["kind"] == "point"]
    keys = {(task["cell"], task["sizes"].H, task["sizes"].B, task["dtype"]) for task in points}
    assert len(keys) == len(points) == 4 * 6 * 3 * 4
    assert len({task["name"] for task in tasks}) == len(tasks) == len(points) + len(gpu.EXTRAS)
    tuned = [task["tuned"] for task in tasks]
    assert tuned == sorted(tuned, reverse=True) and 15 < sum(tuned) < 20
    # Every point of float16 that cuDNN's persistent kernel is for stands beside torch, and so do its loops alone.
    fp16 = [t for t in points if t["cell"] == "lstm" and t["dtype"] == "float16" and t["sizes"].H <= 1024]
    assert len(fp16) == 15 and all("torch" in t["rivals"] and t["alone"] for t in fp16)
    assert all(set(t["rivals"]) <= {"torch"} for t in points if not t["tuned"])
    large = [t["sizes"].H > 1024 for t in points]
    assert large == sorted(large)
    assert max(task["sizes"].T * task["sizes"].B * task["sizes"].H for task in points) <= 2**26
    assert json.loads(json.dumps(tasks[0]))["sizes"] == [1024, 16, 768, 768]


def test_loops_alone_are_measured_by_the_step(monkeypatch):
    """Two calls of five steps, 20 microseconds in all."""
    events = [types.SimpleNamespace(name=name, duration_ns=1e4) for name in ("rnn_forward", "other", "rnn_forward")]
    line = types.SimpleNamespace(name="Stream #1", events=events)
    profile = types.SimpleNamespace(planes=[types.SimpleNamespace(name="/device:GPU:0", lines=[line])])
    written = lambda folder: contextlib.nullcontext(pathlib.Path(folder, "a.xplane.pb").touch())  # noqa: E731
    monkeypatch.setattr(gpu_tasks.jax.profiler, "trace", written)
    monkeypatch.setattr(gpu_tasks.jax.profiler, "ProfileData", types.SimpleNamespace(from_file=lambda path: profile))
    assert gpu_tasks._kernels(lambda: None, steps=5, calls=2) == {"forward": 2.0}
    monkeypatch.setattr(gpu_tasks.jax.profiler, "trace", contextlib.nullcontext)
    with pytest.raises(RuntimeError, match="has written nothing"):  # which leaves the other numbers of a point alone
        gpu_tasks._kernels(lambda: None, steps=5)


def test_no_worker_measures_without_the_kernels(monkeypatch):
    """Where a trial of them fails in one process, its rows would be those of another engine."""
    monkeypatch.setattr(gpu_tasks.jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(gpu_tasks, "default_implementation", lambda problem: "fused")
    with pytest.raises(RuntimeError, match="'cuda' does not run here, 'fused' would"):
        gpu_tasks.Tasks()


def test_a_card_that_breaks_at_a_first_call_costs_one_task(monkeypatch):
    """The process ends there, and its other tasks go back; it does not go on to say of each of them that it failed."""
    tasks, task = gpu_tasks.Tasks(), point("gru", tuned=False)
    assert tasks.do("prepare", task) == {"next": "load"}
    monkeypatch.setattr(gpu_tasks, "_card_answers", lambda: False)
    with pytest.raises(RuntimeError, match="the card no longer answers"):
        tasks.do("load", task)


def test_nothing_of_a_point_stays_on_the_device():
    """Neither between its first call and its measurement, of which there are several in a worker, nor after it."""
    tasks, task = gpu_tasks.Tasks(), point("gru", "bare scan", tuned=False)
    before = len(jax.live_arrays())
    for step in ("prepare", "load"):
        tasks.do(step, task)
    loaded = len(jax.live_arrays())
    tasks.do("measure", task)
    assert loaded <= before and len(jax.live_arrays()) <= before


def test_launches_of_a_compiled_program():
    """One before a loop of five turns, of which each makes two and another loop of three turns with one."""
    text = """HloModule jit_f, is_scheduled=true

%within (a: f32[2]) -> f32[2] {
  %a = f32[2]{0} parameter(0)
  ROOT %copy.1 = f32[2]{0} copy(%a)
}

%body.2 (arg: (s32[], f32[2])) -> (s32[], f32[2]) {
  %arg = (s32[], f32[2]{0}) parameter(0)
  %f.1 = f32[2]{0} fusion(%x), kind=kLoop, calls=%fused, metadata={op_name="a fusion(b"}
  %call = (f32[2]{0}) custom-call(%f.1), custom_call_target="__gpu$xla.gpu.ptx"
  %while.3 = f32[2]{0} while(%call), condition=%c, body=%within, backend_config={"known_trip_count":{"n":"3"}}
}

ENTRY %main.9 (x: f32[2]) -> f32[2] {
  %x = f32[2]{0} parameter(0)
  %wrapped = f32[2]{0} fusion(%x), kind=kLoop, calls=%other
  %while.1 = (s32[], f32[2]{0}) while(%t), condition=%c, body=%body.2, backend_config={"known_trip_count":{"n":"5"}}
  ROOT %bitcast = f32[2]{0} bitcast(%while.1)
}
"""
    assert gpu_programs.launches(text) == 1 + 5 * (2 + 3)


def test_programs_for_a_gpu_need_its_compiler(monkeypatch):
    """Which the tests do without."""
    from jax.experimental import topologies

    def missing(**options):
        raise NotImplementedError("topology not implemented for cuda")

    monkeypatch.setattr(topologies, "get_topology_desc", missing)
    result = CliRunner().invoke(app, ["gpu-programs"])
    assert result.exception.args == ("gpu-programs: needs JAX's compiler for NVIDIA GPUs; pip install 'jax[cuda13]'.",)
    monkeypatch.setattr(gpu.jax, "default_backend", lambda: "gpu")
    result = CliRunner().invoke(app, ["gpu-programs"])
    assert result.exception.args == ("gpu-programs: needs JAX_PLATFORMS=cpu, got the backend 'gpu'.",)
