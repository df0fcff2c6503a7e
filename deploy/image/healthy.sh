#!/bin/bash
# Whether the agent in this container lives: asks its /livez, without any other program. The
# image's health check. A trainer without an agent has nobody to ask; that it runs is enough.
set -euo pipefail
listen=${AGENT_LISTEN:-127.0.0.1:8080}
if [[ $listen == off || $(</proc/1/comm) == trainer ]]; then
    exit 0
fi
exec 3<>"/dev/tcp/127.0.0.1/${listen##*:}"
printf 'GET /livez HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n' >&3
read -r -t 4 _ status _ <&3
[[ $status == 200 ]]
