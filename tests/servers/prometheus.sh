#!/bin/sh
# A real agent's metrics under a real Prometheus: promtool finds nothing wrong in either format's
# text, and a server that scrapes it has the values. Needs `prometheus` and `promtool` (Debian:
# prometheus) and a built agent: tests/servers/prometheus.sh target/debug/agent
set -eu
agent=$(realpath "${1:-target/debug/agent}")
dir=$(mktemp -d)
trap 'kill $pids 2>/dev/null || true; rm -rf "$dir"' EXIT
pids=
cd "$dir"
printf 'reading-token-0123456789' > token
# shellcheck disable=SC2016 # the trainer's shell expands it
AGENT_TOKEN=control-token-0123456789 AGENT_READ_TOKEN_FILE=$dir/token "$agent" run \
    --store=store --job=j --run-dir=run --listen=127.0.0.1:0 -- sh -c '
    trap "exit 75" TERM
    echo "max_iters = 100"
    n=0; while :; do echo "iter $n: loss 2.5, time 20.00ms, mfu 1.00%"; n=$((n+1)); sleep 0.1; done
    ' '{run_dir}' > said 2>&1 &
pids=$!
address=
for _ in $(seq 200); do
    address=$(sed -n 's|.*served at http://\([^,]*\),.*|\1|p' said)
    [ -n "$address" ] && grep -q 'iter 20:' said && break
    sleep 0.1
done
[ -n "$address" ] || { cat said; exit 1; }
curl -fsS -H "Authorization: Bearer $(cat token)" "http://$address/metrics" > page
promtool check metrics < page
grep -q '^anneal_train_loss 2.5$' page
curl -fsS -H "Authorization: Bearer $(cat token)" \
    -H 'Accept: application/openmetrics-text; version=1.0.0' "http://$address/metrics" > open
tail -1 open | grep -qx '# EOF'
cat > prometheus.yml <<END
scrape_configs:
  - job_name: anneal
    scrape_interval: 1s
    authorization: {credentials_file: $dir/token}
    static_configs: [{targets: ["$address"]}]
END
promtool check config prometheus.yml
port=$(python3 -c 'import socket; s = socket.create_server(("127.0.0.1", 0)); print(s.getsockname()[1])')
prometheus --config.file=prometheus.yml --storage.tsdb.path=data \
    "--web.listen-address=127.0.0.1:$port" > prometheus.log 2>&1 &
pids="$pids $!"
for _ in $(seq 100); do
    answer=$(curl -fsS "http://127.0.0.1:$port/api/v1/query?query=anneal_train_loss" || true)
    case $answer in
        *'"2.5"'*) echo "prometheus has the loss: $answer"; exit 0 ;;
    esac
    sleep 0.3
done
tail -20 prometheus.log
echo "prometheus has not scraped the agent: $answer"
exit 1
