"""Buckets of S3, and of what speaks as it does, by Amazon's client."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from ddpm_jax.buckets.base import AwayError, ChangedError, Object

# What the service says, and what there is to do.
_REFUSED = {
    "AccessDenied": "this account has no right to it",
    "ExpiredToken": "the credentials have expired: log in again",
    "InvalidAccessKeyId": "the service does not know this account",
    "SignatureDoesNotMatch": "the secret key is wrong",
    "InvalidToken": "the credentials are refused: log in again",
    "RequestTimeTooSkewed": "the clock of this machine is wrong: set it",
    "403": "this account has no right to it",
}
_ELSEWHERE = (
    "PermanentRedirect",
    "AuthorizationHeaderMalformed",
    "IllegalLocationConstraintException",
    "301",
)
_BUSY = (
    *("SlowDown", "RequestTimeout", "InternalError", "ServiceUnavailable"),
    *("ConditionalRequestConflict", "OperationAborted", "BadDigest", "Throttling"),
    *("XAmzContentChecksumMismatch", "IncompleteBody", "429"),
)


class S3:
    """A bucket of s3://; see `base.Bucket`. `AWS_ENDPOINT_URL` is honoured."""

    def __init__(self, name: str):
        """Opens a bucket.

        Raises:
          OSError: if there is no client.
        """
        try:
            import boto3
            import botocore.config
        except ImportError as error:
            raise OSError("s3:// needs its client: pip install '.[s3]'") from error
        config = botocore.config.Config(
            retries={"total_max_attempts": 1, "mode": "standard"},
            connect_timeout=10,
            read_timeout=60,
            max_pool_connections=32,
        )
        self._client, self._name = boto3.client("s3", config=config), name

    def list(self, prefix: str) -> Iterator[Object]:
        with self._translated(prefix):
            for page in self._pages(Prefix=prefix):
                yield from _objects(page)

    def level(self, prefix: str) -> tuple[Sequence[Object], Sequence[str]]:
        objects, folders = [], []
        with self._translated(prefix):
            for page in self._pages(Prefix=prefix, Delimiter="/"):
                objects += _objects(page)
                folders += [found["Prefix"] for found in page.get("CommonPrefixes", ())]
        return objects, folders

    def _pages(self, **options):
        pages = self._client.get_paginator("list_objects_v2")
        return pages.paginate(Bucket=self._name, **options)

    def read(self, name: str) -> tuple[bytes, str]:
        with self._translated(name):
            found = self._client.get_object(Bucket=self._name, Key=name)
            return found["Body"].read(), found["ETag"]

    def write(self, name: str, content: bytes, version: str | None = None) -> str:
        expected = {}
        if version is not None:
            expected = {"IfMatch": version} if version else {"IfNoneMatch": "*"}
        with self._translated(name, is_expected=version is not None):
            found = self._client.put_object(
                Bucket=self._name, Key=name, Body=content, **expected
            )
            return found["ETag"]

    def download(self, name: str, path: Path) -> None:
        with self._translated(name):
            self._client.download_file(self._name, name, str(path))

    def upload(self, path: Path, name: str) -> None:
        with self._translated(name):
            self._client.upload_file(str(path), self._name, name)

    def delete(self, name: str) -> None:
        with self._translated(name):
            self._client.delete_object(Bucket=self._name, Key=name)

    @contextlib.contextmanager
    def _translated(self, name, is_expected=False):
        """Raises what `base.Bucket` names."""
        from boto3.exceptions import Boto3Error
        from botocore.exceptions import (
            BotoCoreError,
            ClientError,
            NoCredentialsError,
            NoRegionError,
            PartialCredentialsError,
        )

        what = f"s3://{self._name}/{name}"
        try:
            yield
        except ClientError as error:
            raise self._error_of(error, what, is_expected) from error
        except (NoCredentialsError, PartialCredentialsError) as error:
            raise OSError(
                f"{what}: no credentials of AWS are found: run aws configure, or give "
                "the machine a role"
            ) from error
        except NoRegionError as error:
            raise OSError(f"{what}: set AWS_REGION to the bucket's region") from error
        except (Boto3Error, BotoCoreError) as error:  # of a connection, or a checksum
            cause = error.__cause__ or error.__context__  # as of one of several parts
            if isinstance(cause, ClientError):
                raise self._error_of(cause, what, is_expected) from error
            raise AwayError(f"{what} is away ({_first_line(error)})") from error

    def _error_of(self, error, what, is_expected) -> OSError:
        code = str(error.response.get("Error", {}).get("Code", ""))
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        if code == "NoSuchBucket":
            return OSError(f"there is no bucket s3://{self._name}: make it, or mend it")
        if code == "PreconditionFailed" or is_expected and code in ("NoSuchKey", "404"):
            return ChangedError(f"{what} was written by another")
        if code in ("NoSuchKey", "404"):
            return FileNotFoundError(f"there is no {what}")
        if code in _ELSEWHERE:
            headers = error.response["ResponseMetadata"].get("HTTPHeaders", {})
            region = headers.get("x-amz-bucket-region", "the bucket's region")
            return OSError(f"{what} lies in another region: set AWS_REGION={region}")
        if code in _REFUSED:
            return OSError(f"{what}: {_REFUSED[code]} ({_first_line(error)})")
        if code in _BUSY or status == 429 or status >= 500:
            return AwayError(f"{what} is away ({_first_line(error)})")
        return OSError(f"{what}: {_first_line(error)}")


def _objects(page) -> list[Object]:
    return [
        Object(found["Key"], found["Size"], found["ETag"])
        for found in page.get("Contents", ())
    ]


def _first_line(error: Exception) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__
