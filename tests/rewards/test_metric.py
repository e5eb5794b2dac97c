from __future__ import annotations

import os
import pickle
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torchmetrics")
ROOT = Path(__file__).resolve().parents[2]


def test_the_metric_is_the_mean_over_all_updates(tiny_scorer: Any, pixels: Any, pil_images: Any) -> None:
    from rali_core.rewards import RaliImageQuality

    metric = RaliImageQuality(tiny_scorer)
    metric.update(pixels[:2])
    metric.update(pil_images[2:])
    expected = tiny_scorer.score(pixels).scores.mean()
    assert float(metric.compute()) == pytest.approx(expected, abs=1e-6)
    assert float(metric(pixels[:1])) == pytest.approx(tiny_scorer.score(pixels[:1]).scores[0], abs=1e-6)
    metric.reset()
    with pytest.raises(ValueError, match="no image was added"), pytest.warns(UserWarning, match="before the"):
        metric.compute()


def test_the_metric_is_picklable_and_mergeable(tiny_file: Any, pixels: Any) -> None:
    from rali_core.rewards import RaliImageQuality

    metric = RaliImageQuality(tiny_file, device="cpu")
    metric.update(pixels[:2])
    copy = pickle.loads(pickle.dumps(metric))
    copy.update(pixels[2:])
    assert int(copy.count) == 5
    assert metric.higher_is_better
    assert float(copy.compute()) > 0


SCRIPT = """
import sys, torch
from accelerate import Accelerator
from rali_core.rewards import RaliImageQuality, RaliReward

accelerator = Accelerator(cpu=True)
assert accelerator.num_processes == 2
torch.set_num_threads(1)
pixels = torch.rand(5, 3, 40, 40, generator=torch.Generator().manual_seed(0))
reward = RaliReward(sys.argv[1], device=accelerator.device)
whole = reward.tensor(pixels)
mine = pixels[:2] if accelerator.is_main_process else pixels[2:4]
gathered = accelerator.gather(reward.tensor(mine))
assert torch.allclose(gathered, whole[:4], atol=1e-6), (gathered, whole)
metric = RaliImageQuality(sys.argv[1], device="cpu")
metric.update(pixels[:1] if accelerator.is_main_process else pixels[1:])
assert abs(float(metric.compute()) - float(whole.mean())) < 1e-6
accelerator.end_training()
print("process", accelerator.process_index, "is done")
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_two_accelerate_processes_share_the_work(tiny_file: Any, tmp_path: Any) -> None:
    pytest.importorskip("accelerate")
    script = tmp_path / "two.py"
    script.write_text(SCRIPT)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    # accelerate's own launcher starts several CPU processes through MPI only; torchrun's environment is understood too.
    environment["ACCELERATE_USE_CPU"] = "true"
    command = [
        sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--nproc_per_node", "2",
        "--master_addr", "127.0.0.1", "--master_port", str(free_port()), str(script), str(tiny_file),
    ]  # fmt: skip
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("is done") == 2


def test_without_torchmetrics_the_error_says_what_to_install() -> None:
    code = (
        "import sys; sys.modules['torchmetrics'] = None\n"
        "try:\n    from rali_core.rewards import RaliImageQuality\n"
        "except ModuleNotFoundError as error:\n    assert 'pip install' in str(error), error\nelse:\n    sys.exit(1)\n"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, cwd=ROOT)
