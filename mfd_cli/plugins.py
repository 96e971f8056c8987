"""`--plugin FILE.py`: the only way in which a path names code."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

from mfd_cli.errors import MfdError


def import_plugin(path: Path) -> None:
    """Imports a Python file, whose decorators register teachers, data sources, methods or metrics.

    The file may import others next to it. Its folder comes last on the path, so that it hides nothing.

    Raises:
        MfdError: no such file, or importing it fails.
    """
    if not path.is_file() or path.suffix != ".py":
        raise MfdError(
            f"--plugin {path}: no such Python file", allowed="a .py file that registers teachers, methods or metrics"
        )
    name = f"mfd_plugin_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise MfdError(f"--plugin {path}: cannot be imported")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    if (folder := str(path.resolve().parent)) not in sys.path:
        sys.path.append(folder)
    try:
        spec.loader.exec_module(module)
    except MfdError:
        raise
    except Exception as error:
        raise MfdError(
            f"--plugin {path}: {type(error).__name__}: {error}", do="see the traceback with --debug"
        ) from error


def refuse_shadowed() -> None:
    """Refuses to run where a folder of the working directory hides mfd's own `teachers`.

    Raises:
        MfdError: it does.
    """
    spec = importlib.util.find_spec("teachers.registry") if importlib.util.find_spec("teachers") else None
    own = Path(__file__).resolve().parent
    if spec is None or spec.origin is None or not (Path(spec.origin).parent / "guidance.py").is_file():
        raise MfdError(
            f"a folder or package named 'teachers' hides mfd's own (mfd is in {own.name}/)",
            do="run mfd from another folder, or with the `mfd` script instead of `python -m mfd_cli`",
        )
