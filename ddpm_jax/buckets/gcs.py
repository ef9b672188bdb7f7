"""Buckets of Google Cloud Storage, by its own client."""

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from ddpm_jax.buckets.base import AwayError, ChangedError, Object

TIMEOUT = 10, 60  # seconds to connect, and without a byte
CHUNK = 16 * 2**20  # bytes of an upload in memory at once


class Gcs:
    """A bucket of gs://; see `base.Bucket`. `STORAGE_EMULATOR_HOST` is honoured."""

    def __init__(self, name: str):
        """Opens a bucket.

        Raises:
          OSError: if there is no client, or no credentials for it.
        """
        try:
            import google.auth.credentials
            import google.auth.exceptions
            import requests.adapters
            from google.cloud import storage
        except ImportError as error:
            raise OSError("gs:// needs its client: pip install '.[gcs]'") from error
        given = {}
        if "STORAGE_EMULATOR_HOST" in os.environ:
            anonymous = google.auth.credentials.AnonymousCredentials()
            given = {"credentials": anonymous, "project": "emulated"}
        try:
            client = storage.Client(**given)
        except google.auth.exceptions.DefaultCredentialsError as error:
            raise OSError(
                f"gs://{name}: no credentials of Google Cloud are found: run gcloud "
                "auth application-default login, or give the machine a service account"
            ) from error
        except OSError as error:
            if "project" not in str(error).lower():
                raise
            client = storage.Client(project="none")  # which only new buckets need
        for scheme in ("http://", "https://"):  # as many as there are threads
            adapter = requests.adapters.HTTPAdapter(pool_maxsize=32)
            client._http.mount(scheme, adapter)
        self._client, self._name = client, name
        self._bucket = client.bucket(name)

    def list(self, prefix: str) -> Iterator[Object]:
        with self._translated(prefix, of_bucket=True):
            yield from map(_object, self._pages(prefix))

    def level(self, prefix: str) -> tuple[Sequence[Object], Sequence[str]]:
        with self._translated(prefix, of_bucket=True):
            pages = self._pages(prefix, delimiter="/")
            return [*map(_object, pages)], sorted(pages.prefixes)

    def _pages(self, prefix, **options):
        return self._client.list_blobs(
            self._name,
            prefix=prefix,
            fields="items(name,size,generation),prefixes,nextPageToken",
            timeout=TIMEOUT,
            retry=None,
            **options,
        )

    def read(self, name: str) -> tuple[bytes, str]:
        blob = self._bucket.blob(name)
        with self._translated(name):
            content = blob.download_as_bytes(timeout=TIMEOUT, retry=None)
        return content, str(blob.generation)

    def write(self, name: str, content: bytes, version: str | None = None) -> str:
        blob = self._bucket.blob(name)
        expected = {} if version is None else {"if_generation_match": int(version or 0)}
        with self._translated(name):
            blob.upload_from_string(
                content,
                content_type="application/octet-stream",
                timeout=TIMEOUT,
                retry=None,
                **expected,
            )
        return str(blob.generation)

    def download(self, name: str, path: Path) -> None:
        with self._translated(name), path.open("wb") as file:
            blob = self._bucket.blob(name)
            blob.download_to_file(file, timeout=TIMEOUT, retry=None)

    def upload(self, path: Path, name: str) -> None:
        blob = self._bucket.blob(name, chunk_size=CHUNK)
        with path.open("rb") as file, self._translated(name):
            size = os.fstat(file.fileno()).st_size
            blob.upload_from_file(file, size=size, timeout=TIMEOUT, retry=None)

    def delete(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError), self._translated(name):
            self._bucket.blob(name).delete(timeout=TIMEOUT, retry=None)

    @contextlib.contextmanager
    def _translated(self, name, of_bucket=False):
        """Raises what `base.Bucket` names."""
        from google.api_core import exceptions
        from google.auth.exceptions import GoogleAuthError, TransportError
        from google.cloud.storage.exceptions import DataCorruption, InvalidResponse
        from requests.exceptions import RequestException

        what = f"gs://{self._name}/{name}"
        try:
            yield
        except exceptions.NotFound as error:
            if of_bucket:
                raise OSError(
                    f"there is no bucket gs://{self._name}: make it, or mend the name"
                ) from error
            raise FileNotFoundError(f"there is no {what}") from error
        except exceptions.PreconditionFailed as error:
            raise ChangedError(f"{what} was written by another") from error
        except (exceptions.Forbidden, exceptions.Unauthorized) as error:
            raise OSError(
                f"no right to {what}: the account needs the role Storage Object User "
                f"of this bucket ({_first_line(error)})"
            ) from error
        except (
            exceptions.TooManyRequests,
            exceptions.ServerError,
            DataCorruption,
            InvalidResponse,
            RequestException,
            TransportError,
        ) as error:
            raise AwayError(f"{what} is away ({_first_line(error)})") from error
        except GoogleAuthError as error:
            raise OSError(
                f"{what}: the credentials are refused ({_first_line(error)}): log in "
                "again; where the clock of this machine is wrong, set it"
            ) from error
        except exceptions.GoogleAPICallError as error:
            if error.code in (408, 429):
                raise AwayError(f"{what} is away ({_first_line(error)})") from error
            raise OSError(f"{what}: {_first_line(error)}") from error


def _object(blob) -> Object:
    return Object(blob.name, blob.size, str(blob.generation))


def _first_line(error: Exception) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__
