"""A certificate of 127.0.0.1, signed by itself, for TLS servers of the tests. Nothing else trusts it."""

from __future__ import annotations

import ssl
from pathlib import Path

CERTIFICATE = """\
-----BEGIN CERTIFICATE-----
MIIBmTCCAUCgAwIBAgIUQ9g4s2cdK0rRuCpJ8mc8l1RzSNYwCgYIKoZIzj0EAwIw
GTEXMBUGA1UEAwwOaGVhZHBvbmQgdGVzdHMwIBcNMjYxMTI2MTEwMDUwWhgPMjEy
NjExMDIxMTAwNTBaMBkxFzAVBgNVBAMMDmhlYWRwb25kIHRlc3RzMFkwEwYHKoZI
zj0CAQYIKoZIzj0DAQcDQgAEQiONwLISily237pm0OKv+BLrkhHELpCTyNPX1zqz
wHOt2e+Wi8UBXungjhwo6MqacO9jPAhzZpMVJL8uOjK9lqNkMGIwHQYDVR0OBBYE
FPOnvb9SGVm14m8s/nOpLs9Eh0n2MB8GA1UdIwQYMBaAFPOnvb9SGVm14m8s/nOp
Ls9Eh0n2MA8GA1UdEQQIMAaHBH8AAAEwDwYDVR0TAQH/BAUwAwEB/zAKBggqhkjO
PQQDAgNHADBEAiA7Km1D6rKrZXYSJNuMiETckm8/gJCBdrQk48NWCrR5rAIgeFAQ
AxODKNI9ecRODYB7UDP0n2bzL/KP6ayoOVNm8aI=
-----END CERTIFICATE-----
"""
_PRIVATE_KEY = """\
-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgc10EH6YWWREDUGir
YWUJpUX5sT0FVvOAWcjE5S2ZYGqhRANCAARCI43AshKKXLbfumbQ4q/4EuuSEcQu
kJPI09fXOrPAc63Z75aLxQFe6eCOHCjoyppw72M8CHNmkxUkvy46Mr2W
-----END PRIVATE KEY-----
"""


def server_context(folder: Path) -> ssl.SSLContext:
    """Of a server; the files that ssl needs are written into `folder`."""
    file = folder / "loopback.pem"
    file.write_text(CERTIFICATE + _PRIVATE_KEY)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file)
    return context
