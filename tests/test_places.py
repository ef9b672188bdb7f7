"""Places of buckets: what is told, what is brought, what is sent, and what is not."""

import pytest

from ddpm_jax import places
from ddpm_jax.buckets import open_bucket
from ddpm_jax.files import atomic_write, file_lock

# The clients leave their connections to the garbage collector.
pytestmark = pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)


def test_addresses_have_places_and_places_addresses(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for kind in ("buckets", "runs", "data"):
        found = places.place("gs://b/runs/a", kind)
        assert found == tmp_path / "ddpm_jax" / kind / "gs" / "b" / "runs" / "a"
        assert places.readable(f"in {found}/x: no") == "in gs://b/runs/a/x: no"
    assert str(places.place("runs/a")) == "runs/a"
    assert places.readable("runs/gs/b") == "runs/gs/b"


@pytest.mark.parametrize("address", ["hdfs://b/a", "az://b/a", "http://b/a"])
def test_other_addresses_are_refused(address):
    with pytest.raises(OSError, match="others are not supported but gs:// and s3://"):
        places.check_scheme(address)


def test_what_is_written_to_a_place_is_sent(address):
    path = places.place(f"{address}/a.txt")
    with atomic_write(path) as partial:
        partial.write_text("1")
    with atomic_write(path.with_name(".parts") / "b.txt") as partial:
        partial.write_text("of here alone")
    bucket, prefix = open_bucket(address)
    assert [found.name for found in bucket.list(prefix)] == [f"{prefix}/a.txt"]
    bucket.write(f"{prefix}/a.txt", b"2")
    with file_lock(path.parent):
        places.refresh(path)
        assert path.read_text() == "2"
    places.refresh(path.with_name("none"))


def test_a_file_is_brought(address):
    bucket, name = open_bucket(address)
    bucket.write(name, b"1")
    assert places.bring(address).read_bytes() == b"1"
    bucket.write(name, b"2")
    assert places.bring(address).read_bytes() == b"2"
    with pytest.raises(FileNotFoundError, match="there is no"):
        places.bring(f"{address}none")
