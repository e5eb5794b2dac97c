"""A real Ray cluster of three nodes, each with its own raylet and object store, on this machine."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rali_core.dataset import DatasetResult, RaliBatchScorer, engine_ray
from rali_core.scorer import RaliScorer

from .conftest import approximately, encode, make_image, read_rows

ray = pytest.importorskip("ray")

Score = Callable[..., DatasetResult]

# Ray's own code warns, and leaves files and sockets to the end of the process.
pytestmark = [
    # Ray's workers run at low priority: beside other tests they starve, so `.ci/run` runs these by themselves.
    pytest.mark.skipif(
        not os.environ.get("RALI_RAY"), reason="a Ray cluster takes minutes and idle processors: set RALI_RAY=1"
    ),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning:ray"),
]

NODES = 3


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Three nodes of one processor each; `RAY_ADDRESS` leads to it, and the workers find the tests' plugins."""
    from ray.cluster_utils import Cluster

    here, repository = Path(__file__).parent, Path(__file__).resolve().parents[2]
    before = dict(os.environ)
    os.environ["PYTHONPATH"] = os.pathsep.join([str(repository), str(here), os.environ.get("PYTHONPATH", "")])
    os.environ |= {"RAY_DATA_DISABLE_PROGRESS_BARS": "1", "OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0"}
    made = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 1, "object_store_memory": 100 * 2**20, "include_dashboard": False},
    )
    for _ in range(NODES - 1):
        made.add_node(num_cpus=1, object_store_memory=100 * 2**20)
    made.wait_for_nodes()
    os.environ["RAY_ADDRESS"] = made.address
    ray.init(log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    yield made
    ray.shutdown()
    made.shutdown()
    os.environ.clear()
    os.environ.update(before)


def count_living() -> int:
    return sum(node["Alive"] for node in ray.nodes())


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_a_cluster_gives_the_same_rows_as_one_machine_and_resumes(photos: Path, score: Score, tmp_path: Path) -> None:
    assert count_living() == NODES
    assert ray.get_runtime_context().gcs_address == os.environ["RAY_ADDRESS"]
    score(photos, "local")
    options = {"engine": "ray", "cpus_per_actor": 1}
    first = score(photos, progress=lambda done, total: done < 5, **options)  # noqa: ARG005
    assert first.stopped
    assert 5 <= first.done < 21
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("part-*")}
    second = score(photos, **options)
    assert (second.done, second.stopped) == (21, False)
    assert second.scored_now <= 21 - first.done
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in stamps.items())
    assert read_rows(tmp_path / "out") == approximately(read_rows(tmp_path / "local"))


@pytest.mark.parametrize(
    "error",
    [ValueError("odd"), FileNotFoundError("no model"), FileNotFoundError(2, "gone"), OSError(28, "disk full"),
     json.JSONDecodeError("no JSON", "x", 0), UnicodeDecodeError("ascii", b"x", 0, 1, "no text")],
)  # fmt: skip
def test_errors_of_actors_travel_as_text(error: OSError | ValueError) -> None:
    received = engine_ray._unpack(engine_ray._pack(error))
    assert isinstance(error, type(received))
    assert type(received).__module__ == "builtins"
    assert str(received) == str(error)


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_an_actors_error_is_reported_in_its_own_words(photos: Path, score: Score, tmp_path: Path) -> None:
    assert count_living() >= 1
    with pytest.raises(ValueError, match="no machine of the Ray cluster has 99 processors and 0 GPUs"):
        score(photos, engine="ray", cpus_per_actor=99)
    (tmp_path / "out" / "part-000000.parquet").mkdir()
    with pytest.raises(OSError, match=r"part-000000\.parquet cannot be written: Is a directory"):
        score(photos, engine="ray", cpus_per_actor=1)


@pytest.mark.slow
def test_a_node_that_is_killed_in_the_middle_costs_nothing(
    cluster: Any, score: Score, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    random = np.random.default_rng(0)
    photos = tmp_path / "slow"
    photos.mkdir()
    for number in range(90):
        (photos / f"{number:02d}.png").write_bytes(b"SLOW" + random.integers(0, 256, 4800, dtype=np.uint8).tobytes())
    victim = cluster.list_all_nodes()[-1]
    events: list[int] = []

    def kill_when_it_works(done: int, total: int | None) -> None:
        assert total == 90
        alive = [actor for actor in ray._private.state.actors().values() if actor["State"] == "ALIVE"]
        working = [actor for actor in alive if actor["Address"]["NodeID"] == victim.node_id]
        if working and not events and done >= 3:
            events.append(done)
            cluster.remove_node(victim, allow_graceful=False)

    context = ray.data.DataContext.get_current()
    context.wait_for_min_actors_s = 300
    result = score(
        photos, engine="ray", cpus_per_actor=1, shard_size=3, plugins=["slow_format"], progress=kill_when_it_works
    )
    assert events, "the node had an actor and was killed"
    assert events[0] < 90
    assert count_living() == NODES - 1
    assert (result.done, result.stopped) == (90, False)
    rows = read_rows(tmp_path / "out")
    assert len(rows) == 90
    assert all(row["error"] is None for row in rows.values())
    score(photos, "local", shard_size=3, plugins=["slow_format"], workers=3)
    assert rows == approximately(read_rows(tmp_path / "local"))


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_the_batch_scorer_works_in_a_pipeline_of_ray_data(parquet_file: Path, tiny_file: Path) -> None:
    assert count_living() >= 1
    scored = ray.data.read_parquet(str(parquet_file)).map_batches(
        RaliBatchScorer,
        fn_constructor_kwargs={"model": str(tiny_file), "device": "cpu"},
        batch_size=4,
        num_cpus=1,
        compute=ray.data.ActorPoolStrategy(size=1),
    )
    found = {row["key"]: row["score"] for row in scored.take_all()}
    expected = RaliScorer.from_pretrained(tiny_file, device="cpu").score([make_image(n) for n in range(11)]).scores
    assert [found[f"k{number}"] for number in range(11)] == pytest.approx(expected.tolist(), abs=1e-6)


def test_the_batch_scorer_takes_every_kind_of_image_and_reports_errors(tiny_file: Path, tmp_path: Path) -> None:
    make_image(3).save(tmp_path / "three.png")
    images = np.empty(7, dtype=object)
    images[:] = [
        encode(3), str(tmp_path / "three.png"), {"bytes": encode(3), "path": None}, np.asarray(make_image(3)),
        b"no image", None, str(tmp_path / "gone.png"),
    ]  # fmt: skip
    scorer = RaliBatchScorer(tiny_file, image_column="photo", device="cpu", batch_size=3)
    made = scorer({"photo": images, "key": np.arange(7)})
    assert list(made) == ["photo", "key", "score", "band", "percentile", "width", "height", "error", "reason"]
    expected = float(RaliScorer.from_pretrained(tiny_file, device="cpu").score(make_image(3)).scores[0])
    assert made["score"][:4].tolist() == pytest.approx([expected] * 4, abs=1e-6)
    assert np.isnan(made["score"][4:]).all()
    assert (made["width"][0], made["height"][0]) == make_image(3).size
    assert made["error"][:4].tolist() == [""] * 4
    assert "not an image that Pillow can read" in made["error"][4]
    assert made["error"][5] == "the image column is empty here"
    assert "no such file" in made["error"][6]
    with pytest.raises(ValueError, match="there is no column 'photo'; the columns are image"):
        scorer({"image": images})
