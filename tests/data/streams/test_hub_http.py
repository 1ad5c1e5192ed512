"""Rows of a Hub on 127.0.0.1: tables are read in pieces, images of a folder when they are asked for."""

import json
import subprocess
import sys

import pytest

from parquet_sets import png, write_set

PROGRAM = """
import json, sys
import datasets
from huggingface_hub import HfApi
from radtower.data.streams.hub_rows import HubRows, HubSource, with_bytes

datasets.config.SLEEP_TIME_ON_THREADS_SHUTDOWN = 0
found = {}
for name in ("table", "folder"):
    HfApi().create_repo(f"tester/{name}", repo_type="dataset", private=True)
    HfApi().upload_folder(repo_id=f"tester/{name}", repo_type="dataset", folder_path=f"{sys.argv[1]}/{name}")
    source = HubSource(
        dataset=f"tester/{name}", image_column="image", report_column="report", shuffle_buffer=4
    )
    rows = HubRows(source, 0, 2)
    parts = [list(rows.read(1, reader)) for reader in range(2)]
    found[name] = [[row.report for row in part] for part in parts]
    first = parts[0][0]
    found[name + " is embedded"] = first.image["bytes"] is not None
    found[name + " first"] = [first.report, with_bytes(first.image)["bytes"].hex()]
print(json.dumps(found))
"""


@pytest.mark.slow
def test_a_private_data_set_is_streamed_over_http(local_hub, tmp_path):
    write_set(tmp_path / "table", [png(n) for n in range(8)], [f"report {n}" for n in range(8)], num_files=2)
    folder = tmp_path / "folder" / "train"
    folder.mkdir(parents=True)
    for number in range(3):
        (folder / f"i{number}.png").write_bytes(png(number))
    lines = [{"file_name": f"i{number}.png", "report": f"report {number}"} for number in range(3)]
    (folder / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path)],
        env=local_hub.environment(tmp_path / "home"),
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    for name, number in (("table", 8), ("folder", 3)):
        reports = [report for part in found[name] for report in part]
        assert sorted(reports) == [f"report {n}" for n in range(number)]
        assert all(found[name])
        report, content = found[f"{name} first"]
        assert bytes.fromhex(content) == png(int(report.rpartition(" ")[2]))
    assert found["table is embedded"]
    assert not found["folder is embedded"]
    images = [request.path for request in local_hub.requests if request.path.endswith(".png")]
    assert len({path.rpartition("/")[2] for path in images}) == 1  # only the one that was asked for
