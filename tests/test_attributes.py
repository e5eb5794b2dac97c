"""Image attributes: the probes in a model file, what a scorer tells with them, and what the cache keeps of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from rali_core.attributes import Attribute, AttributeProbes, from_metadata, to_metadata
from rali_core.checkpoint import ModelInfo
from rali_core.content import NO_CONTENT
from rali_core.model import RaliModel
from rali_core.score_cache import ScoreCache
from rali_core.scorer import RaliScorer


def noise_images(count: int) -> list[np.ndarray]:
    random = np.random.default_rng(3)
    return [random.integers(0, 256, (40 + 9 * index, 50, 3), dtype=np.uint8) for index in range(count)]


def test_the_words_are_of_what_reaches_its_threshold_most_severe_first() -> None:
    attributes = (Attribute("blur", "blurred", 0.5, 0.97), Attribute("noise", "noisy", 0.25, 0.91))
    probes = AttributeProbes(attributes, 4)
    assert probes.describe([0.49, 0.24]).words == ()
    assert probes.describe([0.5, 0.24]).words == ("blurred",)
    assert probes.describe([0.6, 0.9]).words == ("noisy", "blurred"), "by how far each is beyond its own threshold"
    assert probes.describe([0.6, 0.9]).values == {"blur": 0.6, "noise": 0.9}


@pytest.mark.parametrize("coverage", ["center", "tiles", "full"])
def test_a_score_comes_with_severities_averaged_over_its_crops_as_it_is(
    coverage: str, probing_model: RaliModel, tiny_info: ModelInfo
) -> None:
    scorer = RaliScorer(probing_model, tiny_info, device="cpu", coverage=coverage, attributes=True)  # type: ignore[arg-type]
    images = noise_images(5)
    together = scorer.score(images)
    plain = scorer.score(images, attributes=False)
    assert np.array_equal(together.scores, plain.scores), "attributes do not touch the score"
    assert plain.attributes == ()
    for image, told in zip(images, together.attributes, strict=True):
        crops = probing_model.preprocess(torch.from_numpy(image).permute(2, 0, 1)[None] / 255, coverage=scorer.coverage)
        embedding = probing_model.embed(crops[0]).double()
        probes = probing_model.state_dict()
        logits = embedding @ probes["probes.weight"].double().T + probes["probes.bias"].double()
        shares = probing_model.view_weights(*image.shape[:2], coverage=scorer.coverage).double()
        expected = shares @ (1 / (1 + torch.exp(-logits)))
        assert told is not None
        assert list(told.values) == ["blur", "noise"]
        assert list(told.values.values()) == pytest.approx(expected.tolist(), abs=1e-5)
        alone = next(iter(scorer.stream(image))).attributes
        assert alone is not None
        assert alone.values == pytest.approx(told.values, abs=1e-5)
    assert len({tuple(told.values.values()) for told in together.attributes if told}) == 5


def test_each_part_of_an_image_has_severities_of_its_own(probing_model: RaliModel, tiny_info: ModelInfo) -> None:
    scorer = RaliScorer(probing_model, tiny_info, device="cpu", coverage="full", attributes=True)
    image = torch.rand(3, 70, 150, generator=torch.Generator().manual_seed(4))
    views = scorer.score_views(image)
    told = scorer.score(image).attributes[0]
    assert told is not None
    for name, value in told.values.items():
        parts = [(part.share, part.attributes.values[name]) for part in views if part.attributes is not None]
        assert len({severity for _, severity in parts}) == len(views) > 2
        assert sum(share * severity for share, severity in parts) == pytest.approx(value, abs=1e-6)


def test_an_image_without_a_score_of_the_models_has_no_attributes(
    probing_model: RaliModel, tiny_info: ModelInfo
) -> None:
    scorer = RaliScorer(probing_model, tiny_info, device="cpu", cache=ScoreCache(), attributes=True)
    for _ in range(2):  # the second time from the cache
        result = scorer.score([noise_images(1)[0], np.zeros((40, 40, 3), np.uint8), "absent.png"], on_error="record")
        assert [told is None for told in result.attributes] == [False, True, True]
        assert (result.reasons[1], result.errors[1]) == (NO_CONTENT, None)


def test_attributes_of_a_model_without_probes_are_refused(tiny_scorer: RaliScorer, tiny_model: RaliModel) -> None:
    message = "the model 'tiny' tells no attributes, because its file has no probes"
    with pytest.raises(ValueError, match=message):
        tiny_scorer.score(noise_images(1), attributes=True)
    with pytest.raises(ValueError, match=message):
        RaliScorer(tiny_model, tiny_scorer.info, device="cpu", attributes=True)
    assert tiny_scorer.score(noise_images(1)).attributes == ()


def test_cached_scores_stay_and_attributes_are_kept_beside_them(
    probing_model: RaliModel, tiny_info: ModelInfo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = noise_images(3)
    probes, probing_model.probes = probing_model.probes, None
    cache = ScoreCache(folder=tmp_path)
    before = RaliScorer(probing_model, tiny_info, device="cpu", cache=cache).score(images)
    probing_model.probes = probes
    scorer = RaliScorer(probing_model, tiny_info, device="cpu", cache=cache)
    computed: list[int] = []
    embed = probing_model.embed
    monkeypatch.setattr(probing_model, "embed", lambda inputs: computed.append(len(inputs)) or embed(inputs))
    assert np.array_equal(scorer.score(images).scores, before.scores)
    assert computed == [], "probes do not make another score"
    first = scorer.score(images, attributes=True)
    assert computed == [3], "scores without attributes are computed again, once"
    again = RaliScorer(probing_model, tiny_info, device="cpu", cache=ScoreCache(folder=tmp_path), attributes=True)
    assert again.score(images).attributes == first.attributes
    assert computed == [3]
    with torch.no_grad():
        assert probes is not None
        probes.bias += 1.0
    changed = RaliScorer(probing_model, tiny_info, device="cpu", cache=cache).score(images, attributes=True)
    assert all(new and old and new.values["blur"] > old.values["blur"] for new, old in
               zip(changed.attributes, first.attributes, strict=True))  # fmt: skip


def test_an_attributes_own_values_are_checked() -> None:
    attributes = (Attribute("blur", "blurred", 0.5, 0.97), Attribute("low_contrast", "low contrast", 1.0, 0.0))
    assert from_metadata(to_metadata(attributes)) == attributes
    for name, word, threshold, auc in (
        ("a b", "x", 0.5, 1.0),
        ("a", "", 0.5, 1.0),
        ("a", "x", 0.0, 1.0),
        ("a", "x", 1.0, 2.0),
    ):
        with pytest.raises(ValueError, match="expected a"):
            Attribute(name, word, threshold, auc)
