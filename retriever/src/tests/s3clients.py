"""boto3 against the S3 interface of a retriever: started by s3clients.rs, which knows what there is.

Arguments: endpoint, bucket, access key, secret, and a JSON file: {key: {"size": n, "sha256": hex, "sequence": ms}}.
"""

import hashlib
import json
import sys
import tempfile
import time
import urllib.error
import urllib.request

import boto3
from botocore import UNSIGNED
from botocore.client import Config
from botocore.exceptions import ClientError

endpoint, bucket, access, secret, path = sys.argv[1:]
with open(path, encoding="utf-8") as file:
    files = json.load(file)
keys = sorted(files, key=lambda key: key.encode())


def client(access=access, secret=secret, **config):
    config = Config(retries={"total_max_attempts": 1}, s3={"addressing_style": "path"}, **config)
    return boto3.client(
        "s3", endpoint_url=endpoint, region_name="eu-west-1", config=config,
        aws_access_key_id=access, aws_secret_access_key=secret,
    )


def refused(call, **arguments):
    try:
        call(**arguments)
    except ClientError as error:
        return error.response["ResponseMetadata"]["HTTPStatusCode"], error.response["Error"]["Code"]
    raise AssertionError(f"{call} was not refused: {arguments}")


def same(found, right, what):
    assert found == right, f"{what}: {found!r} instead of {right!r}"


s3 = client()
same([b["Name"] for b in s3.list_buckets()["Buckets"]], [bucket], "buckets")
s3.head_bucket(Bucket=bucket)
same(s3.get_bucket_location(Bucket=bucket)["LocationConstraint"], None, "location")

# Listings: both versions, large and small pages, whole and by folder.
dates = sorted({key.split("/")[0] for key in keys})
for name, page_size in [("list_objects_v2", 1000), ("list_objects", 1000), ("list_objects_v2", 113), ("list_objects", 250)]:
    pages = s3.get_paginator(name).paginate(Bucket=bucket, PaginationConfig={"PageSize": page_size})
    found = [(o["Key"], o["Size"]) for page in pages for o in page.get("Contents", [])]
    same(found, [(key, files[key]["size"]) for key in keys], f"{name} by {page_size}")
for prefix in ["", dates[0], f"{dates[0]}/", f"{dates[0]}/folder/", f"{dates[1]}/ä", "x"]:
    pages = s3.get_paginator("list_objects_v2").paginate(
        Bucket=bucket, Prefix=prefix, Delimiter="/", PaginationConfig={"PageSize": 9})
    found, right = [], []
    for page in pages:
        found += [o["Key"] for o in page.get("Contents", [])] + [p["Prefix"] for p in page.get("CommonPrefixes", [])]
    for key in keys:
        if key.startswith(prefix):
            head, slash, _ = key[len(prefix):].partition("/")
            if prefix + head + slash not in right[-1:]:
                right.append(prefix + head + slash)
    same(sorted(found), sorted(set(right)), f"folders of {prefix!r}")

# Objects: the odd ones and every fiftieth other one.
listed = {o["Key"]: o for page in s3.get_paginator("list_objects_v2").paginate(Bucket=bucket) for o in page["Contents"]}
odd = [key for key in keys if not key.split("/", 1)[1].startswith("folder/")]
assert len(odd) > 20, odd
for key in odd + keys[::50]:
    answer = s3.get_object(Bucket=bucket, Key=key, ChecksumMode="ENABLED")
    body = answer["Body"].read()
    same(hashlib.sha256(body).hexdigest(), files[key]["sha256"], key)
    head = s3.head_object(Bucket=bucket, Key=key)
    same(head["ContentLength"], files[key]["size"], key)
    same({head["ETag"], answer["ETag"], listed[key]["ETag"]}, {head["ETag"]}, f"tags of {key}")
    same(int(listed[key]["LastModified"].timestamp()), files[key]["sequence"] // 1000, key)
    same(head["LastModified"].timestamp(), files[key]["sequence"] // 1000, key)
    if len(body) > 4:
        part = s3.get_object(Bucket=bucket, Key=key, Range="bytes=1-3", IfMatch=head["ETag"])
        same((part["Body"].read(), part["ContentRange"]), (body[1:4], f"bytes 1-3/{len(body)}"), key)
        same(s3.get_object(Bucket=bucket, Key=key, Range="bytes=-2")["Body"].read(), body[-2:], key)

key = next(key for key in keys if files[key]["size"] > 4)
tag = listed[key]["ETag"]
of_key = {"Bucket": bucket, "Key": key}
same(refused(s3.get_object, **of_key, IfNoneMatch=tag), (304, "304"), "unchanged")
same(refused(s3.get_object, **of_key, IfMatch='"other"'), (412, "PreconditionFailed"), "changed")
same(refused(s3.get_object, **of_key, Range="bytes=99999999-"), (416, "InvalidRange"), "range")
same(refused(s3.get_object, Bucket=bucket, Key=f"{dates[0]}/nothing"), (404, "NoSuchKey"), "missing")
same(refused(s3.head_object, Bucket=bucket, Key=f"{dates[0]}/nothing"), (404, "404"), "missing")
same(refused(s3.list_objects_v2, Bucket="another-one"), (404, "NoSuchBucket"), "bucket")
same(refused(s3.put_object, **of_key, Body=b"x" * 100_000), (405, "MethodNotAllowed"), "put")
same(refused(s3.delete_object, **of_key), (405, "MethodNotAllowed"), "delete")
same(refused(s3.copy_object, Bucket=bucket, Key="20250310/copy", CopySource=of_key), (405, "MethodNotAllowed"), "copy")
same(refused(s3.delete_objects, Bucket=bucket, Delete={"Objects": [{"Key": key}]}), (405, "MethodNotAllowed"), "delete")

# A large one in parts, as the transfer manager reads it.
large = max(keys, key=lambda key: files[key]["size"])
with tempfile.TemporaryDirectory() as folder:
    s3.download_file(bucket, large, f"{folder}/large")
    with open(f"{folder}/large", "rb") as file:
        same(hashlib.sha256(file.read()).hexdigest(), files[large]["sha256"], large)

# Who may.
wrong = client(secret=secret + "x")
same(refused(wrong.get_object, **of_key), (403, "SignatureDoesNotMatch"), "wrong secret")
same(refused(wrong.list_objects_v2, Bucket=bucket), (403, "SignatureDoesNotMatch"), "wrong secret")
same(refused(client(access="nobody").get_object, **of_key), (403, "InvalidAccessKeyId"), "unknown key")
unsigned = client(signature_version=UNSIGNED)
same(refused(unsigned.get_object, **of_key), (403, "AccessDenied"), "no signature")
same(refused(client(signature_version="s3").get_object, **of_key), (400, "InvalidRequest"), "version 2")


def fetched(url):
    try:
        with urllib.request.urlopen(url) as response:
            return response.status, hashlib.sha256(response.read()).hexdigest()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


v4 = client(signature_version="s3v4")
for key in [key, *odd[:12]]:
    url = v4.generate_presigned_url("get_object", {"Bucket": bucket, "Key": key}, ExpiresIn=60)
    same(fetched(url), (200, files[key]["sha256"]), url)
    end = "0" if url[-1] != "0" else "1"
    status, text = fetched(url[:-1] + end)
    assert status == 403 and "SignatureDoesNotMatch" in text, (status, text)
url = v4.generate_presigned_url("get_object", of_key, ExpiresIn=1)
deadline = time.monotonic() + 60
while (status := fetched(url)[0]) == 200 and time.monotonic() < deadline:
    time.sleep(0.1)
status, text = fetched(url)
assert status == 403 and "expired" in text, (status, text)
print("fine")
