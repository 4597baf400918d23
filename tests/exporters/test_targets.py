from pathlib import Path
from typing import get_args, get_type_hints

import pytest

from parp_cli.cli import commands
from parp_cli.errors import UsageError
from parp_cli.exporters.targets import TARGETS
from parp_cli.stages.export import export
from parp_cli.storage.run_folder import EXPORTS


def test_the_command_and_the_run_folder_know_every_target() -> None:
    assert set(get_args(get_type_hints(commands.export)["to"])) == set(TARGETS)
    with_int8 = {f"{name}-int8" for name, target in TARGETS.items() if target.int8}
    assert set(EXPORTS) == {*TARGETS, *with_int8}


def test_a_target_that_there_is_not(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no export to 'coreml'"):
        export(tmp_path / "model.safetensors", to="coreml", out=tmp_path / "out")


def test_options_go_with_some_targets(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--int8 goes with --to onnx, sherpa, gguf or sparse, not with --to hf"):
        export(tmp_path / "model.safetensors", to="hf", out=tmp_path / "out", int8=True)
    with pytest.raises(UsageError, match="--values goes with --to packed, not with --to onnx"):
        export(tmp_path / "model.safetensors", to="onnx", out=tmp_path / "out", values="int8")
