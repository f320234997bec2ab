"""The package's structure: imports point in one direction, nothing reaches into JAX's insides, files stay short."""

import ast
import pathlib
import sys

import pytest

import jaxgroupconv

PACKAGE = pathlib.Path(jaxgroupconv.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
FACES = ("explain", "weights", "nn", "mxnet")
# A file may import from those before it, and from its own folder.
ORDER = (
    "spec",
    "lowerings",
    "cpu_plan",
    "weight_plan",
    "kernel_plan",
    "planner",
    "rules",
    "stepwise",
    "accelerate",
    "arguments",
    "functional",
    FACES,
    "",
)
RUNTIME = {"jax", "jaxlib", "numpy", "jaxgroupconv"} | set(sys.stdlib_module_names)


def level(module):
    """The place in ORDER of a module of the package, by its dotted name."""
    piece = module.split(".")[1] if "." in module else ""
    piece = "" if piece == "__main__" else piece
    return next(i for i, pieces in enumerate(ORDER) if piece == pieces or (isinstance(pieces, tuple) and piece in pieces))


def module_of(path):
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path):
    """Every module that a file imports, anywhere in it; `from a import b` counts as a.b too, if that is a module."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name} has a relative import"
            for alias in node.names:
                is_module = (PACKAGE.parent / f"{node.module}.{alias.name}".replace(".", "/")).with_suffix(".py").exists()
                is_package = (PACKAGE.parent / f"{node.module}.{alias.name}".replace(".", "/")).is_dir()
                jax_s = str(node.module).startswith("jax.") or node.module == "jax"
                yield f"{node.module}.{alias.name}" if is_module or is_package or jax_s else str(node.module)


def test_the_package_was_found():
    assert {"spec.py", "planner.py", "accelerate.py"} <= {path.name for path in FILES}
    assert "jaxgroupconv.spec" in set(imports(PACKAGE / "planner.py"))


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_imports_point_in_one_direction(path):
    own = module_of(path)
    for name in imports(path):
        if name.split(".")[0] != "jaxgroupconv":
            continue
        same_folder = own.split(".")[1:2] == name.split(".")[1:2]
        assert same_folder or level(name) < level(own), f"{own} imports {name}"


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_runtime_needs_jax_and_numpy_only(path):
    for name in imports(path):
        assert name.split(".")[0] in RUNTIME
        assert "._src" not in name and not name.split(".")[-1] == "_src", f"{path.name} imports {name}"


def users_of(module):
    return {path.name for path in FILES if any(name.startswith(module) for name in imports(path))}


def test_only_rules_touches_jax_s_interpreters():
    assert users_of("jax.interpreters") | users_of("jax.extend") | users_of("jax.core") == {"rules.py"}
    assert users_of("jax.experimental.xla_metadata") == {"accelerate.py", "calls.py"}  # the mark, and XLA's attribute of calls


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_files_stay_short(path):
    assert len(path.read_text().splitlines()) <= 350


def test_public_names_are_one_sorted_list():
    assert (
        sorted(jaxgroupconv.__all__, key=lambda name: (not name.isupper(), not name[0].isupper(), name)) == jaxgroupconv.__all__
    )
    assert all(hasattr(jaxgroupconv, name) for name in jaxgroupconv.__all__)
    assert all(getattr(jaxgroupconv, name).__doc__ for name in jaxgroupconv.__all__)
