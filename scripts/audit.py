"""The report of scripts/audit: known vulnerabilities by pip-audit, newer releases by pip."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

CONSTRAINTS = "constraints.txt"
TIMEOUT_S = 600  # of each of both tools
PIP_AUDIT = [
    str(Path(sys.executable).with_name("pip-audit")),
    "--requirement",
    CONSTRAINTS,
    "--no-deps",
    "--disable-pip",
]
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
VULNERABLE = 1


def main() -> int:
    pins = [line.partition("==")[0] for line in Path(CONSTRAINTS).read_text().splitlines() if "==" in line]
    audited = run([*PIP_AUDIT, "--format", "json", "--progress-spinner", "off"])
    if audited is None:
        print("VULNERABILITIES NOT CHECKED: pip-audit could not reach its service (see above)")
        status = 0
    else:
        lines, status = vulnerabilities(audited["dependencies"])
        print("\n".join(lines))
    listed = run([*PIP, "list", "--outdated", "--format", "json"]) if index_answers() else None
    print("NEWER RELEASES NOT LISTED: no package index" if listed is None else "\n".join(newer(listed, pins)))
    return status


def index_answers() -> bool:
    """Return whether there is a package index; without one, pip lists nothing as outdated and does not fail."""
    found = subprocess.run([*PIP, "index", "versions", "pip"], capture_output=True, timeout=TIMEOUT_S, check=False)
    return found.returncode == 0


def run(command: list[str]) -> Any:
    """Return the JSON that a command prints, whatever its status; None where it prints none."""
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        print(f"{Path(command[0]).name} did not finish within {TIMEOUT_S} s", file=sys.stderr)
        return None
    return json.loads(done.stdout) if done.stdout.strip() else None


def vulnerabilities(dependencies: list[dict[str, Any]]) -> tuple[list[str], int]:
    """Return the lines to print and the exit status; a skipped package counts as not checked, never as safe."""
    skipped = [each for each in dependencies if "skip_reason" in each]
    found = [(each, flaw) for each in dependencies for flaw in each.get("vulns", [])]
    lines = []
    for package, flaw in found:
        fixed = ", ".join(flaw["fix_versions"]) or "no release"
        lines.append(f"VULNERABLE {package['name']} {package['version']}: {flaw['id']}, fixed in {fixed}")
    lines.append(
        f"{len(dependencies) - len(skipped)} of {len(dependencies)} pins checked, {len(found)} vulnerabilities"
    )
    if skipped:
        lines.append(f"NOT CHECKED, unknown to the vulnerability service: {names(skipped)}")
    return lines, VULNERABLE if found else 0


def newer(listed: list[dict[str, str]], pins: list[str]) -> list[str]:
    """Return a line for each pin with a newer release."""
    wanted = {normalized(pin) for pin in pins}
    rows = [each for each in listed if normalized(each["name"]) in wanted]
    return [
        f"{len(rows)} of {len(pins)} pins have a newer release",
        *(f"  {each['name']} {each['version']} -> {each['latest_version']}" for each in rows),
    ]


def names(packages: list[dict[str, Any]]) -> str:
    return ", ".join(each["name"] for each in packages)


def normalized(name: str) -> str:
    """Return a package's name as PEP 503 compares it, for the names that occur in pins."""
    return name.lower().replace("_", "-").replace(".", "-")


if __name__ == "__main__":
    sys.exit(main())
