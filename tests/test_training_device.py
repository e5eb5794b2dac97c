"""Training on a GPU, without one: torch's fake tensors do no arithmetic, but refuse to mix devices as a GPU would."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from rali_core.checkpoint import load_model
from rali_core.cli import main
from rali_core.devices import device_of, training_device
from rali_core.training import align, joint
from rali_core.training.contrast import EmbeddingQueue, TextProjection
from rali_core.training.ordered import OrderedGroup
from rali_core.training.tokens import LowerBlocks, UpperBlocks, iterate_embeddings

GPU = torch.device("cuda", 0)


@contextmanager
def pretended_gpu(*modules: nn.Module) -> Iterator[None]:
    """Within it the modules' tensors are on a GPU, as far as anyone can tell."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        for module in modules:
            for part in module.modules():
                for name, parameter in part.named_parameters(recurse=False):
                    setattr(part, name, nn.Parameter(torch.empty(parameter.shape, device=GPU)))
                for name, buffer in part.named_buffers(recurse=False):
                    part.register_buffer(name, torch.empty(buffer.shape, dtype=buffer.dtype, device=GPU))
        yield


@pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU, all tests of training compute on it")
def test_the_pretence_refuses_what_a_gpu_refuses() -> None:
    layer = nn.Linear(3, 2)
    with pretended_gpu(layer), pytest.raises(RuntimeError, match="same device"):
        layer(torch.zeros(1, 3))


@pytest.mark.parametrize("kept", [1.0, 0.5])
def test_a_joint_step_keeps_to_the_models_device(dino_file: Path, kept: float) -> None:
    model = load_model(dino_file).model
    size = model.preprocess_config.image_size
    groups = [OrderedGroup("x.png", True, "noise", 1, 4, seed=0), OrderedGroup("y.png", False, "warp", 2, 5, seed=1)]
    pictures = np.zeros((5, size, size, 3), dtype=np.uint8)
    ordered = joint.OrderedPictures(groups, np.zeros((2, 3, size, size, 3), dtype=np.uint8))
    settings = joint.JointSettings(
        image_size=size, frozen_blocks=1, batch_size=4, groups_per_batch=2, steady_weight=1.0, steady_pictures=2,
        kept_patches=kept,
    )  # fmt: skip
    with pretended_gpu(model):
        upper = joint._Upper(model, settings.frozen_blocks)
        lower = LowerBlocks(model.encoder, settings.frozen_blocks)
        patches = lower.trunk.pos_embed.shape[1] - lower.trunk.num_prefix_tokens
        embed = joint._make_embedder(lower, model.preprocess_config)
        batch = joint._draw_batch(joint._Pictures([pictures]), ordered, patches, settings, 0)
        loss, parts = joint._step(upper, embed, batch, np.linspace(0, 1, 5), ordered, settings)
        assert loss.device == GPU  # a backward pass cannot be pretended
        assert {"smooth L1", "1 - PLCC", "order", "anchor", "steady", "steady, labelled"} < set(parts)
        assert all(part.device == GPU for part in parts.values())
        assert joint.embed_pictures(model, pictures).device == torch.device("cpu")


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_batches_that_are_drawn_ahead_are_those_of_their_steps(threads: int) -> None:
    random = np.random.default_rng(0)
    pictures = joint._Pictures([random.integers(0, 256, (9, 28, 28, 3), dtype=np.uint8)])
    groups = [OrderedGroup("x.png", True, "noise", 1, 4, seed=seed) for seed in range(3)]
    ordered = joint.OrderedPictures(groups, random.integers(0, 256, (3, 3, 28, 28, 3), dtype=np.uint8))
    settings = joint.JointSettings(
        image_size=28, steps=7, batch_size=4, groups_per_batch=2, steady_weight=1.0, steady_pictures=2, kept_patches=0.5
    )
    draw = partial(joint._draw_batch, pictures, ordered, 4, settings)
    batches = list(joint._draw_ahead(draw, range(2, 7), threads))
    assert len(batches) == 5
    for step, batch in enumerate(batches, start=2):
        for mine, expected in zip(vars(batch).values(), vars(draw(step)).values(), strict=True):
            assert np.array_equal(mine, expected)
    assert len({tuple(batch.chosen) for batch in batches}) == 5

    def fail(step: int) -> joint._Batch:
        raise OSError(f"step {step}")

    with pytest.raises(OSError, match="step 2"):
        list(joint._draw_ahead(fail, range(2, 7), threads))


def test_an_alignment_step_keeps_to_the_models_device(dino_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def only_forward(
        encode: Callable[[Tensor], Tensor], chunks: Sequence[Tensor], loss: Callable[[Tensor], Tensor]
    ) -> Tensor:
        return loss(torch.cat([encode(chunk) for chunk in chunks]))

    monkeypatch.setattr(align, "backward_in_chunks", only_forward)  # a backward pass cannot be pretended
    model = load_model(dino_file).model
    width, size = model.encoder_config.embed_dim, model.preprocess_config.image_size
    projection = TextProjection(width, 6)
    with torch.inference_mode():
        shape = LowerBlocks(model.encoder, 1)(torch.zeros(4, 3, size, size)).shape
    batch = torch.zeros(shape), torch.arange(4), torch.zeros(8, 6), torch.arange(4).repeat(2)
    queues = EmbeddingQueue(4), EmbeddingQueue(4)
    settings = align.AlignSettings(batch_size=4, chunk_size=2, queue_size=4)
    with pretended_gpu(model, projection):
        upper = UpperBlocks(model.encoder, 1)
        for _ in range(2):  # the second time, the queues are full
            loss = align._step(upper, projection, batch, queues, settings)
        assert loss.device == GPU
        assert queues[0].content is not None
        assert queues[0].content[0].device == GPU
        embeddings = torch.cat(list(iterate_embeddings(upper, np.zeros(shape, np.float16), np.arange(4))))
        assert embeddings.device == torch.device("cpu")
        assert device_of(upper) == GPU


def test_a_device_that_is_not_there_is_refused_before_anything_is_read(capsys: pytest.CaptureFixture[str]) -> None:
    assert training_device("cpu") == torch.device("cpu")
    assert training_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    arguments = ["tune", "no-such.safetensors", "no-such.csv", "-o", "x.safetensors", "--work-dir", "w"]
    assert main([*arguments, "--device", "abacus"]) != 0
    assert "unknown device 'abacus'" in capsys.readouterr().err
