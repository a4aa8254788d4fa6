"""Policies of Amazon's IAM, as far as docs/security.md uses them: what they allow, and a client that keeps to one."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from botocore.exceptions import ClientError

ACTIONS: dict[str, tuple[str, ...]] = {
    "HeadBucket": ("s3:ListBucket",),
    "CreateBucket": ("s3:CreateBucket",),
    "ListObjectsV2": ("s3:ListBucket",),
    "ListMultipartUploads": ("s3:ListBucketMultipartUploads",),
    "GetObject": ("s3:GetObject",),
    "HeadObject": ("s3:GetObject",),
    "PutObject": ("s3:PutObject",),
    "CreateMultipartUpload": ("s3:PutObject",),
    "UploadPart": ("s3:PutObject",),
    "CompleteMultipartUpload": ("s3:PutObject",),
    "AbortMultipartUpload": ("s3:AbortMultipartUpload",),
    "DeleteObject": ("s3:DeleteObject",),
}
"""What Amazon asks for each operation, by its documentation. Of those on an object the resource is the object, of the
others the bucket."""


@dataclass
class Policy:
    """One policy document, and what was asked of it."""

    statements: list[dict[str, Any]]
    asked: set[tuple[str, str]] = field(default_factory=set)
    """Action and resource of each request that was allowed."""

    @classmethod
    def parse(cls, text: str) -> Policy:
        document = json.loads(text)
        assert document["Version"] == "2012-10-17"
        assert all(set(each) == {"Effect", "Action", "Resource"} for each in document["Statement"])
        assert all(each["Effect"] == "Allow" for each in document["Statement"])
        return cls(document["Statement"])

    def allows(self, action: str, resource: str) -> bool:
        return any(
            action in _list(each["Action"])
            and any(fnmatchcase(resource, pattern) for pattern in _list(each["Resource"]))
            for each in self.statements
        )

    def grants(self) -> list[tuple[str, str]]:
        """Each action with each pattern that it is allowed on."""
        return [
            (action, pattern)
            for each in self.statements
            for action in _list(each["Action"])
            for pattern in _list(each["Resource"])
        ]

    def unused(self) -> list[tuple[str, str]]:
        """Grants that nothing was asked under."""
        return [
            (action, pattern)
            for action, pattern in self.grants()
            if not any(action == asked and fnmatchcase(resource, pattern) for asked, resource in self.asked)
        ]

    def guard(self, client: Any) -> None:
        """Let the client send only what is allowed. What is not is refused as Amazon does."""
        client.meta.events.register("before-parameter-build.s3", self._check)

    def _check(self, params: dict[str, Any], model: Any, **_: object) -> None:
        resource = f"arn:aws:s3:::{params['Bucket']}" + (f"/{params['Key']}" if "Key" in params else "")
        actions = list(ACTIONS[model.name])
        if "IfMatch" in params and model.name == "PutObject":
            actions.append("s3:GetObject")
        for action in actions:
            if not self.allows(action, resource):
                raise ClientError(
                    {"Error": {"Code": "AccessDenied"}, "ResponseMetadata": {"HTTPStatusCode": 403}},  # type: ignore[typeddict-item]
                    model.name,
                )
            self.asked.add((action, resource))


def policies(document: str) -> list[tuple[str, Policy]]:
    """Of a document in Markdown: each policy, with the paragraph before it."""
    found = re.findall(r"\n([^\n]+)\n\n```json\n(\{\n  \"Version\".*?)```", document, re.DOTALL)
    return [(said, Policy.parse(text)) for said, text in found]


def _list(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value
