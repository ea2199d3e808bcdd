"""Checks every dependency against deny.toml: licence, ban, source. Needs cargo and Python 3.11, no network."""

import json
import pathlib
import re
import subprocess
import sys
import tomllib

root = pathlib.Path(__file__).resolve().parent.parent
rules = tomllib.loads((root / "deny.toml").read_text())
allowed = set(rules["licenses"]["allow"])
banned = {b["crate"]: b.get("reason", "") for b in rules["bans"]["deny"]}


def permitted(expression):
    """Whether an SPDX expression can be met with allowed licences ('/' is the old spelling of OR)."""
    tokens = re.findall(r"\(|\)|[^\s()]+", expression.replace("/", " OR "))

    def either():
        result = both()
        while tokens and tokens[0] == "OR":
            tokens.pop(0)
            result = both() or result
        return result

    def both():
        result = one()
        while tokens and tokens[0] == "AND":
            tokens.pop(0)
            result = one() and result
        return result

    def one():
        token = tokens.pop(0)
        if token == "(":
            result = either()
            tokens.pop(0)
            return result
        if tokens and tokens[0] == "WITH":
            token = f"{token} WITH {tokens[1]}"
            del tokens[:2]
        return token in allowed

    return either()




def cargo(*arguments):
    command = ["cargo", *arguments, "--locked"]
    return subprocess.run(command, capture_output=True, text=True, check=True, cwd=root).stdout


# What is built on this platform, tests included; other platforms are cargo-deny's to judge. `cargo metadata` alone also
# names optional dependencies that nobody asked for.
tree = cargo("tree", "--workspace", "-e", "normal,build,dev", "--prefix", "none", "-f", "{p}")
built = {tuple(line.split()[:2]) for line in tree.splitlines() if line}
packages = json.loads(cargo("metadata", "--format-version", "1"))["packages"]
packages = [p for p in packages if (p["name"], "v" + p["version"]) in built]
problems = []
for package in packages:
    name = f"{package['name']} {package['version']}"
    if package["name"] in banned:
        problems.append(f"{name}: banned ({banned[package['name']]})")
    if package["source"] is not None and not package["source"].startswith("registry+"):
        problems.append(f"{name}: source {package['source']} is not allowed")
    if not package["license"]:
        problems.append(f"{name}: no licence given")
    elif not permitted(package["license"]):
        problems.append(f"{name}: licence {package['license']} is not allowed")
print("\n".join(problems) or f"{len(packages)} packages: licences, bans and sources are as deny.toml says")
sys.exit(bool(problems))
