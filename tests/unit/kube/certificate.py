"""A server with TLS, as api.example, and what a kubeconfig says of it."""

import base64
import ssl
from pathlib import Path

PAIR = """\
-----BEGIN CERTIFICATE-----
MIIBmjCCAUGgAwIBAgIUFtpkKsxBooRFZJuFmKVETCh2VggwCgYIKoZIzj0EAwIw
FjEUMBIGA1UEAwwLYXBpLmV4YW1wbGUwIBcNMjYxMTI4MTUyMzM2WhgPMjEyNjEx
MDQxNTIzMzZaMBYxFDASBgNVBAMMC2FwaS5leGFtcGxlMFkwEwYHKoZIzj0CAQYI
KoZIzj0DAQcDQgAEalPN2JCZJL/eMzsLDbsf7sma0siA8CWbrgV7I3yzvKi6Du8W
H957A3S2OYxpf/J4XEwNezz5TaB8YtKGIdKQdqNrMGkwHQYDVR0OBBYEFBOKFMG9
FVGjV1t9BBEZsVrz3g1XMB8GA1UdIwQYMBaAFBOKFMG9FVGjV1t9BBEZsVrz3g1X
MA8GA1UdEwEB/wQFMAMBAf8wFgYDVR0RBA8wDYILYXBpLmV4YW1wbGUwCgYIKoZI
zj0EAwIDRwAwRAIgEy1jEduUPL+ABFpFArQ5ilkzQFQSaH3mtrFHE7huaT4CIDjI
lXym2kFehRVC0picsk/UbUceDTSV2mPgLX4Y5bUM
-----END CERTIFICATE-----
-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgBd9X/bTpLKIvdEwX
M19gdyb0vOooksqtzuVDsLQBSuShRANCAARqU83YkJkkv94zOwsNux/uyZrSyIDw
JZuuBXsjfLO8qLoO7xYf3nsDdLY5jGl/8nhcTA17PPlNoHxi0oYh0pB2
-----END PRIVATE KEY-----
"""
"""A certificate that signed itself, until 2126, and its key: of nobody but these tests."""
CERTIFICATE, _, _ = PAIR.partition("-----BEGIN PRIVATE")
KEY = PAIR.removeprefix(CERTIFICATE)


def in_base64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


TRUSTED = {"certificate-authority-data": in_base64(CERTIFICATE), "tls-server-name": "api.example"}


def server_tls(folder: Path) -> ssl.SSLContext:
    """OpenSSL takes certificate and key from a file only."""
    pair = folder / "pair.pem"
    pair.write_text(PAIR)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(pair)
    return context
