"""The way to compare with: every step after the other, by way of the disk, with Python's usual libraries.

python_way.py URL SHA256 FOLDER SINK
"""

import hashlib
import lzma
import shutil
import sys
from pathlib import Path

import boto3
import requests
from botocore import UNSIGNED
from botocore.config import Config

url, expected, folder, sink = sys.argv[1:]
packed, plain = Path(folder, "disk.raw.xz"), Path(folder, "disk.raw")

digest = hashlib.sha256()
with requests.get(url, stream=True, timeout=30) as response, packed.open("wb") as out:
    response.raise_for_status()
    for piece in response.iter_content(1 << 20):
        out.write(piece)
with packed.open("rb") as stored:
    while piece := stored.read(1 << 20):
        digest.update(piece)
if digest.hexdigest() != expected:
    sys.exit("wrong checksum")

with lzma.open(packed) as stored, plain.open("wb") as out:
    shutil.copyfileobj(stored, out, 1 << 20)

# Without signatures: over plain http each part's payload would be hashed once more, which https spares.
config = Config(signature_version=UNSIGNED, s3={"addressing_style": "path"})
client = boto3.client("s3", region_name="us-east-1", endpoint_url=sink, config=config)
client.upload_file(str(plain), "bucket", "disk.raw")

packed.unlink()
plain.unlink()
