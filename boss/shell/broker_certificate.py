"""The certificate of the embedded broker where it listens for other machines: made once for each address, and kept.

Access files hold it, and trust nothing else.
"""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
import re
from pathlib import Path
from typing import NamedTuple

from ecloud.config.secrets import write_private

VALID = datetime.timedelta(days=3650)
BEFORE = datetime.timedelta(days=1)
"""Clocks of other machines may be behind."""


class Certificate(NamedTuple):
    """Files in PEM form, and the certificate's text."""

    certificate: Path
    key: Path
    pem: str


def certificate_for(address: str, directory: Path) -> Certificate:
    """The one of that address in `directory`; made if there is none. Raises `OSError`."""
    name = re.sub(r"[^A-Za-z0-9.-]", "_", address)
    files = directory / f"broker-{name}.pem", directory / f"broker-{name}.key"
    if not all(path.exists() for path in files):
        pem, key = _make(address)
        write_private(files[1], key)
        write_private(files[0], pem)
    return Certificate(*files, files[0].read_text())


def _make(address: str) -> tuple[bytes, bytes]:
    """A certificate that signs itself, and its key."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "ECLOUD broker")])
    subject: x509.GeneralName = x509.DNSName(address)
    with contextlib.suppress(ValueError):
        subject = x509.IPAddress(ipaddress.ip_address(address))
    now = datetime.datetime.now(datetime.timezone.utc)
    usage = x509.KeyUsage(
        digital_signature=True, key_cert_sign=True, crl_sign=True, content_commitment=False, key_encipherment=False,
        data_encipherment=False, key_agreement=False, encipher_only=False, decipher_only=False,
    )  # fmt: skip
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BEFORE)
        .not_valid_after(now + VALID)
        .add_extension(x509.SubjectAlternativeName([subject]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    encoding = serialization.Encoding.PEM
    private = serialization.PrivateFormat.PKCS8
    return made.public_bytes(encoding), key.private_bytes(encoding, private, serialization.NoEncryption())
