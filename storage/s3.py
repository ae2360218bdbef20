"""S3 as a store's file system: s3fs, without its memory of listings, and with errors that say what to do.

fsspec imports this file when a URL begins with s3:// and not before, so no other store pays for it (0.7 s).
"""

from typing import Any

from botocore.exceptions import BotoCoreError, ConnectionError, HTTPClientError, SSLError
from s3fs import S3FileSystem

from storage.errors import StorageError, StoreRefused, StoreUnreachable

PASSING = {"RequestTimeout", "SlowDown", "ServiceUnavailable", "InternalError", "OperationAborted", "500", "502", "503"}
REMEDIES = {
    "NoSuchBucket": "there is no such bucket: make it, or mend the URL",
    "NoCredentialsError": "no credentials were found: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE",
    "ProfileNotFound": "AWS_PROFILE names what the files of profiles do not have",
    "AccessDenied": "these credentials may not: malmm lists, reads, writes and deletes objects",
    "403": "these credentials are wrong, or may not: malmm lists, reads, writes and deletes objects",
    "InvalidAccessKeyId": "the endpoint does not know AWS_ACCESS_KEY_ID",
    "SignatureDoesNotMatch": "AWS_SECRET_ACCESS_KEY is wrong",
    "ExpiredToken": "the credentials have expired: get new ones",
    "SSLError": "its certificate is not trusted: AWS_CA_BUNDLE names a file of those that are",
    "PermanentRedirect": "the bucket is in another region: set AWS_REGION",
    "AuthorizationHeaderMalformed": "the bucket is in another region: set AWS_REGION",
}


class S3(S3FileSystem):
    """s3fs for several processes that write at once: what another has written is seen at the next look."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **{"use_listings_cache": False, **kwargs})

    async def _call_s3(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """Every request goes through here. Raises StorageError; FileNotFoundError where the object is not there."""
        bucket = kwargs.get("Bucket", "")
        try:
            answer = await super()._call_s3(method, *args, **kwargs)
        except Exception as error:
            raise _told(error, bucket, self._endpoint()) from error
        if method == "delete_objects" and (refused := answer.get("Errors")):  # which s3fs passes over in silence
            raise _refused(bucket, self._endpoint(), refused[0].get("Code", ""), f"{len(refused)} objects stay")
        return answer

    def _endpoint(self) -> str:
        return self._s3.meta.endpoint_url if self._s3 is not None else self.endpoint_url or "S3"


def _told(error: Exception, bucket: str, endpoint: str) -> Exception:
    """The error that a store raises for one of s3fs and botocore."""
    code = getattr(error.__cause__, "response", {}).get("Error", {}).get("Code", "")  # as the server gave it
    if isinstance(error, SSLError):  # a connection's error as well, but waiting does not mend it
        return _refused(bucket, endpoint, "SSLError", str(error))
    if isinstance(error, (ConnectionError, HTTPClientError, TimeoutError)) or code in PASSING:
        return StoreUnreachable(
            f"s3://{bucket}: {endpoint} does not answer as it should ({error}): try again, or mend AWS_ENDPOINT_URL"
        )
    if isinstance(error, FileNotFoundError) and code != "NoSuchBucket":
        return error
    if isinstance(error, (BotoCoreError, OSError, ValueError)):
        return _refused(bucket, endpoint, code or type(error).__name__, str(error))
    return error


def _refused(bucket: str, endpoint: str, code: str, said: str) -> StorageError:
    remedy = REMEDIES.get(code, "see AWS_ENDPOINT_URL, AWS_REGION and the credentials")
    return StoreRefused(f"s3://{bucket} at {endpoint}: {remedy} ({code}: {said})")
