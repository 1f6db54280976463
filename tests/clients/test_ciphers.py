"""What sslscan finds on our ports: no protocol below TLS 1.2, no cipher that does not authenticate with AEAD."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.clients.front import HOST, Front
from tests.clients.programs import run
from tests.lab.fixtures import Lab, require
from tests.lab.process import missing_program

BINARY = "/usr/bin/sslscan"
PORTS = {
    "starttls": True,
    "starttls-required": True,
    "implicit": False,
    "submission": True,
    "submissions": False,
}

# Parts of names, OpenSSL's and IANA's. What has none of AEAD is CBC, RC4 or NULL, whether its name says so or not.
AEAD = ("GCM", "CHACHA20", "CCM")
WEAK = ("RC4", "DES", "NULL", "EXP", "ADH", "AECDH", "ANON", "MD5", "CBC")


class SslScan:
    @staticmethod
    def available() -> str | None:
        return missing_program(BINARY, "sslscan")


@pytest.fixture(params=PORTS.items(), ids=lambda port: str(port[0]))
def found(
    request: pytest.FixtureRequest, front: Front, module_lab: Lab, tmp_path: Path
) -> ElementTree.Element:
    """sslscan's report on one port."""
    require(SslScan)
    name, is_starttls = request.param
    report = tmp_path / "report.xml"
    options = ["--no-colour", "--timeout=5", *(["--starttls-smtp"] if is_starttls else [])]
    output = run([BINARY, *options, f"--xml={report}", f"{HOST}:{front.listener_port(name)}"])
    test = ElementTree.parse(report).getroot().find("ssltest")
    assert test is not None, output
    return test


def test_only_tls_1_2_and_1_3_with_forward_secrecy_and_aead(found: ElementTree.Element) -> None:
    protocols = {
        f"{protocol.get('type')} {protocol.get('version')}": protocol.get("enabled")
        for protocol in found.iter("protocol")
    }
    assert {name for name, enabled in protocols.items() if enabled != "0"} == {"tls 1.2", "tls 1.3"}
    assert {"ssl 2", "ssl 3", "tls 1.0", "tls 1.1"} <= set(protocols)  # it looked

    ciphers = {(str(cipher.get("sslversion")), str(cipher.get("cipher"))) for cipher in found.iter("cipher")}
    assert {version for version, _ in ciphers} == {"TLSv1.2", "TLSv1.3"}
    for version, name in ciphers:
        assert any(part in name for part in AEAD), name
        assert not any(part in name.upper() for part in WEAK), name
        assert version == "TLSv1.3" or name.startswith(("ECDHE-", "DHE-")), name
    assert all(int(str(cipher.get("bits"))) >= 128 for cipher in found.iter("cipher"))
    assert {cipher.get("strength") for cipher in found.iter("cipher")} <= {"strong", "acceptable"}

    assert {each.get("vulnerable") for each in found.iter("heartbleed")} == {"0"}
    assert {each.get("supported") for each in found.iter("renegotiation")} == {"0"}
