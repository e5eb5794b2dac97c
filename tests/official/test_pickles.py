from __future__ import annotations

import io
import pickle
import subprocess
import sys
from pathlib import Path

import joblib
import numpy as np
import pytest
from sklearn.decomposition import PCA, IncrementalPCA

from rali_core.official.errors import ReleaseError
from rali_core.official.pca_file import MAX_BYTES, read_pca
from rali_core.official.pickles import read_pickle


@pytest.fixture(scope="module")
def fitted() -> dict[str, PCA | IncrementalPCA]:
    features = np.random.default_rng(0).normal(3.0, 2.0, (60, 7)).astype(np.float32)
    return {"PCA": PCA(4).fit(features), "IncrementalPCA": IncrementalPCA(4).fit(features)}


@pytest.mark.parametrize("estimator", ["PCA", "IncrementalPCA"])
@pytest.mark.parametrize("compress", [0, ("zlib", 3), ("gzip", 3), ("bz2", 3), ("lzma", 3), ("xz", 3)])
def test_a_joblib_file_gives_the_values_that_joblib_reads(
    fitted: dict, estimator: str, compress: object, tmp_path: Path
) -> None:
    joblib.dump(fitted[estimator], tmp_path / "pca.pkl", compress=compress)
    record = read_pca(tmp_path / "pca.pkl")
    assert record.estimator == estimator
    assert record.sklearn_version is not None
    assert record.mean == pytest.approx(fitted[estimator].mean_, rel=1e-6)
    assert record.components_shape == (4, 7)


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("estimator", ["PCA", "IncrementalPCA"])
def test_every_pickle_protocol_is_read(fitted: dict, estimator: str, protocol: int) -> None:
    record = read_pickle(pickle.dumps(fitted[estimator], protocol=protocol))
    for name, value in vars(fitted[estimator]).items():
        found = record.attributes[name]
        found = found.value if hasattr(found, "value") else found
        if isinstance(value, np.ndarray):
            assert np.array_equal(found, value), name
            assert found.dtype == value.dtype, name
        else:
            assert found == value, name


@pytest.mark.parametrize("protocol", range(6))
def test_a_joblib_file_of_every_protocol_is_read(fitted: dict, protocol: int, tmp_path: Path) -> None:
    joblib.dump(fitted["PCA"], tmp_path / "pca.pkl", protocol=protocol)
    assert read_pca(tmp_path / "pca.pkl").mean == pytest.approx(fitted["PCA"].mean_, rel=1e-6)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"sklearn.decomposition._pca", b"sklearn.decomposition.pca"),  # up to 0.21
        (b"numpy._core.multiarray", b"numpy.core.multiarray"),  # numpy 1
        (b"joblib.numpy_pickle", b"sklearn.externals.joblib.numpy_pickle"),  # up to 0.22
    ],
)
def test_the_module_names_of_older_versions_are_known(fitted: dict, old: bytes, new: bytes, tmp_path: Path) -> None:
    # Protocol 2 writes module names as lines, without their lengths.
    joblib.dump(fitted["PCA"], tmp_path / "pca.pkl", protocol=2)
    data = (tmp_path / "pca.pkl").read_bytes()
    assert b"c" + old + b"\n" in data
    (tmp_path / "pca.pkl").write_bytes(data.replace(b"c" + old + b"\n", b"c" + new + b"\n"))
    assert read_pca(tmp_path / "pca.pkl").mean == pytest.approx(fitted["PCA"].mean_, rel=1e-6)


def test_arrays_in_fortran_order_and_of_the_other_byte_order_are_read() -> None:
    arrays = {
        "f": np.asfortranarray(np.arange(12.0).reshape(3, 4)),
        "big": np.arange(5, dtype=">f4"),
        "none": np.zeros((0, 3)),
    }
    found = read_pickle(pickle.dumps(arrays, protocol=4))
    for name, array in arrays.items():
        assert np.array_equal(found[name].value, array)
        assert found[name].value.shape == array.shape


def test_a_file_without_the_mean_is_refused(tmp_path: Path) -> None:
    joblib.dump(PCA(4), tmp_path / "pca.pkl")
    with pytest.raises(ReleaseError, match="the PCA has no mean_.*every score would be wrong"):
        read_pca(tmp_path / "pca.pkl")


@pytest.mark.parametrize(
    ("mean", "message"),
    [
        (np.full(7, np.nan), "mean_: holds NaN or infinite values"),
        (np.full(7, 1e300), "mean_: holds NaN or infinite values"),  # beyond float32
        (np.zeros((7, 1)), r"mean_: expected a vector of floats, got shape \(7, 1\)"),
        (np.zeros(7, dtype=int), "mean_: expected a vector of floats, got shape .* of int64"),
    ],
)
def test_an_unusable_mean_is_refused(fitted: dict, mean: np.ndarray, message: str, tmp_path: Path) -> None:
    pca = pickle.loads(pickle.dumps(fitted["PCA"]))
    pca.mean_ = mean
    joblib.dump(pca, tmp_path / "pca.pkl")
    with pytest.raises(ReleaseError, match=message):
        read_pca(tmp_path / "pca.pkl")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "damaged pickle"),
        (b"\x80\x04", "damaged pickle"),
        (b"not a pickle", "damaged pickle|refused"),
        (pickle.dumps({"mean_": [1.0]}), "expected a fitted scikit-learn PCA, got dict"),
        (b"\x78\x9c\x00\x01", "damaged compressed file"),
        (b"\x04\x22\x4d\x18rest", "compressed with lz4"),
        (b"ZF0x1 rest", "a joblib before 0.10"),
        (pickle.dumps({3: 1}), "a dictionary whose keys are not texts"),
        (pickle.dumps({1, 2}), "the pickle uses EMPTY_SET"),
    ],
)
def test_other_files_are_refused_with_the_reason(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "pca.pkl").write_bytes(content)
    with pytest.raises(ReleaseError, match=message):
        read_pca(tmp_path / "pca.pkl")


def test_a_file_too_large_for_a_pca_is_not_even_read(tmp_path: Path) -> None:
    with (tmp_path / "pca.pkl").open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    with pytest.raises(ReleaseError, match="larger than 128 MiB"):
        read_pca(tmp_path / "pca.pkl")


def test_an_array_that_claims_more_than_the_file_holds_reserves_no_memory() -> None:
    data = pickle.dumps(np.zeros(3), protocol=2).replace(b"K\x03\x85", b"J\xff\xff\xff\x7f\x85")
    with pytest.raises(ReleaseError, match="an array has more or fewer bytes than its shape needs"):
        read_pickle(data)


def test_deep_nesting_is_no_way_to_crash() -> None:
    deep = b"\x80\x04" + b")" + b"\x85" * 1_000_000 + b"."
    assert isinstance(read_pickle(deep), tuple)
    as_key = b"\x80\x04}" + b")" + b"\x85" * 1_000_000 + b"K\x01s."
    with pytest.raises(ReleaseError, match="keys are not texts"):
        read_pickle(as_key)


def test_reading_needs_neither_scikit_learn_nor_joblib_nor_torch(
    fitted: dict, tmp_path: Path, environment: dict[str, str]
) -> None:
    joblib.dump(fitted["PCA"], tmp_path / "pca.pkl")
    program = (
        "import sys\nfrom pathlib import Path\nfrom rali_core.official.pca_file import read_pca\n"
        "read_pca(Path(sys.argv[1]))\n"
        "print([name for name in ('sklearn', 'joblib', 'transformers', 'torch', 'scipy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path / "pca.pkl")], env=environment, capture_output=True, text=True)  # fmt: skip
    assert done.stdout.strip() == "[]", done.stderr


def test_names_that_are_not_known_are_refused_by_name() -> None:
    with pytest.raises(ReleaseError, match=r"asks for builtins\.eval, which is not part of a fitted PCA"):
        read_pickle(pickle.dumps(eval))
    with pytest.raises(ReleaseError, match=r"asks for _io\.BytesIO"):
        read_pickle(pickle.dumps(io.BytesIO()))
