from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from dvc.repo import Repo
from moto.server import ThreadedMotoServer


def test_data_goes_through_an_s3_compatible_remote(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The settings are those of docs/servers.md."""
    import boto3

    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-central-1")
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        address = f"http://{host}:{port}"
        storage = boto3.client("s3", endpoint_url=address)
        storage.create_bucket(
            Bucket="thawline", CreateBucketConfiguration={"LocationConstraint": "eu-central-1"}
        )
        with Repo.init(str(tmp_path), no_scm=True) as repo, repo.config.edit() as config:
            config["core"]["remote"] = "storage"
            config["remote"]["storage"] = {
                "url": "s3://thawline/project",
                "endpointurl": address,
            }
        with Repo(str(tmp_path)) as repo:
            data = tmp_path / "data.bin"
            data.write_bytes(b"kept" * 1000)
            repo.add(str(data))
            assert repo.push() == 1
        assert storage.list_objects_v2(Bucket="thawline")["KeyCount"] == 1
        data.unlink()
        shutil.rmtree(tmp_path / ".dvc/cache")
        with Repo(str(tmp_path)) as repo:
            repo.pull()
        assert data.read_bytes() == b"kept" * 1000
    finally:
        server.stop()
