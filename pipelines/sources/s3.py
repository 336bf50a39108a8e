"""Class folders in an S3 bucket: listed here by boto3, their files opened by DALI itself."""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from itertools import groupby

from pipelines import DataError
from pipelines.sources.folders import (
    Classes,
    Listed,
    assembled,
    check_classes,
    held_out_of,
    is_image,
    kept,
    prefix_length,
)
from pipelines.sources.imageset import Exclusions, ImageSet, three
from pipelines.sources.shards import FORMS

SCHEME = "s3://"
Key = tuple[str, int]  # of an object: its key in the bucket, and its bytes


def open_s3(address: str, exclusions: Exclusions) -> ImageSet:
    """The class folders under `s3://bucket/prefix`, as on a disk; boto3's own settings (AWS_ENDPOINT_URL) count."""
    return from_listing(address, _listed(address), exclusions)


def from_listing(address: str, keys: Iterable[Key], exclusions: Exclusions) -> ImageSet:
    """The set that a listing of `address` shows; `DataError` where it is anything but class folders."""
    root = SCHEME + address.removeprefix(SCHEME).strip("/")
    bucket, prefix = _parts(root)
    objects = [
        Listed(f"{SCHEME}{bucket}/{key}", key[len(prefix) :], size)
        for key, size in keys
        if key.startswith(prefix) and not key.endswith("/")
    ]
    if not objects:
        raise DataError(f"--data {address} holds nothing: give the prefix above the class folders")
    _refuse_shards(address, objects)
    train, val = _classes(objects, "train/"), _classes(objects, "val/")
    start = prefix_length(root)
    if not train:
        classes = _classes(objects, "")
        check_classes(classes, root, 2)
        return held_out_of(kept(classes, start, exclusions), root, exclusions)
    check_classes(train, f"{root}/train", 2)
    if flat := [image.name for image in objects if image.name.startswith("val/") and image.name.count("/") == 1]:
        raise DataError(
            f"--data {address} has {len(flat)} files directly in val/ ({three(flat)}): "
            "only class folders are read from S3; sort them into val/<class>/"
        )
    return assembled(kept(train, start, exclusions), kept(val, start, exclusions), root, exclusions)


def _classes(objects: Iterable[Listed], folder: str) -> Classes:
    """The images at `folder<class>/<name>`, by class."""
    images = [
        (name.partition("/")[0], Listed(each.path, name.partition("/")[2], each.size_bytes))
        for each in objects
        if each.name.startswith(folder) and (name := each.name[len(folder) :]).count("/") == 1
    ]
    images = sorted(
        ((label, image) for label, image in images if is_image(image.name) and not label.startswith(".")),
        key=lambda pair: (pair[0], pair[1].name),
    )
    return {label: [image for _, image in pairs] for label, pairs in groupby(images, key=lambda pair: pair[0])}


def _refuse_shards(address: str, objects: Iterable[Listed]) -> None:
    for image in objects:
        for form in FORMS:
            if form.holds(image.name.rpartition("/")[2]):
                raise DataError(
                    f"--data {address} holds {form.plural} ({image.name}), and only class folders are read from S3: "
                    "copy them to a disk and give that folder"
                )


def _parts(root: str) -> tuple[str, str]:
    """Bucket and prefix; the prefix is empty or ends in a slash."""
    bucket, _, prefix = root.removeprefix(SCHEME).partition("/")
    if not bucket:
        raise DataError(f"--data {root} names no bucket: give s3://bucket/prefix")
    return bucket, f"{prefix}/" if prefix else ""


def _listed(address: str) -> list[Key]:
    bucket, prefix = _parts(SCHEME + address.removeprefix(SCHEME).strip("/"))
    try:
        boto3, errors = importlib.import_module("boto3"), importlib.import_module("botocore.exceptions")
    except ImportError as error:
        raise DataError(
            f"--data {address} needs boto3 to be listed, which is not installed: python -m pip install -e '.[s3]'"
        ) from error
    try:
        pages = boto3.client("s3").get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
        return [(each["Key"], each["Size"]) for page in pages for each in page.get("Contents", ())]
    except (errors.BotoCoreError, errors.ClientError, ValueError) as error:
        told = " ".join(str(error).split())
        raise DataError(f"--data {address} cannot be listed ({told}): check the address, rights and region") from error
