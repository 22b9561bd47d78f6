"""What surrounds the program cannot change what it does: the current folder, the environment, the terminal, signals, a second run.

Each test starts the command as a person does, in a process of its own.
"""

import html
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from ccdiff_cli.errors import visible
from ccdiff_cli.startup import trusted_paths

PROGRAM = [sys.executable, "-c", "import sys; sys.path[:] = [p for p in sys.path if p]; from ccdiff_cli.__main__ import main; main()"]
"""The console script, also where it is not on the PATH."""
ROOT = Path(__file__).parents[1]
MODULES = (
    "struct", "queue", "typing", "json", "selectors", "signal", "pickle", "numpy", "torch", "yaml", "typer", "rich", "PIL", "cv2",
    "shapely", "pydantic", "diffusers", "transformers", "matplotlib",
)  # fmt: skip
SITE = ("sitecustomize", "usercustomize")
"""Python itself reads these two before any line of ours, where PYTHONPATH names the current folder."""


def ccdiff(*arguments: str, cwd: Path, timeout: float = 240, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run([*PROGRAM, *arguments], cwd=cwd, env=env, capture_output=True, text=True, timeout=timeout, check=False)


def small_set(root: Path, *, name: str = "ship", pictures: int = 6) -> Path:
    (root / "images").mkdir(parents=True)
    for k in range(pictures):
        Image.new("RGB", (64, 64), (30 * k, 90, 60)).save(root / "images" / f"p{k}.png")
    images = [
        {"id": k, "file_name": f"p{k}.png", "width": 64, "height": 64, "split": ["train", "val", "test"][k % 3]} for k in range(pictures)
    ]
    boxes = [{"id": k, "image_id": k, "category_id": 1, "bbox": [10, 10, 30, 20]} for k in range(pictures)]
    (root / "labels.json").write_text(json.dumps({"images": images, "annotations": boxes, "categories": [{"id": 1, "name": name}]}))
    return root


def no_traceback(done: subprocess.CompletedProcess[str], code: int) -> None:
    assert done.returncode == code, (done.returncode, done.stdout, done.stderr)
    assert "Traceback" not in done.stderr


# ------------------------------------------------------------------------------------------------------------- the current folder


@pytest.mark.parametrize("path", [str(ROOT), f":{ROOT}:.", f"{ROOT}::rel"])
def test_no_file_of_the_current_folder_is_imported(tmp_path: Path, path: str) -> None:
    folder = small_set(tmp_path / "data")
    proof = tmp_path / "EXECUTED"
    for name in MODULES + (SITE if path == str(ROOT) else ()):
        (folder / f"{name}.py").write_text(f"open({str(proof)!r}, 'a').write({name!r})\n")
    (folder / "matplotlibrc").write_text("backend: module://struct\n")
    done = ccdiff("prepare", ".", "--processes", "2", "--out", str(tmp_path / "out"), cwd=folder, PYTHONPATH=path)
    no_traceback(done, 0)
    done = ccdiff("inspect", str(tmp_path / "out"), "--out", str(tmp_path / "page"), cwd=folder, PYTHONPATH=path)
    no_traceback(done, 0)
    assert not proof.exists(), proof.read_text()


def test_workers_do_not_import_from_the_current_folder(tmp_path: Path) -> None:
    folder, proof = tmp_path / "here", tmp_path / "EXECUTED"
    folder.mkdir()
    for name in MODULES:
        (folder / f"{name}.py").write_text(f"open({str(proof)!r}, 'a').write({name!r})\n")
    code = """if True:
        import sys; sys.path[:] = [p for p in sys.path if p]
        from ccdiff_cli.startup import leave_current_folder, python_command, python_environment, fresh_processes
        leave_current_folder()
        import os, subprocess
        subprocess.run(python_command("import ccdiff_cli.synthesis.worker, struct, queue"), env=python_environment(), check=True)
        with fresh_processes().Pool(1) as pool:
            print(pool.apply(os.getpid) != os.getpid())
    """
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, env=env, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0 and done.stdout.strip() == "True", done.stderr
    assert not proof.exists(), proof.read_text()


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["accelerate", "torchrun"])
def test_launchers_import_nothing_from_the_current_folder(tmp_path: Path, launcher: str) -> None:
    from ccdiff_cli.prepare import PrepareOptions, prepare_dataset

    folder, proof = tmp_path / "here", tmp_path / "EXECUTED"
    folder.mkdir()
    for name in (*MODULES, *SITE, "accelerate", "ccdiff_cli", "ctypes", "socket", "logging", "subprocess"):
        (folder / f"{name}.py").write_text(f"open({str(proof)!r}, 'a').write({name!r})\n")
    prepare_dataset(small_set(tmp_path / "data"), tmp_path / "set", PrepareOptions(size=128))
    program = tmp_path / "ccdiff"  # what pip makes of the console script
    program.write_text(f"#!{sys.executable}\nfrom ccdiff_cli.__main__ import main\nmain()\n")
    program.chmod(0o755)
    main = {"accelerate": "accelerate.commands.accelerate_cli", "torchrun": "torch.distributed.run"}[launcher]
    start = tmp_path / launcher
    start.write_text(f"#!{sys.executable}\nfrom {main} import main\nmain()\n")
    start.chmod(0o755)
    options = {
        "accelerate": ["launch", "--cpu", "--num_processes", "2", "--no_python"],
        "torchrun": ["--nproc-per-node", "2", "--no-python", "--"],
    }[launcher]
    rest = ["--steps", "1", "-c", "tiny", "-l", str(tmp_path / "set"), "--out", str(tmp_path / "out"), "--batch-size", "2"]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [str(start), *options, str(program), "synthesize", "--n", "4", *rest],
        cwd=folder, env=env, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    no_traceback(done, 0)
    assert "synthetic set: " in done.stdout and not proof.exists(), proof.read_text()


def test_trusted_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path)
    assert trusted_paths(["", ".", "lib", str(tmp_path), str(tmp_path / "link"), "/usr/lib/x", "/usr/lib/x"]) == ["/usr/lib/x"]


# ------------------------------------------------------------------------------------------------------------- what is shown


@pytest.mark.parametrize("mark", ["\x1b[31m", "\x07", "\x9b", "\x7f", "\u202e", "\u2066", "\u200f", "\u061c", "\u2028", "\r", "\x00"])
def test_marks_that_steer_a_terminal_are_shown_escaped(mark: str) -> None:
    shown = visible(f"a{mark}b", lines=False)
    assert mark not in shown and shown.startswith("a") and shown.endswith("b")


def test_names_of_data_reach_the_terminal_escaped(tmp_path: Path) -> None:
    folder = small_set(tmp_path / "data")
    labels = json.loads((folder / "labels.json").read_text())
    labels["images"][0]["file_name"] = "\x1b]0;title\x07\u202e[red]x[/red].png"
    (folder / "labels.json").write_text(json.dumps(labels))
    done = ccdiff("prepare", "data", "--out", "out", cwd=tmp_path)
    no_traceback(done, 0)  # the picture is missing: left out, and said
    said = done.stdout + done.stderr
    assert "\x1b" not in said and "\x07" not in said and "\u202e" not in said
    assert "\\x1b]0;title\\x07\\u202e[red]x[/red].png" in said  # as it is: no colour was made of it


def test_arguments_are_shown_escaped(tmp_path: Path) -> None:
    done = ccdiff("prepare", "no\x1b[31msuch", "--out", "out", cwd=tmp_path)
    no_traceback(done, 2)
    assert "\x1b" not in done.stderr and "no\\x1b[31msuch" in done.stderr
    done = ccdiff("\x1b[31mverb", cwd=tmp_path)
    no_traceback(done, 2)
    assert "\x1b" not in done.stderr


def test_json_stays_json(tmp_path: Path) -> None:
    done = ccdiff("prepare", "no\x1b[31m\u202esuch", "--out", "out", "--json", cwd=tmp_path)
    no_traceback(done, 2)
    assert "\x1b" not in done.stdout and "such" in json.dumps(json.loads(done.stdout))


# ------------------------------------------------------------------------------------------------------------- the environment


@pytest.mark.parametrize(
    ("name", "value"),
    [("WORLD_SIZE", "abc"), ("RANK", "x"), ("LOCAL_RANK", "-1"), ("WORLD_SIZE", "9" * 40), ("MASTER_PORT", "http")],
)
def test_a_launchers_variable_that_is_no_number_is_one_message(tmp_path: Path, name: str, value: str) -> None:
    done = ccdiff("verify", "nothing", cwd=tmp_path, **{name: value})
    no_traceback(done, 2)
    assert f"error: environment: {name}=" in done.stderr


@pytest.mark.parametrize(
    "environment",
    [
        {"LANG": "C", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii", "PYTHONCOERCECLOCALE": "0"},
        {"HOME": "/nonexistent", "COLUMNS": "abc", "TERM": "dumb"},
        {"HOME": "", "COLUMNS": "0", "LINES": "-5", "NO_COLOR": "1", "OMP_NUM_THREADS": "-1"},
        {"TMPDIR": "/nonexistent", "CUDA_VISIBLE_DEVICES": "foo", "TERM": ""},
    ],
    ids=["ascii", "no home", "odd sizes", "no temporary folder"],
)
def test_odd_environments_change_nothing(tmp_path: Path, environment: dict[str, str]) -> None:
    folder = small_set(tmp_path / "d\u00e4ten", name="p\u00e9niche")
    done = ccdiff("prepare", str(folder), "--out", str(tmp_path / "out"), "--processes", "1", cwd=tmp_path, **environment)
    if environment.get("PYTHONIOENCODING") == "ascii" and done.returncode == 2:  # a Python that cannot spell the name says so, and the cure
        assert "LANG=C.UTF-8" in done.stderr and "Traceback" not in done.stderr
    else:
        no_traceback(done, 0)


def test_a_current_folder_that_was_removed_is_said_at_once(tmp_path: Path) -> None:
    script = f"import os; os.mkdir('gone'); os.chdir('gone'); os.rmdir('../gone'); os.execv({sys.executable!r}, {[*PROGRAM, 'doctor']!r})"
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)
    no_traceback(done, 2)
    assert done.stderr.startswith("error: the current folder was removed") and done.stdout == ""


def test_names_that_are_not_utf8_are_left_out_or_said(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    (folder / "images").mkdir(parents=True)
    (folder / "labels").mkdir()
    (folder / "classes.txt").write_text("ship\n")
    for name in (b"caf\xe9", b"plain"):
        Image.new("RGB", (64, 64)).save(tmp_path / "x.png")
        try:
            os.rename(os.fsencode(tmp_path / "x.png"), os.fsencode(folder / "images") + b"/" + name + b".png")
        except OSError:
            pytest.skip("this file system takes UTF-8 names only")
        with open(os.fsencode(folder / "labels") + b"/" + name + b".txt", "w") as stream:
            stream.write("0 0.5 0.5 0.2 0.2\n")
    for verb in ("prepare", "inspect"):
        done = ccdiff(verb, str(folder), "--out", str(tmp_path / verb), cwd=tmp_path)
        assert done.returncode in (0, 2) and "Traceback" not in done.stderr
        assert "caf\\xe9.png" in done.stdout + done.stderr or "caf\\udce9.png" in done.stdout + done.stderr
    strict = ccdiff("prepare", str(folder), "--strict", "--out", str(tmp_path / "strict"), cwd=tmp_path)
    no_traceback(strict, 2)


def test_output_that_cannot_be_written_is_no_traceback(tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full")
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    with open("/dev/full", "w") as full:
        done = subprocess.run([*PROGRAM, "doctor"], stdout=full, stderr=subprocess.PIPE, text=True, env=env, cwd=tmp_path, check=False)
    assert done.returncode != 1 and "Traceback" not in done.stderr and "Exception ignored" not in done.stderr


@pytest.mark.parametrize("after", [0.02, 0.1, 0.2, 1.0])
def test_ctrl_c_ends_with_one_line_at_any_moment(tmp_path: Path, after: float) -> None:
    folder = small_set(tmp_path / "data", pictures=30)
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    run = subprocess.Popen(
        [*PROGRAM, "prepare", str(folder), "--out", str(tmp_path / "out")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=env,
    )
    time.sleep(after)
    run.send_signal(signal.SIGINT)
    _, said = run.communicate(timeout=120)
    early = after < 0.2 and (run.returncode == -signal.SIGINT or "import the site module" in said)  # Python itself was not up yet
    assert early or (run.returncode in (0, 130) and "Traceback" not in said), (run.returncode, said)


# ------------------------------------------------------------------------------------------------------------- two runs at once


@pytest.mark.parametrize("verb", ["export", "prepare", "inspect", "layout"])
def test_a_second_run_on_a_folder_names_the_first(tmp_path: Path, verb: str) -> None:
    from ccdiff_cli.locks import folder_lock
    from ccdiff_cli.prepare import PrepareOptions, prepare_dataset

    raw = small_set(tmp_path / "data")
    prepare_dataset(raw, tmp_path / "set", PrepareOptions(size=64))
    out = tmp_path / "out"
    arguments: dict[str, list[Any]] = {
        "export": ["export", tmp_path / "set", "--format", "coco"],
        "prepare": ["prepare", raw],
        "inspect": ["inspect", tmp_path / "set"],
        "layout": ["layout", tmp_path / "set"],
    }
    with folder_lock(out, "somebody"):
        done = ccdiff(*map(str, arguments[verb]), "--out", str(out), cwd=tmp_path)
    no_traceback(done, 2)
    assert f"another run is working on this folder (process {os.getpid()}" in done.stderr and "somebody" in done.stderr
    no_traceback(ccdiff(*map(str, arguments[verb]), "--out", str(out), cwd=tmp_path), 0)


# ------------------------------------------------------------------------------------------------------------- settings


@pytest.mark.parametrize(
    "text",
    [
        "a: 2001-99-99\n", "[" * 3000, "a: &x [*x]\nb: *y\n", "a: 1\na: 2\n", "a:\n\t- b\n",
        "? {}\n: 1\n", "!!python/object:os.system {}\n", "\x00", "- 1",
    ],
    ids=range(9),
)  # fmt: skip
@pytest.mark.parametrize("kind", ["recipe", "detector"])
def test_yaml_that_is_none_is_one_message(tmp_path: Path, kind: str, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    from ccdiff_cli.cli import main

    path = tmp_path / "x.yaml"
    path.write_text(text)
    if kind == "recipe":
        arguments = ["train", "--recipe", str(path), "--data", str(tmp_path), "--out", str(tmp_path / "g")]
    else:
        arguments = ["eval-trainability", "--real", ".", "--synthetic", ".", "--out", str(tmp_path / "o"), "--detector", str(path)]
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    said = capsys.readouterr().err
    assert ended.value.code == 2 and "x.yaml" in said and said.startswith("error: ")


@pytest.mark.parametrize(
    "pair", ["seed=2001-99-99", "seed", "=1", "seed=[[[[", "nothing.of.this=1", "seed=1e400", "denoiser=1", "seed=-1", "..=1"]
)
def test_set_that_is_no_setting_is_one_message(tmp_path: Path, pair: str, capsys: pytest.CaptureFixture[str]) -> None:
    from ccdiff_cli.cli import main

    with pytest.raises(SystemExit) as ended:
        main(["train", "--data", str(tmp_path), "--out", str(tmp_path / "g"), "--set", pair])
    said = capsys.readouterr().err
    assert ended.value.code == 2 and said.startswith("error: ") and ("--set" in said or re.split("[.=]", pair)[0] in said)


# ------------------------------------------------------------------------------------------------------------- what is written from names

ODD_NAMES = [
    "a|b",
    "<script>alert(1)</script>",
    "[x](javascript:1)",
    "`code`",
    "![i](u)",
    "$\\frac{",
    "\\input{f}",
    "-->",
    "\x1b[31m",
    "x\ny",
    "\u202ex",
]


@pytest.mark.parametrize("name", ODD_NAMES)
def test_names_are_no_markup_in_markdown_and_latex(name: str) -> None:
    from ccdiff_cli.errors import markdown, markdown_code
    from ccdiff_cli.report.evaluation import tex

    said = markdown(name)
    assert said.isprintable() and not re.search(r"(?<!\\)(?:\\\\)*[`*_\[\]<>|~&#$!]", said)
    assert re.sub(r"\\([\\`*_\[\]<>|~&#$!])", r"\1", said) == visible(name, lines=False), "a reader sees the name itself"
    code = markdown_code(name)
    assert code.count("`") == 2 and code.isprintable()
    left = re.sub(r"\\(?:textbackslash|textasciicircum|textasciitilde)\{\}|\\[&%$#_{}]", "", tex(name))
    assert left.isprintable() and not re.search(r"[\\&%$#_{}^~]", left)


@pytest.mark.parametrize("name", ODD_NAMES)
def test_names_are_no_markup_and_no_mathematics_in_figures(name: str) -> None:
    import matplotlib
    from matplotlib.figure import Figure

    from ccdiff_cli.report.figures import STYLE, literal, svg_text

    with matplotlib.rc_context(STYLE):
        figure = Figure()
        figure.add_subplot().set_yticks([0], [literal(name)])
        drawn = svg_text(figure)
    assert "<script" not in drawn and drawn.rstrip().endswith("</svg>")
    if name.isprintable():
        assert html.escape(name, quote=False) in re.sub(r"<!--.*?-->", "", drawn, flags=re.DOTALL)


# ------------------------------------------------------------------------------------------------------------- ends of pipes and of memory


def test_a_reader_that_leaves_ends_the_program_quietly(tmp_path: Path) -> None:
    for arguments in (["--help"], ["doctor"]):
        run = subprocess.Popen(
            [*PROGRAM, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        assert run.stdout is not None and run.stderr is not None
        run.stdout.close()
        said = run.stderr.read()
        assert run.wait(timeout=120) == 141 and said == b"", (arguments, said)


def test_too_little_memory_while_importing_is_one_message(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    limit = 800 << 20
    done = subprocess.run(
        [*PROGRAM, "train", "--data", str(tmp_path), "--out", "out"], capture_output=True, text=True, cwd=tmp_path, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1"},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)),
    )  # fmt: skip
    no_traceback(done, 2)
    assert "error: too little memory" in done.stderr


def with_memory(limit: int, command: list[str], cwd: Path) -> subprocess.CompletedProcess[str]:
    resource = pytest.importorskip("resource")
    return subprocess.run(
        command, capture_output=True, text=True, cwd=cwd, check=False, timeout=240,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)),
    )  # fmt: skip


@pytest.mark.skipif(not hasattr(signal, "sigwaitinfo"), reason="this system cannot wait for signals")
@pytest.mark.parametrize(
    ("ends", "code", "said"),
    [
        ("os.abort()", 2, "error: too little memory (a library ended the program: SIGABRT)"),
        ("ctypes.string_at(0)", 2, "error: too little memory (a library ended the program: SIGSEGV)"),
        ("sys.exit(7)", 7, ""),
        ("os.kill(os.getpid(), signal.SIGKILL)", 137, ""),
        ("os.kill(os.getppid(), signal.SIGTERM); time.sleep(60)", 143, "stopped by a signal"),
        ("os.kill(os.getppid(), signal.SIGINT); time.sleep(60)", 130, "interrupted"),
        ("os.kill(os.getppid(), signal.SIGKILL); time.sleep(60)", -9, ""),
    ],
)
def test_where_memory_is_limited_a_library_that_aborts_is_one_message(tmp_path: Path, ends: str, code: int, said: str) -> None:
    text = f"""if True:
        import ctypes, os, signal, sys, time; sys.path[:] = [p for p in sys.path if p]
        from ccdiff_cli import __main__
        from ccdiff_cli.cli import main
        signal.signal(signal.SIGINT, signal.default_int_handler)  # tests in the background of a shell start with it ignored
        def app(**options): {ends}
        sys.modules[main.__module__].app = app
        __main__.main()
    """
    done = with_memory(64 << 30, [sys.executable, "-c", text], tmp_path)
    assert done.returncode == code and "Traceback" not in done.stderr, done.stderr
    assert done.stderr.startswith(said) and done.stderr.count("\n") == (2 if code == 2 else 1 if said else 0), done.stderr


def test_where_no_memory_is_left_for_the_message_it_is_one_all_the_same(monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    from ccdiff_cli import failures
    from ccdiff_cli.cli.app import main

    def lacking(*_: object, **__: object) -> int:
        raise MemoryError

    monkeypatch.setattr(failures, "tell", lacking)
    with pytest.raises(SystemExit) as ended:
        main(["no-such-verb"])
    assert ended.value.code == 2 and capfd.readouterr().err.startswith("error: too little memory")


@pytest.mark.slow
def test_synthesize_with_any_memory_ends_in_a_set_or_in_one_message(tmp_path: Path) -> None:
    from ccdiff_cli.prepare import PrepareOptions, prepare_dataset

    prepare_dataset(small_set(tmp_path / "data"), tmp_path / "set", PrepareOptions(size=128))
    ends = set()
    for limit in range(1000, 6001, 250):
        for processes in ("1", "2"):
            out = tmp_path / f"{limit}-{processes}"
            rest = ["-c", "tiny", "-l", str(tmp_path / "set"), "--out", str(out), "--steps", "1", "--batch-size", "2"]
            done = with_memory(limit << 20, [*PROGRAM, "synthesize", "--n", "4", *rest, "--num-processes", processes], tmp_path)
            assert done.returncode in (0, 2) and "Traceback" not in done.stderr, (limit, processes, done.returncode, done.stderr)
            assert done.returncode == 0 or done.stderr.count("error: ") == 1, (limit, processes, done.stderr)
            ends.add(done.returncode)
    assert ends == {0, 2}


def test_sigterm_ends_with_one_line(tmp_path: Path) -> None:
    folder = small_set(tmp_path / "data", pictures=60)
    for after in (0.5, 1.5):
        run = subprocess.Popen(
            [*PROGRAM, "prepare", str(folder), "--processes", "1", "--out", str(tmp_path / "out")],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        time.sleep(after)
        run.send_signal(signal.SIGTERM)
        _, said = run.communicate(timeout=120)
        assert run.returncode in (0, 143) and "Traceback" not in said, said
        assert run.returncode == 0 or "stopped by a signal: run the same command again to go on\n" in said


def test_a_width_of_nothing_and_an_unknown_backend_hide_nothing(tmp_path: Path) -> None:
    folder = small_set(tmp_path / "data")
    done = ccdiff("inspect", str(folder), "--out", str(tmp_path / "page"), cwd=tmp_path, COLUMNS="0", MPLBACKEND="nonsense")
    no_traceback(done, 0)
    assert "inspection.html" in done.stdout


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such locks")
def test_a_lock_that_is_a_link_to_a_file_leaves_the_file_alone(tmp_path: Path) -> None:
    from ccdiff_cli.errors import CCDiffError
    from ccdiff_cli.locks import LOCK, folder_lock

    mine, folder = tmp_path / "mine.txt", tmp_path / "folder"
    mine.write_text("precious")
    folder.mkdir()
    for make in (lambda: (folder / LOCK).symlink_to(mine), lambda: os.link(mine, folder / LOCK), lambda: os.mkfifo(folder / LOCK)):
        make()
        with pytest.raises(CCDiffError), folder_lock(folder, "test"):
            pass
        assert mine.read_text() == "precious"
        (folder / LOCK).unlink()
    (folder / LOCK).write_text("left by a killed run")
    with folder_lock(folder, "test"):
        assert '"verb": "test"' in (folder / LOCK).read_text()
    assert not (folder / LOCK).exists()
    with folder_lock(tmp_path / "new" / "deep", "test"):
        pass
    assert not (tmp_path / "new").exists(), "nothing came into it"
