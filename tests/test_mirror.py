"""A folder and its like in a bucket: what is read was written, and by one writer."""

import json
import threading

import pytest

from ddpm_jax.buckets import open_bucket
from ddpm_jax.buckets.base import AwayError, ChangedError, Patient
from ddpm_jax.buckets.lease import HeldError, Lease
from ddpm_jax.buckets.mirror import MANIFEST, DamagedError, Mirror

# The clients leave their connections to the garbage collector.
pytestmark = pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)


@pytest.fixture
def place(address):
    """A bucket, and a name in it that no other test has."""
    return open_bucket(address)


def write(folder, **files):
    for name, text in files.items():
        path = folder / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def contents(folder):
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_text() for path in files}


def mirrored(place, folder):
    made = Mirror(*place, folder)
    made.look()
    return made


def pulled(place, folder):
    other = mirrored(place, folder)
    other.pull(other.files)
    return contents(folder)


def test_what_is_pushed_is_pulled(place, tmp_path):
    write(tmp_path / "a", one="1", two__three="3")
    groups = {"one": ["one"], "two": ["two/three"]}
    mirror = mirrored(place, tmp_path / "a")
    assert (mirror.run, mirror.files) == ("", {})
    assert mirror.push(groups) == ["one", "two"]
    assert mirror.push(groups) == []
    assert pulled(place, tmp_path / "b") == {"one": "1", "two/three": "3"}
    assert mirrored(place, tmp_path).run == mirror.run != ""

    write(tmp_path / "a", one="1 and more")
    assert mirror.push(groups, dropped=["two/three", "none"]) == ["one"]
    assert pulled(place, tmp_path / "c") == {"one": "1 and more"}
    bucket, prefix = place
    assert f"{prefix}/two/three" not in {found.name for found in bucket.list("")}


def test_only_what_is_other_is_sent_and_brought(place, store, tmp_path):
    _, faults = store
    write(tmp_path / "a", one="1", two="2")
    mirror = mirrored(place, tmp_path / "a")
    mirror.push({"one": ["one"], "two": ["two"]})
    pulled(place, tmp_path / "b")
    faults.requests.clear()
    assert mirror.push({"one": ["one"], "two": ["two"]}) == []
    assert faults.requests == []
    write(tmp_path / "b", one="other")
    assert pulled(place, tmp_path / "b") == {"one": "1", "two": "2"}
    assert not any("two" in path for _, path, _ in faults.requests)


def test_a_writer_that_is_cut_off_has_written_nothing(place, store, tmp_path):
    _, faults = store
    write(tmp_path / "a", one="1")
    mirror = mirrored(place, tmp_path / "a")
    mirror.push({"one": ["one"]})
    write(tmp_path / "a", two="2", three="3")
    allowed = iter([None, None])

    def cut():
        if next(allowed, "over") == "over":
            raise AwayError("cut")

    with pytest.raises(AwayError):
        mirror.push({"both": ["two", "three"]}, allowed=cut)
    assert pulled(place, tmp_path / "b") == {"one": "1"}
    mirror.push({"both": ["two", "three"]})
    assert pulled(place, tmp_path / "b") == {"one": "1", "two": "2", "three": "3"}


def test_a_group_whose_file_vanishes_is_left_out(place, tmp_path):
    write(tmp_path / "a", one="1", two="2", three="3")
    mirror = mirrored(place, tmp_path / "a")
    files = mirror.folder

    def vanish():
        (files / "two").unlink(missing_ok=True)

    sent = mirror.push({"both": ["one", "two"], "three": ["three"]}, allowed=vanish)
    assert sent == ["three"]
    assert pulled(place, tmp_path / "b") == {"three": "3"}
    bucket, prefix = place
    names = {found.name for found in bucket.list(prefix)}
    assert names == {f"{prefix}/three", f"{prefix}/{MANIFEST}"}


def test_what_vanishes_while_it_is_sent_leaves_nothing(place, tmp_path, monkeypatch):
    write(tmp_path / "a", one="1", two="2")
    mirror = mirrored(place, tmp_path / "a")
    bucket, prefix = place
    upload = bucket.upload

    def vanishing(path, name):
        upload(path, name)
        path.unlink()

    monkeypatch.setattr(bucket, "upload", vanishing)
    assert mirror.push({"both": ["one", "two"]}) == []
    assert [found.name for found in bucket.list(prefix)] == [f"{prefix}/{MANIFEST}"]


def test_what_was_cut_off_is_swept_away(place, tmp_path):
    write(tmp_path / "a", in__one="1", two="2")
    mirror = mirrored(place, tmp_path / "a")
    mirror.push({"one": ["in/one"], "two": ["two"]})
    bucket, prefix = place
    bucket.write(f"{prefix}/in/half", b"")
    bucket.write(f"{prefix}/half", b"")
    mirrored(place, tmp_path / "a").sweep("in")
    names = {found.name.removeprefix(f"{prefix}/") for found in bucket.list(prefix)}
    assert names == {"in/one", "two", "half", MANIFEST}


def test_a_folder_that_is_made_anew_replaces_the_other(place, tmp_path):
    write(tmp_path / "a", step__one="1", step__two="2")
    mirror = mirrored(place, tmp_path / "a")
    mirror.push({"step": ["step/one", "step/two"]})
    write(tmp_path / "a", step__three="3")
    mirror.push({"step": ["step/one", "step/three"]})
    assert pulled(place, tmp_path / "b") == {"step/one": "1", "step/three": "3"}


def test_of_two_writers_one_is_refused(place, tmp_path):
    write(tmp_path / "a", one="1")
    write(tmp_path / "b", two="2")
    first, second = mirrored(place, tmp_path / "a"), mirrored(place, tmp_path / "b")
    first.push({"one": ["one"]})
    with pytest.raises(ChangedError):
        second.push({"two": ["two"]})
    assert pulled(place, tmp_path / "c") == {"one": "1"}


def test_what_is_damaged_is_never_taken(place, tmp_path, monkeypatch):
    monkeypatch.setattr("ddpm_jax.buckets.mirror._DELAYS", (0.01,))
    write(tmp_path / "a", one="1111", two="2")
    mirror = mirrored(place, tmp_path / "a")
    mirror.push({"one": ["one"], "two": ["two"]})
    bucket, prefix = place
    bucket.write(f"{prefix}/one", b"1101")
    with pytest.raises(DamagedError, match="one is not what was written"):
        pulled(place, tmp_path / "b")
    assert contents(tmp_path / "b") == {"two": "2"}
    with pytest.raises(DamagedError):  # and who knows of it sends it again
        mirror.folder.joinpath("one").write_text("away")
        mirror.pull(["one"])
    write(tmp_path / "a", one="1111")
    assert mirror.push({"one": ["one"]}) == ["one"]
    assert pulled(place, tmp_path / "b") == {"one": "1111", "two": "2"}
    bucket.write(f"{prefix}/{MANIFEST}", b'{"files": {"one"')
    with pytest.raises(DamagedError, match="is damaged"):
        pulled(place, tmp_path / "b")


@pytest.mark.parametrize("name", ["../out", "in/../../out", "/out"])
def test_no_name_leads_out_of_the_folder(place, tmp_path, name):
    bucket, prefix = place
    content = json.dumps({"run": "a", "files": {name: None}}).encode()
    bucket.write(f"{prefix}/{MANIFEST}", content)
    with pytest.raises(DamagedError, match="no name within a folder"):
        pulled(place, tmp_path / "b")
    assert not (tmp_path / "out").exists()


def test_who_reads_while_a_file_grows_reads_it(place, tmp_path):
    write(tmp_path / "a", one="1")
    writer = mirrored(place, tmp_path / "a")
    writer.push({"one": ["one"]})
    reader = mirrored(place, tmp_path / "b")
    write(tmp_path / "a", one="12")
    writer.push({"one": ["one"]})
    reader.pull(["one"])
    assert contents(tmp_path / "b") == {"one": "12"}
    write(tmp_path / "a", one="123")
    writer.push({"one": ["one"]})
    reader.pull(["one"])
    assert contents(tmp_path / "b") == {"one": "123"}


def test_a_file_that_grows_while_it_is_sent_is_read(place, tmp_path):
    write(tmp_path / "a", one="1")
    mirror = mirrored(place, tmp_path / "a")
    grow = lambda: write(tmp_path / "a", one="12")  # between its sum and its sending
    mirror.push({"one": ["one"]}, allowed=grow)
    assert pulled(place, tmp_path / "b") == {"one": "12"}


def test_a_listing_that_is_not_whole_loses_nothing(place, tmp_path, monkeypatch):
    write(tmp_path / "a", in__one="1", in__two="2")
    mirrored(place, tmp_path / "a").push({"in": ["in/one", "in/two"]})
    bucket, _ = place
    listed = bucket.list
    monkeypatch.setattr(bucket, "list", lambda prefix: [*listed(prefix)][:1])
    other = mirrored(place, tmp_path / "b")
    other.sweep("in")
    other.pull(other.files)
    assert contents(tmp_path / "b") == {"in/one": "1", "in/two": "2"}


def test_a_folder_that_was_copied_there_is_read(place, tmp_path):
    bucket, prefix = place
    bucket.write(f"{prefix}/one", b"1")
    bucket.write(f"{prefix}/two/.hidden", b"no")
    bucket.write(f"{prefix}/two/three", b"3")
    bucket.write(f"{prefix}more", b"another")
    assert pulled(place, tmp_path) == {"one": "1", "two/three": "3"}


def test_whatever_the_network_does_what_is_read_is_what_was_written(
    place, store, tmp_path
):
    _, faults = store
    patient = Patient(place[0], 60), place[1]
    faults.kinds = tuple(kind for kind in faults.KINDS if kind != "slow")
    faults.rate = 0.15
    text = "some text" * 10_000
    mirror = mirrored(patient, tmp_path / "a")
    for i in range(6):
        write(tmp_path / "a", **{f"step{i}__x": f"{i}{text}", f"step{i}__y": str(i)})
        write(tmp_path / "a", grows=text * (i + 1))
        groups = {f"step{j}": [f"step{j}/x", f"step{j}/y"] for j in range(i + 1)}
        while True:
            try:
                mirror.push({**groups, "grows": ["grows"]}, [f"step{i - 2}/x"])
                break
            except AwayError:
                mirror.look()
        found = pulled(patient, tmp_path / f"b{i}")
        there = contents(tmp_path / "a")
        assert found == {name: there[name] for name in found}
        assert {f"step{i}/x", f"step{i}/y", "grows"} <= found.keys()
    assert sum(faults.happened.values()) > 5


def lease(place, seconds=1.0, say=lambda text: None):
    bucket, prefix = place
    return Lease(Patient(bucket, 0.2), f"{prefix}/lease.json", seconds, say)


def test_a_lease_has_one_holder(place):
    with lease(place) as held:
        held.check()
        with pytest.raises(HeldError, match="is held by process"), lease(place):
            raise AssertionError
    with lease(place):  # it was given back
        pass


def test_of_two_that_take_a_lease_at_once_one_gets_it(place):
    start, outcomes = threading.Barrier(4), []

    def take():
        mine = lease(place)
        start.wait()
        try:
            with mine:
                outcomes.append("held")
                start.wait()
        except HeldError:
            outcomes.append("refused")
            start.wait()

    threads = [threading.Thread(target=take) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["held", *["refused"] * 3]


def abandoned(place, **changes):
    """The lease of a process that was killed."""
    bucket, prefix = place
    with lease(place):
        holder = json.loads(bucket.read(f"{prefix}/lease.json")[0])
    bucket.write(f"{prefix}/lease.json", json.dumps({**holder, **changes}).encode())


def test_a_lease_that_is_not_renewed_expires(place):
    said = []
    abandoned(place, machine="another", host="there", process=5)
    with lease(place, say=said.append) as held:
        held.check()
    assert said == ["waiting whether process 5 of there is still there"]


def test_a_lease_of_a_dead_process_of_this_machine_is_taken_at_once(place):
    said = []
    abandoned(place, started="0")
    with lease(place, seconds=1000, say=said.append):
        pass
    assert said == []


def test_what_a_dead_holder_had_sent_may_arrive_late(place, monkeypatch):
    bucket, prefix = place
    abandoned(place, started="0")
    late, _ = bucket.read(f"{prefix}/lease.json")
    read, write = bucket.read, type(bucket).write
    arrives = iter([b"  "])

    def read_before_it_arrives(name):
        found = read(name)
        for text in arrives:
            write(bucket, name, late + text)
        return found

    monkeypatch.setattr(bucket, "read", read_before_it_arrives)
    with lease(place, seconds=1000) as held:
        held.check()


def test_who_cannot_renew_a_lease_knows_it(place, store):
    _, faults = store
    with lease(place) as held:
        faults.away = True
        wait_for(lambda: raises(AwayError, held.check))
        faults.away = False
        wait_for(lambda: not raises(AwayError, held.check))


def test_a_lease_that_was_taken_is_lost(place):
    bucket, prefix = place
    with lease(place) as held:
        content = json.dumps({"token": "other", "process": 7, "host": "there"})
        bucket.write(f"{prefix}/lease.json", content.encode())
        wait_for(lambda: raises(HeldError, held.check))
        with pytest.raises(HeldError, match="taken by process 7 of there"):
            held.check()
    assert json.loads(bucket.read(f"{prefix}/lease.json")[0])["token"] == "other"


def test_a_renewal_of_which_nothing_was_heard_is_ours(place, store):
    _, faults = store
    with lease(place) as held:
        faults.kinds, faults.rate = ("cut after",), 1.0
        wait_for(lambda: faults.happened["cut after"] > 3)
        faults.rate = 0.0
        wait_for(lambda: not raises(OSError, held.check))
        held.check()


def raises(kind, action):
    try:
        action()
    except kind:
        return True
    return False


def wait_for(condition):
    event = threading.Event()
    for _ in range(600):
        if condition():
            return
        event.wait(0.05)
    raise AssertionError("it did not happen")
