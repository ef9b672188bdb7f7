"""Data sets of buckets: what is asked for when, and that it is what lies there."""

import time

import jax
import numpy as np
import pytest
from jobs import final_state
from PIL import Image
from tiny import fit, plain

from ddpm_jax import places
from ddpm_jax.buckets import open_bucket
from ddpm_jax.buckets.base import AwayError
from ddpm_jax.data import arrays, folders, remote
from ddpm_jax.data.base import gather
from ddpm_jax.data.batches import make_batch_fn
from ddpm_jax.data.contents import contents_of, passed_over
from ddpm_jax.data.kept import keep

# The clients leave their connections to the garbage collector.
pytestmark = pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)

NAMES = [f"{'cat' if i < 8 else 'dog'}/{i}.png" for i in range(20)]


def put(folder, address, names=NAMES, first=0):
    """Writes pictures into a folder and a bucket; no two are alike."""
    bucket, prefix = open_bucket(address)
    for i, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(first + i).integers(0, 256, (6, 5, 3), np.uint8)
        Image.fromarray(pixels).save(path)
        bucket.upload(path, f"{prefix}/{name}")


@pytest.fixture
def here(address, tmp_path):
    """A folder of this machine that is like that at the address."""
    put(tmp_path / "images", address)
    return tmp_path / "images"


def asked_for(faults):
    """Which pictures were read since the last call, by their numbers."""
    read = [path for command, path, _ in faults.requests if ".png" in path]
    faults.requests.clear()
    return sorted(
        int(path.split(".png")[0].split("F")[-1].split("/")[-1]) for path in read
    )


def test_it_is_as_in_a_folder_of_this_machine(address, here, faults):
    bucket, prefix = open_bucket(address)
    for name in ("cat/a.txt", ".hidden/1.png", "dog/.2.png", "dog/"):
        bucket.write(f"{prefix}/{name}", b"")
    (here / "cat" / "a.txt").touch()
    bucket.write(f"{prefix}x/1.png", b"of another folder")
    faults.requests.clear()
    there, local = folders.folder(address, 4), folders.folder(here, 4)
    assert asked_for(faults) == [], "nothing is read before it is used"
    assert contents_of(there) == contents_of(local)
    assert passed_over(there) == passed_over(local) == "1 file passed over: 1 .txt"
    for one, other in zip(
        gather(there, np.arange(20)), gather(local, np.arange(20)), strict=True
    ):
        np.testing.assert_array_equal(one, other, strict=True)
    np.testing.assert_array_equal(there[3][0], local[3][0], strict=True)


def test_each_process_reads_its_part_once(address, here, faults):
    def batches(process_index, steps):
        source = keep(folders.folder(address, 4), say=lambda text: None)
        batch_fn = make_batch_fn(
            source, 4, process_index=process_index, process_count=2
        )
        return [batch_fn(step)["id"] for step in steps]

    faults.requests.clear()
    batches(0, range(5))
    mine = asked_for(faults)
    assert len(mine) == len({*mine}) == 10
    batches(1, range(5))
    other = asked_for(faults)
    assert sorted(mine + other) == list(range(20))
    batches(0, range(5))  # as after a restart
    assert asked_for(faults) == []
    batches(0, range(5, 10))  # of this machine: what one process read, the other has
    assert asked_for(faults) == []


def test_where_no_file_is_wanted_images_stay_in_memory(address, here, faults, tmp_path):
    source = keep(folders.folder(address, 4), cache=False)
    gather(source, np.arange(20))
    faults.requests.clear()
    gather(source, np.arange(20))
    assert asked_for(faults) == []
    assert not [*places.cache_dir().rglob("*.npy")]
    source = keep(folders.folder(address, 4), max_memory_gb=0, cache=False)
    gather(source, np.arange(20))
    gather(source, np.arange(20))
    assert len(asked_for(faults)) == 40


def test_many_are_asked_for_at_once(address, here, monkeypatch):
    source = folders.folder(address, 4)
    open_one = source.files.open
    monkeypatch.setattr(
        source.files, "open", lambda name: (time.sleep(0.2), open_one(name))[1]
    )
    begun = time.perf_counter()
    gather(source, np.arange(16))
    assert time.perf_counter() - begun < 16 * 0.2 / 2


def test_a_corrupt_image_is_named_when_it_is_read(address, here, faults):
    bucket, prefix = open_bucket(address)
    bucket.write(f"{prefix}/cat/3.png", (here / "cat/3.png").read_bytes()[:60])
    bucket.write(f"{prefix}/cat/5.png", b"no picture")
    source = folders.folder(address, 4)
    for index in (3, 5):
        with pytest.raises(
            OSError, match=f"cannot read {address}/cat/{index}.png .*: r"
        ):
            gather(source, np.arange(20)[index:])
    assert source[4][0].shape == (4, 4, 3)


def test_to_skip_the_corrupt_all_are_read_once(address, here, faults):
    bucket, prefix = open_bucket(address)
    bucket.write(f"{prefix}/cat/3.png", b"no picture")
    faults.requests.clear()
    for num_read in (20, 0):
        with pytest.warns(UserWarning, match=r"left out 1 .*cat/3.png \(cannot ident"):
            source = folders.folder(address, 4, on_error="skip")
        assert len(source) == 19 and len(asked_for(faults)) == num_read
    put(here, address, ["cat/3.png", "dog/9.png"], first=50)
    faults.requests.clear()
    assert len(folders.folder(address, 4, on_error="skip")) == 20
    assert asked_for(faults) == [3, 9]


def test_another_picture_under_the_same_name_is_not_taken(address, here):
    before = keep(folders.folder(address, 4), say=lambda text: None)
    gather(before, np.arange(4))
    put(here, address, ["cat/3.png", "cat/7.png"], first=50)
    with pytest.raises(OSError, match="cat/7.png was written anew since it was listed"):
        gather(before, np.array([7]))
    after = keep(folders.folder(address, 4), say=lambda text: None)
    for index in (3, 7):
        expected = folders.folder(here, 4)[index][0]
        np.testing.assert_array_equal(after[index][0], expected, strict=True)


def test_faults_on_the_way_change_nothing(address, here, faults):
    expected = gather(folders.folder(here, 4), np.arange(20))
    faults.rate = 0.3
    faults.kinds = ("cut", "cut after", "503", "429", "short", "shorter")
    for _ in range(3):
        found = gather(folders.folder(address, 4), np.arange(20))
        np.testing.assert_array_equal(found[0], expected[0], strict=True)
        np.testing.assert_array_equal(found[1], expected[1], strict=True)
    assert sum(faults.happened.values()) > 5


@pytest.mark.parametrize("on_error", ["raise", "skip"])
def test_a_bucket_that_is_away_makes_no_image_corrupt(
    address, here, faults, monkeypatch, on_error
):
    opened = folders.folder(address, 4)
    monkeypatch.setattr(opened.files._bucket, "seconds", 0.2)
    faults.away = True
    with pytest.raises(AwayError):
        opened[0]
    faults.away = False

    def away(wanted):
        raise AwayError("away")

    with monkeypatch.context() as context, pytest.raises(AwayError):
        context.setattr(
            "ddpm_jax.buckets.base.Patient.get", lambda self, name: away(name)
        )
        gather(folders.folder(address, 4, on_error=on_error), np.arange(20))
    assert len(folders.folder(address, 4, on_error=on_error)) == 20


def test_what_is_wrong_is_said(address, here):
    bucket, prefix = open_bucket(address)
    with pytest.raises(FileNotFoundError, match="there is nothing at .*none"):
        folders.folder(f"{address}none", 4)
    bucket.write(f"{prefix}/bird/a.txt", b"")
    with pytest.raises(ValueError, match="the class 'bird' of .* has no image"):
        folders.folder(address, 4)
    bucket.write(f"{prefix}/1.png", b"")
    with pytest.raises(ValueError, match="both directly .* and in sub-folders"):
        folders.folder(address, 4)


def test_a_network_trains_as_with_a_folder_of_this_machine(address, here, tmp_path):
    states = []
    for path in (here, address):
        data = f"data={{'name': 'folder', 'path': '{path}', 'batch_size': 8}}"
        workdir = tmp_path / str(len(states))
        assert fit(plain(data), workdir) == 0
        states.append(final_state(workdir))
    jax.tree.map(np.testing.assert_array_equal, *states)


def test_arrays_are_brought_once(address, faults, tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, images=np.zeros((3, 4, 4, 1), np.uint8))
    bucket, prefix = open_bucket(address)
    bucket.upload(path, f"{prefix}/a.npz")
    assert len(arrays.arrays(f"{address}/a.npz")) == 3
    with pytest.raises(FileNotFoundError, match="there is nothing at"):
        arrays.arrays(f"{address}/b.npz")
    faults.requests.clear()
    assert len(arrays.arrays(f"{address}/a.npz")) == 3
    assert all("list" in path or "prefix" in path for _, path, _ in faults.requests)
    np.savez(path, images=np.zeros((5, 4, 4, 1), np.uint8))
    bucket.upload(path, f"{prefix}/a.npz")
    assert len(arrays.arrays(f"{address}/a.npz")) == 5


def test_what_was_brought_before_a_stop_stays(address, here, faults, monkeypatch):
    monkeypatch.setattr(remote, "_THREADS", 1)
    bring, brought = places.bring_one, []

    def stop(bucket, name, path):
        if len(brought) == 12:
            raise KeyboardInterrupt
        brought.append(name)
        bring(bucket, name, path)

    found = remote.Remote(address)
    with monkeypatch.context() as context, pytest.raises(KeyboardInterrupt):
        context.setattr(places, "bring_one", stop)
        found.bring(found.files)
    faults.requests.clear()
    again = remote.Remote(address)
    place = again.bring(again.files)
    assert len({*asked_for(faults)}) == 8
    assert sorted(path.name for path in place.rglob("*.png")) == sorted(
        name.split("/")[1] for name in NAMES
    )
    bucket, prefix = open_bucket(address)
    bucket.delete(f"{prefix}/cat/2.png")
    remote.Remote(address).bring([])
    assert not (place / "cat/2.png").exists() and (place / "cat/1.png").exists()


def test_a_disk_that_is_too_small_is_said_before(address, here, monkeypatch):
    small = lambda path: type("Usage", (), {"free": 10})
    monkeypatch.setattr(remote.shutil, "disk_usage", small)
    found = remote.Remote(address)
    with pytest.raises(OSError, match="XDG_CACHE_HOME says where else"):
        found.bring(found.files)
