"""What importing ovseg does and does not do."""

from __future__ import annotations

import subprocess
import sys


def run(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


def test_import_is_silent_and_light() -> None:
    out = run("import ovseg, sys; print(ovseg.__version__, 'torch' in sys.modules)")
    assert out.split()[1] == "False"


def test_core_loads_no_openmmlab_package_and_opens_no_socket() -> None:
    run(
        "import socket\n"
        "def refuse(*a, **k): raise AssertionError('a socket was opened')\n"
        "socket.socket.connect = refuse\n"
        "import ovseg, sys\n"
        "ovseg.Inferencer, ovseg.Vocabulary\n"
        "import ovseg.runs, ovseg.outputs.visualize\n"
        "heavy = {'mmengine', 'mmcv', 'mmseg', 'mmdet', 'numba'}\n"
        "loaded = {name.split('.')[0] for name in sys.modules} & heavy\n"
        "assert not loaded, loaded\n"
    )


def test_unknown_attribute() -> None:
    run(
        "import ovseg\n"
        "try: ovseg.nothing\n"
        "except AttributeError as error: assert 'nothing' in str(error)\n"
        "else: raise SystemExit(1)"
    )
