from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from rali_core.checkpoint import load_model
from rali_core.training import optimise as optimise_module
from rali_core.training.optimise import OptimiserConfig, draw_curves, freeze_blocks, make_optimiser, optimise

CONFIG = OptimiserConfig(steps=40, learning_rate=0.05, head_learning_rate=0.05, warmup_steps=5, weight_decay=0.0)


class Noisy(nn.Module):
    """A line with dropout: every step draws from torch's generator."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 1)
        self.dropout = nn.Dropout(0.3)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.linear(self.dropout(inputs)).squeeze(-1)  # type: ignore[no-any-return]


def draw(step: int) -> Tensor:
    return torch.randn(16, 3, generator=torch.Generator().manual_seed(step))


def run(  # type: ignore[type-arg]
    folder: Path,
    *,
    config: OptimiserConfig = CONFIG,
    stop_at: int | None = None,
    ema_decay: float = 0.9,
    workers: int = 0,
) -> tuple[Noisy, list]:
    torch.manual_seed(0)
    model = Noisy()
    optimiser = torch.optim.AdamW(model.parameters(), lr=0.05)

    def backward(batch: Tensor) -> dict[str, Tensor]:
        loss = (model(batch) - batch.sum(dim=1)).square().mean()
        loss.backward()
        return {"loss": loss.detach()}

    def draw_until(step: int) -> Tensor:
        if step == stop_at:
            raise KeyboardInterrupt
        return draw(step)

    log = optimise(
        model, optimiser, draw_until, backward, config=config, folder=folder, inputs={"a": 1},
        ema_decay=ema_decay, workers=workers, validate=lambda m: {"bias": float(m.linear.bias.detach())}, validate_every=20,
    )  # fmt: skip
    return model, log


def test_the_loss_falls_and_the_log_says_so(tmp_path: Path) -> None:
    _, log = run(tmp_path)
    assert [entry["step"] for entry in log] == [10, 20, 30, 40]
    assert log[-1]["loss"] < log[0]["loss"] / 2
    assert [step for step in (10, 20, 30, 40) if "bias" in log[step // 10 - 1]] == [20, 40]
    assert [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()] == log
    draw_curves(log, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").stat().st_size > 10_000


@pytest.mark.parametrize("stop_at", [3, 17, 38])
def test_a_stopped_and_resumed_training_equals_one_that_was_not(
    stop_at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(optimise_module, "CHECKPOINT_SECONDS", 0.0)
    whole, log = run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "stopped", stop_at=stop_at)
    resumed, again = run(tmp_path / "stopped")
    assert again == log
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name


def test_a_longer_schedule_stopped_early_follows_the_whole_schedule(tmp_path: Path) -> None:
    _, whole = run(tmp_path / "whole", config=replace(CONFIG, steps=80))
    _, half = run(tmp_path / "half", config=replace(CONFIG, schedule_steps=80))
    _, plain = run(tmp_path / "plain")
    assert half == whole[:4]
    assert plain[-1]["loss"] != half[-1]["loss"], "a cosine of 40 steps is another way"


def test_batches_drawn_in_other_processes_change_nothing(tmp_path: Path) -> None:
    here, log = run(tmp_path / "here")
    there, again = run(tmp_path / "there", workers=1)
    assert log == again
    assert torch.equal(here.linear.weight, there.linear.weight)


def test_a_checkpoint_of_other_inputs_is_refused(tmp_path: Path) -> None:
    run(tmp_path)
    model = Noisy()
    with pytest.raises(ValueError, match="belongs to a training with other inputs"):
        optimise(
            model, torch.optim.AdamW(model.parameters()), draw, lambda *_: {}, config=CONFIG, folder=tmp_path,
            inputs={"a": 2},
        )  # fmt: skip


def test_the_average_of_the_weights_comes_out(tmp_path: Path) -> None:
    averaged, _ = run(tmp_path / "a", ema_decay=0.999)
    last, _ = run(tmp_path / "b", ema_decay=0.0)
    assert not torch.equal(averaged.linear.weight, last.linear.weight)


def test_earlier_blocks_learn_more_slowly_and_frozen_ones_not_at_all(dino_file: Path) -> None:
    encoder = load_model(dino_file).model.encoder
    freeze_blocks(encoder, 9)
    trained = {name.split(".")[2] for name, p in encoder.named_parameters() if p.requires_grad and "blocks" in name}
    assert trained == {"9", "10", "11"}
    assert not encoder.trunk.pos_embed.requires_grad
    config = OptimiserConfig(learning_rate=1.0, layer_decay=0.5, head_learning_rate=9.0)
    optimiser = make_optimiser(encoder, nn.Linear(96, 1), config)
    assert sorted({group["lr"] for group in optimiser.param_groups}) == [0.25, 0.5, 1.0, 9.0]
    freeze_blocks(encoder, 0)
    assert encoder.trunk.blocks[0].norm1.weight.requires_grad
    assert not encoder.trunk.pos_embed.requires_grad, "tokens are computed before"
    with pytest.raises(ValueError, match=r"frozen_blocks must lie in 0\.\.11 for this encoder of 12 blocks, got 12"):
        freeze_blocks(encoder, 12)
    with pytest.raises(ValueError, match="training needs a plain vision transformer .* got Linear"):
        freeze_blocks(nn.Linear(2, 2), 1)


def test_clips_encoder_has_layers_too(tiny_model: nn.Module) -> None:
    freeze_blocks(tiny_model.encoder, 1)
    trained = [name for name, parameter in tiny_model.encoder.named_parameters() if parameter.requires_grad]
    assert {name.split(".")[0] for name in trained} == {"transformer", "ln_post", "proj"}
    assert all("resblocks.1." in name for name in trained if name.startswith("transformer"))
