"""Places of buckets: what is told, what is brought, what is sent, and what is not."""

import numpy as np
import pytest
from PIL import Image

from ddpm_jax import places
from ddpm_jax.buckets import open_bucket
from ddpm_jax.data import arrays, folders
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


def put_pictures(address, *names):
    bucket, prefix = open_bucket(address)
    for i, name in enumerate(names):
        path = places.cache_dir() / "made.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4), (i, i, i)).save(path)
        bucket.upload(path, f"{prefix}/{name}")


def test_a_folder_of_images_is_brought_once(address, store):
    _, faults = store
    put_pictures(address, "cat/1.png", "cat/2.png", "dog/3.png")
    put_pictures(f"{address}more", "cat/4.png")
    opened = folders.folder(address, 4)
    assert (len(opened), opened.class_names) == (3, ["cat", "dog"])
    faults.requests.clear()
    assert len(folders.folder(address, 4)) == 3
    assert [command for command, *_ in faults.requests] == ["GET"]  # the listing
    bucket, prefix = open_bucket(address)
    bucket.delete(f"{prefix}/cat/2.png")
    put_pictures(address, "dog/5.png", "dog/3.png")
    opened = folders.folder(address, 4)
    assert opened.names == ["cat/1.png", "dog/3.png", "dog/5.png"]
    assert opened[1][0].max() == 1  # it was another before


def test_what_was_brought_before_a_stop_stays(address, store, monkeypatch):
    _, faults = store
    put_pictures(address, "cat/1.png", "cat/2.png", "dog/3.png")
    monkeypatch.setattr(places, "_THREADS", 1)
    bring, brought = places._bring_one, []

    def stop(bucket, name, here):
        if len(brought) == 2:
            raise KeyboardInterrupt
        brought.append(name)
        bring(bucket, name, here)

    monkeypatch.setattr(places, "_bring_one", stop)
    with pytest.raises(KeyboardInterrupt):
        places.bring_data(address)
    monkeypatch.setattr(places, "_bring_one", bring)
    faults.requests.clear()
    assert len(folders.folder(address, 4)) == 3
    asked = [path for command, path, _ in faults.requests if command == "GET"]
    assert len(asked) == 2 and "3.png" in asked[1]


def test_arrays_are_brought(address, tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, images=np.zeros((3, 4, 4, 1), np.uint8))
    bucket, prefix = open_bucket(address)
    bucket.upload(path, f"{prefix}/a.npz")
    assert len(arrays.arrays(f"{address}/a.npz")) == 3
    with pytest.raises(FileNotFoundError, match="there is nothing at"):
        arrays.arrays(f"{address}/b.npz")


def test_a_disk_that_is_too_small_is_said_before(address, monkeypatch):
    put_pictures(address, "cat/1.png")
    small = lambda path: type("Usage", (), {"free": 10})
    monkeypatch.setattr(places.shutil, "disk_usage", small)
    with pytest.raises(OSError, match="XDG_CACHE_HOME says where else"):
        places.bring_data(address)
