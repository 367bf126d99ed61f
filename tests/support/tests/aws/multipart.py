"""Multipart uploads keep the rules of S3."""

from common import *

s3 = client("s3")
big, small = b"\1" * (5 * 1024 * 1024), b"\2" * 10
target = {"Bucket": "images", "Key": "disk.raw"}
upload = s3.create_multipart_upload(ChecksumAlgorithm="SHA256", **target)["UploadId"]
target["UploadId"] = upload
first = s3.upload_part(PartNumber=1, Body=big, ChecksumSHA256=sha256(big), **target)["ETag"]
second = s3.upload_part(PartNumber=2, Body=small, ChecksumSHA256=sha256(small), **target)["ETag"]
listed = s3.list_parts(**target)["Parts"]
assert [(part["ETag"], part["ChecksumSHA256"]) for part in listed] == [(first, sha256(big)), (second, sha256(small))]
refused("InvalidRequest", s3.upload_part, PartNumber=1, Body=small, ChecksumCRC32="AAAAAA==", **target)
refused("BadDigest", s3.upload_part, PartNumber=1, Body=small, ChecksumSHA256=sha256(big), **target)


def part(number, tag, data=None):
    return {"PartNumber": number, "ETag": tag} | ({"ChecksumSHA256": sha256(data)} if data else {})


for code, parts in [
    ("InvalidPart", [part(1, second, big)]),
    ("InvalidPart", [part(1, first, small)]),
    ("InvalidPart", [part(1, first, big), part(3, second, small)]),
    ("InvalidPartOrder", [part(2, second, small), part(1, first, big)]),
    ("InvalidRequest", [part(1, first)]),
]:
    refused(code, s3.complete_multipart_upload, MultipartUpload={"Parts": parts}, **target)
s3.upload_part(PartNumber=1, Body=small, ChecksumSHA256=sha256(small), **target)
parts = [part(1, second, small), part(2, second, small)]
refused("EntityTooSmall", s3.complete_multipart_upload, MultipartUpload={"Parts": parts}, **target)
s3.abort_multipart_upload(**target)
for call, more in [
    (s3.list_parts, {}),
    (s3.upload_part, {"PartNumber": 1, "Body": small}),
    (s3.complete_multipart_upload, {"MultipartUpload": {"Parts": parts}}),
    (s3.abort_multipart_upload, {}),
]:
    refused("NoSuchUpload", call, **target, **more)
refused("404", s3.head_object, Bucket="images", Key="disk.raw")
