"""Certificate authority for tests, and a server certificate signed by it."""

from __future__ import annotations

import subprocess
from pathlib import Path


def make(folder: Path, name: str) -> Path:
    """Create ca.pem, and cert.pem with key.pem for the host `name`, in `folder`."""

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)

    curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    openssl("req", "-x509", *curve, "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=test CA", "-days", "2")
    openssl("req", *curve, "-keyout", "key.pem", "-out", "csr.pem", "-subj", f"/CN={name}")
    (folder / "ext").write_text(f"subjectAltName=DNS:{name}\n")
    signed = ["-in", "csr.pem", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-extfile", "ext"]
    openssl("x509", "-req", *signed, "-out", "cert.pem", "-days", "2")
    return folder
