import subprocess
import sys

import pytest

import vimoe


def test_every_public_name_is_there_and_documented() -> None:
    for name in vimoe.__all__:
        assert getattr(vimoe, name).__doc__, name


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'upcylce'"):
        _ = vimoe.upcylce


def test_importing_the_package_does_not_import_torch() -> None:
    code = "import sys, vimoe; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
