"""The memory that a recording takes does not grow with it; a process of its own each, as peaks are of processes."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

_SCRIPT = """
import resource, sys
from pathlib import Path
from parp_cli.stages.transcribe import transcribe

made = transcribe(Path(sys.argv[1]), [sys.argv[2]])
assert made.error() is None
print(made.audio_seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is in kB there")
def test_memory_does_not_grow_with_the_recording(trained: Path, tmp_path: Path) -> None:
    peaks = []
    for minutes in (4, 24):
        path = tmp_path / f"{minutes}.flac"
        with soundfile.SoundFile(path, "w", 16_000, 1) as file:
            for minute in range(minutes):
                file.write(0.1 * np.random.default_rng(minute).standard_normal(60 * 16_000))
        command = [sys.executable, "-c", _SCRIPT, str(trained), str(path)]
        seconds, peak = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
        assert float(seconds) == 60 * minutes
        peaks.append(int(peak) / 1024)
    # The samples alone are 77 MB more.
    assert peaks[1] - peaks[0] < 40
