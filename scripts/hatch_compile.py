"""Builds the way of a message as C extensions, if SMTPLB_COMPILE=1 is set: hatchling calls this for each wheel.

Owns which modules are compiled (mypyc, from the very same sources) and where the results go. Does not own anything at run
time: with and without them it is the same program, since Python prefers an extension module beside its source.
Invariant: a wheel has all compiled modules or none; the checkout itself is left as it is, so tests there run the sources.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from hashlib import sha256
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

WANTED = "SMTPLB_COMPILE"
NEEDS = ["mypy[mypyc]>=1.15,<3", "setuptools>=77"]
SCANNER = "smtplb/smtp/_scan.c"  # by hand: every octet of a body passes it
DONE = ".compiled"
# Not among them: enumerations with methods (refusal), dataclasses (settings, messages, events), what is not the way
# of a message. verdict: a class of it inherits from Connection, which is compiled.
MODULES = {
    "smtp": "address body chunks commands extensions identity replies verbs",
    "policy": "affinity balance limits outcome retry routing rule_index",
    "dataplane": "attempt authentication backend binding connection context course deadlines dialogue identity listener "
    "opening outbox pool relay replay reply_counts reporting router runtime scoreboard search session tls transaction waiting",
    "controlplane": "verdict",
    "observe": "encode ended histogram lines logs",
}
SETUP = """
from mypyc.build import mypycify
from setuptools import Extension, setup
scanner = Extension("smtplb.smtp._scan", [{scanner!r}], extra_compile_args=["-O3"])
compiled = mypycify({modules!r}, opt_level="3", debug_level="0", group_name="smtplb")
setup(name="smtplb", packages=[], ext_modules=[scanner, *compiled])
"""


def sources() -> list[str]:
    return [f"smtplb/{folder}/{name}.py" for folder, names in MODULES.items() for name in names.split()]


def compile_in(folder: Path) -> None:
    """Compile the modules of the package in `folder` in place."""
    (folder / "setup.py").write_text(SETUP.format(modules=sources(), scanner=SCANNER))
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    if subprocess.run(command, cwd=folder, check=False).returncode:
        raise SystemExit(
            f"{WANTED}: mypyc or the C compiler failed; without {WANTED} smtplb is installed as pure Python"
        )
    shutil.rmtree(folder / "build")


def compiled_in(folder: Path) -> list[Path]:
    """The extension modules, relative to `folder`."""
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    return sorted(path.relative_to(folder) for path in folder.rglob(f"*{suffix}"))


class CompileHook(BuildHookInterface[Any]):
    PLUGIN_NAME = "custom"

    def dependencies(self) -> list[str]:
        return NEEDS if os.environ.get(WANTED) == "1" else []

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if os.environ.get(WANTED) != "1" or version == "editable":
            return
        folder = self._compiled()
        for path in compiled_in(folder):
            build_data["force_include"][str(folder / path)] = str(path)
        build_data["pure_python"] = False
        build_data["infer_tag"] = True

    def _compiled(self) -> Path:
        """Once for the same sources: pip asks for a wheel twice, the first time for its metadata only."""
        root = Path(self.root)
        digest = sha256(sys.version.encode())
        for path in [Path(__file__), *(root / source for source in (*sources(), SCANNER))]:
            digest.update(path.read_bytes())
        folder = root / "build" / "compile" / digest.hexdigest()[:16]
        if not (folder / DONE).exists():
            shutil.rmtree(folder.parent, ignore_errors=True)
            shutil.copytree(root / "smtplb", folder / "smtplb", ignore=shutil.ignore_patterns("__pycache__"))
            compile_in(folder)
            (folder / DONE).touch()
        return folder
