"""How setuptools builds the compiled kernel of the fold, which is optional (``cmdclass`` in pyproject.toml)."""

from __future__ import annotations

import sysconfig
from pathlib import Path

from setuptools import Extension
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext


class BuildKernel(build_ext):  # type: ignore[misc]  # setuptools has no types
    """Compiles the kernel anew: where that fails, nothing from an earlier build is left to be packed instead."""

    def build_extension(self, ext: Extension) -> None:
        """Remove what an earlier build left in the build folder, and compile."""
        Path(self.get_ext_fullpath(ext.name)).unlink(missing_ok=True)
        super().build_extension(ext)


class BuildWheel(bdist_wheel):  # type: ignore[misc]  # setuptools has no types
    """Makes one wheel for all versions of Python, which setuptools refuses where there is no stable ABI."""

    def finalize_options(self) -> None:
        """For free-threaded Python make a wheel of its own; the kernel is not compiled there, and numpy is used."""
        if sysconfig.get_config_var("Py_GIL_DISABLED"):
            self.py_limited_api = ""
        super().finalize_options()
