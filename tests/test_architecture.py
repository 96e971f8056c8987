"""Imports go one way, nothing dangerous is called, importing is free, and files stay small."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted(path for package in ("mfd_cli", "teachers") for path in (ROOT / package).rglob("*.py"))
LARGEST = 400  # lines a person can hold in mind
HEAVY = {"torch", "diffusers", "transformers", "matplotlib", "sklearn", "scipy", "accelerate", "onnx"}

_BASE = {"mfd_cli.errors", "mfd_cli.flow", "mfd_cli.samplers", "mfd_cli.seeds", "mfd_cli.solvers", "teachers"}
_LOW = _BASE | {"mfd_cli.config", "mfd_cli.methods", "mfd_cli.metrics", "mfd_cli.networks", "mfd_cli.store"}
_HIGH = _LOW | {"mfd_cli.inference", "mfd_cli.training"}
_FRONT = {"mfd_cli.console", "mfd_cli.progress", "mfd_cli.plugins", "mfd_cli.completion"}
_NAMES = {
    "mfd_cli.methods.registry",
    "mfd_cli.metrics.registry",
    "teachers.registry",
    "teachers.settings",
    "teachers.errors",
}

#: what each layer may import of ours, besides itself; the most specific name counts
ALLOWED = {
    "teachers": set(),
    "mfd_cli": {"mfd_cli.inference", "mfd_cli.training"},
    "mfd_cli.errors": {"teachers.errors"},
    "mfd_cli.flow": set(),
    "mfd_cli.seeds": set(),
    "mfd_cli.solvers": {"mfd_cli.flow"},
    "mfd_cli.samplers": {"mfd_cli.flow", "mfd_cli.solvers"},
    "mfd_cli.config": {"mfd_cli.errors", *_NAMES},
    "mfd_cli.methods": _BASE,
    "mfd_cli.methods.registry": {"teachers.registry"},
    "mfd_cli.metrics": {"mfd_cli.errors", "mfd_cli.seeds", "teachers"},
    "mfd_cli.metrics.registry": {"teachers.registry"},
    "mfd_cli.networks": {"mfd_cli.errors", "mfd_cli.seeds", "mfd_cli.config.schema", "teachers"},
    "mfd_cli.store": {"mfd_cli.errors", "mfd_cli.config.schema", "teachers.weights"},
    "mfd_cli.inference": _LOW,
    "mfd_cli.training": _LOW | {"mfd_cli.inference"},
    "mfd_cli.console": {"mfd_cli.errors"},
    "mfd_cli.progress": {"mfd_cli.console", "mfd_cli.training.reporting"},
    "mfd_cli.plugins": {"mfd_cli.errors", *_NAMES},
    "mfd_cli.completion": {"mfd_cli.config", "mfd_cli.store.layout", *_NAMES},
    "mfd_cli.report": _LOW | {"mfd_cli.inference", "mfd_cli.console"},
    "mfd_cli.commands": _HIGH | _FRONT | {"mfd_cli.report", "mfd_cli.options"},
    "mfd_cli.options": {"mfd_cli.completion", "mfd_cli.errors"},
    "mfd_cli.groups": {"mfd_cli.commands", "mfd_cli.options", "mfd_cli.completion"},
    "mfd_cli.cli": {"mfd_cli.commands", "mfd_cli.groups", "mfd_cli.options", "mfd_cli.errors"} | _FRONT,
    "mfd_cli.__main__": {"mfd_cli.cli"},
}

BANNED_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
BANNED_CALLS = {
    "eval", "exec", "compile", "__import__", "os.system", "os.popen", "torch.load", "torch.save", "yaml.load",
    "yaml.unsafe_load", "yaml.full_load", "subprocess.getoutput", "subprocess.getstatusoutput",
}  # fmt: skip
#: the only places that read foreign pickles, each in the one way that runs nothing of what is in them
EXCEPTIONS = {
    "teachers/occfm/pickles.py": (
        "import of pickle",
        "the base of an unpickler that looks up a list of stand-ins only",
    ),
    "teachers/foreign.py": ("torch.load(weights_only=True)", "for converters; tensors and containers only"),
}
BANNED_METHODS = {"nan_to_num", "nan_to_num_"}
BANNED_FLAGS = {
    "shell": True, "allow_pickle": True, "trust_remote_code": True, "weights_only": False, "use_safetensors": False,
}  # fmt: skip
#: code from elsewhere, whatever the value
BANNED_KEYWORDS = {"custom_pipeline", "custom_revision"}


def module_name(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def is_module(name):
    path = ROOT / name.replace(".", "/")
    return path.is_dir() or path.with_suffix(".py").is_file()


def imported(tree):
    """Names of our modules that a file imports, and the statement."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            if node.module.split(".")[0] in ("mfd_cli", "teachers"):
                for alias in node.names:
                    inner = f"{node.module}.{alias.name}"
                    yield (inner if is_module(inner) else node.module), node
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] in ("mfd_cli", "teachers"):
                    yield alias.name, node
        elif isinstance(node, ast.ImportFrom) and node.level:
            yield "a relative import", node


def inside(name, package):
    return name == package or name.startswith(package + ".")


def layer(name):
    return max((known for known in ALLOWED if inside(name, known)), key=len)


def foreign_imports(name, tree):
    own = layer(name)
    for target, node in imported(tree):
        if target == "mfd_cli":
            continue  # the version
        # a command never asks another command; any other layer may import itself
        kin = inside(target, own) and own != "mfd_cli.commands"
        if not kin and not any(inside(target, package) for package in ALLOWED[own]):
            yield f"line {node.lineno}: {name} imports {target}"


def banned_uses(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names = {(node.module or "").split(".")[0]}
        else:
            names = set()
        yield from (f"line {node.lineno}: import of {name}" for name in names & BANNED_MODULES)
        if isinstance(node, ast.Attribute) and node.attr in BANNED_METHODS:
            yield f"line {node.lineno}: {node.attr}"
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        if called in BANNED_CALLS:
            safe = called == "torch.load" and any(ast.unparse(item) == "weights_only=True" for item in node.keywords)
            yield f"line {node.lineno}: {called}({'weights_only=True' if safe else ''})"
        for keyword in node.keywords:
            if keyword.arg in BANNED_KEYWORDS:
                yield f"line {node.lineno}: {keyword.arg}"
            # what is no plain True or False may be either
            value = keyword.value.value if isinstance(keyword.value, ast.Constant) else ast.unparse(keyword.value)
            if keyword.arg in BANNED_FLAGS and value is not (not BANNED_FLAGS[keyword.arg]):
                yield f"line {node.lineno}: {keyword.arg}={value}"


def undocumented(tree):
    def visit(body, prefix, public):
        for node in body:
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                continue
            if node.name.startswith("_") or not public:
                continue
            if ast.get_docstring(node) is None:
                yield f"line {node.lineno}: {prefix}{node.name}"
            if isinstance(node, ast.ClassDef):
                yield from visit(node.body, f"{node.name}.", public)

    yield from visit(tree.body, "", True)


@pytest.fixture(params=FILES, ids=[str(path.relative_to(ROOT)) for path in FILES])
def source(request):
    return request.param, ast.parse(request.param.read_text("utf-8"))


def test_imports_go_one_way(source):
    path, tree = source
    assert list(foreign_imports(module_name(path), tree)) == []


def test_nothing_dangerous_is_used(source):
    path, tree = source
    excepted, _ = EXCEPTIONS.get(path.relative_to(ROOT).as_posix(), ("", ""))
    found = [use for use in banned_uses(tree) if use.partition(": ")[2] != excepted]
    assert found == []


def test_an_exception_allows_one_use_in_one_file():
    for name, (excepted, _) in EXCEPTIONS.items():
        uses = [use.partition(": ")[2] for use in banned_uses(ast.parse((ROOT / name).read_text("utf-8")))]
        assert uses == [excepted], f"{name} uses this once and nothing else"
    for call in ("torch.load(path)", "torch.load(path, weights_only=False)", "torch.load(path, weights_only=flag)"):
        assert "line 1: torch.load()" in list(banned_uses(ast.parse(call)))


def test_what_is_public_says_what_it_is(source):
    path, tree = source
    if path.stat().st_size and path.name != "__main__.py":
        assert ast.get_docstring(tree), "a module begins by saying what it is for"
    assert list(undocumented(tree)) == []


def test_files_stay_small(source):
    path, _ = source
    assert len(path.read_text("utf-8").splitlines()) <= LARGEST, "a file this long is asking to become two ideas"


@pytest.mark.parametrize("name", ["cli", "groups"])
def test_the_command_line_imports_commands_inside_functions(name):
    tree = ast.parse((ROOT / "mfd_cli" / f"{name}.py").read_text("utf-8"))
    top = {target for target, node in imported(tree) if node in tree.body}
    assert not any(inside(target, "mfd_cli.commands") for target in top)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("teachers.sana", "from mfd_cli.flow import interpolate"),
        ("mfd_cli.methods.mfd", "from mfd_cli.networks.roles import Role"),
        ("mfd_cli.methods.mfd", "import mfd_cli.training.trainer"),
        ("mfd_cli.commands.sample", "def f():\n    from mfd_cli.commands.distill import distill"),
        ("mfd_cli.store.layout", "from mfd_cli import console"),
        ("mfd_cli.inference.sampler", "from mfd_cli.training import run"),
        ("mfd_cli.flow", "from teachers.base import Teacher"),
        ("mfd_cli.config.load", "from teachers.base import Teacher"),
        ("mfd_cli.flow", "from . import seeds"),
    ],
)
def test_the_check_of_imports_can_fail(name, text):
    assert len(list(foreign_imports(name, ast.parse(text)))) == 1


@pytest.mark.parametrize(
    "text",
    [
        "import pickle", "from joblib import load", "torch.load(path)", "torch.save(x, path)", "yaml.load(text)",
        "torch.load(path, weights_only=True)", "eval(text)", "exec(text)", "os.system(text)", "run(text, shell=True)",
        "np.load(path, allow_pickle=True)",
        "load(name, trust_remote_code=True)", "load(name, trust_remote_code=flag)", "load(name, custom_pipeline=name)",
        "load(name, use_safetensors=None)", "torch.nan_to_num(x)", "x.nan_to_num_()", "read(f, weights_only=False)",
    ],
)  # fmt: skip
def test_the_check_of_dangerous_calls_can_fail(text):
    assert len(list(banned_uses(ast.parse(text)))) == 1


def fresh(code):
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout


def test_importing_the_command_line_is_cheap():
    """`mfd --help` and tab completion wait for nothing heavy."""
    names = fresh("import sys, mfd_cli, mfd_cli.cli; print('\\n'.join(sys.modules))").split()
    assert HEAVY & {name.split(".")[0] for name in names} == set()
    assert len(names) < 1000


def test_recipes_are_read_without_torch():
    code = (
        "import sys, mfd_cli.config.load, mfd_cli.methods.registry, teachers.registry; print('\\n'.join(sys.modules))"
    )
    assert HEAVY & {name.split(".")[0] for name in fresh(code).split()} == set()


def test_every_module_can_be_imported_and_prints_nothing():
    names = [module_name(path) for path in FILES if path.name != "__main__.py"]
    assert fresh(f"import importlib\nfor name in {names!r}: importlib.import_module(name)") == ""


def test_every_module_has_its_layer():
    assert [name for name in map(module_name, FILES) if layer(name) == "mfd_cli" and name != "mfd_cli"] == []
