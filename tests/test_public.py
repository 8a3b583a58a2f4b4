"""What `import isdt_policy` promises: its public names, and nothing heavy before they are used."""

import subprocess
import sys

import pytest

import isdt_policy

HEAVY = ("torch", "hydra", "matplotlib", "mujoco", "pymunk")


def python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.parametrize("name", ["DemoStore", "Policy", "Protocol", "compose_config", "evaluate", "make_env", "train"])
def test_every_public_name_is_there(name):
    assert callable(getattr(isdt_policy, name))
    assert name in isdt_policy.__all__
    assert name in dir(isdt_policy)


def test_another_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'polcy'"):
        _ = isdt_policy.polcy


@pytest.mark.parametrize("module", ["isdt_policy", "isdt_policy.envs", "isdt_policy.datasets", "isdt_policy.eval"])
def test_a_package_that_does_not_compute_does_not_load_torch(module):
    assert python(f"import sys, {module}; print([m for m in {HEAVY} if m in sys.modules])") == "[]"


def test_the_package_itself_is_imported_in_no_time():
    """0.05 s; the best of five, because other programs run beside the tests."""
    code = "import time; a = time.process_time(); import isdt_policy; print(time.process_time() - a)"
    assert min(float(python(code)) for _ in range(5)) < 0.05
