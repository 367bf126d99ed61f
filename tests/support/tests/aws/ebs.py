"""EBS direct keeps its rules."""

from common import *

ebs, ec2 = client("ebs"), client("ec2")
request = {
    "VolumeSize": 2,
    "Description": "a disk",
    "Tags": [{"Key": "sha256", "Value": "abc"}],
    "ClientToken": "token-1",
    "Timeout": 60,
}
started = ebs.start_snapshot(**request)
assert started["BlockSize"] == BLOCK and started["Status"] == "pending", started
snapshot = started["SnapshotId"]
assert ebs.start_snapshot(**request)["SnapshotId"] == snapshot
refused("ConflictException", ebs.start_snapshot, **(request | {"VolumeSize": 3}))
shown = ec2.describe_snapshots(SnapshotIds=[snapshot])["Snapshots"][0]
assert shown["State"] == "pending" and shown["VolumeSize"] == 2 and shown["Tags"] == request["Tags"], shown

one, two = b"\1" * BLOCK, b"\2" * BLOCK
# A new snapshot is not known everywhere yet.
refused("ResourceNotFoundException", put_block, ebs=ebs, snapshot=snapshot, index=0, data=one)
put_block(ebs, snapshot, 7, two)
answer = put_block(ebs, snapshot, 0, one)
assert answer["Checksum"] == sha256(one), answer
for changes in [
    {"data": one[:-1]},
    {"data": one + one},
    {"data": one, "Checksum": sha256(two)},
    {"data": one, "DataLength": BLOCK - 1},
    {"data": one, "index": 4096},
]:
    refused("ValidationException", put_block, **({"ebs": ebs, "snapshot": snapshot, "index": 1} | changes))
refused("ResourceNotFoundException", put_block, ebs=ebs, snapshot="snap-00000000000000000", index=0, data=one)
for size in (0, 65537):
    refused("ValidationException", client("ebs", parameter_validation=False).start_snapshot, VolumeSize=size)
refused("ValidationException", client("ebs", parameter_validation=False).start_snapshot, VolumeSize=1, Timeout=9)

digests = b"".join(hashlib.sha256(data).digest() for data in (one, two))
linear = {"ChecksumAlgorithm": "SHA256", "ChecksumAggregationMethod": "LINEAR"}
complete = {"SnapshotId": snapshot, "ChangedBlocksCount": 2, "Checksum": sha256(digests), **linear}
refused("ValidationException", ebs.complete_snapshot, **(complete | {"ChangedBlocksCount": 3}))
refused("ValidationException", ebs.complete_snapshot, **(complete | {"Checksum": sha256(digests[::-1])}))
assert ebs.complete_snapshot(**complete)["Status"] == "pending"
refused("ValidationException", put_block, ebs=ebs, snapshot=snapshot, index=1, data=one)
ec2.get_waiter("snapshot_completed").wait(SnapshotIds=[snapshot], WaiterConfig=QUICK)

blocks = ebs.list_snapshot_blocks(SnapshotId=snapshot)
assert blocks["VolumeSize"] == 2 and [block["BlockIndex"] for block in blocks["Blocks"]] == [0, 7], blocks
read = ebs.get_snapshot_block(SnapshotId=snapshot, **blocks["Blocks"][1])
assert read["BlockData"].read() == two and read["Checksum"] == sha256(two)
refused(
    "ValidationException",
    ebs.get_snapshot_block,
    SnapshotId=snapshot,
    BlockIndex=0,
    BlockToken=blocks["Blocks"][1]["BlockToken"],
)
# The token still names this snapshot when it is gone: nothing new comes of it.
ec2.delete_snapshot(SnapshotId=snapshot)
assert ebs.start_snapshot(**request)["SnapshotId"] == snapshot
refused("ResourceNotFoundException", ebs.complete_snapshot, **complete)
