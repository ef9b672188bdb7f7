"""Clients of gs:// and s3:// against real servers: one behaviour, one set of errors."""

import json

import pytest
import stores

from ddpm_jax import buckets
from ddpm_jax.buckets.base import AwayError, ChangedError, Object, Patient

# The clients leave their connections to the garbage collector.
pytestmark = pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)


@pytest.fixture
def bucket(store, faults):
    opened, _ = buckets.open_bucket(f"{store[0]}://{stores.BUCKET}/a")
    for found in opened.list(""):
        opened.delete(found.name)
    return opened


@pytest.mark.parametrize(
    ("text", "parts"),
    {
        "gs://b/runs/a": ("gs", "b", "runs/a"),
        "gs:/b/runs/a/": ("gs", "b", "runs/a"),
        "s3://b": ("s3", "b", ""),
        "hdfs://b/a": None,
        "runs/gs:/b": None,
        "C:/b": None,
    }.items(),
)
def test_addresses_are_told_from_paths(text, parts):
    assert buckets.is_address(text) == (parts is not None)
    assert parts is None or buckets.split(text) == parts


def test_what_is_written_is_read(bucket, tmp_path):
    version = bucket.write("in/one", b"1")
    assert bucket.read("in/one") == (b"1", version)
    there, back = tmp_path / "there", tmp_path / "back"
    there.write_bytes(bytes(range(256)) * 40_000)
    bucket.upload(there, "in/two")
    bucket.download("in/two", back)
    assert back.read_bytes() == there.read_bytes()
    sizes = {found.name: found.size for found in bucket.list("in/")}
    assert sizes == {"in/one": 1, "in/two": 10_240_000}
    bucket.delete("in/one")
    bucket.delete("in/one")
    assert [found.name for found in bucket.list("")] == ["in/two"]


def test_an_object_replaces_none_but_the_one_that_it_names(bucket):
    first = bucket.write("a", b"1", "")
    with pytest.raises(ChangedError):
        bucket.write("a", b"2", "")
    second = bucket.write("a", b"3", first)
    with pytest.raises(ChangedError):
        bucket.write("a", b"4", first)
    with pytest.raises(ChangedError):
        bucket.write("none", b"5", first)
    assert bucket.read("a") == (b"3", second)


def test_what_is_not_there_is_said_so(bucket, store, tmp_path):
    scheme, _ = store
    with pytest.raises(FileNotFoundError, match=f"no {scheme}://a-bucket/none"):
        bucket.read("none")
    with pytest.raises(FileNotFoundError):
        bucket.download("none", tmp_path / "none")
    other, _ = buckets.open_bucket(f"{scheme}://another-bucket")
    with pytest.raises(OSError, match=f"no bucket {scheme}://another-bucket"):
        [*other.list("")]


@pytest.mark.parametrize("kind", stores.Faults.KINDS)
def test_what_goes_wrong_on_the_way_is_worth_another_try(bucket, store, kind, tmp_path):
    _, faults = store
    content = bytes(range(256)) * 1000
    bucket.write("a", content)
    if kind != "slow":
        faults.kinds, faults.rate = (kind,), 1.0
        with pytest.raises(AwayError, match="is away"):
            bucket.read("a")
        with pytest.raises(AwayError):
            bucket.download("a", tmp_path / "a")
    faults.kinds, faults.rate = (kind,), 0.3
    patient = Patient(bucket, 60)
    for i in range(3):
        assert patient.read("a")[0] == content
        patient.write(f"b{i}", content, "")
        patient.download(f"b{i}", tmp_path / "b")
        assert (tmp_path / "b").read_bytes() == content
    assert faults.happened[kind]


def test_patience_ends(bucket, store):
    _, faults = store
    faults.away = True
    with pytest.raises(AwayError):
        Patient(bucket, 0.5).read("a")


def test_a_listed_object_comes_whole_and_is_the_one_that_was_listed():
    class Short:
        """Answers half at first, as where nothing tells of the length."""

        answers = [(b"12", "1"), (b"1234", "1"), (b"abcd", "2")]

        def read(self, name):
            return self.answers.pop(0)

    patient, wanted = Patient(Short(), 60), Object("a", 4, "1")
    assert patient.get(wanted) == b"1234"
    with pytest.raises(ChangedError, match="a was written anew since it was listed"):
        patient.get(wanted)


REFUSED = {
    ("gs", 403, "no permission"): "no right to gs://a-bucket/x: .*Storage Object User",
    ("gs", 401, "who are you"): "gs://a-bucket/x: the credentials are refused",
    ("s3", 403, "AccessDenied"): "s3://a-bucket/x: this account has no right to it",
    ("s3", 403, "RequestTimeTooSkewed"): "the clock of this machine is wrong: set it",
    ("s3", 403, "InvalidAccessKeyId"): "the service does not know this account",
    ("s3", 403, "SignatureDoesNotMatch"): "the secret key is wrong",
    ("s3", 400, "ExpiredToken"): "the credentials have expired: log in again",
    ("s3", 400, "AuthorizationHeaderMalformed"): "another region: set AWS_REGION=eu-1",
}


def test_what_asking_again_does_not_mend_is_a_line(bucket, store):
    for (scheme, status, text), said in REFUSED.items():
        if scheme == store[0]:
            assert_refused(bucket, store[1], scheme, status, text, said)


def assert_refused(bucket, faults, scheme, status, text, said):
    content = json.dumps({"error": {"code": status, "message": text}})
    if scheme == "s3":
        content = f"<Error><Code>{text}</Code><Message>no</Message></Error>"
    headers = {"x-amz-bucket-region": "eu-1", "Content-Type": "application/json"}
    faults.answer = status, headers, content.encode()
    with pytest.raises(OSError, match=said) as error:
        Patient(bucket, 60).read("x")
    assert not isinstance(error.value, AwayError) and "\n" not in str(error.value)


@pytest.mark.parametrize("code", ["SlowDown", "InternalError", "RequestTimeout"])
def test_what_is_busy_is_asked_again(bucket, store, code):
    scheme, faults = store
    content = f"<Error><Code>{code}</Code><Message>no</Message></Error>"
    status = 400 if scheme == "s3" else 503
    faults.answer = status, {}, content.encode()
    with pytest.raises(AwayError):
        bucket.read("x")
