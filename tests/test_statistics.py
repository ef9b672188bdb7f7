"""Statistics of features: as they stream by, in files of ours and of other tools."""

import errno
import json

import numpy as np
import pytest

from ddpm_jax.files import atomic_write, read_arrays
from ddpm_jax.metrics import statistics
from ddpm_jax.metrics.features.base import Outputs

NUM, DIM = 60, 4
PROTOCOL = {
    "features": {"name": "pixels", "weights": None},
    "image_shape": [8, 8, 1],
    "images": {"some": [1, 2.5, "ä"], "true": True},
}


def normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


ALL = Outputs(normal(0, NUM, DIM) + 100, normal(1, NUM, 10), normal(2, NUM, 3))


def part(outputs, start, stop):
    cut = lambda x: None if x is None else x[start:stop]
    return Outputs(*(cut(each) for each in outputs))


def collect(batches=(ALL,), num=NUM, num_kept=7):
    return statistics.collect(batches, num, PROTOCOL, num_kept)


def assert_equal(ours, expected):
    """To the bit, with dtypes."""
    assert ours.protocol == expected.protocol and ours.num == expected.num
    for name, one, other in zip(ours._fields[2:], ours[2:], expected[2:], strict=True):
        assert (one is None) == (other is None), name
        if one is None:
            continue
        pairs = (
            zip(one, other, strict=True) if isinstance(one, tuple) else [(one, other)]
        )
        for a, b in pairs:
            assert a.dtype == b.dtype, name
            np.testing.assert_array_equal(a, b, err_msg=name)


# As they stream by.


@pytest.mark.parametrize("edges", [[30], [1, 2, 59], [*range(1, 60)], [7, 7, 50]])
@pytest.mark.parametrize("num_kept", [0, 1, 7, 59, 60, 1000])
def test_streaming_is_all_at_once(edges, num_kept):
    edges = [0, *edges, NUM]
    batches = [part(ALL, *ends) for ends in zip(edges[:-1], edges[1:], strict=True)]
    once = collect(num_kept=num_kept)
    ours = collect(iter(batches), num_kept=num_kept)
    for name in ("gaussian", "spatial"):
        for a, b in zip(getattr(ours, name), getattr(once, name), strict=True):
            assert a.dtype == np.float64
            np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)
    like_once = {"gaussian": once.gaussian, "spatial": once.spatial}
    assert_equal(ours._replace(**like_once), once)


def test_moments_are_those_of_numpy():
    ours = collect()
    for (mean, covariance), x in (
        (ours.gaussian, ALL.features),
        (ours.spatial, ALL.spatial),
    ):
        x = x.astype(np.float64)
        np.testing.assert_allclose(mean, np.mean(x, axis=0), rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(covariance, np.cov(x.T), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("num_kept", [1, 2, 7, 30, 59, 60, 1000])
def test_kept_features_are_those_of_evenly_spread_images(num_kept):
    ours = collect([part(ALL, 0, 13), part(ALL, 13, NUM)], num_kept=num_kept)
    assert len(ours.kept) == min(num_kept, NUM) and ours.kept[0] == 0
    np.testing.assert_array_equal(ours.features, ALL.features[ours.kept])
    gaps = np.diff([*ours.kept, NUM])
    assert min(gaps) >= 1 and max(gaps) - min(gaps) <= 1
    assert ours.features.dtype == np.float32


def test_all_or_none_are_kept():
    ours = collect(num_kept=0)
    assert ours.features is None and ours.kept is None and ours.logits is None
    ours = collect([part(ALL, 0, 13), part(ALL, 13, NUM)], num_kept=None)
    np.testing.assert_array_equal(ours.features, ALL.features)
    np.testing.assert_array_equal(ours.logits, ALL.logits)
    assert collect(num_kept=NUM).logits is None  # a reference needs none


def test_features_of_many_dimensions_have_no_gaussian(path, monkeypatch):
    """Their covariance would not fit into memory; all else is there."""
    monkeypatch.setattr(statistics, "MOST_DIM", ALL.features.shape[1] - 1)
    ours = collect()
    assert ours.gaussian is None
    statistics.save(path, ours)
    again = statistics.load(path)
    assert again.gaussian is None
    np.testing.assert_array_equal(again.features, ours.features)


def test_products_are_of_many_rows(monkeypatch):
    rows = []
    update = statistics.frechet.update
    monkeypatch.setattr(statistics, "ROWS", 20)
    monkeypatch.setattr(
        statistics.frechet,
        "update",
        lambda moments, x: rows.append(len(x)) or update(moments, x),
    )
    collect([part(ALL, start, start + 6) for start in range(0, NUM, 6)])
    assert rows == [24, 24, 24, 24, 12, 12]  # of features and of spatial ones


def test_a_network_of_features_alone():
    ours = collect([Outputs(ALL.features)])
    assert ours.logits is None and ours.spatial is None
    assert_equal(ours, collect()._replace(logits=None, spatial=None))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["features", "spatial"])
def test_features_that_are_not_finite_are_refused(name, bad):
    broken = np.array(getattr(ALL, name))
    broken[41, 1] = bad
    outputs = ALL._replace(**{name: broken})
    with pytest.raises(ValueError, match="finite"):
        collect([part(outputs, 0, 40), part(outputs, 40, NUM)])


def test_one_image_has_no_covariance():
    with pytest.raises(ValueError, match="at least 2"):
        collect([part(ALL, 0, 1)], num=1)


# Files of ours.


@pytest.fixture
def path(tmp_path):
    return tmp_path / "folder" / "reference.npz"


@pytest.mark.parametrize("num_kept", [0, 7])
@pytest.mark.parametrize("spatial", [False, True])
def test_a_file_gives_back_what_was_saved(path, num_kept, spatial):
    made = collect(num_kept=num_kept)
    made = made if spatial else made._replace(spatial=None)
    statistics.save(path, made)
    found = statistics.load(path)
    assert_equal(found, made._replace(logits=None))
    assert type(found.num) is int
    assert json.dumps(found.protocol) == json.dumps(PROTOCOL)
    statistics.save(path, found)  # over the old one
    assert_equal(statistics.load(path), found)
    assert [each.name for each in path.parent.iterdir()] == ["reference.npz"]


def test_other_tools_find_mu_and_sigma(path):
    made = collect()
    statistics.save(path, made)
    with np.load(path) as file:  # nothing of it is pickled
        np.testing.assert_array_equal(file["mu"], made.gaussian.mean)
        np.testing.assert_array_equal(file["sigma"], made.gaussian.covariance)
        np.testing.assert_array_equal(file["mu_s"], made.spatial.mean)


def test_no_changed_byte_goes_unnoticed(path):
    """A file is refused, unless the byte is one that says nothing of the content."""
    made = collect(num_kept=2)._replace(logits=None, spatial=None)
    statistics.save(path, made)
    content = path.read_bytes()
    refused, unnoticed = [], []
    entries = content.index(b"PK\x01\x02")  # their list, which no checksum protects
    places = [*range(0, entries, 9), *range(entries, len(content))]
    for at in places:
        changed = bytearray(content)
        changed[at] ^= 1 << at % 8
        path.write_bytes(changed)
        try:
            assert_equal(statistics.load(path), made)
        except OSError as error:
            assert str(path) in str(error)
            refused.append(at)
        except AssertionError:
            unnoticed.append(at)
    assert not unnoticed
    assert len(refused) > len(places) / 2


@pytest.mark.parametrize("name, value", [
    ("mu", np.zeros(DIM)),
    ("features", normal(9, 7, DIM)),
    ("num", np.int64(61)),
    ("protocol", np.array(json.dumps({**PROTOCOL, "image_shape": [8, 8, 3]}))),
    ("sigma", np.eye(DIM, dtype=np.float32)),
    ("extra", np.zeros(2)),
    ("kept", None),
])  # fmt: skip
def test_what_another_hand_wrote_is_refused(path, name, value):
    statistics.save(path, collect())
    arrays = read_arrays(path) | {name: value}
    np.savez(path, **{k: v for k, v in arrays.items() if v is not None})
    with pytest.raises(OSError, match="damaged: it is not what its own sha256 says"):
        statistics.load(path)


@pytest.mark.parametrize("size", [0, 1, 100, -1])
def test_a_file_that_was_cut_off_is_refused(path, size):
    statistics.save(path, collect())
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(OSError, match="reference.npz is no readable .npz"):
        statistics.load(path)


def test_no_file(path):
    with pytest.raises(OSError, match=r"no reference .*reference.npz: python -m ddpm_"):
        statistics.load(path)


# Files of other tools.


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_means_and_covariances_of_others(tmp_path, dtype):
    """Of pytorch-fid, and of guided-diffusion with images and spatial features."""
    x = normal(3, 30, DIM)
    mu, sigma = np.mean(x, axis=0).astype(dtype), np.cov(x.T).astype(dtype)
    spatial = {"mu_s": np.zeros(3, dtype), "sigma_s": np.eye(3, dtype=dtype)}
    images = {"arr_0": np.zeros((5, 8, 8, 3), np.uint8)}
    for more in ({}, spatial, spatial | images, {"features": x, "num": np.int64(3)}):
        path = tmp_path / "theirs.npz"
        np.savez(path, mu=mu, sigma=sigma, **more)
        found = statistics.load(path)
        assert found.protocol == {} and found.num is None
        assert found.features is None and found.kept is None
        assert found.gaussian.mean.dtype == found.gaussian.covariance.dtype == float
        np.testing.assert_array_equal(found.gaussian.mean, mu)
        np.testing.assert_array_equal(found.gaussian.covariance, sigma)
        assert (found.spatial is not None) == ("mu_s" in more)
    assert statistics.load(path).spatial is None


@pytest.mark.parametrize("suffix", ["", "_s"])
@pytest.mark.parametrize("shape", [(3, 3), (5, 4), (4,), (4, 4, 1)])
def test_shapes_that_do_not_fit_are_refused(tmp_path, suffix, shape):
    good = {"mu": np.zeros(4), "sigma": np.eye(4)}
    bad = {f"mu{suffix}": np.zeros(4), f"sigma{suffix}": np.zeros(shape)}
    np.savez(tmp_path / "theirs.npz", **(good | bad))
    with pytest.raises(OSError, match=f"mu{suffix} and sigma{suffix} do not fit"):
        statistics.load(tmp_path / "theirs.npz")


@pytest.mark.parametrize("shape", [(), (4, 5), (4, 0)])
def test_a_mean_that_is_no_vector_is_refused(tmp_path, shape):
    np.savez(tmp_path / "theirs.npz", mu=np.zeros(shape), sigma=np.eye(4))
    with pytest.raises(OSError, match="mu and sigma do not fit"):
        statistics.load(tmp_path / "theirs.npz")


@pytest.mark.parametrize("names", [["images", "labels"], ["arr_0"], ["mu"], ["sigma"]])
def test_a_file_of_other_things_says_what_it_holds(tmp_path, names):
    path = tmp_path / "images.npz"
    np.savez(path, **{name: np.zeros((2, 2), np.uint8) for name in names})
    with pytest.raises(OSError) as raised:
        statistics.load(path)
    message = str(raised.value)
    assert f"holds {', '.join(names)}, but not mu and sigma" in message
    assert f"--images {path}" in message


# Any file.


def test_a_file_is_written_whole_or_not_at_all(path):
    with pytest.raises(KeyboardInterrupt), atomic_write(path) as partial:
        partial.write_text("half")
        raise KeyboardInterrupt
    assert not [*path.parent.iterdir()]
    with atomic_write(path) as partial:
        partial.write_text("old")
        assert not path.exists() and partial.suffix == ".npz"
        assert partial.parent == path.parent  # so that renaming is all at once
    with pytest.raises(OSError, match="full"), atomic_write(path) as partial:
        partial.write_text("new")
        raise OSError("full")
    with pytest.raises(FileNotFoundError), atomic_write(path):
        pass  # nothing was written
    assert [each.name for each in path.parent.iterdir()] == [path.name]
    assert path.read_text() == "old"


def test_two_writers_do_not_meet(path):
    with atomic_write(path) as one, atomic_write(path) as other:
        one.write_text("one")
        other.write_text("other")
    assert path.read_text() == "one"
    assert [each.name for each in path.parent.iterdir()] == [path.name]


def half_written(path, **arrays):
    path.write_bytes(b"PK")
    raise OSError("full")


def test_a_failure_leaves_the_old_statistics(path, monkeypatch):
    made = collect()._replace(logits=None)
    statistics.save(path, made)
    with pytest.raises(TypeError):
        statistics.save(path, made._replace(protocol={"a": object()}))
    with monkeypatch.context() as context:
        context.setattr(np, "savez", half_written)
        with pytest.raises(OSError, match="full"):
            statistics.save(path, collect(num_kept=3))
    assert_equal(statistics.load(path), made)
    assert [each.name for each in path.parent.iterdir()] == [path.name]


def test_arrays_of_a_file(path):
    arrays = {"a": np.arange(3, dtype=np.int8), "b/c": np.array("ä"), "d": np.zeros(0)}
    path.parent.mkdir()
    np.savez_compressed(path, **arrays)
    found = read_arrays(path)
    assert [*found] == [*arrays]
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)


def test_what_is_no_file_of_arrays(path):
    path.parent.mkdir()
    np.savez(path, a=np.array([{}, None], object))  # a pickle, which is not run
    pickled = path.read_bytes()
    np.save(path.with_suffix(".npy"), np.zeros(2))
    single = path.with_suffix(".npy").read_bytes()
    for content in (b"", b"PK\x03\x04", b"text", pickled, single):
        path.write_bytes(content)
        with pytest.raises(
            ValueError, match="reference.npz is no readable .npz of arr"
        ):
            read_arrays(path)
    with pytest.raises(ValueError, match="is no readable"):
        read_arrays(path.with_name("none.npz"))
    with pytest.raises(ValueError, match="is no readable"):
        read_arrays(path.parent)


@pytest.mark.parametrize("error", [OSError(errno.EIO, "Input/output"), MemoryError()])
def test_a_machine_that_fails_says_nothing_of_a_file(path, monkeypatch, error):
    """Or what is whole would be called damaged, and made again."""
    path.parent.mkdir()
    path.touch()

    def fail(file):
        raise error

    monkeypatch.setattr(np, "load", fail)
    with pytest.raises(type(error)) as raised:
        read_arrays(path)
    assert raised.value is error
