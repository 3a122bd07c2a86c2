"""A real S3 server on the loopback, in a thread of this process: moto's, all in memory."""

from __future__ import annotations

from types import TracebackType
from typing import Any, Self

import boto3
from moto.server import ThreadedMotoServer

BUCKET = "runs"


class ObjectStorage:
    """Listens until it is left; has one bucket.

    Attributes:
        variables: the environment of a process that is to find it.
    """

    def __init__(self) -> None:
        self._server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)

    def __enter__(self) -> Self:
        self._server.start()
        host, port = self._server.get_host_and_port()
        self.variables = {
            "AWS_ENDPOINT_URL": f"http://{host}:{port}",
            "AWS_ACCESS_KEY_ID": "tests",
            "AWS_SECRET_ACCESS_KEY": "tests",
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        self._client: Any = boto3.client(
            "s3",
            endpoint_url=self.variables["AWS_ENDPOINT_URL"],
            aws_access_key_id="tests",
            aws_secret_access_key="tests",
            region_name="us-east-1",
        )
        self._client.create_bucket(Bucket=BUCKET)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.stop()

    def objects(self) -> dict[str, bytes]:
        """What is in the bucket, by key."""
        listed = self._client.list_objects_v2(Bucket=BUCKET).get("Contents", [])
        return {o["Key"]: self.read(o["Key"]) for o in listed}

    def read(self, key: str) -> bytes:
        """An object."""
        return bytes(self._client.get_object(Bucket=BUCKET, Key=key)["Body"].read())

    def remove_bucket(self) -> None:
        """Have it gone, with all that is in it."""
        for key in self.objects():
            self._client.delete_object(Bucket=BUCKET, Key=key)
        self._client.delete_bucket(Bucket=BUCKET)

    def make_bucket(self) -> None:
        """Have it back, empty."""
        self._client.create_bucket(Bucket=BUCKET)
