"""`python -m stages.extract_frames run REQUEST.json`; `probe FILE...` and `export ...` are for people."""

import argparse
import sys

from stages.contract import exit_code_of, main
from stages.extract_frames.config import ExtractConfig


def command(argv: list[str]) -> None:
    """Runs the command; exits as the contract says."""
    if argv[:1] not in (["probe"], ["export"]):
        from stages.extract_frames.run import run

        main(ExtractConfig, run, argv)
        return
    from stages.extract_frames import export, probe

    module = {"probe": probe, "export": export}[argv[0]]
    parser = argparse.ArgumentParser(prog=f"python -m stages.extract_frames {argv[0]}", description=module.__doc__)
    module.add_arguments(parser)
    try:
        sys.exit(module.run(parser.parse_args(argv[1:])))
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        code = exit_code_of(error)
        if code == 70:
            raise
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        sys.exit(code)


if __name__ == "__main__":  # worker processes import this module
    command(sys.argv[1:])
